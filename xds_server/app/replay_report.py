"""Says in words what a replay found."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Final

from xds_server.app.replay import Difference, Outcome
from xds_server.model.ids import SHORT, ResourceName, TypeUrl
from xds_server.model.snapshot import Resource, TypeSnapshot
from xds_server.protocol import framing
from xds_server.protocol.messages import DeltaRequest, SotwRequest
from xds_server.wire.requests import decode_delta, decode_sotw
from xds_server.wire.tape.format import Sent, frames
from xds_server.wire.tape.reader import Entry, Got, Poll

NAMES: Final = 8
"""Names in one line; of the others their number is said."""
DIFFERENT, UNREADABLE = 1, 2


def exit_code(outcomes: Iterable[Outcome]) -> int:
    """0: all identical; 1: one differs; 2: none differs, and one cannot be read."""
    codes = {DIFFERENT if o.difference else UNREADABLE if o.unreadable else 0 for o in outcomes}
    return DIFFERENT if DIFFERENT in codes else max(codes, default=0)


def render(outcome: Outcome) -> list[str]:
    """Return lines for people; nothing of what clients say can steer a terminal."""
    return ["".join(c if c.isprintable() else "?" for c in line) for line in _lines(outcome)]


def _lines(outcome: Outcome) -> list[str]:
    title = _title(outcome)
    if outcome.difference is None:
        if outcome.unreadable:
            return [f"{title}: unreadable: {outcome.unreadable}"]
        return [f"{title}: identical: {_counts(outcome)}", *map(_indented, notes(outcome))]
    opened = f", it opened {outcome.header.time}" if outcome.header else ""
    lines = [f"{title}: different after {outcome.difference.after_s:.3f} s{opened}"]
    lines += map(_indented, what_differs(outcome))
    lines += map(_indented, notes(outcome))
    lines.append("  before that:")
    for after_s, entry in outcome.difference.before:
        lines.append(f"    {after_s:10.3f} s  {_entry(entry, outcome)}")
    return lines


def to_json(outcome: Outcome) -> dict[str, Any]:
    """Return the same for programs."""
    header, difference = outcome.header, outcome.difference
    return {
        "file": outcome.path.name,
        "stream": header.number if header else None,
        "node_id": header.node_id if header else None,
        "opened": header.time if header else None,
        "build": header.build if header else None,
        "protocol": header.settings.protocol if header else None,
        "only": _short(header.settings.only) if header and header.settings.only else None,
        "identical": difference is None and not outcome.unreadable,
        "requests": outcome.requests,
        "responses": outcome.responses,
        "duration_s": outcome.duration_s,
        "unreadable": outcome.unreadable or None,
        "notes": notes(outcome),
        "difference": None
        if difference is None
        else {
            "after_s": difference.after_s,
            "what": what_differs(outcome),
            "error": difference.error or None,
            "recorded": asdict(difference.recorded) if difference.recorded else None,
            "built": asdict(difference.built) if difference.built else None,
            "before": [
                {"after_s": after_s, "what": _entry(entry, outcome)}
                for after_s, entry in difference.before
            ],
        },
    }


def _title(outcome: Outcome) -> str:
    header = outcome.header
    if header is None:
        return outcome.path.name
    settings = header.settings
    only = f" {_short(settings.only)}" if settings.only else ""
    return f"stream {header.number} ({header.node_id}, {settings.protocol}{only})"


def _counts(outcome: Outcome) -> str:
    return (
        f"{_counted(outcome.requests, 'request')}, {_counted(outcome.responses, 'response')}, "
        f"{outcome.duration_s:.1f} s"
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _indented(text: str) -> str:
    return f"  {text}"


def notes(outcome: Outcome) -> list[str]:
    """What one should know of a tape beside whether it is identical."""
    found = []
    if outcome.difference is not None and outcome.unreadable:
        found.append(f"unreadable from there on: {outcome.unreadable}")
    if outcome.header is None:
        found.append("nothing is in it: recording stopped as the stream opened")
    elif outcome.ended:
        found.append(f"recording ended before the stream did: {outcome.ended}")
    elif not outcome.closed and not outcome.unreadable:
        found.append("the stream was open when recording stopped")
    if outcome.incomplete:
        numbers = ", ".join(map(str, outcome.incomplete))
        found.append(f"what the node refused on stream {numbers} is not known to the end")
    return found


# -- what differs ----------------------------------------------------------------------


def what_differs(outcome: Outcome) -> list[str]:
    """Return the first difference, one fact per line."""
    difference = outcome.difference
    if difference is None:
        return []
    there, here = difference.recorded, difference.built
    if there is None and here is None:
        return [f"this build fails: {difference.error}"]
    if here is None:
        return [f"the tape has {_response(there)}", "this build sends nothing more"]
    if there is None:
        return ["the tape has nothing more", f"this build sends {_response(here)}"]
    facts = [
        (f"{what}: the tape has {old or '(none)'}, this build sends {new or '(none)'}")
        for what, old, new in (
            ("type", _short(there.type_url), _short(here.type_url)),
            ("version", there.version, here.version),
            ("nonce", there.nonce, here.nonce),
            ("kind", _kind(there), _kind(here)),
        )
        if old != new
    ]
    if there.type_url != here.type_url:
        return [*facts, f"the tape has {_response(there)}", f"this build sends {_response(here)}"]
    facts += _names("resources", there.names, here.names)
    facts += _names("removed", there.removed, here.removed)
    facts += _contents(difference, there, here)
    if not facts:
        facts = ["the resources are the same, and the message around them is not"]
    return [f"{_short(here.type_url)} response, nonce {here.nonce}:", *facts]


def _response(it: Sent | None) -> str:
    if it is None:
        return "nothing"
    parts = [f"{_short(it.type_url)} {_kind(it)}, version {it.version}, nonce {it.nonce}"]
    parts += [f"with {_listed(it.names)}"] if it.names else ["without resources"]
    parts += [f"removing {_listed(it.removed)}"] if it.removed else []
    return ", ".join(parts)


def _kind(it: Sent) -> str:
    return "heartbeat" if it.heartbeat else "response"


def _names(what: str, there: Sequence[ResourceName], here: Sequence[ResourceName]) -> list[str]:
    more, less = set(here) - set(there), set(there) - set(here)
    facts = [f"{what}: this build sends also {_listed(sorted(more))}"] if more else []
    facts += [f"{what}: this build does not send {_listed(sorted(less))}"] if less else []
    if not facts and tuple(there) != tuple(here):
        facts.append(f"{what}: another order: {_listed(there)} became {_listed(here)}")
    return facts


def _contents(difference: Difference, there: Sent, here: Sent) -> list[str]:
    """Which resources of the same name are not the same."""
    old, new = (dict(zip(it.names, it.frames, strict=False)) for it in (there, here))
    changed = [name for name in new if name in old and old[name] != new[name]]
    facts = []
    for name in changed[:NAMES]:
        versions = _versions(difference.parts, here.type_url, name)
        was, now = versions.get(old[name]), versions.get(new[name])
        if was is not None and now is not None and was != now:
            facts.append(f"{name}: the tape has version {was}, this build sends version {now}")
        else:
            facts.append(f"{name}: version {now or was or 'unknown'}, but not the same bytes")
    if len(changed) > NAMES:
        facts.append(f"and {len(changed) - NAMES} more whose bytes are not the same")
    aliases = there.frames[len(there.names) :], here.frames[len(here.names) :]
    if not facts and aliases[0] != aliases[1]:
        facts.append("what is said of names that stand for nothing is not the same")
    return facts


def _versions(
    parts: Iterable[TypeSnapshot], type_url: TypeUrl, name: ResourceName
) -> dict[str, str]:
    """Versions of a resource, by what this build makes of them on the wire."""
    found: dict[str, str] = {}
    for part in parts:
        resource = part.resources.get(name)
        if resource is None or resource.type_url != type_url:
            continue
        for digest in _on_the_wire(resource):
            found[digest] = resource.version
    return found


def _on_the_wire(resource: Resource) -> Iterable[str]:
    yield from frames(framing.sotw_response("", "", "", (resource,)))
    yield from frames(framing.delta_response("", "", "", (resource,)))
    yield from frames(framing.delta_heartbeat("", "", "", (resource,)))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES])
    return shown if len(names) <= NAMES else f"{shown} and {len(names) - NAMES} more"


# -- events ----------------------------------------------------------------------------


def _entry(entry: Entry, outcome: Outcome) -> str:
    if isinstance(entry, Got):
        delta = outcome.header is not None and outcome.header.settings.protocol == "delta"
        request, _ = decode_delta(entry.body) if delta else decode_sotw(entry.body)
        return f"client: {_request(request)}"
    if isinstance(entry, Poll):
        if not entry.sent:
            return "server: nothing to send"
        return "server: " + "; ".join(map(_response, entry.sent))
    return "end"


def _request(request: SotwRequest | DeltaRequest) -> str:
    kind = _short(request.type_url)
    if request.error is not None:
        parts = [f"{kind} NACK of {request.response_nonce}: {request.error[:200]}"]
    elif request.response_nonce:
        parts = [f"{kind} ACK of {request.response_nonce}"]
    else:
        parts = [f"{kind} request"]
    if isinstance(request, SotwRequest):
        parts += [f"names {_listed(request.names)}"] if request.names else []
    else:
        parts += [f"subscribe {_listed(request.subscribe)}"] if request.subscribe else []
        parts += [f"unsubscribe {_listed(request.unsubscribe)}"] if request.unsubscribe else []
        has = len(request.initial_versions)
        parts += [f"has {_counted(has, 'resource')} from before"] if has else []
    return ", ".join(parts)


def _short(type_url: TypeUrl) -> str:
    return SHORT.get(type_url, type_url or "(the stream's type)")
