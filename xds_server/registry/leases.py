"""Endpoints that announce themselves, and for how long each is believed. Told the time."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from xds_server.errors import XdsServerError
from xds_server.model.ids import Locality, ProviderName
from xds_server.model.topology import Address, Provider

ADAPTER: Final = "registry"
"""What ``discovery.adapter`` says of a provider whose endpoints announce themselves."""
TTL_MIN_S: Final = 1.0
TTL_MAX_S: Final = 300.0
TTL_DEFAULT_S: Final = 10.0
HEARTBEAT_MAX_S: Final = 3.0
HEARTBEATS_PER_TTL: Final = 3
PER_PROVIDER_MAX: Final = 1_000
TOTAL_MAX: Final = 10_000
AWAY_S: Final = 2.0
"""``expire`` is called twice a second. After a longer gap this process was not there to hear
heartbeats, which is no fault of who sent them: all leases are given that time."""


class Refusal(StrEnum):
    """Why an announcement was not taken; a metric's label."""

    PROVIDER = "provider"  # not declared, or not for announcing
    MISMATCH = "mismatch"  # the endpoint is not what its provider is declared to be
    FULL = "full"
    LEASE = "lease"  # unknown, or over


class LeaseRefusedError(XdsServerError):
    """An announcement that is not taken; nothing has changed."""

    def __init__(self, why: Refusal, message: str) -> None:
        self.why = why
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Announcement:
    """What one endpoint says of itself when it comes."""

    provider: ProviderName
    address: Address
    locality: Locality = Locality()  # an empty level: as its provider's
    capabilities: frozenset[str] = frozenset()  # none: its provider's
    capacity_rps: float | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """One number, and when it was said."""

    value: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Lease:
    """One endpoint that is believed until ``expires_at_s``."""

    lease_id: str
    announcement: Announcement
    ttl_s: float
    registered_at_s: float
    heard_at_s: float
    utilisation_ratio: Said | None = None
    price_per_million_usd: Said | None = None

    @property
    def expires_at_s(self) -> float:
        """When it ends without another heartbeat."""
        return self.heard_at_s + self.ttl_s

    @property
    def heartbeat_s(self) -> float:
        """How often to send one: two may get lost."""
        return min(self.ttl_s / HEARTBEATS_PER_TTL, HEARTBEAT_MAX_S)


Key = tuple[ProviderName, Address]


@dataclass(slots=True)
class Leases:
    """All leases, by provider and address; an endpoint has one at most.

    Loss policy: beyond ``per_provider_max`` or ``total_max`` announcements are refused; what
    is held stays. Nothing is kept over a restart.
    """

    per_provider_max: int = PER_PROVIDER_MAX
    total_max: int = TOTAL_MAX
    ended: Counter[str] = field(default_factory=Counter)  # by why
    _providers: dict[ProviderName, Provider] = field(default_factory=dict)
    _held: dict[ProviderName, dict[Address, Lease]] = field(default_factory=dict)
    _keys: dict[str, Key] = field(default_factory=dict)
    _looked_s: float | None = None

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def providers(self) -> frozenset[ProviderName]:
        """Whose endpoints may announce themselves."""
        return frozenset(self._providers)

    def set_providers(self, declared: Mapping[ProviderName, Provider]) -> set[ProviderName]:
        """Take over another configuration; return whose leases ended by that.

        A lease that no longer fits what is declared of its provider ends too.
        """
        self._providers = {
            name: p
            for name, p in declared.items()
            if p.discovery and p.discovery.adapter == ADAPTER
        }
        over = [
            lease
            for name, held in self._held.items()
            for lease in held.values()
            if name not in self._providers or _misfit(lease.announcement, self._providers[name])
        ]
        return self._end(over, "configuration")

    def register(
        self, lease_id: str, announcement: Announcement, ttl_s: float, now_s: float
    ) -> Lease:
        """Hold a new lease, in place of that endpoint's older one. Raises LeaseRefusedError."""
        name, address = announcement.provider, announcement.address
        if name not in self._providers:
            raise LeaseRefusedError(Refusal.PROVIDER, self._not_here(name))
        misfit = _misfit(announcement, self._providers[name])
        if misfit:
            raise LeaseRefusedError(Refusal.MISMATCH, f"provider {name!r}: {misfit}")
        held = self._held.get(name, {})
        before = held.get(address)
        if before is not None:  # it has started anew, and lost its lease's id
            del self._keys[before.lease_id]
        elif len(held) >= self.per_provider_max or len(self) >= self.total_max:
            raise LeaseRefusedError(Refusal.FULL, f"provider {name!r}: too many endpoints")
        lease = Lease(lease_id, announcement, ttl_s, now_s, now_s)
        self._held.setdefault(name, {})[address] = lease
        self._keys[lease_id] = (name, address)
        return lease

    def heartbeat(
        self,
        lease_id: str,
        now_s: float,
        *,
        utilisation_ratio: float | None = None,
        price_per_million_usd: float | None = None,
    ) -> Lease:
        """Renew a lease, and note what was said. Raises LeaseRefusedError."""
        lease = self._find(lease_id, now_s)
        renewed = replace(
            lease,
            heard_at_s=now_s,
            utilisation_ratio=_newer(utilisation_ratio, lease.utilisation_ratio, now_s),
            price_per_million_usd=_newer(price_per_million_usd, lease.price_per_million_usd, now_s),
        )
        self._put(renewed)
        return renewed

    def deregister(self, lease_id: str, now_s: float) -> Lease:
        """End a lease. Raises LeaseRefusedError."""
        lease = self._find(lease_id, now_s)
        self._end([lease], "deregistered")
        return lease

    def expire(self, now_s: float) -> set[ProviderName]:
        """End the leases whose time is over; return whose they were."""
        away_s = self._away_s(now_s)
        self._looked_s = now_s
        everyone = [lease for held in self._held.values() for lease in held.values()]
        if away_s > AWAY_S:
            for lease in everyone:
                self._put(replace(lease, heard_at_s=min(lease.heard_at_s + away_s, now_s)))
            return set()
        return self._end([lease for lease in everyone if lease.expires_at_s <= now_s], "expired")

    def of(self, provider: ProviderName) -> Mapping[Address, Lease]:
        """Return a provider's leases by address."""
        return self._held.get(provider, {})

    def endpoints(self, provider: ProviderName) -> tuple[Address, ...]:
        """Return where a provider's leases are, sorted."""
        return tuple(sorted(self.of(provider)))

    def utilisation_ratio(self, provider: ProviderName) -> Said | None:
        """Return the mean of what a provider's endpoints say, as old as the oldest of them."""
        return _mean([lease.utilisation_ratio for lease in self.of(provider).values()])

    def price_per_million_usd(self, provider: ProviderName) -> Said | None:
        """Return the mean price: what a request costs when endpoints take turns."""
        return _mean([lease.price_per_million_usd for lease in self.of(provider).values()])

    def capacity_rps(self, provider: ProviderName) -> float | None:
        """Return the mean capacity of an endpoint, of those that say theirs."""
        said = [lease.announcement.capacity_rps for lease in self.of(provider).values()]
        known = [value for value in said if value is not None]
        return sum(known) / len(known) if known else None

    def _find(self, lease_id: str, now_s: float) -> Lease:
        key = self._keys.get(lease_id)
        lease = None if key is None else self._held[key[0]][key[1]]
        over = lease is None or lease.expires_at_s <= now_s
        if lease is None or (over and self._away_s(now_s) <= AWAY_S):
            raise LeaseRefusedError(Refusal.LEASE, "no such lease; register again")
        return lease

    def _away_s(self, now_s: float) -> float:
        return 0.0 if self._looked_s is None else now_s - self._looked_s

    def _put(self, lease: Lease) -> None:
        self._held[lease.announcement.provider][lease.announcement.address] = lease

    def _end(self, leases: list[Lease], why: str) -> set[ProviderName]:
        for lease in leases:
            name, address = lease.announcement.provider, lease.announcement.address
            del self._keys[lease.lease_id]
            del self._held[name][address]
            if not self._held[name]:
                del self._held[name]
            self.ended[why] += 1
        return {lease.announcement.provider for lease in leases}

    def _not_here(self, name: ProviderName) -> str:
        known = ", ".join(sorted(self._providers)) or "none"
        return f"no provider {name!r} takes announcements; these do: {known}"


def _misfit(announcement: Announcement, provider: Provider) -> str:
    """Say where an endpoint is not what its provider is declared to be; "" if it is."""
    for level in ("region", "zone", "sub_zone"):
        said, declared = getattr(announcement.locality, level), getattr(provider.locality, level)
        if said and declared and said != declared:
            return f"is declared in {level} {declared!r}, not {said!r}"
    lacking = provider.capabilities - announcement.capabilities
    if announcement.capabilities and lacking:
        return f"is declared to have {', '.join(sorted(lacking))}, which this endpoint lacks"
    return ""


def _newer(value: float | None, before: Said | None, now_s: float) -> Said | None:
    return before if value is None else Said(value, now_s)


def _mean(said: list[Said | None]) -> Said | None:
    known = [s for s in said if s is not None]
    if not known:
        return None
    return Said(sum(s.value for s in known) / len(known), min(s.at_s for s in known))
