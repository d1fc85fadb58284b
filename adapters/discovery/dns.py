"""Endpoints from DNS: A and AAAA records at one port, or SRV records with theirs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

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
from dns.rdatatype import AAAA, SRV, A

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
    search domains are not tried. No answer within ``timeout_s`` raises.
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
        resolver = self._resolver()
        last: frozenset[Address] | None = None
        while True:
            found = await self._look_up(resolver)
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

    async def _look_up(self, resolver: dns.asyncresolver.Resolver) -> _Found:
        limit = asyncio.Semaphore(LOOKUPS_MAX)
        if self._port is not None:
            return await _addresses(resolver, limit, [(self._name, self._port)])
        records, ttl_s = await _records(resolver, limit, self._name, SRV)
        services = [r for r in records if isinstance(r, dns.rdtypes.IN.SRV.SRV)]
        first = min((r.priority for r in services), default=0)
        targets = {(r.target, r.port) for r in services if r.priority == first}
        targets = {t for t in targets if t[0] != dns.name.root}  # "not offered here"
        found = await _addresses(resolver, limit, sorted(targets))
        return _Found(found.addresses, min(ttl_s, found.ttl_s))


async def _addresses(
    resolver: dns.asyncresolver.Resolver,
    limit: asyncio.Semaphore,
    targets: Iterable[tuple[dns.name.Name, int]],
) -> _Found:
    """Look up both families of every target; one that is not answered fails them all."""
    queries = [(name, port, kind) for name, port in targets for kind in (A, AAAA)]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_records(resolver, limit, name, kind))
                for name, _, kind in queries
            ]
    except ExceptionGroup as failures:
        mine, other = failures.split(AdapterError)
        if mine is None or other is not None:
            raise
        raise mine.exceptions[0] from failures
    addresses: set[Address] = set()
    ttl_s = REFRESH_MAX_S
    for (_, port, _), task in zip(queries, tasks, strict=True):
        records, record_ttl_s = task.result()
        addresses |= {Address(r.address, port) for r in records if isinstance(r, _ADDRESS)}
        ttl_s = min(ttl_s, record_ttl_s)
    return _Found(frozenset(addresses), ttl_s)


async def _records(
    resolver: dns.asyncresolver.Resolver,
    limit: asyncio.Semaphore,
    name: dns.name.Name,
    kind: dns.rdatatype.RdataType,
) -> tuple[tuple[dns.rdata.Rdata, ...], float]:
    """Return the records and their TTL; none where the name or the type does not exist."""
    try:
        async with limit:
            answer = await resolver.resolve(name, kind, raise_on_no_answer=False)
    except dns.resolver.NXDOMAIN as error:
        response = error.response(name)  # type: ignore[no-untyped-call]
        return (), float(response.resolve_chaining().minimum_ttl)
    except (dns.exception.DNSException, OSError) as error:
        reason = " ".join(str(error).split())
        raise AdapterError(f"dns: {name} {kind.name}: {reason}", retryable=True) from error
    return tuple(answer.rrset or ()), float(answer.chaining_result.minimum_ttl)
