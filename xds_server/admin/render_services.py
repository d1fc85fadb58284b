"""Services and instances as tables, from the JSON that the admin API sends."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Row: TypeAlias = Mapping[str, Any]
OLD_S: Final = 10.0
"""Values older than this are shown with their age."""
ROUGH_RATIO: Final = 0.1
"""Standard errors above this part of the value are shown."""
ASSUMED_RATIO: Final = 0.9
"""A capacity with a standard error of this part of it is assumed: nobody measured it."""
ROUGHEST_RATIO: Final = 10.0
"""Errors above so many times the value are not shown as numbers, nor above 999 %."""
_TRAFFIC: Final = ("rps", "in flight", "p50", "p95", "p99", "errors", "available")


def render_services(services: Sequence[Row]) -> RenderableType:
    """Return each service with its providers and their endpoints."""
    if not services:
        return Text("no services", style="dim")
    return Group(*(part for row in services for part in (*_service(row), "")))


def render_instances(instances: Sequence[Row]) -> RenderableType:
    """Return one line per instance."""
    if not instances:
        return Text("no instances", style="dim")
    table = _table("instance", "application", "locality", "phase", "up", "health")
    _numbers(table, *_TRAFFIC, "CPU", "memory", "USD/h")
    table.add_column("calls")
    for row in instances:
        table.add_row(
            row["node_id"],
            row["application"],
            row["locality"],
            row["phase"] or "-",
            _duration(row["age_s"]),
            _health(row["health"]),
            *_traffic(row["traffic"]),
            _reading(row["cpu_ratio"], percent=True),
            _bytes(row["memory_bytes"]),
            _reading(row["cost_usd_per_h"]),
            ", ".join(f"{s} {v:.1f}/s" for s, v in sorted(row["rps_by_service"].items())),
        )
    return table


def _service(service: Row) -> tuple[RenderableType, ...]:
    cost = service["cost_usd_per_h"]
    title = Text.assemble(
        (service["service"], "bold"),
        f"  {service['rps']:.1f}/s  {'?' if cost is None else f'{cost:.4g}'} USD/h",
    )
    table = _table("  provider", "locality", "health")
    _numbers(table, "hosts", *_TRAFFIC, "load", "capacity", "USD/M", "USD/h")
    for row in service["providers"]:
        healthy = row["healthy_hosts"]["value"]
        hosts = "?" if healthy is None else f"{healthy:.0f}"
        table.add_row(
            f"  {row['provider']}" + (" (standby)" if row["standby"] else ""),
            row["locality"],
            _health(row["health"]),
            f"{hosts} of {len(row['endpoints'])}",
            *_traffic(row["traffic"]),
            _reading(row["utilisation_ratio"], percent=True),
            _capacity(row["capacity_rps"]),
            _reading(row["price_per_million_usd"]),
            _reading(row["cost_usd_per_h"]),
        )
    used = [_usage(row) for row in service["providers"] if _is_metered(row)]
    lines = [_endpoint(p, e) for p in service["providers"] for e in p["endpoints"]]
    return (title, table, *used, *lines)


def _is_metered(provider: Row) -> bool:
    return any(provider[key]["value"] is not None for key in ("cpu_ratio", "memory_bytes"))


def _usage(provider: Row) -> Text:
    cpu, memory = provider["cpu_ratio"], provider["memory_bytes"]
    parts = [f"    {provider['provider']} uses", f"CPU {_reading(cpu, percent=True)}"]
    parts.append(f"memory {_bytes(memory)}")
    return Text("  ".join(parts), style="dim")


def _endpoint(provider: Row, endpoint: Row) -> Text:
    where = endpoint["address"]
    host, port = where["host"], where["port"]
    text = host if host.startswith("unix:") else f"{f'[{host}]' if ':' in host else host}:{port}"
    parts = [f"    {provider['provider']} {text}", endpoint["source"]]
    if endpoint["heard_s"] is not None:
        parts.append(f"heard {endpoint['heard_s']:.1f} s ago")
        parts.append(f"ends in {endpoint['expires_in_s']:.1f} s")
    for name, key in (("load", "utilisation_ratio"), ("USD/M", "price_per_million_usd")):
        if endpoint[key]["value"] is not None:
            parts.append(f"{name} {_reading(endpoint[key], percent=name == 'load')}")
    return Text("  ".join(parts), style="dim")


def _traffic(traffic: Row) -> tuple[str, ...]:
    return (
        _reading(traffic["rps"]),
        _reading(traffic["in_flight"]),
        *(_reading(traffic[f"latency_{q}_ms"], unit=" ms") for q in ("p50", "p95", "p99")),
        _reading(traffic["error_ratio"], percent=True),
        _reading(traffic["availability_ratio"], percent=True),
    )


def _capacity(reading: Row) -> str:
    """A capacity, and whether it was measured at all."""
    value, error = reading["value"], reading["standard_error"]
    if value is None or reading["stale"]:
        return _reading(reading)
    if reading["source"] == "declared":
        return f"{_plain(value)} (declared)"
    if error is not None and error >= ASSUMED_RATIO * abs(value):
        return f"{_plain(value)} (assumed)"
    return _reading(reading)


def _reading(reading: Row, *, percent: bool = False, unit: str = "") -> str:
    value, age_s = reading["value"], reading["age_s"]
    if value is None:
        return "-"
    text = f"{100.0 * value:.1f}" if percent else _plain(value)
    error, unit = reading["standard_error"], "%" if percent else unit
    if reading["stale"]:  # what chance did to it does not matter any more
        return f"{text}{unit} (stale {_duration(age_s or 0.0)})"
    if error is not None and error > ROUGH_RATIO * abs(value):
        text += f" ±{_error(error, abs(value), percent)}"
    old = age_s is not None and age_s > OLD_S
    return f"{text}{unit} ({_duration(age_s)} old)" if old else f"{text}{unit}"


def _error(error: float, size: float, percent: bool) -> str:
    """An error; one that says no more than that nothing is known is shown by its bound."""
    most = ROUGHEST_RATIO * size if size > 0.0 else math.inf
    scale, most = (100.0, min(most, 9.99)) if percent else (1.0, most)
    return f">{_plain(scale * most, 2)}" if error > most else _plain(scale * error, 2)


def _plain(value: float, digits: int = 4) -> str:
    """A number without exponent."""
    if abs(value) >= 10.0 ** (digits - 1):
        return f"{value:.0f}"
    text = f"{value:.{digits}g}"
    return f"{value:.6f}".rstrip("0").rstrip(".") if "e" in text else text


def _bytes(reading: Row) -> str:
    value = reading["value"]
    if value is None:
        return "-"
    return _reading(dict(reading) | {"value": value / 2**20}, unit=" MiB")


def _health(health: str) -> Text:
    style = {"ok": "", "unknown": "dim", "no telemetry": "yellow"}.get(health, "red")
    return Text(health, style=style)


def _duration(duration_s: float) -> str:
    for size_s, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if duration_s >= size_s:
            return f"{duration_s / size_s:.0f} {unit}"
    return f"{duration_s:.0f} s"


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in names:
        table.add_column(name, no_wrap=True)
    return table


def _numbers(table: Table, *names: str) -> None:
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
