"""Writes the table of cases into docs/xds.md: ``python -m tests.conformance.table``."""

from collections.abc import Iterable

from tests.conformance.cases import CASES, TESTS, Found, collect

PAGE = TESTS.parent / "docs" / "xds.md"
BEGIN = "<!-- The table is written by `make generate`, from tests/conformance/cases.py. -->"
END = "<!-- end of the table -->"


def table(found: Iterable[Found]) -> str:
    """Return the table as Markdown."""
    tests = tuple(found)
    rows = ["| case | what is promised | tested in |", "|---|---|---|"]
    for case in CASES:
        files = dict.fromkeys(f.path for f in tests if case.number in f.numbers)
        places = ", ".join(f"[{p.removesuffix('.py')}](../tests/{p})" for p in files)
        mark = " (E)" if case.envoy else ""
        rows.append(f"| {case.number}{mark} | {case.promise} | {places} |")
    return "\n".join(rows)


def write() -> None:
    """Replace what is between the markers."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(collect())}\n\n{END}{after}")


if __name__ == "__main__":
    write()
