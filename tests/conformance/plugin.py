"""For ``make conformance``: nothing may be skipped, and the verdict is by number."""

from collections import defaultdict

import pytest

from tests.conformance.cases import CASES, numbers

_verdicts: dict[int, set[str]] = defaultdict(set)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the numbered tests, the properties and the fuzzers."""
    kept = [
        item
        for item in items
        if numbers(item.name)
        or item.nodeid.startswith(("tests/conformance/", "tests/property/test_protocol.py"))
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    report = yield
    if report.skipped:  # an expected failure is one too
        report.outcome = "failed"
        report.longrepr = "nothing is skipped here"
    if report.when == "call" or report.failed:
        for number in numbers(item.name):
            _verdicts[number].add(report.outcome)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print every case with its verdict."""
    held = 0
    terminalreporter.section("cases")
    for case in CASES:
        verdicts = _verdicts.get(case.number, set())
        verdict = "held" if verdicts == {"passed"} else "BROKEN" if verdicts else "NOT TESTED"
        held += verdict == "held"
        terminalreporter.write_line(f"{case.number:3} {verdict:10} {case.promise}")
    terminalreporter.write_line(f"{held} of {len(CASES)}")
