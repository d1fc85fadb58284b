"""docs/configuration.md has every key of the schema, and its default."""

import re
from pathlib import Path

from pydantic_core import PydanticUndefined

from xds_server.config.schema import Section, schema_keys

PAGE = (Path(__file__).parents[2] / "docs/configuration.md").read_text()


def documented() -> dict[str, list[str]]:
    """Return the cells of each key's row; `PATH`: before a table says where its keys are."""
    rows: dict[str, list[str]] = {}
    prefix = ""
    for line in PAGE.splitlines():
        place = re.match(r"`([\w.]+)`: ", line)
        if place:
            names = place[1].split(".")
            prefix = ".".join("*" if name.isupper() else name for name in names) + "."
        row = re.match(r"\| `([\w.]+)` \|", line)
        if row:
            key = prefix + row[1]
            assert key not in rows, f"{key} is documented twice"
            rows[key] = [cell.strip() for cell in line.strip("|").split("|")]
    return rows


def test_every_key_is_documented_and_nothing_else_is() -> None:
    assert sorted(documented()) == sorted(schema_keys())


def test_every_row_says_type_default_and_meaning() -> None:
    assert {key: len(cells) for key, cells in documented().items() if len(cells) != 4} == {}
    assert [key for key, cells in documented().items() if not all(cells)] == []


def test_defaults_are_documented_as_they_are() -> None:
    wrong = {}
    for key, cells in documented().items():
        field = schema_keys()[key]
        default = cells[2].strip("`")
        if field.default is PydanticUndefined:
            right = default.startswith("required")
        elif isinstance(field.default, bool):
            right = default == str(field.default).lower()
        elif isinstance(field.default, Section) or (not field.default and field.default != 0):
            right = default not in {"", "required"}
        elif isinstance(field.default, dict):
            right = f"`{default}`" in PAGE and default == field.examples[0]
        else:
            right = default == str(field.default)
        if not right:
            wrong[key] = (default, field.default)
    assert wrong == {}
