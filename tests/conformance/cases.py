"""What this server promises, by the numbers that the tests bear.

A promise is in the present tense and no larger than what its tests show. ``envoy`` marks those
that only the real Envoy can decide: they have a test under ``tests/e2e``.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]
_NAME = re.compile(r"test_case_(\d\d(?:_(?:and|to)_\d\d)*)_")


@dataclass(frozen=True, slots=True)
class Case:
    """One promise."""

    number: int
    promise: str
    envoy: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """One test and the cases that its name bears."""

    path: str  # of its file, from tests/
    name: str
    numbers: tuple[int, ...]


PROMISES: dict[int, str] = {
    1: "The node of a stream's first request counts for the whole stream; later requests need none.",
    2: "A first request without a node id ends its stream with INVALID_ARGUMENT.",
    3: "Another node id later on a stream is ignored, and said once in the log.",
    4: "A type_url is required on the aggregated stream and implied on a stream of one type.",
    5: "A type that is not served is counted and ignored; the stream goes on for the others.",
    6: "A server that is shutting down refuses streams instead of serving an empty world.",
    7: "Status codes say whose fault it is; a stream that is drained ends with OK.",
    8: "Requests of up to 32 MiB are read.",
    9: "An assignment of 8 MB reaches Envoy; responses above 4 MiB are said in the log.",
    10: "An empty first list for clusters or listeners is the wildcard, answered in one response.",
    11: "In SotW a change of one cluster or listener brings the whole set again.",
    12: "Routes and endpoints may be sent alone; the client keeps the others.",
    13: "Named clusters and listeners are the only ones sent, all in one response.",
    14: "A new resource under a wildcard brings the set under a new version.",
    15: "A name that does not exist yet is remembered and sent when it does.",
    16: "An ACK is not answered.",
    17: "A changed list on the same nonce and version is a change of subscription.",
    18: "Endpoints follow every changed cluster at once, whether Envoy asks or not.",
    19: "A NACK is known by its error_detail, whatever its version.",
    20: "What was refused is recorded with its reason and not sent again while it is the same.",
    21: "Names in a NACK count.",
    22: "A late NACK counts against its own response and leaves newer ones alone.",
    23: "A stale nonce is not answered.",
    24: "Names in a stale request count, and are answered once.",
    25: "An empty nonce after a response starts the type over.",
    26: "Nonces are never used twice on a stream.",
    27: "An empty response is sent only where it means something.",
    28: "What was unsubscribed is not sent any more.",
    29: "No names after names is no wildcard, and neither is one empty name.",
    30: "What is unsubscribed and asked for again is sent again at the same version.",
    31: "The wildcard, the wildcard with a name, a name, and nothing follow each other as specified.",
    32: "An empty first list means nothing for types that have no wildcard.",
    33: "No name is twice in a response.",
    34: "A version from an earlier SotW stream is no reason to send nothing; versions are content.",
    35: "A replica with other data sends it, whatever the client has.",
    36: "Types may be asked for in any order, aggregated or each on a stream of its own.",
    37: "The first wildcard is answered even when there is nothing.",
    38: "In delta only what changed is sent, each resource with its own version.",
    39: "In delta what goes is named in removed_resources.",
    40: "In delta a name that does not exist is said to be removed at once, and sent when it exists.",
    41: "In delta what is subscribed again is sent again.",
    42: "Unsubscribing an unknown name is ignored.",
    43: "A request that only unsubscribes is not answered.",
    44: "Under a wildcard, a name that is unsubscribed is answered with what the wildcard has of it.",
    45: "The wildcard and names are independent of each other.",
    46: "A name in both lists of a request ends unsubscribed.",
    47: "An unknown nonce blocks no subscription.",
    48: "Several responses may be in flight; answers find their own in any order.",
    49: "After a NACK what the client has of that response counts as unknown.",
    50: "A refused batch is bisected; the culprit alone is undone by name, the rest arrives.",
    51: "A client that neither ACKs nor NACKs is shown as silent, with the clusters that lack endpoints.",
    52: "A delta client that returns gets the difference and nothing else.",
    53: "When clusters are answered after a reconnect, their endpoints follow.",
    54: "The name outside a resource is the name inside it.",
    55: "A cluster is emptied by an assignment without endpoints.",
    56: "A filter configuration that a client subscribes to is not taken away.",
    57: "A subscription whose parent is gone is answered and holds nothing up.",
    58: "Virtual hosts are found by their aliases; an alias of nothing is answered too.",
    59: "A glob is a name that does not exist, and delta says so at once.",
    60: "Large delta responses are cut at 1 MiB; a SotW state of the world never.",
    61: "Delta responses carry the version of the world.",
    62: "Additions go out in the order in which they can be used, removals last.",
    63: "Routes wait for clusters and endpoints to be ACKed; endpoints wait for nothing.",
    64: "A cluster goes after routes without it are ACKed and its drain is over.",
    65: "A changed cluster gets its endpoints again, unchanged; one that warms for ever is released.",
    66: "Clusters that share an assignment get it once, and again for each newcomer.",
    67: "A change of weights touches no cluster and no endpoints.",
    68: "Weights that add up to nothing are never published.",
    69: "Weights that are no whole numbers in range are never published.",
    70: "Weights of providers never travel in endpoints, so clients' own weights are not reset.",
    71: "A change of weights rebuilds no load balancer.",
    72: "Only what has a TTL is wrapped with one.",
    73: "Heartbeats extend a TTL: without a body in delta, with it in SotW, as Envoy needs.",
    74: "Only the runtime layer has a TTL; when it ends, the baseline holds.",
    75: "A heartbeat is no change of configuration, and is counted apart.",
    76: "A client that does not read delays nobody, holds a bounded amount, and is ended and named.",
    77: "Any number of changes while a response is unanswered become one.",
    78: "Requests are answered while pushes never stop, and the other way round.",
    79: "Streams are admitted at a rate, in order; resources are framed once for all streams.",
    80: "Refused and half-open streams leave nothing behind.",
    81: "At SIGTERM new streams are refused and open ones ended over a window.",
    82: "A stream whose client certificate has run out is ended.",
}
_ENVOY = (9, 12, 17, 18, 33, 36, 49, 50, 51, 54, 55, 63, 64, 65, 68, 73, 74)
CASES = tuple(Case(n, promise, n in _ENVOY) for n, promise in PROMISES.items())


def numbers(name: str) -> tuple[int, ...]:
    """Cases that a test's name bears; a range counts all in it."""
    match = _NAME.match(name)
    if match is None:
        return ()
    first, *rest = re.split(r"_(and|to)_", match[1])
    found = [int(first)]
    for how, number in zip(rest[::2], rest[1::2], strict=True):
        found += range(found[-1] + 1, int(number)) if how == "to" else ()
        found.append(int(number))
    return tuple(found)


def collect() -> Iterator[Found]:
    """Every numbered test under tests/, in the order of files."""
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                borne = numbers(node.name)
                if borne:
                    yield Found(str(path.relative_to(TESTS)), node.name, borne)
