"""What instances and providers use: one module per source, and the choice between them."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from adapters.usage.processes import ProcessMetering
from adapters.usage.prometheus import PrometheusMetering
from xds_server.errors import AdapterError
from xds_server.model.ids import ProviderName
from xds_server.model.topology import Address, UsageSource
from xds_server.ports import Clock, Metering

__all__ = ["ProcessMetering", "PrometheusMetering", "open_metering"]


def open_metering(
    source: UsageSource,
    endpoints: Callable[[], Mapping[ProviderName, Collection[Address]]],
    folder: Path,
    clock: Clock,
) -> Metering:
    """Return what measures; AdapterError when nothing can.

    ``endpoints`` are those there are, by provider; files are relative to ``folder``.
    """
    options = dict(source.options)
    match source.adapter:
        case "prometheus":
            of_providers = "provider_label" in options
            queries = {
                field: options[f"{field.partition('_')[0]}_query"]
                for field in ("cpu_ratio", "memory_bytes", "utilisation_ratio")
                if f"{field.partition('_')[0]}_query" in options
            }
            return PrometheusMetering(
                options["url"],
                queries,
                options["provider_label" if of_providers else "node_label"],
                of_providers=of_providers,
                every_s=source.every_s,
            )
        case "psutil":
            return ProcessMetering(
                options.get("processes", {}),
                options.get("providers", ()),
                endpoints,
                folder,
                clock,
                every_s=source.every_s,
            )
    raise AdapterError(f"no usage adapter is named {source.adapter!r}", retryable=False)
