"""Every case has its test, and those that Envoy decides have one with Envoy."""

import pytest

from tests.conformance.cases import CASES, collect, numbers

FOUND = tuple(collect())


def test_there_are_82_cases() -> None:
    assert [case.number for case in CASES] == list(range(1, 83))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.number:02}")
def test_the_case_is_tested(case) -> None:  # type: ignore[no-untyped-def]
    tests = [found for found in FOUND if case.number in found.numbers]
    assert tests, f"no test for case {case.number}: {case.promise}"
    if case.envoy:
        assert any(found.path.startswith("e2e/") for found in tests), "it needs the real Envoy"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test_case_07_is", (7,)),
        ("test_case_07_and_09_are", (7, 9)),
        ("test_case_62_to_65_are", (62, 63, 64, 65)),
        ("test_case_6_is_none", ()),
        ("test_of_case_07", ()),
    ],
)
def test_numbers_are_read_from_names(name: str, expected: tuple[int, ...]) -> None:
    assert numbers(name) == expected
