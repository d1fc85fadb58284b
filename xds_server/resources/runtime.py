"""The runtime layer of a group: weights as numbers, features as booleans."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from envoy_data_plane.envoy.service.runtime import v3 as runtime_v3
from envoy_data_plane.google.protobuf import Struct, Value

from xds_server.model.ids import RTDS, ApplicationName, ProviderName, ServiceName
from xds_server.model.snapshot import Resource
from xds_server.model.template import Flag
from xds_server.model.versions import make_resource
from xds_server.resources.patch import DoubleTemplate
from xds_server.resources.route import RouteTemplate, runtime_prefix

LAYER = "weights"
"""Name of the layer in every bootstrap; what it holds differs per group."""


@dataclass(frozen=True, slots=True)
class RuntimeTemplate:
    """An application's layer: without weights, and with places for them."""

    baseline: Resource  # features only: every route falls back to its RDS weights
    keys: tuple[tuple[ServiceName, ProviderName], ...]  # in the order of the patched numbers
    bytes_but_weights: DoubleTemplate
    flag_at: Mapping[str, int]  # where the byte of a feature's boolean is

    def switched(self, flags: Mapping[str, bool]) -> DoubleTemplate:
        """Return the layer with these features so, the others at their defaults.

        Names of features that the application does not have are passed over.
        """
        if not flags:
            return self.bytes_but_weights
        body = bytearray(self.bytes_but_weights.body)
        for name in flags.keys() & self.flag_at.keys():
            body[self.flag_at[name]] = flags[name]
        return DoubleTemplate(bytes(body), self.bytes_but_weights.offsets)


def runtime_template(
    application: ApplicationName, routes: Sequence[RouteTemplate], flags: Sequence[Flag]
) -> RuntimeTemplate:
    """Build both layers; keys are flat, which Envoy reads like nested ones."""
    keys = tuple((route.service, p) for route in routes for p in route.providers)
    features = {
        f"flags.{application}.{flag.name}": Value(bool_value=flag.default) for flag in flags
    }

    def author(numbers: list[float], other: str = "") -> bytes:
        weights = {
            f"{runtime_prefix(application, service)}.{provider}": Value(number_value=number)
            for (service, provider), number in zip(keys, numbers, strict=True)
        }
        switched = {other: Value(bool_value=not features[other].bool_value)} if other else {}
        return _layer({**weights, **features, **switched})

    some = [1.0] * len(keys)
    usual = author(some)
    return RuntimeTemplate(
        make_resource(RTDS, LAYER, _layer(features)),
        keys,
        DoubleTemplate.authored(author, len(keys)),
        {
            flag.name: _where(usual, author(some, f"flags.{application}.{flag.name}"))
            for flag in flags
        },
    )


def _where(one: bytes, other: bytes) -> int:
    """Find the only byte in which two messages of the same length differ."""
    (at,) = (i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    return at


def _layer(fields: Mapping[str, Value]) -> bytes:
    return bytes(runtime_v3.Runtime(name=LAYER, layer=Struct(fields=dict(fields))))
