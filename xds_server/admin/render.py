"""Status as tables, from the JSON that the admin API sends."""

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from xds_server.admin.cells import (
    Row,
    duration,
    move,
    ms,
    number,
    number_columns,
    percent,
    plain_table,
    route_name,
    share_bar,
)


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
    if status["slow"]:
        parts += ["", _slow(status["slow"])]
    return Group(*parts)


def _headline(status: Row) -> Text:
    tick = f"tick {status['ticks']}"
    if status["last_tick_age_s"] is not None:
        tick += f", {status['last_tick_age_s']:.1f} s ago, took {ms(status['last_tick_ms'])}"
    text = Text.assemble(
        (status["mesh"], "bold"),
        f"  mode {status['mode']}  up {duration(status['uptime_s'])}  {tick}",
        f"\n{status['config_path']}",
    )
    if status["config_error"]:
        text.append(f"\nnewest change refused: {status['config_error']}", style="red")
    for key in status["inert_keys"]:
        text.append(f"\nno effect yet: {key}", style="dim")
    return text


def _nodes(rows: Sequence[Row]) -> RenderableType:
    """One line per node, and below a line for each thing that is not as it should be."""
    table = plain_table("node", "instance", "locality", "via", "xDS")
    number_columns(table, "telemetry", "rps", "errors", "p95")
    notes: list[Text] = []
    for node in rows:
        age = node["telemetry_age_s"]
        open_types = [t for t in node["types"] if not _proven(t)]
        proven = len(node["types"]) - len(open_types)
        table.add_row(
            node["node_id"],
            f"{node['application']} {node['phase']} {duration(node['phase_s'])}",
            node["locality"],
            f"{node['protocol']}, {node['weights_via']}",
            f"{proven} of {len(node['types'])} ACK",
            Text("none", style="yellow") if age is None else f"{age:.1f} s",
            number(node["rps"]),
            percent(node["error_ratio"]),
            ms(node["latency_p95_ms"]),
        )
        about = [_delivery(t) for t in open_types]
        about += [_breach(b) for b in node["behaviour"] if b["state"] == "breach"]
        if node["waiting_for"]:
            names = ", ".join(node["waiting_for"])
            about.append(Text(f"no healthy hosts yet, so no traffic: {names}", style="yellow"))
        notes += [Text(f"{node['node_id']}: ").append_text(note) for note in about]
    return Group(table, *notes)


def _slow(rows: Sequence[Row]) -> RenderableType:
    """One line per thing that slow ticks decide about."""
    table = plain_table("slow tick", "what", "state", "next", "because")
    for row in rows:
        since = f" for {duration(row['since_s'])}" if row["since_s"] else ""
        ahead = f"{row['pending']}, if it stays so" if row["pending"] else ""
        if row["recommended"]:
            ahead = f"recommended: {row['recommended']}"
        table.add_row(row["kind"], row["target"], f"{row['state']}{since}", ahead, row["because"])
    return table


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
    low, high = number(band["low"]), number(band["high"])
    return Text(f"{about}: {number(band['value'])}, not {low} to {high}", style="yellow")


def _routes(rows: Sequence[Row]) -> RenderableType:
    return Group(*(part for row in rows for part in (_route_line(row), _shares(row))))


def _route_line(route: Row) -> Text:
    seen, slo = route["latency_p95_ms"], route["slo_p95_ms"]
    late = seen is not None and slo is not None and seen > slo
    return Text.assemble(
        (route_name(route, route["service"]), "bold"),
        f"  {route['instances']} inst.  {number(route['demand_rps'])}/s  ",
        f"mean {ms(route['latency_ms'])} (forecast {ms(route['predicted_latency_ms'])})  ",
        (f"p95 {ms(seen)} (SLO {ms(slo)})", "red" if late else ""),
        f"  {number(route['usd_per_million'])} USD/M  {move(route)}",
    )


def _shares(route: Row) -> RenderableType:
    table = plain_table("  provider", "asked", "observed")
    number_columns(table, "baseline")
    table.add_column("")
    for share in route["providers"]:
        table.add_row(
            f"  {share['provider']}",
            share_bar(share["share"]),
            share_bar(share["observed_share"]),
            percent(share["baseline_share"]),
            Text(share["excluded_because"], style="dim"),
        )
    return table


def _providers(rows: Iterable[Row]) -> Table:
    table = plain_table("provider", "service")
    number_columns(table, "endpoints", "rps", "mean", "p95", "errors", "load", "capacity", "USD/M")
    for row in rows:
        table.add_row(
            row["provider"],
            row["service"],
            str(row["endpoints"]),
            number(row["rps"]),
            ms(row["latency_ms"]),
            ms(row["latency_p95_ms"]),
            percent(row["error_ratio"]),
            percent(row["utilisation_ratio"]),
            number(row["capacity_rps"]),
            number(row["price_per_million_usd"]),
        )
    return table


def _bottlenecks(rows: Iterable[Row]) -> Table:
    table = plain_table("bottleneck")
    number_columns(table, "load", "delays others by")
    for row in rows:
        table.add_row(
            row["provider"],
            percent(row["utilisation_ratio"]),
            f"{number(row['rent_ms_per_s'])} ms/s",
        )
    return table
