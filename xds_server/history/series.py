"""Numbers for names: every provider, pair and route that history has rows of."""

from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

import numpy as np

from xds_server.core.tables import Ints
from xds_server.history.schema import PAIR, PROVIDER, ROUTE, SERIES_KEYS
from xds_server.model.history import Frame
from xds_server.model.ids import RouteKey

SeriesKey: TypeAlias = tuple[str, ...]
"""Values in the order of ``schema.SERIES_KEYS``."""
SERIES_MAX: Final = 500_000
"""Series that a file may have. Rows of further ones are dropped and counted: localities come
from nodes, so names are not bounded by mesh.yaml alone."""


class SeriesIds:
    """The ids of one file; remembers those of the last frame."""

    def __init__(self, known: Mapping[SeriesKey, int], *, limit: int = SERIES_MAX) -> None:
        self._ids = dict(known)
        self._next = max(self._ids.values(), default=0) + 1
        self._limit = limit
        self._frame: Frame | None = None
        self._of_frame: dict[str, Ints] = {}
        self.fresh: list[tuple[int, SeriesKey]] = []
        """Ids that were given out and are not in the file yet."""

    def of(self, frame: Frame) -> Mapping[str, Ints]:
        """Ids per kind: of providers (J,), pairs (P,), routes (R,); 0 where there is none left."""
        if frame is not self._frame:
            self._frame = frame
            self._of_frame = {
                PROVIDER.name: self._take(_provider_keys(frame)),
                PAIR.name: self._take(_pair_keys(frame)),
                ROUTE.name: self._take(_route_key(route) for route in frame.routes),
            }
        return self._of_frame

    def _take(self, keys: Iterable[SeriesKey]) -> Ints:
        return np.array([self._id(key) for key in keys], dtype=np.int64)

    def _id(self, key: SeriesKey) -> int:
        known = self._ids.get(key)
        if known is not None:
            return known
        if len(self._ids) >= self._limit:
            return 0
        self._ids[key] = given = self._next
        self._next += 1
        self.fresh.append((given, key))
        return given


def _provider_keys(frame: Frame) -> Iterable[SeriesKey]:
    for provider, service in zip(frame.providers, frame.services, strict=True):
        yield _key(PROVIDER.name, service=service, provider=provider)


def _pair_keys(frame: Frame) -> Iterable[SeriesKey]:
    for r, j in zip(frame.pair_route, frame.pair_provider, strict=True):
        yield _key(PAIR.name, provider=frame.providers[j], **_of_route(frame.routes[r]))


def _route_key(route: RouteKey) -> SeriesKey:
    return _key(ROUTE.name, **_of_route(route))


def _of_route(route: RouteKey) -> dict[str, str]:
    group = route.group
    return {
        "service": route.service,
        "application": group.application,
        "phase": group.phase,
        "region": group.locality.region,
        "zone": group.locality.zone,
        "sub_zone": group.locality.sub_zone,
        "template": group.template,
    }


def _key(kind: str, **values: str) -> SeriesKey:
    named = {"kind": kind, **values}
    return tuple(named.get(key, "") for key in SERIES_KEYS)
