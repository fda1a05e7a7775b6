"""The picture of the rooms is up to date, and the figures beside it count what they say."""

import re
from pathlib import Path

import pytest

from scripts import architecture
from tests.paths import ROOT

# Two floors of rooms, `plan.py` over `store`, and inside `store` two files that import each other.
TREE = {
    "pipeline/__init__.py": '"""The package."""\n',
    "pipeline/plan.py": '''"""Plans steps."""
from __future__ import annotations

from pipeline.store import reader


class Plan:
    """What is done next."""

    def take(self) -> int:
        # The newest first.
        return reader.read_rows()

    def take_all(self) -> int:
        """Of all rows, the sum."""
        return 0

    def _hide(self) -> None: ...

    def __len__(self) -> int:
        return 0
''',
    "pipeline/store/__init__.py": "",
    "pipeline/store/reader.py": '''"""Reads rows."""
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.store.writer import Writer


def read_rows() -> int:
    return 0


def close(writer: "Writer") -> None: ...
''',
    "pipeline/store/writer.py": '''"""Writes rows."""


class Writer:
    def close(self) -> None:
        """`of` is code here, not a first word."""
        from .reader import read_rows

        read_rows()
''',
    "launch/cli.py": '"""To start a run."""\nimport pipeline.plan\n',
    "tests/pipeline/test_plan.py": "import pipeline\n\n",
    "tests/test_walls.py": "import launch\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_picture_of_the_rooms_is_up_to_date():
    committed = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    assert committed == architecture.draw_house(ROOT), "run: make architecture"


def test_figures_of_a_package_and_of_the_house_are_exact(root: Path):
    figures = architecture.measure_house(root)
    assert figures["pipeline"] == {
        "files": "5",
        "rooms": "2",  # plan.py, and the folder store
        "largest room, files": "3",
        "arrows between rooms": "1",
        "floors": "2",
        "circles of rooms": "0",
        "circles of files": "1",
        "lines": "43",
        "lines of code": "20",
        "lines of tests": "2",
        "function names of one word": "50 %",  # take and close; not take_all and read_rows
        "docstrings without a subject": "29 %",  # 2 of 7
    }
    assert {name: figures["house"][name] for name in ("rooms", "floors", "lines of tests")} == {
        "rooms": "3",
        "floors": "3",
        "lines of tests": "3",
    }


def test_imports_for_types_and_inside_functions_close_a_circle(root: Path):
    assert list(architecture.circle_lines(root)) == [
        "circle of files: pipeline/store/reader.py, pipeline/store/writer.py"
    ]


def test_lists_name_each_docstring_without_a_subject_and_each_shared_name(root: Path):
    assert list(architecture.docstring_lines(root)) == [
        "pipeline/plan.py:8: What is done next.",
        "pipeline/plan.py:15: Of all rows, the sum.",
        "launch/cli.py:1: To start a run.",
    ]
    assert list(architecture.name_lines(root)) == [
        "close: 2 files: pipeline/store/reader.py, pipeline/store/writer.py"
    ]


def test_an_arrow_that_others_imply_is_left_out_and_a_circle_is_one_floor():
    assert architecture.without_implied({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {
        "a": {"b"},
        "b": {"c"},
        "c": set(),
    }
    circle = {"top": {"x"}, "x": {"y"}, "y": {"x", "ground"}, "ground": set[str]()}
    assert architecture.floors_of(circle) == {"ground": 0, "x": 1, "y": 1, "top": 2}


def test_rooms_that_import_each_other_are_drawn_as_one_box(root: Path):
    (root / "pipeline/store/writer.py").write_text("import pipeline.plan\n")
    assert "plan.py ⇄ store" in architecture.draw_house(root)


def test_comparison_shows_both_trees_and_a_package_that_only_one_has(
    root: Path, capsys: pytest.CaptureFixture[str]
):
    (root / "darts").mkdir()
    (root / "darts/__init__.py").write_text("from pipeline.plan import Plan\n")
    architecture.main(["--root", str(root), "--against", str(ROOT)])
    printed = capsys.readouterr().out
    assert printed.startswith("| | pipeline | engines | learner | launch | darts | house |\n")
    files = printed.splitlines()[2]
    assert re.search(r"\| \d+ → – \| \d+ → – \|", files)  # of engines and learner
    assert re.search(r"\| \d+ → 1 \| \d+ → 7 \|", files)  # of darts and of the house
