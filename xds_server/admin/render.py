"""Status and explanations as tables, from the JSON that the admin API sends."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Row: TypeAlias = Mapping[str, Any]

_BAR: Final = 10
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"
_TERMS: Final = ("latency", "error", "price", "egress", "geography", "slo")
"""What ``total_ms`` of a provider adds up from."""


def render_status(status: Row) -> RenderableType:
    """Return all of ``/v1/status``: who is connected, what each route does, who is slow."""
    parts: list[RenderableType] = [_headline(status)]
    for title, table, rows in (
        ("nodes", _nodes, status["nodes"]),
        ("routes", _routes, status["routes"]),
        ("providers", _providers, status["providers"]),
        ("bottlenecks", _bottlenecks, status["bottlenecks"]),
    ):
        parts += ["", table(rows) if rows else Text(f"no {title}", style="dim")]
    return Group(*parts)


def render_explanation(explanations: Sequence[Row]) -> RenderableType:
    """Return one table per route: the terms of each provider, and what they add up to."""
    return Group(*(part for e in explanations for part in (_why(e), _terms(e), "")))


def bar(share: float | None, width: int = _BAR) -> str:
    """Return a share of 0 to 1 as a bar of at most ``width`` characters."""
    if share is None:
        return ""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _headline(status: Row) -> Text:
    tick = f"tick {status['ticks']}"
    if status["last_tick_age_s"] is not None:
        tick += f", {status['last_tick_age_s']:.1f} s ago, took {_ms(status['last_tick_ms'])}"
    text = Text.assemble(
        (status["mesh"], "bold"),
        f"  mode {status['mode']}  up {_duration(status['uptime_s'])}  {tick}",
        f"\n{status['config_path']}",
    )
    if status["config_error"]:
        text.append(f"\nnewest change refused: {status['config_error']}", style="red")
    for key in status["inert_keys"]:
        text.append(f"\nno effect yet: {key}", style="dim")
    return text


def _nodes(rows: Sequence[Row]) -> RenderableType:
    """One line per node, and below a line for each thing that is not as it should be."""
    table = _table("node", "instance", "locality", "via", "xDS")
    _numbers(table, "telemetry", "rps", "errors", "p95")
    notes: list[Text] = []
    for node in rows:
        age = node["telemetry_age_s"]
        open_types = [t for t in node["types"] if not _proven(t)]
        proven = len(node["types"]) - len(open_types)
        table.add_row(
            node["node_id"],
            f"{node['application']} {node['phase']} {_duration(node['phase_s'])}",
            node["locality"],
            f"{node['protocol']}, {node['weights_via']}",
            f"{proven} of {len(node['types'])} ACK",
            Text("none", style="yellow") if age is None else f"{age:.1f} s",
            _number(node["rps"]),
            _percent(node["error_ratio"]),
            _ms(node["latency_p95_ms"]),
        )
        about = [_delivery(t) for t in open_types]
        about += [_breach(b) for b in node["behaviour"] if b["state"] == "breach"]
        if node["waiting_for"]:
            names = ", ".join(node["waiting_for"])
            about.append(Text(f"no healthy hosts yet, so no traffic: {names}", style="yellow"))
        notes += [Text(f"{node['node_id']}: ").append_text(note) for note in about]
    return Group(table, *notes)


def _proven(row: Row) -> bool:
    """Whether the node has said that it runs all that it should have."""
    return (
        bool(row["version_acked"])
        and row["version_acked"] == row["version_sent"]
        and (not row["refused"])
    )


def _delivery(row: Row) -> Text:
    """Say why one type on one stream is not proven: unanswered, refused or on its way."""
    name, sent = row["type"], row["version_sent"]
    if row["silent"]:
        why = f": no endpoints for {', '.join(row['lacks'])}" if row["lacks"] else ""
        return Text(f"{name} silent for {row['unanswered_s']:.0f} s{why}", style="red")
    if row["refused"]:
        names = ", ".join(row["refused"])
        return Text(f"{name} refused {names}: {row['last_nack']}", style="red")
    if row["last_nack"]:
        return Text(f"{name} NACK ({row['nacks']}): {row['last_nack']}", style="red")
    return Text(f"{name} sent {sent[:8]}" if sent else f"{name} not sent", style="yellow")


def _breach(band: Row) -> Text:
    about = f"{band['name']} {band['service']}".strip()
    low, high = _number(band["low"]), _number(band["high"])
    return Text(f"{about}: {_number(band['value'])}, not {low} to {high}", style="yellow")


def _routes(rows: Sequence[Row]) -> RenderableType:
    return Group(*(part for row in rows for part in (_route_line(row), _shares(row))))


def _route_line(route: Row) -> Text:
    seen, slo = route["latency_p95_ms"], route["slo_p95_ms"]
    late = seen is not None and slo is not None and seen > slo
    return Text.assemble(
        (_route_name(route, route["service"]), "bold"),
        f"  {route['instances']} inst.  {_number(route['demand_rps'])}/s  ",
        f"mean {_ms(route['latency_ms'])} (forecast {_ms(route['predicted_latency_ms'])})  ",
        (f"p95 {_ms(seen)} (SLO {_ms(slo)})", "red" if late else ""),
        f"  {_number(route['usd_per_million'])} USD/M  {_move(route)}",
    )


def _route_name(group: Row, service: str) -> str:
    return f"{group['application']} {group['phase']} {group['locality']} → {service}"


def _shares(route: Row) -> RenderableType:
    table = _table("  provider", "asked", "observed")
    _numbers(table, "baseline")
    table.add_column("")
    for share in route["providers"]:
        table.add_row(
            f"  {share['provider']}",
            _share(share["share"]),
            _share(share["observed_share"]),
            _percent(share["baseline_share"]),
            Text(share["excluded_because"], style="dim"),
        )
    return table


def _share(share: float | None) -> Text:
    return Text(f"{_percent(share):>6} {bar(share):<{_BAR}}")


def _move(row: Row) -> str:
    return f"{row['move']}: {row['hold_reason']}" if row["hold_reason"] else str(row["move"])


def _providers(rows: Iterable[Row]) -> Table:
    table = _table("provider", "service")
    _numbers(table, "endpoints", "rps", "mean", "p95", "errors", "load", "capacity", "USD/M")
    for row in rows:
        table.add_row(
            row["provider"],
            row["service"],
            str(row["endpoints"]),
            _number(row["rps"]),
            _ms(row["latency_ms"]),
            _ms(row["latency_p95_ms"]),
            _percent(row["error_ratio"]),
            _percent(row["utilisation_ratio"]),
            _number(row["capacity_rps"]),
            _number(row["price_per_million_usd"]),
        )
    return table


def _bottlenecks(rows: Iterable[Row]) -> Table:
    table = _table("bottleneck")
    _numbers(table, "load", "delays others by")
    for row in rows:
        table.add_row(
            row["provider"],
            _percent(row["utilisation_ratio"]),
            f"{_number(row['rent_ms_per_s'])} ms/s",
        )
    return table


def _why(explanation: Row) -> Text:
    route = explanation["route"]
    return Text.assemble(
        (_route_name(route["group"], route["service"]), "bold"),
        f"\n{_move(explanation)}; gain {_number(explanation['gain_ms'])} ms per request; ",
        f"{_number(explanation['demand_rps'])} calls/s; "
        f"forecast {_ms(explanation['predicted_latency_ms'])}, "
        f"observed {_ms(explanation['observed_latency_ms'])}",
    )


def _terms(explanation: Row) -> Table:
    """Columns ``_TERMS`` add up to ``total``; with ``rent`` to ``next``, by which they rank."""
    table = _table("provider", "asked")
    _numbers(table, "observed", *_TERMS, "total", "rent", "next")
    table.add_column("")
    terms = explanation["terms"]
    marks = _marks(terms)
    for term, mark in zip(terms, marks, strict=True):
        table.add_row(
            term["provider"],
            _share(term["share"]),
            _percent(term["observed_share"]),
            *(_number(term[f"{name}_ms"]) for name in _TERMS),
            Text(_number(term["total_ms"]), style="bold"),
            _number(term["queueing_rent_ms"]),
            _number(term["marginal_ms"]),
            mark,
        )
    table.caption = "ms-equivalent per request; total + rent (what others wait) = next"
    table.caption_justify = "left"
    return table


def _marks(terms: Sequence[Row]) -> list[Text]:
    """Name the provider that takes most, and the best of the others by its marginal cost."""
    allowed = [t for t in terms if t["allowed"] and t["marginal_ms"] is not None]
    most = max(allowed, key=lambda t: t["share"] or 0.0, default=None)
    rest = [t for t in allowed if t is not most]
    second = min(rest, key=lambda t: t["marginal_ms"], default=None)
    marks = []
    for term in terms:
        if not term["allowed"]:
            marks.append(Text(f"excluded: {term['excluded_because']}", style="dim"))
        elif term is most:
            marks.append(Text("most traffic", style="green"))
        else:
            marks.append(Text("runner-up" if term is second else ""))
    return marks


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _numbers(table: Table, *columns: str) -> None:
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100.0 else f"{value:.3g}"


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100.0 * ratio:.1f}%"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{_number(value)} ms"


def _duration(value_s: float) -> str:
    minutes, seconds = divmod(int(value_s), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
