"""A conversation with a stream machine, in both protocols, as one language."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from envoy.service.discovery.v3 import discovery_pb2

from xds_server.model.ids import SHORT
from xds_server.model.snapshot import Resource, Snapshot
from xds_server.model.versions import type_snapshot
from xds_server.protocol.delta import DeltaStream
from xds_server.protocol.events import Event
from xds_server.protocol.messages import DeltaRequest, Response, SotwRequest
from xds_server.protocol.sotw import SotwStream

TYPES = {short: url for url, short in SHORT.items()}
CDS, RDS = TYPES["CDS"], TYPES["RDS"]


def resource(kind: str, name: str, version: str = "1", ttl_s: float | None = None) -> Resource:
    return Resource(TYPES[kind], name, version, f"{name}@{version}".encode(), ttl_s)


def snapshot(extra: Iterable[Resource] = (), **kinds: dict[str, str]) -> Snapshot:
    """``snapshot(CDS={"a": "1"})``: names to versions per type, and ``extra`` as it is."""
    by_type: dict[str, list[Resource]] = {}
    for kind, named in kinds.items():
        ttl_s = 5.0 if kind == "RTDS" else None
        by_type[TYPES[kind]] = [resource(kind, n, v, ttl_s) for n, v in named.items()]
    for r in extra:
        by_type.setdefault(r.type_url, []).append(r)
    return Snapshot({url: type_snapshot(found) for url, found in by_type.items()})


@dataclass
class Client:
    """What a client has, by what it was told."""

    delta: bool
    now_s: float = 0.0
    has: dict[str, dict[str, str]] = field(default_factory=dict)
    drain_s: float = 0.0

    def __post_init__(self) -> None:
        kind = DeltaStream if self.delta else SotwStream
        self.stream = kind(drain_s=self.drain_s)
        self.last: dict[str, Response] = {}
        self.names: dict[str, tuple[str, ...]] = {}
        self.accepted: dict[str, str] = {}  # version_info of the last accepted response

    def ask(self, kind: str, *names: str, nonce: str = "", error: str | None = None) -> list[Event]:
        """First request, or a change of names; in delta they are the names to have now."""
        before = set(self.names.get(kind, ()))
        first = kind not in self.names
        self.names[kind] = names
        if self.delta:
            request: DeltaRequest | SotwRequest = DeltaRequest(
                TYPES[kind],
                tuple(sorted(set(names) - before)),
                () if first else tuple(sorted(before - set(names))),
                response_nonce=nonce,
                error=error,
            )
        else:
            last = self.last.get(kind)
            request = SotwRequest(
                TYPES[kind], names, nonce or (last.nonce if last else ""), error=error
            )
        return self.stream.receive(request, self.now_s)

    def resume(self, kind: str, has: Mapping[str, str]) -> list[Event]:
        """First request of a wildcard, by a client that has this from before."""
        self.names[kind] = ()
        self.has[kind] = dict(has)
        if self.delta:
            request: DeltaRequest | SotwRequest = DeltaRequest(
                TYPES[kind], initial_versions=dict(has)
            )
        else:
            request = SotwRequest(TYPES[kind], version_info="from before")
        return self.stream.receive(request, self.now_s)

    def poll(self, snap: Snapshot) -> list[str]:
        """What is sent now, as "CDS +a -b"; applied, not yet answered."""
        said = []
        for response in self.stream.poll(snap, self.now_s):
            kind = next(k for k, url in TYPES.items() if url == response.type_url)
            self.last[kind] = response
            self._apply(kind, response)
            gone = response.removed if self.delta else ()
            parts = [kind, *(f"+{n}" for n in response.names), *(f"-{n}" for n in gone)]
            said.append(" ".join(parts))
        return said

    def ack(self, *kinds: str) -> list[Event]:
        """Accept the newest response of each type."""
        return [e for kind in kinds for e in self._answer(kind, None)]

    def judge(self, snap: Snapshot, *bad: str) -> int:
        """Let an exchange run to its end: responses with a "name@version" of ``bad`` are refused.

        Returns how many responses there were.
        """
        responses = 0
        for _ in range(200):
            before = dict(self.last)
            had = {k: dict(v) for k, v in self.has.items()}
            said = self.poll(snap)
            if not said:
                return responses
            for kind in [line.split()[0] for line in said]:
                responses += 1
                offered = {f"{n}@{v}" for n, v in self.has[kind].items()}
                if offered & set(bad):
                    self.has[kind] = had.get(kind, {})
                    self.nack(kind, "contains what I do not take")
                else:
                    self.ack(kind)
            assert before != self.last
        raise AssertionError("it does not come to an end")

    def nack(self, kind: str, error: str = "bad") -> list[Event]:
        """Refuse the newest response."""
        return self._answer(kind, error)

    def _answer(self, kind: str, error: str | None) -> list[Event]:
        nonce = self.last[kind].nonce
        if self.delta:
            return self.stream.receive(
                DeltaRequest(TYPES[kind], response_nonce=nonce, error=error), self.now_s
            )
        names, version = self.names[kind], self.accepted.get(kind, "")
        if error is None:
            version = self.accepted[kind] = self.last[kind].version_info
        request = SotwRequest(TYPES[kind], names, nonce, version, error=error)
        return self.stream.receive(request, self.now_s)

    def _apply(self, kind: str, response: Response) -> None:
        has = self.has.setdefault(kind, {})
        if self.delta:
            message = discovery_pb2.DeltaDiscoveryResponse.FromString(response.payload)
            got = {r.name: r.version for r in message.resources}
            assert len(got) == len(message.resources)
            for name in message.removed_resources:
                has.pop(name, None)
            has.update(got)
            return
        whole = discovery_pb2.DiscoveryResponse.FromString(response.payload)
        bodies = [_inner(r) for r in whole.resources]
        fresh = dict(body.decode().split("@") for body in bodies)
        assert len(fresh) == len(bodies)
        if kind in ("CDS", "LDS", "SRDS"):
            has.clear()
        has.update(fresh)

    def start(self, snap: Snapshot) -> None:
        """Do what Envoy does at start: CDS, EDS, LDS, RDS, each answered."""
        clusters = tuple(snap.of(CDS).resources)
        routes = tuple(snap.of(RDS).resources)
        for kind, names in (("CDS", ()), ("EDS", clusters), ("LDS", ()), ("RDS", routes)):
            self.ask(kind, *names)
            self.poll(snap)
            if kind in self.last:
                self.ack(kind)


def _inner(message: object) -> bytes:
    if message.type_url.endswith(".Resource"):  # type: ignore[attr-defined]
        wrapped = discovery_pb2.Resource()
        message.Unpack(wrapped)  # type: ignore[attr-defined]
        return bytes(wrapped.resource.value)
    return bytes(message.value)  # type: ignore[attr-defined]
