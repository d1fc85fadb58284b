"""What an instance does against what its template says is normal.

A breach of a declared band is an anomaly at once; nothing is learned here.
"""

import math
from collections.abc import Iterator
from typing import Final

from xds_server.model.status import BandStatus
from xds_server.model.telemetry import InstanceSignals
from xds_server.model.template import Band, Behaviour

MIX_TOLERANCE: Final = 0.15
"""How far a service's part of the calls may be from its declared part."""


def check_bands(behaviour: Behaviour, signals: InstanceSignals) -> tuple[BandStatus, ...]:
    """Compare one instance's signals with every declared band."""
    return tuple(_bands(behaviour, signals))


def _bands(behaviour: Behaviour, signals: InstanceSignals) -> Iterator[BandStatus]:
    rates = signals.rps_by_service
    heard = math.isfinite(signals.telemetry_age_s)
    for service, band in behaviour.call_rate_rps.items():
        yield _state("call_rate_rps", service, rates.get(service, 0.0) if heard else None, band)
    total = sum(rates.values())
    for service, part in behaviour.call_mix.items():
        band = (max(0.0, part - MIX_TOLERANCE), min(1.0, part + MIX_TOLERANCE))
        share = rates.get(service, 0.0) / total if total > 0.0 else None
        yield _state("call_mix", service, share, band)
    for service, band in behaviour.response_bytes.items():
        value = signals.response_bytes_by_service.get(service)
        yield _state("response_bytes", service, value, band)
    single: tuple[tuple[str, Band | None, float | None], ...] = (
        ("error_ratio", behaviour.error_ratio, signals.error_ratio),
        ("read_ratio", behaviour.read_ratio, signals.read_ratio),
        ("cpu_ratio", behaviour.cpu_ratio, signals.cpu_ratio),
        ("memory_bytes", behaviour.memory_bytes, signals.memory_bytes),
    )
    for name, declared, measured in single:
        if declared is not None:
            yield _state(name, "", measured, declared)


def _state(name: str, service: str, value: float | None, band: Band) -> BandStatus:
    low, high = band
    if value is None or not math.isfinite(value):
        return BandStatus(name, service, None, low, high, "unmeasured")
    return BandStatus(name, service, value, low, high, "ok" if low <= value <= high else "breach")
