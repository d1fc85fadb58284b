"""Who is in the demo: providers, instances, their rates, and the ports that they got."""

import io
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

from xds_server.config import parse_mesh
from xds_server.model.ids import ApplicationName, ProviderName, ServiceName
from xds_server.model.topology import Mesh, Mode
from xds_server.resources.bootstrap import Json, render_bootstrap

MEAN_S: Final[Mapping[ProviderName, float]] = {
    "search-east": 0.045,
    "search-west": 0.055,
    "search-managed": 0.050,
    "payments-main": 0.030,
    "payments-alt": 0.040,
}
"""Mean service times. With the mesh's concurrencies no provider of search can carry the
peak of 150 requests/s alone (east 133, west 109, managed 120), but any two of them can."""

QUEUE: Final = 48
"""Requests that wait at an endpoint before it refuses more."""

PEAK_RPS: Final[Mapping[tuple[ApplicationName, ServiceName], float]] = {
    ("checkout", "search"): 42.0,
    ("checkout", "payments"): 17.0,
    ("browse", "search"): 28.0,
}
"""Open-loop requests/s of one instance at the peak."""

CLOSED_USERS: Final = 1
"""Closed-loop users per instance and service, beside the open-loop load."""
THINK_S: Final = 0.4

INSTANCES: Final = (
    ("checkout-1", "checkout"),
    ("checkout-2", "checkout"),
    ("browse-1", "browse"),
    ("browse-2", "browse"),
)
LOCALITY: Final = {"locality.region": "us-east-1", "locality.zone": "a"}


@dataclass(frozen=True, slots=True)
class Instance:
    """One running copy of an application, that is: its sidecar."""

    name: str
    application: ApplicationName
    admin_port: int
    listeners: Mapping[ServiceName, int]

    @property
    def admin_url(self) -> str:
        """Where its Envoy answers for itself."""
        return f"http://127.0.0.1:{self.admin_port}"


@dataclass(frozen=True, slots=True)
class World:
    """Everything that has a port."""

    mesh: Mesh
    mesh_text: str
    instances: tuple[Instance, ...]
    controls: Mapping[ProviderName, int]

    @property
    def admin_url(self) -> str:
        """Where the controller answers for itself."""
        return f"http://{self.mesh.server.admin}"

    def services(self) -> tuple[tuple[ApplicationName, ServiceName], ...]:
        """Every (application, service), in order."""
        return tuple(
            (a.name, c.service) for a in self.mesh.applications.values() for c in a.template.calls
        )

    def providers_of(self, service: ServiceName) -> tuple[ProviderName, ...]:
        """Return the names of a service's providers, in order."""
        return tuple(p.name for p in self.mesh.services[service].providers)

    def slo_s(self) -> dict[tuple[ApplicationName, ServiceName], float]:
        """Return the most lenient p95 among each application's profiles.

        So what violates it is a violation in whatever phase the instance is.
        """
        out: dict[tuple[ApplicationName, ServiceName], float] = {}
        for name, service in self.services():
            profiles = self.mesh.applications[name].template.profiles
            out[name, service] = max(p.latency_p95_s or float("inf") for p in profiles)
        return out

    def bootstrap(self, instance: Instance) -> Json:
        """Return the bootstrap of an instance's Envoy."""
        settings = {
            "admin.address": f"127.0.0.1:{instance.admin_port}",
            **{f"listeners.{s}": f"127.0.0.1:{p}" for s, p in instance.listeners.items()},
            **LOCALITY,
        }
        return render_bootstrap(self.mesh, instance.application, instance.name, settings)

    def provider_command(self, name: ProviderName, seed: int) -> list[str]:
        """Return the command that runs a provider with the mesh's price and concurrency."""
        provider = self.mesh.providers[name]
        command = [sys.executable, "-m", "xds_server.demo.provider", "--name", name]
        for endpoint in provider.endpoints:
            command += ["--port", str(endpoint.port)]
        return [
            *command,
            *("--control", str(self.controls[name])),
            *("--mean-s", str(MEAN_S[name])),
            *("--concurrency", str(provider.capacity.concurrency or 1)),
            *("--queue", str(QUEUE)),
            *("--price-usd", str(provider.price.per_million_requests_usd)),
            *("--seed", str(seed)),
        ]


def make_world(mode: Mode) -> World:
    """Read the demo's mesh and give everything in it a free port."""
    yaml = YAML()
    text = (resources.files("xds_server.demo") / "mesh.yaml").read_text()
    tree: Any = yaml.load(text)
    endpoints = [
        endpoint
        for service in tree["services"].values()
        for provider in service["providers"].values()
        for endpoint in provider["endpoints"]
    ]
    calls = {
        name: list(tree["templates"][application["template"]]["calls"])
        for name, application in tree["applications"].items()
    }
    listeners = sum(len(calls[application]) for _, application in INSTANCES)
    ports = iter(free_ports(len(endpoints) + len(MEAN_S) + len(INSTANCES) + listeners + 2))
    for endpoint in endpoints:
        endpoint["port"] = next(ports)
    tree["mode"] = mode.value
    tree["server"]["xds"]["address"] = f"127.0.0.1:{next(ports)}"
    tree["server"]["admin"]["address"] = f"127.0.0.1:{next(ports)}"
    out = io.StringIO()
    yaml.dump(tree, out)
    instances = tuple(
        Instance(name, application, next(ports), {s: next(ports) for s in calls[application]})
        for name, application in INSTANCES
    )
    controls = {name: next(ports) for name in MEAN_S}
    mesh = parse_mesh(out.getvalue(), "mesh.yaml of the demo")
    return World(mesh, out.getvalue(), instances, controls)


def free_ports(count: int) -> list[int]:
    """Return ports that are free now; all are held until all are found, so they differ."""
    with ExitStack() as stack:
        ports = []
        for _ in range(count):
            held = stack.enter_context(socket.socket())
            held.bind(("127.0.0.1", 0))
            ports.append(int(held.getsockname()[1]))
        return ports


def write_files(world: World, directory: Path) -> Path:
    """Write the mesh and every bootstrap; return the mesh's path."""
    yaml = YAML(typ="safe")
    for instance in world.instances:
        with (directory / f"{instance.name}.yaml").open("w") as out:
            yaml.dump(world.bootstrap(instance), out)
    path = directory / "mesh.yaml"
    path.write_text(world.mesh_text)
    return path
