"""Endpoints from DNS: A and AAAA records at one port, or SRV records with theirs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

import dns.asyncresolver
import dns.exception
import dns.name
import dns.nameserver
import dns.rdata
import dns.rdatatype
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dns.rdtypes.IN.SRV
import dns.resolver
from dns.rdatatype import AAAA, SRV, A, RdataType

from xds_server.errors import AdapterError
from xds_server.model.topology import Address
from xds_server.ports import EndpointUpdate

REFRESH_MAX_S: Final = 300.0
"""Longest time between two look-ups, whatever the TTL is."""

_ADDRESS: Final = (dns.rdtypes.IN.A.A, dns.rdtypes.IN.AAAA.AAAA)
LOOKUPS_MAX: Final = 16
"""Queries in flight at once; the targets of a large SRV answer wait for each other."""


@dataclass(frozen=True, slots=True)
class _Found:
    """One look-up's addresses, and how long they may be believed."""

    addresses: frozenset[Address]
    ttl_s: float


class DnsDiscovery:
    """Looks a name up whenever its TTL has passed.

    A name that begins with ``_`` is looked up as SRV, and those records carry the ports; of
    several priorities the lowest number counts, as RFC 2782 has it. Names are absolute:
    search domains are not tried. No answer within ``timeout_s`` raises; where only one of A and
    AAAA is answered, and with records, that counts, and the other is what it was before.
    """

    def __init__(
        self,
        name: str,
        port: int | None = None,
        *,
        refresh_min_s: float = 1.0,
        nameserver: Address | None = None,
        timeout_s: float = 5.0,
        sleep_s: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        srv = name.startswith("_")
        if (port is None) is not srv:
            need = "has its ports in SRV records" if srv else "needs a port"
            raise AdapterError(f"dns: {name} {need}", retryable=False)
        try:
            self._name = dns.name.from_text(name)
        except (dns.exception.DNSException, UnicodeError) as error:
            raise AdapterError(f"dns: {name!r} is not a name: {error}", retryable=False) from error
        self._port = port
        self._refresh_min_s = refresh_min_s
        self._nameserver = nameserver
        self._timeout_s = timeout_s
        self._sleep_s = sleep_s

    async def watch(self) -> AsyncIterator[EndpointUpdate]:
        """Yield the set at first and whenever it changes; see ``ports.Discovery``."""
        lookup = _Lookup(self._resolver())
        last: frozenset[Address] | None = None
        while True:
            found = await self._look_up(lookup)
            if found.addresses != last:
                last = found.addresses
                yield EndpointUpdate(tuple(sorted(last)))
            await self._sleep_s(min(max(found.ttl_s, self._refresh_min_s), REFRESH_MAX_S))

    def _resolver(self) -> dns.asyncresolver.Resolver:
        """Read the system's settings anew at each watch: they may have changed since."""
        try:
            resolver = dns.asyncresolver.Resolver(configure=self._nameserver is None)
        except dns.exception.DNSException as error:
            raise AdapterError(
                f"dns: no name server is configured: {error}", retryable=True
            ) from error
        if self._nameserver is not None:
            host, port = self._nameserver.host, self._nameserver.port
            resolver.nameservers = [dns.nameserver.Do53Nameserver(host, port)]
        resolver.lifetime = self._timeout_s
        return resolver

    async def _look_up(self, lookup: "_Lookup") -> _Found:
        if self._port is not None:
            return await lookup.addresses([(self._name, self._port)])
        records, ttl_s = await lookup.records(self._name, SRV)
        services = [r for r in records if isinstance(r, dns.rdtypes.IN.SRV.SRV)]
        first = min((r.priority for r in services), default=0)
        targets = {(r.target, r.port) for r in services if r.priority == first}
        targets = {t for t in targets if t[0] != dns.name.root}  # "not offered here"
        found = await lookup.addresses(sorted(targets))
        return _Found(found.addresses, min(ttl_s, found.ttl_s))


class _Lookup:
    """One watch's look-ups, with the addresses that each name had in the newest one."""

    def __init__(self, resolver: dns.asyncresolver.Resolver) -> None:
        self._resolver = resolver
        self._limit = asyncio.Semaphore(LOOKUPS_MAX)
        self._known: dict[_Question, tuple[dns.rdata.Rdata, ...]] = {}

    async def addresses(self, targets: Iterable[tuple[dns.name.Name, int]]) -> _Found:
        """Look up both families of every target; one that is not answered fails them all."""
        wanted = list(targets)
        names = sorted({name for name, _ in wanted})
        async with asyncio.TaskGroup() as group:
            tasks = {
                (name, kind): group.create_task(self._try(name, kind))
                for name in names
                for kind in (A, AAAA)
            }
        answers = {question: task.result() for question, task in tasks.items()}
        known: dict[_Question, tuple[dns.rdata.Rdata, ...]] = {}
        ttl_s = REFRESH_MAX_S
        for name in names:
            for question, other in (((name, A), (name, AAAA)), ((name, AAAA), (name, A))):
                answer, beside = answers[question], answers[other]
                if not isinstance(answer, AdapterError):
                    known[question] = answer[0]
                    ttl_s = min(ttl_s, answer[1])
                elif isinstance(beside, AdapterError) or not beside[0]:
                    raise answer
                else:  # many servers fail on AAAA of names that have A alone
                    known[question] = self._known.get(question, ())
        self._known = known
        found = {
            Address(r.address, port)
            for name, port in wanted
            for kind in (A, AAAA)
            for r in known[name, kind]
            if isinstance(r, _ADDRESS)
        }
        return _Found(frozenset(found), ttl_s)

    async def _try(self, name: dns.name.Name, kind: RdataType) -> "_Answer | AdapterError":
        try:
            return await self.records(name, kind)
        except AdapterError as error:
            return error

    async def records(self, name: dns.name.Name, kind: RdataType) -> "_Answer":
        """Return the records and their TTL; none where the name or the type does not exist."""
        try:
            async with self._limit:
                answer = await self._resolver.resolve(name, kind, raise_on_no_answer=False)
        except dns.resolver.NXDOMAIN as error:
            response = error.response(name)  # type: ignore[no-untyped-call]
            return (), float(response.resolve_chaining().minimum_ttl)
        except (dns.exception.DNSException, OSError) as error:
            reason = " ".join(str(error).split())
            raise AdapterError(f"dns: {name} {kind.name}: {reason}", retryable=True) from error
        return tuple(answer.rrset or ()), float(answer.chaining_result.minimum_ttl)


_Question: TypeAlias = tuple[dns.name.Name, RdataType]
_Answer: TypeAlias = tuple[tuple[dns.rdata.Rdata, ...], float]
