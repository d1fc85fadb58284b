"""Sections of mesh.yaml that say where endpoints, prices and usage come from."""

from typing import Annotated, Final

from pydantic import Field

from xds_server.config.fields import (
    DnsName,
    Duration,
    IpAddress,
    NotNegative,
    Port,
    Query,
    Url,
    Word,
)
from xds_server.config.section import Section

DISCOVERY_KEYS: Final = {
    "dns": ("name", "port", "refresh_min_s", "nameserver"),
    "file": ("path", "refresh_s"),
    "http": ("url", "refresh_s"),
    "docker": ("url", "network", "refresh_s"),
    "registry": (),
}
"""By adapter, the keys beside ``adapter`` that mean something to it."""
PRICE_KEYS: Final = {"file": ("path", "refresh_s"), "http": ("url", "refresh_s")}
USAGE_QUERIES: Final = ("cpu_query", "memory_query", "utilisation_query")
USAGE_KEYS: Final = {
    "prometheus": ("every_s", "url", *USAGE_QUERIES, "node_label", "provider_label"),
    "psutil": ("every_s", "processes", "providers"),
}

Refresh = Annotated[float, Field(ge=0.1, le=86400.0)]


class DiscoverySection(Section):
    """Which adapter finds the endpoints, with that adapter's options."""

    adapter: Word = Field(examples=["dns"])
    name: DnsName | None = Field(default=None, examples=["search.example.com"])
    port: Port | None = Field(default=None, examples=[9110])
    refresh_min_s: Annotated[float, Field(ge=0.01, le=300.0)] = 1.0
    nameserver: IpAddress | None = Field(default=None, examples=["127.0.0.1:53"])
    path: Word | None = Field(default=None, examples=["./search.json"])
    url: Url | None = Field(default=None, examples=["http://127.0.0.1:8500/search"])
    network: Word | None = Field(default=None, examples=["mesh"])
    refresh_s: Refresh | None = Field(default=None, examples=[30])


class PriceSourceSection(Section):
    """Which adapter knows the price, with that adapter's options."""

    adapter: Word = Field(examples=["http"])
    path: Word | None = Field(default=None, examples=["./price.json"])
    url: Url | None = Field(default=None, examples=["http://127.0.0.1:8500/price"])
    refresh_s: Refresh | None = Field(default=None, examples=[30])


class PriceWindowSection(Section):
    """A time of day with a price of its own; what it does not say is as outside of it."""

    when: Word = Field(examples=['"0 22 * * *"'])
    lasts_s: Duration = Field(alias="for", examples=["8h"])
    per_million_requests_usd: NotNegative | None = Field(default=None, examples=[0.1])
    per_endpoint_hour_usd: NotNegative | None = Field(default=None, examples=[0.05])
    egress_per_gib_usd: NotNegative | None = Field(default=None, examples=[0.01])


class PriceSection(Section):
    """What a provider charges."""

    per_million_requests_usd: NotNegative = 0.0
    per_endpoint_hour_usd: NotNegative = 0.0
    egress_per_gib_usd: NotNegative = 0.0
    schedule: tuple[PriceWindowSection, ...] = Field(
        default=(), examples=['[{when: "0 22 * * *", for: 8h, per_million_requests_usd: 0.1}]']
    )
    source: PriceSourceSection | None = None


class EgressSection(Section):
    """What responses cost from one region to another."""

    origin: Word = Field(alias="from", examples=["us-east-1"])
    to: Word = Field(examples=["us-west-2"])
    per_gib_usd: NotNegative = Field(examples=[0.02])


class ProcessSection(Section):
    """How the processes of one instance are found: by exactly one of these."""

    pid_file: Word | None = Field(default=None, examples=["./run/checkout-1.pid"])
    port: Port | None = Field(default=None, examples=[8080])
    command: Word | None = Field(default=None, examples=["'gunicorn: .*checkout'"])


class UsageSection(Section):
    """Who measures what instances or providers use."""

    adapter: Word = Field(examples=["prometheus"])
    every_s: Refresh = 10.0
    url: Url | None = Field(default=None, examples=["http://127.0.0.1:9090"])
    cpu_query: Query | None = Field(
        default=None, examples=["sum by (pod) (rate(container_cpu_usage_seconds_total[1m]))"]
    )
    memory_query: Query | None = Field(
        default=None, examples=["sum by (pod) (container_memory_working_set_bytes)"]
    )
    utilisation_query: Query | None = Field(
        default=None, examples=["max by (cluster) (worker_pool_busy_ratio)"]
    )
    node_label: Word | None = Field(default=None, examples=["pod"])
    provider_label: Word | None = Field(default=None, examples=["cluster"])
    processes: dict[str, ProcessSection] = Field(
        default={}, examples=["{checkout-1: {pid_file: ./run/checkout-1.pid}}"]
    )
    providers: tuple[Word, ...] = Field(default=(), examples=["[search-east]"])
