"""What a client has, one resource at a time."""

from collections.abc import Iterator

from xds_server.protocol.quarantine import Quarantine
from xds_server.protocol.state import UNKNOWN, TypeState
from xds_server.protocol.status import ResourceState, Standing


def resource_states(state: TypeState, quarantine: Quarantine) -> Iterator[ResourceState]:
    """Yield everything of one type that the client was told, sorted by name."""
    url = state.subscription.type_url
    refusals = {
        name: refusal
        for (of, name), refusal in quarantine.refusals.items()
        if of == url and state.subscription.covers(name)
    }
    for name in sorted(state.sent.keys() | refusals.keys() | state.missing_told):
        sent, refusal = state.sent.get(name, UNKNOWN), refusals.get(name)
        acked = state.acked.get(name, "")
        error = ""
        if refusal is not None or name in state.refused:
            standing = Standing.REFUSED
            error = refusal.error if refusal is not None else state.last_nack
        elif name not in state.sent:
            standing = Standing.MISSING
        else:
            standing = Standing.ACKED if acked == sent.version else Standing.SENT
        yield ResourceState(
            url,
            name,
            sent.version,
            acked,
            standing,
            error,
            refusal.version if refusal is not None else "",
            sent.resource or state.good.get(name),
        )
