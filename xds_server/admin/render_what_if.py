"""What-if and replayed decisions as tables, from the JSON that the admin API sends."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from xds_server.admin.cells import Row, percent, route_name

_PLANS: Final = (("now", "now"), ("held", "then, nothing done"), ("optimum", "then, re-planned"))
_SMALL_MS: Final = 0.005


def render_what_if(data: Row) -> RenderableType:
    """Return the answer of ``/v1/what-if``."""
    return Group(*_what_if(data))


def render_replay(data: Row) -> RenderableType:
    """Return the answer of ``/v1/replay-decisions``."""
    return Group(*_replay(data))


def _what_if(data: Row) -> Iterator[RenderableType]:
    yield Text.assemble(
        ("what if ", "bold"),
        ", ".join(data["changes"]),
        f"; by {data['source']}; nothing is changed",
    )
    for route in data["routes"]:
        yield Text()
        yield _route_line(route)
        yield _plans(route)
        yield _gain(route)
        yield _shares(route)
    if data["routes_left_out"]:
        yield Text(f"and {data['routes_left_out']} more routes would change")
    yield Text()
    yield _providers(data["providers"])
    yield Text(f"bottlenecks now: {_bottlenecks(data['bottlenecks_now'])}")
    yield Text(f"bottlenecks then: {_bottlenecks(data['bottlenecks_then'])}")
    for note in data["notes"]:
        yield Text(f"note: {note}", style="dim")


def _route_line(route: Row) -> Text:
    demand = f"{_number(route['demand_now_rps'])} calls/s"
    if route["demand_rps"] != route["demand_now_rps"]:
        demand += f", then {_number(route['demand_rps'])}"
    slo = route["slo_p95_ms"]
    return Text.assemble(
        (_name(route), "bold"),
        "" if route["asked"] else "  (shares providers)",
        f"  {demand}" + (f", SLO p95 {_number(slo)} ms" if slo is not None else ""),
    )


def _plans(route: Row) -> Table:
    table = _table("", "mean ms", "p95", "p99", "$/M", "$/h", "fails", "objective ms")
    for key, title in _PLANS:
        plan = route[key]
        table.add_row(
            title,
            _number(plan["latency_ms"]),
            Text(_number(plan["latency_p95_ms"]), style="red" if plan["slo_breached"] else ""),
            _number(plan["latency_p99_ms"]),
            _number(plan["usd_per_million"], 3),
            _number(plan["usd_per_h"], 3),
            percent(plan["failed_ratio"]),
            _number(plan["cost_ms"]),
            Text("above SLO", style="red") if plan["slo_breached"] else "",
        )
    return table


def _gain(route: Row) -> Text:
    terms = sorted(route["gain_terms_ms"].items(), key=lambda term: -abs(term[1]))
    parts = [f"{name} {value:+.2f}" for name, value in terms if abs(value) >= _SMALL_MS]
    of = f" = {' '.join(parts)}" if parts else ""
    rest = f"moves {percent(route['moved_ratio'])} of calls"
    if not route["would_move"]:
        rest = "too little for the engine to move anything"
    return Text(f"re-planning gains {route['gain_ms']:.2f} ms per call{of}; {rest}")


def _shares(route: Row) -> Table:
    names = [
        name
        for name in route["gain_terms_ms"]
        if any(abs(p["terms_ms"][name]) >= _SMALL_MS for p in route["providers"])
    ]
    table = _table("provider", "now", "then", *names, "total", "next")
    for provider in route["providers"]:
        gone = provider["excluded_because"]
        costs = [provider["terms_ms"][name] for name in names]
        costs += [provider["total_ms"], provider["marginal_ms"]]
        table.add_row(
            provider["provider"],
            percent(provider["share_now"]),
            percent(provider["share_then"]),
            *("" if gone else _number(value) for value in costs),
            Text(gone, style="dim"),
        )
    return table


def _providers(rows: Sequence[Row]) -> Table:
    table = _table(
        "provider", "capacity/s", "load/s now", "nothing done", "re-planned",
        "utilised now", "nothing done", "re-planned",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            row["provider"],
            _number(row["capacity_rps"]),
            *(_number(row[f"rps_{plan}"]) for plan in ("now", "held", "optimum")),
            *(percent(row[f"utilisation_{plan}"]) for plan in ("now", "held", "optimum")),
        )
    return table


def _bottlenecks(rows: Iterable[Row]) -> str:
    found = [
        f"{row['provider']} ({percent(row['utilisation_ratio'])} utilised, "
        f"{_number(row['rent_ms_per_s'])} ms of others' time per s)"
        for row in rows
        if row["rent_ms_per_s"] >= 1.0
    ]
    return ", ".join(found) or "none"


def _replay(data: Row) -> Iterator[RenderableType]:
    span = f"{_time(data['since_s'])} to {_time(data['until_s'])} UTC"
    yield Text(f"{span}, {data['steps']} steps of {data['resolution']}; nothing is changed")
    chosen, tried = data["chosen"], data["replayed"]
    changed = data["routes_changed"]
    yield Text.assemble(
        (f"with profile {data['profile']}: ", "bold"),
        f"p95 {tried['latency_p95_ms'] - chosen['latency_p95_ms']:+.1f} ms, ",
        f"mean {tried['latency_ms'] - chosen['latency_ms']:+.1f} ms, ",
        f"cost {_change(chosen['usd'], tried['usd'])}, ",
        f"{changed} of {len(data['routes'])} {_plural('route', len(data['routes']))} ",
        "would have changed",
    )
    table = _table(
        "route", "calls", "p95 was", "would be", "mean was", "would be", "observed", "$/M was",
        "would be", "SLO p95", "above it was", "would be", "moved",
    )  # fmt: skip
    for route in data["routes"]:
        was, would = route["chosen"], route["replayed"]
        table.add_row(
            Text(_name(route), style="bold" if route["changed"] else ""),
            f"{route['calls']:.0f}",
            *(_number(plan["latency_p95_ms"]) for plan in (was, would)),
            *(_number(plan["latency_ms"]) for plan in (was, would)),
            _number(route["observed_latency_ms"]),
            *(_number(plan["usd_per_million"], 3) for plan in (was, would)),
            _number(route["slo_p95_ms"]),
            *(f"{plan['slo_breach_s']:.0f} s" for plan in (was, would)),
            percent(route["moved_ratio"]),
        )
    yield table
    yield Text()
    shares = _table("route", "provider", "share was", "would be", text=2)
    for route in data["routes"]:
        for provider, share in route["shares_chosen"].items():
            shares.add_row(
                _name(route), provider, percent(share),
                percent(route["shares_replayed"][provider]),
            )  # fmt: skip
    yield shares
    for note in data["notes"]:
        yield Text(f"note: {note}", style="dim")


def _name(route: Row) -> str:
    return route_name(route, route["service"])


def _table(first: str, *numbers: str, text: int = 1) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for i, title in enumerate(numbers, 1):
        table.add_column(title, justify="left" if i < text else "right")
    table.add_column()
    return table


def _change(before: float, after: float) -> str:
    return f"{100.0 * (after / before - 1.0):+.0f} %" if before > 0.0 else "none"


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"


def _number(value: float | None, digits: int = 1) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000.0 else f"{value:.{digits}f}"


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
