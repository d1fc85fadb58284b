"""Explanations for a terminal: what was gained and by what, what each provider costs, why not."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from xds_server.admin.cells import (
    Row,
    move,
    ms,
    number,
    number_columns,
    percent,
    plain_table,
    route_name,
    share_bar,
)
from xds_server.model.decision import HoldReason

COST_TERMS: Final = (
    "latency", "queueing", "distance", "backlog", "error", "price", "egress", "geography", "slo",
)  # fmt: skip
"""What ``total_ms`` of a provider adds up from."""
_ALWAYS: Final = ("latency", "queueing", "price")
_SMALL: Final = 0.005
"""Part of a gain below which a term is not told."""
_SMALL_SHARE: Final = 5e-4
"""Part of the traffic that would be shown as 0.0%."""
_JUDGED: Final = (
    HoldReason.GAIN_BELOW_COST,
    HoldReason.DEADBAND,
    HoldReason.FRAGILE,
    HoldReason.FROZEN,
    HoldReason.RISKY,
)
"""Reasons to hold that come of the plan; for others no plan is weighed."""


def render_explanation(explanations: Sequence[Row], why_not: str = "") -> RenderableType:
    """Return, per route, its gain by terms, a table of its providers, and a sentence on each.

    With ``why_not`` the sentences are about that provider alone. Raises KeyError with the known
    names where no route has it.
    """
    known = sorted({name for e in explanations for name in _names(e)})
    if why_not and why_not not in known:
        raise KeyError(f"no provider {why_not}; known: {', '.join(known) or 'none'}")
    parts: list[RenderableType] = []
    for e in explanations:
        parts += [_why(e), _providers(e), *_sentences(e, why_not), ""]
    return Group(*parts)


def _names(explanation: Row) -> list[str]:
    return [t["provider"] for t in explanation["terms"]] + list(explanation["no_candidates"])


def gain_sentence(gain_ms: float | None, terms: Mapping[str, float | None]) -> str:
    """Say which terms a gain is made of, the largest first: ``price 2.1, latency -0.4``."""
    known = {name: value for name, value in terms.items() if value}
    least = _SMALL * max((abs(v) for v in known.values()), default=0.0)
    told = sorted((n for n in known if abs(known[n]) >= least), key=lambda n: -abs(known[n]))
    listed = ", ".join(f"{name} {known[name]:+.3g}" for name in told)
    return f"{number(gain_ms)} ms per request" + (f" = {listed}" if listed else "")


def _why(explanation: Row) -> Text:
    route = explanation["route"]
    text = Text.assemble(
        (route_name(route["group"], route["service"]), "bold"),
        f"\n{_move(explanation)}; {number(explanation['demand_rps'])} calls/s; "
        f"forecast {ms(explanation['predicted_latency_ms'])}, "
        f"observed {ms(explanation['observed_latency_ms'])}\n{_gain(explanation)}",
    )
    if explanation["move"] == "reweight" and explanation["gain_ms"] <= explanation["doubt_ms"]:
        text.append("\nit moves with the others: all routes together gain enough")
    for option in explanation["options"][1:2]:
        if option["move"] == "hold" or option["moved_ratio"] >= _SMALL_SHARE:
            text.append(
                f"\nrunner-up: {_plan(option)}, {_gained(option)}: {option['lost_because']}"
            )
    if explanation["outlook"]:
        text.append(f"\n{_outlook(explanation['outlook'])}")
    if explanation["next_provider"]:
        text.append(f"\none more request belongs to {explanation['next_provider']}")
    return text


def _move(explanation: Row) -> str:
    if explanation["move"] != "required":
        return move(explanation)
    return (
        "required: floors are fed, and providers that may not be used are left; "
        f"no more than that: {explanation['hold_reason']}"
    )


def _gain(explanation: Row) -> str:
    """Say what the move gains; where the route holds, what the best plan would, or why none."""
    gain, terms = explanation["gain_ms"] or 0.0, explanation["gain_terms"]
    reason = explanation["hold_reason"]
    told, cost = gain_sentence(abs(gain), terms), gain_sentence(abs(gain), _negated(terms))
    doubt = f"worth a move above {ms(explanation['doubt_ms'])}"
    match explanation["move"]:
        case "hold" if reason and reason not in _JUDGED:
            would = f"the best plan would gain {told}, but " if gain > 0.0 else ""
            return f"{would}it holds whatever a plan gains: {reason}"
        case "hold" if gain > 0.0:
            return f"the best plan would gain {told}; {doubt}"
        case "hold" if gain < 0.0:
            return f"no plan gains: the best would cost {cost}"
        case "hold":
            better = any((option["gain_ms"] or 0.0) > 0.0 for option in explanation["options"])
            return f"no plan is better {'for the mesh ' if better else ''}than to hold"
        case "required":
            return f"that costs {cost}" if gain < 0.0 else f"that gains {told}"
        case _:
            return f"costs {cost}" if gain < 0.0 else f"gain {told}; {doubt}"


def _negated(terms: Mapping[str, float | None]) -> dict[str, float]:
    return {name: -value for name, value in terms.items() if value}


def _gained(option: Row) -> str:
    gain = option["gain_ms"]
    return f"cost {ms(-gain)}" if gain is not None and gain < 0.0 else f"gain {ms(gain)}"


def _outlook(outlook: Row) -> str:
    """Say what the plan would be like over the next seconds, and what came of that."""
    part = outlook["part"]
    came = f"shortened to {percent(part)}: {_risk(outlook['made'])}" if part else "not made"
    said = f"simulated: {_risk(outlook['plan'])}; to hold {_risk(outlook['hold'])}"
    return said if part == 1.0 else f"{said}; {came}"


def _risk(risk: Row) -> str:
    said = f"{ms(risk['mean_ms'])} (worst tenth {ms(risk['worst_ms'])}"
    breach = risk["breach_ratio"]
    return said + (f", breaches its SLO in {percent(breach)})" if breach else ")")


def _plan(option: Row) -> str:
    if option["move"] == "hold":
        return "hold"
    return f"{option['move']} of {percent(option['moved_ratio'])} of the traffic"


def _providers(explanation: Row) -> Table:
    """Columns of ``COST_TERMS`` add up to ``total``; with ``rent`` to ``next``."""
    terms = explanation["terms"]
    shown = [n for n in COST_TERMS if n in _ALWAYS or any(t[f"{n}_ms"] for t in terms)]
    rows = plain_table("provider", "asked")
    number_columns(rows, "observed", "best", *shown, "total", "rent", "next")
    rows.add_column("")
    for term in terms:
        excluded = not term["allowed"]
        about = f"excluded: {term['excluded_because']}" if excluded else term["verdict"]
        rows.add_row(
            term["provider"],
            share_bar(term["share"]),
            percent(term["observed_share"]),
            percent(term["optimum_share"]),
            *(number(term[f"{name}_ms"]) for name in shown),
            Text(number(term["total_ms"]), style="bold"),
            number(term["queueing_rent_ms"]),
            number(term["marginal_ms"]),
            Text(about, style="dim" if excluded else ""),
        )
    rows.caption = "ms-equivalent per request; total + rent (what others wait) = next"
    rows.caption_justify = "left"
    return rows


def _sentences(explanation: Row, why_not: str) -> Iterator[Text]:
    for term in explanation["terms"]:
        asked = why_not in ("", term["provider"])
        if asked and (sentence := _sentence(explanation, term, full=bool(why_not))):
            yield Text(sentence)
    for name, lacks in explanation["no_candidates"].items():
        if why_not in ("", name):
            yield Text(f"{name} is no candidate: it {lacks}")


def _sentence(explanation: Row, term: Row, *, full: bool) -> str:
    name, verdict = term["provider"], term["verdict"]
    if verdict == "excluded":
        return f"{name} may not serve this route: {term['excluded_because']}" if full else ""
    lacks = _lacks(term) if term["short_ms"] else ""
    best = percent(term["optimum_share"])
    if verdict in ("rising", "falling"):
        ticks = term["ticks"]
        if ticks is None:
            when = f"but stays: {explanation['hold_reason']}"
        else:
            when = f"about {ticks} tick{'' if ticks == 1 else 's'} away if nothing changes"
            if explanation["hold_reason"]:
                when += f"; this tick holds: {explanation['hold_reason']}"
        said = f"{name} is {verdict} from {percent(term['share'])}, its best is {best}: {when}"
        return f"{said}; {lacks}" if lacks else said
    if lacks:
        return f"{name} {lacks}"
    if not full:
        return ""
    return (
        f"{name} has its share ({percent(term['share'])}; best {best}): one more request costs "
        "there as much as at the others that are used"
    )


def _lacks(term: Row) -> str:
    """Say what would get a provider more than its floor."""
    said = f"would have to be {ms(term['short_ms'])} faster"
    usd = term["short_usd_per_million"]
    if usd is not None:
        said += f" or ${usd:.2g} per million cheaper"
        if usd > term["usd_per_million"]:
            said += f" (more than the ${term['usd_per_million']:.2g} that it costs)"
    return f"{said} to get more than its floor of {percent(term['floor_share'])}"
