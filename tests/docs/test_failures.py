"""docs/failures.md says what the tests say of themselves, and no row of it is claimed twice."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from launch.docs import failures
from launch.docs.failures import Row, failures_page, fault_rows, table_problems

GOOD = Row(
    fault="engine killed",
    part="engines",
    by="process",
    promise="it is started again.",
    bound="5 s.",
    test="tests/test_a.py::test_killed",
)
MARK = '@pytest.mark.fault("engine killed", part="engines", by="process")\n'


def test_page_is_up_to_date_and_no_row_lacks_anything() -> None:
    found = fault_rows()
    assert list(table_problems(found)) == []
    assert failures.PAGE.read_text() == failures_page(found), "run: python -m launch.docs.failures"


def row_of(folder: Path, text: str) -> list[Row]:
    (folder / "tests").mkdir()
    (folder / "tests" / "test_a.py").write_text(text)
    return fault_rows(folder)


@pytest.mark.parametrize("function", ["def", "async def"])
def test_a_marked_test_is_a_row_with_its_docstrings_words(tmp_path: Path, function: str) -> None:
    text = (
        "def test_unmarked(): ...\n"
        f'{MARK}@pytest.mark.parametrize("n", [1, 2])\n{function} test_killed(n):\n'
        '    """By hand.\n\n    Promise: it is\n    started again.\n    Bound: 5 s.\n    """\n'
    )
    assert row_of(tmp_path, text) == [GOOD]


@pytest.mark.parametrize(
    "docstring", ["", "It is started again.", "Promise: it is started again.", "Bound: 5 s."]
)
def test_a_marked_test_without_promise_or_bound_is_named(tmp_path: Path, docstring: str) -> None:
    found = row_of(tmp_path, f'{MARK}def test_killed():\n    """{docstring}"""\n')
    [problem] = table_problems(found)
    assert problem == f'{GOOD.test}: its docstring lacks "Promise: ... Bound: ..."'


def test_two_tests_of_one_fault_are_named() -> None:
    other = msgspec.structs.replace(GOOD, test="tests/test_b.py::test_also_killed")
    [problem] = table_problems([GOOD, other])
    assert problem == f"{other.test}: shows 'engine killed', as {GOOD.test} does"


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"fault": ""}, "its mark names no fault"),
        ({"part": "elsewhere"}, "part is 'elsewhere', expected one of engines, "),
        ({"by": "magic"}, "by is 'magic', expected one of process, "),
        ({"fault": failures.NOT_SHOWN[0][0]}, "which NOT_SHOWN says is not shown"),
    ],
)
def test_a_mark_that_does_not_fit_is_named(changes: dict[str, str], why: str) -> None:
    [problem] = table_problems([msgspec.structs.replace(GOOD, **changes)])
    assert why in problem
