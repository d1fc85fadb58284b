"""The history file on disk: made whole or not at all, opened, and what is wrong with it."""

from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import duckdb

from xds_server.errors import HistoryError
from xds_server.history.schema import SCHEMA_VERSION, statements, upgrades

_LIMITS: Final[dict[str, Any]] = {
    "threads": 1,  # beside an event loop: history is to cost little, not to be fast
    "memory_limit": "256MiB",
    "max_temp_directory_size": "1GiB",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}


def connect(path: Path, *, read_only: bool = False) -> duckdb.DuckDBPyConnection:
    """Open a history file; one that does not exist is made, unless ``read_only``.

    A file that was killed off in the middle of a write is mended by DuckDB from its log.
    Raises HistoryError.
    """
    try:
        if not read_only:
            _make(path)
        connection = duckdb.connect(str(path), read_only=read_only, config=_LIMITS)
    except (duckdb.Error, OSError) as error:
        raise explained(path, error) from error
    try:
        _check(path, connection, read_only=read_only)
    except BaseException:
        connection.close()
        raise
    if not read_only:  # now it is ours alone, and so is what a killed process left
        for left in path.parent.glob(f".{path.name}.export-*"):
            left.unlink(missing_ok=True)
    return connection


def explained(path: Path, error: Exception) -> HistoryError:
    """What went wrong and what a person can do about it."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    low = text.lower()
    if "set lock" in low:
        remedy = "end that process, or give this one a history.path of its own"
    elif any(sign in low for sign in ("no space", "could not write", "disk quota")):
        remedy = "free some space"
    elif isinstance(error, OSError) or any(
        sign in low
        for sign in ("permission", "no such file", "read-only", "cannot open", "is a directory")
    ):
        remedy = "give it a path that can be written, in a folder that exists"
    elif "interrupt" in low:
        remedy = "it took too long: ask for less time or a coarser resolution"
    else:
        remedy = f"move it away (`mv {path} {path}.damaged`) and a new one is begun"
    return HistoryError(str(path), text[:300], remedy)


def _make(path: Path) -> None:
    """Make an empty history, unless there is one: under another name, then in one step.

    DuckDB refuses a file that was begun and not finished, so nobody may see one.
    """
    if path.exists() and path.stat().st_size == 0:
        path.unlink()  # of an earlier attempt by hand, or `mktemp`
    if path.exists():
        return
    path.with_name(path.name + ".wal").unlink(missing_ok=True)  # of a file that was removed
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with duckdb.connect(str(new), config=_LIMITS) as connection:
        for statement in statements():
            connection.execute(statement)
        connection.execute("INSERT INTO meta VALUES (?, now()::TIMESTAMP)", [SCHEMA_VERSION])
        connection.execute("CHECKPOINT")
    with suppress(FileExistsError):  # another process was faster: its file is used
        path.hardlink_to(new)
    new.unlink()


def _check(path: Path, connection: duckdb.DuckDBPyConnection, *, read_only: bool) -> None:
    """Refuse what this program cannot read; bring what is older up to date."""
    try:
        found = connection.execute("SELECT version FROM meta").fetchall()
    except duckdb.CatalogException as error:
        raise HistoryError(
            str(path), "a DuckDB file, but not a history", "give history.path another name"
        ) from error
    except duckdb.Error as error:
        raise explained(path, error) from error
    if len(found) == 1 and 1 <= found[0][0] < SCHEMA_VERSION:
        _upgrade(path, connection, found[0][0], read_only=read_only)
    elif found != [(SCHEMA_VERSION,)]:
        version = found[0][0] if found else "none"
        raise HistoryError(
            str(path),
            f"its schema is version {version}, this program reads {SCHEMA_VERSION}",
            f"move it away (`mv {path} {path}.old`) and a new one is begun",
        )


def _upgrade(
    path: Path, connection: duckdb.DuckDBPyConnection, version: int, *, read_only: bool
) -> None:
    """In one transaction: a file is of one version or of the other."""
    try:
        connection.begin()
        ((database,),) = connection.execute("SELECT current_database()").fetchall()
        for statement in upgrades(version, f'"{database}"', temporary=read_only):
            connection.execute(statement)
        if not read_only:
            connection.execute("UPDATE meta SET version = ?", [SCHEMA_VERSION])
        connection.commit()
    except duckdb.Error as error:
        raise explained(path, error) from error
