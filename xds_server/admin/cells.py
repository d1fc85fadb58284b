"""Cells of the tables that a terminal is shown."""

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from rich.table import Table
from rich.text import Text

Row: TypeAlias = Mapping[str, Any]

_BAR: Final = 10
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"


def bar(share: float | None, width: int = _BAR) -> str:
    """Return a share of 0 to 1 as a bar of at most ``width`` characters."""
    if share is None:
        return ""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def share_bar(share: float | None) -> Text:
    """Return a share as per cent and as a bar."""
    return Text(f"{percent(share):>6} {bar(share):<{_BAR}}")


def move(row: Row) -> str:
    """Return what was done, and why not where it holds."""
    return f"{row['move']}: {row['hold_reason']}" if row["hold_reason"] else str(row["move"])


def route_name(group: Row, service: str) -> str:
    """Return who calls what."""
    return f"{group['application']} {group['phase']} {group['locality']} → {service}"


def plain_table(*columns: str) -> Table:
    """Return a table without lines."""
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def number_columns(table: Table, *columns: str) -> None:
    """Add columns of numbers."""
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)


def number(value: float | None) -> str:
    """Return three digits, or all before the point; ``-`` for what is not known."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100.0 else f"{value:.3g}"


def percent(ratio: float | None) -> str:
    """Return a ratio as per cent."""
    return "-" if ratio is None else f"{100.0 * ratio:.1f}%"


def ms(value: float | None) -> str:
    """Return milliseconds."""
    return "-" if value is None else f"{number(value)} ms"


def duration(value_s: float) -> str:
    """Return hours, minutes and seconds."""
    minutes, seconds = divmod(int(value_s), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
