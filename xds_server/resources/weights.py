"""Weights that Envoy can be trusted with.

Envoy checks weights in RDS, and not in RTDS: all zeros there are ACKed and then fail every
request. So nothing leaves without having passed here.
"""

from collections.abc import Iterable, Mapping

from xds_server.errors import InvalidWeightsError
from xds_server.model.ids import ProviderName

WEIGHT_MAX = 10_000
"""The sum that plans are quantised to; far inside Envoy's uint32 and the 3-byte varint."""


def validate_weights(
    what: str, weights: Mapping[ProviderName, int], providers: Iterable[ProviderName]
) -> None:
    """Check that every provider is named once, with a whole weight in range, and a sum above 0.

    Raises InvalidWeightsError, which names ``what``.
    """
    expected = set(providers)
    if weights.keys() != expected:
        wrong = sorted(weights.keys() ^ expected)
        raise InvalidWeightsError(f"{what}: missing or unknown providers: {', '.join(wrong)}")
    for provider, weight in weights.items():
        if type(weight) is not int or not 0 <= weight <= WEIGHT_MAX:
            raise InvalidWeightsError(
                f"{what}: weight of {provider} is {weight!r}, not an integer in 0..{WEIGHT_MAX}"
            )
    if sum(weights.values()) == 0:
        raise InvalidWeightsError(f"{what}: all weights are 0")
