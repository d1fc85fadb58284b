"""A conversation with a stream machine, in both protocols, as one language."""

from dataclasses import dataclass, field

from envoy.service.discovery.v3 import discovery_pb2

from xds_server.model.ids import CDS, EDS, LDS, RDS, RTDS
from xds_server.model.snapshot import Resource, Snapshot
from xds_server.protocol.delta import DeltaStream
from xds_server.protocol.events import Event
from xds_server.protocol.messages import DeltaRequest, Response, SotwRequest
from xds_server.protocol.sotw import SotwStream
from xds_server.resources.versions import type_snapshot

TYPES = {"CDS": CDS, "EDS": EDS, "LDS": LDS, "RDS": RDS, "RTDS": RTDS}


def resource(kind: str, name: str, version: str = "1", ttl_s: float | None = None) -> Resource:
    return Resource(TYPES[kind], name, version, f"{name}@{version}".encode(), ttl_s)


def snapshot(**kinds: dict[str, str]) -> Snapshot:
    """``snapshot(CDS={"a": "1"})``: names to versions per type."""
    return Snapshot(
        {
            TYPES[kind]: type_snapshot(
                resource(kind, n, v, 5.0 if kind == "RTDS" else None) for n, v in named.items()
            )
            for kind, named in kinds.items()
        }
    )


@dataclass
class Client:
    """What a client has, by what it was told."""

    delta: bool
    now_s: float = 0.0
    has: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stream = DeltaStream() if self.delta else SotwStream()
        self.last: dict[str, Response] = {}
        self.names: dict[str, tuple[str, ...]] = {}

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

    def nack(self, kind: str, error: str = "bad") -> list[Event]:
        """Refuse the newest response."""
        return self._answer(kind, error)

    def _answer(self, kind: str, error: str | None) -> list[Event]:
        nonce = self.last[kind].nonce
        if self.delta:
            return self.stream.receive(
                DeltaRequest(TYPES[kind], response_nonce=nonce, error=error), self.now_s
            )
        names = self.names[kind]
        return self.stream.receive(SotwRequest(TYPES[kind], names, nonce, error=error), self.now_s)

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
        if kind in ("CDS", "LDS"):
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
