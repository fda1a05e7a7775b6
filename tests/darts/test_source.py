"""Functions that were typed into a notebook's cell become a file that another process imports."""

from __future__ import annotations

import linecache
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from darts._source import NotWritable, write_functions


def typed(cell: str, **more: Any) -> dict[str, Any]:
    """The names after a cell was run as IPython does: its source is kept, it is in no file."""
    name = f"<cell-{len(linecache.cache)}>"
    linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
    names: dict[str, Any] = {"__name__": "__main__", **more}
    exec(compile(cell, name, "exec"), names)
    return names


CELL = """
import math
import re
from collections import Counter as Count

WORDS = {"good": 1.0, "bad": -1.0}
NUMBER = re.compile(r"(\\d+)", re.IGNORECASE)

def halved(value: "unknown") -> float:
    return value / 2

def factorial(n):
    return n * factorial(n - 1) if n else 1

def score(completions, scale=math.pi, **kwargs) -> list[Unheard]:
    found = [sum(WORDS.get(word, 0) for word in Count(text.split())) for text in completions]
    more = factorial(3) + len(NUMBER.findall("1 2")) + scale * 0
    return [halved(value) + more for value in found]
"""


def test_a_function_is_written_with_all_that_it_uses(tmp_path: Path):
    future = "from __future__ import annotations\n"
    path = tmp_path / "reward" / "functions.py"
    write_functions([typed(future + CELL)["score"]], path)
    code = "import functions; print(functions.score(['good good bad', '']))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=path.parent, capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr) == ("[8.0, 8.0]", "")
    assert path.read_text().count("import math") == 1


@pytest.mark.parametrize(
    "cell, said",
    [
        ("def f(s):\n    return judge(s)\n", "f uses judge, a Judge, and was typed in"),
        ("def g(s):\n    return judge(s)\ndef f(s):\n    return g(s)\n", "g uses judge, a Judge"),
        ("def f(s):\n    return [judge(x) for x in s]\n", "f uses judge, a Judge"),
        ("def f(s, call=judge):\n    return 1\n", "f uses judge, a Judge"),
        ("VALUES = [judge]\ndef f(s):\n    return VALUES\n", "f uses VALUES, a list"),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path: Path, cell: str, said: str):
    class Judge:
        def __call__(self, sample: Any) -> float:
            return 1.0

    with pytest.raises(NotWritable) as caught:
        write_functions([typed(cell, judge=Judge())["f"]], tmp_path / "functions.py")
    assert said in str(caught.value)
    assert not (tmp_path / "functions.py").exists()
