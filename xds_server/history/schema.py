"""What the history file holds: tables, columns, and the version of both.

There are three kinds of series, each at three resolutions: ``provider_1s`` is one row per
provider and tick, ``provider_1m`` one per minute, ``provider_1h`` one per hour; likewise
``pair_*`` (group and provider) and ``route_*`` (group and service). A row stands for ``span_s``
seconds from ``at_utc`` on. Sums are sums; gauges are means weighted by ``span_s``; ``h_10`` counts
the responses that took at most 10 ms and more than the bound before it.

Two rows of one series may have one ``at_utc`` (the clock went back, or a minute was written in
parts): whoever reads adds them up.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from xds_server.model.history import (
    OUTCOME_SUMS,
    PAIR_GAUGES,
    PROVIDER_GAUGES,
    RESOLUTION_S,
    ROUTE_GAUGES,
)
from xds_server.model.telemetry import LATENCY_BUCKETS_MS

SCHEMA_VERSION: Final = 2
"""Of the tables. Older files are brought up to it; those of a later version are refused."""

COARSER: Final = {"1s": "1m", "1m": "1h"}
INTERVAL: Final = {"1m": "INTERVAL 1 MINUTE", "1h": "INTERVAL 1 HOUR"}

HIST_COLUMNS: Final = (*(f"h_{bound:g}" for bound in LATENCY_BUCKETS_MS), "h_inf")
COUNT_SUMS: Final = ("requests", "errors", "latency_sum_s", "responses")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of series."""

    name: str
    sums: tuple[str, ...]
    gauges: tuple[str, ...]
    has_hist: bool

    @property
    def hist(self) -> tuple[str, ...]:
        """Columns of the histogram."""
        return HIST_COLUMNS if self.has_hist else ()

    @property
    def values(self) -> tuple[str, ...]:
        """Every column with a measurement, in the order of the table."""
        return ("span_s", *self.sums, *self.gauges, *self.hist)

    def table(self, resolution: str) -> str:
        """Name of its table at that resolution."""
        return f"{self.name}_{resolution}"


PROVIDER: Final = Kind("provider", COUNT_SUMS, ("in_flight", *PROVIDER_GAUGES), has_hist=True)
PAIR: Final = Kind("pair", COUNT_SUMS, ("in_flight", *PAIR_GAUGES), has_hist=True)
ROUTE: Final = Kind("route", OUTCOME_SUMS, ROUTE_GAUGES, has_hist=False)
KINDS: Final = (PROVIDER, PAIR, ROUTE)

SERIES_KEYS: Final = (
    "kind", "service", "provider", "application", "phase", "region", "zone", "sub_zone", "template",
)  # fmt: skip
"""What a series is of; "" where a key does not apply to its kind."""

_EVENTS: Final = {
    "decision": {
        "series": "UINTEGER",  # of the route
        "move": "VARCHAR",
        "hold_reason": "VARCHAR",
        "gain_ms": "DOUBLE",
        "demand_rps": "DOUBLE",
        "predicted_s": "DOUBLE",
        "hold_predicted_s": "DOUBLE",
        "usd_per_million": "DOUBLE",
        "hold_usd_per_million": "DOUBLE",
    },
    "decision_weight": {"series": "UINTEGER", "weight": "UINTEGER"},  # of the pair
    # Per request, of moves alone; terms that are 0 are left out.
    "decision_term": {"series": "UINTEGER", "term": "VARCHAR", "gain_ms": "DOUBLE"},  # of the route
    "anomaly": {
        "state": "VARCHAR",  # breach, ok
        "node_id": "VARCHAR",
        "application": "VARCHAR",
        "phase": "VARCHAR",
        "band": "VARCHAR",
        "service": "VARCHAR",
        "value": "DOUBLE",
        "low": "DOUBLE",
        "high": "DOUBLE",
    },
}
EVENTS: Final = tuple(_EVENTS)
"""Tables with one row per event; all begin with ``at_utc`` and ``batch`` as well."""


def columns(table: str) -> tuple[str, ...]:
    """Every column of a table, in its order."""
    if table in _EVENTS:
        return ("at_utc", "batch", *_EVENTS[table])
    kind = next(k for k in KINDS if k.name == table.rpartition("_")[0])
    return ("at_utc", "batch", "series", *kind.values)


def statements() -> Iterator[str]:
    """Yield what makes an empty file a history file."""
    yield "CREATE TABLE meta (version INTEGER NOT NULL, created_utc TIMESTAMP NOT NULL)"
    keys = ", ".join(f"{key} VARCHAR NOT NULL" for key in SERIES_KEYS)
    yield f"CREATE TABLE series (id UINTEGER NOT NULL, {keys})"
    # Rolled up is what is of a batch up to ``batch`` and from before ``until_utc``.
    yield (
        "CREATE TABLE rolled (source VARCHAR NOT NULL, batch UINTEGER NOT NULL,"
        " until_utc TIMESTAMP NOT NULL)"
    )
    for kind in KINDS:
        for resolution in RESOLUTION_S:
            measured = ", ".join(
                f"{name} {'UBIGINT' if name in HIST_COLUMNS else 'DOUBLE'}" for name in kind.values
            )
            yield (
                f"CREATE TABLE {kind.table(resolution)} (at_utc TIMESTAMP NOT NULL,"
                f" batch UINTEGER NOT NULL, series UINTEGER NOT NULL, {measured})"
            )
            if resolution in COARSER:
                source = kind.table(resolution)
                yield f"INSERT INTO rolled VALUES ('{source}', 0, 'epoch'::TIMESTAMP)"
    for table in _EVENTS:
        yield _event_table(table)


def upgrades(version: int, database: str, *, temporary: bool = False) -> Iterator[str]:
    """Yield what makes a file of an older ``version`` one of this, with nothing lost.

    ``temporary``: for a connection to ``database`` that may not write, for as long as it lasts.
    """
    if version < 2:
        yield _event_table("decision_term", "TEMP TABLE" if temporary else "TABLE")
        for resolution in RESOLUTION_S:
            table, column = PROVIDER.table(resolution), "response_cv2"
            if temporary:  # shadows the table of that name
                yield (
                    f"CREATE TEMP VIEW {table} AS SELECT *, NULL::DOUBLE AS {column}"
                    f" FROM {database}.main.{table}"
                )
            else:
                yield f"ALTER TABLE {table} ADD COLUMN {column} DOUBLE"


def _event_table(table: str, kind: str = "TABLE") -> str:
    typed = ", ".join(f"{name} {sql_type}" for name, sql_type in _EVENTS[table].items())
    return f"CREATE {kind} {table} (at_utc TIMESTAMP NOT NULL, batch UINTEGER NOT NULL, {typed})"
