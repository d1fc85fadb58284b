"""What instances and providers use of the machines that they run on."""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Usage:
    """What one instance, or all endpoints of one provider, use; NaN: nobody knows."""

    of: str  # a node id, or the name of a provider
    is_provider: bool = False
    cpu_ratio: float = math.nan  # CPU in use by what there is for it; above 1 where quotas are soft
    memory_bytes: float = math.nan
    utilisation_ratio: float = math.nan  # load by capacity, as the provider itself would say it

    def over(self, other: "Usage") -> "Usage":
        """Return this one, with what ``other`` says where this one says nothing."""
        names = ("cpu_ratio", "memory_bytes", "utilisation_ratio")
        missing = {n: getattr(other, n) for n in names if math.isnan(getattr(self, n))}
        return replace(self, **missing)
