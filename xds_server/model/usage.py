"""What instances and providers use of the machines that they run on."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """What one instance, or all endpoints of one provider, use; NaN: nobody knows."""

    of: str  # a node id, or the name of a provider
    is_provider: bool = False
    cpu_ratio: float = math.nan  # CPU in use by what there is for it; above 1 where quotas are soft
    memory_bytes: float = math.nan
    utilisation_ratio: float = math.nan  # load by capacity, as the provider itself would say it
