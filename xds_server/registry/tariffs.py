"""What price sources say of providers: of each the newest word, and when it was said."""

from collections.abc import Collection
from dataclasses import dataclass

from xds_server.model.ids import ProviderName
from xds_server.model.topology import Price


@dataclass(frozen=True, slots=True)
class Tariff:
    """One provider's price, and whose word it is."""

    price: Price
    source: str  # the adapter's name
    at_s: float  # when it was said or confirmed last


class Tariffs:
    """One tariff per provider that has a source of prices; bounded by them.

    A source that is lost leaves its last word in force: a price holds until it is changed, and
    its age is shown.
    """

    def __init__(self) -> None:
        self._held: dict[ProviderName, Tariff] = {}

    def take(self, name: ProviderName, tariff: Tariff) -> Tariff | None:
        """Put a new word in force; return the one before."""
        before = self._held.get(name)
        self._held[name] = tariff
        return before

    def of(self, name: ProviderName) -> Tariff | None:
        """Return the newest word; None before there was any."""
        return self._held.get(name)

    def forget(self, name: ProviderName) -> None:
        """Its source is another one now, or none."""
        self._held.pop(name, None)

    def keep(self, names: Collection[ProviderName]) -> None:
        """Forget all others."""
        self._held = {n: t for n, t in self._held.items() if n in names}
