"""The mesh of ``bench.soak``, and the changes that it goes through.

Everything is changed as an operator changes it: files are replaced. One step in five also
moves endpoints, one in twenty-five brings a provider or takes it away, one in ten changes a
cluster of people's own, and for a second in every fifteen that cluster is one that every
Envoy refuses.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PROVIDERS = ("a", "b", "c")
COMES_AND_GOES = "d"
STEPS_PER_S = 5
_REFUSED = range(25, 30)
_CYCLE = 75
_MESH = """\
mesh: soak
mode: enforce
engine: {{tick_s: 1.0, weights_ttl_s: 10, min_share_ratio: 0.02}}
telemetry: {{stats_flush_interval_s: 1.0, load_report_interval_s: 5.0}}
services:
  search:
    providers:
{providers}
templates:
  web:
    calls:
      search: {{timeout_s: 2.0, retries: 1, listener: "127.0.0.1:{listen}"}}
    profiles:
      steady: {{latency_p95_s: 0.5, weights: {{performance: 0.9, cost: 0.1}}}}
applications:
  shop: {{template: web}}
server:
  xds: {{address: "127.0.0.1:{xds}"}}
  admin: {{address: "127.0.0.1:{admin}"}}
resources:
  - path: own.yaml
"""
_PROVIDER = """\
      {name}:
        endpoints: [{endpoints}]
        capacity: {{concurrency: 16}}
        price: {{per_million_requests_usd: 1.0}}
        baseline_weight: {weight}
"""
_OWN = """\
"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
name: own
type: STATIC
connect_timeout: {connect_timeout_s}s
"""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where everything listens; two endpoints per provider."""

    xds: int
    admin: int
    listen: int
    upstreams: dict[str, tuple[int, int]]


class World:
    """The files that the control plane watches."""

    def __init__(self, folder: Path, ports: Ports, seed: int) -> None:
        self.path = folder / "mesh.yaml"
        self.steps = 0
        self._own = folder / "own.yaml"
        self._ports = ports
        self._generator = np.random.default_rng(seed)
        self._endpoints = dict.fromkeys(ports.upstreams, 0)
        self._extra = self._wanted = False
        self.step()

    def step(self, *, served: bool = True) -> None:
        """Make the next change; without a control plane no provider comes or goes.

        A SotW client that comes back does not say which clusters it has, so the answer to it
        takes one away that its routes still name: nothing that a server can do.
        """
        step = self.steps % _CYCLE
        if step % 5 == 1:
            name = PROVIDERS[self.steps // 5 % len(PROVIDERS)]
            self._endpoints[name] = (self._endpoints[name] + 1) % 3
        if self.steps % 25 == 10:
            self._wanted = not self._wanted
        if served:
            self._extra = self._wanted
        if step % 10 == 0 or step in (_REFUSED.start, _REFUSED.stop):
            # Envoy wants connect_timeout above zero.
            timeout_s = 0 if step in _REFUSED else 1 + self.steps % 7
            _replace(self._own, _OWN.format(connect_timeout_s=timeout_s))
        _replace(self.path, self._mesh())
        self.steps += 1

    def _mesh(self) -> str:
        names = [*PROVIDERS, COMES_AND_GOES] if self._extra else PROVIDERS
        ports = self._ports
        providers = "".join(self._provider(name) for name in names)
        return _MESH.format(
            providers=providers, listen=ports.listen, xds=ports.xds, admin=ports.admin
        )

    def _provider(self, name: str) -> str:
        weight = int(self._generator.integers(1, 100))
        endpoints = ", ".join(
            f"{{address: 127.0.0.1, port: {port}}}" for port in self._current(name)
        )
        return _PROVIDER.format(name=name, endpoints=endpoints, weight=weight)

    def _current(self, name: str) -> Iterator[int]:
        first, second = self._ports.upstreams[name]
        which = self._endpoints[name]  # the first, both, the second
        if which != 2:
            yield first
        if which != 0:
            yield second


def _replace(path: Path, text: str) -> None:
    """Write whole or not at all, as deployments do."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.replace(path)
