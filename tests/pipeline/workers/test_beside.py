"""Files beside a plug-in's source are found by relative names, and new ones stay in the worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.schema import Plugin, WorkersConfig
from pipeline.plugins.testing import sample_of
from pipeline.workers.beside import folders_of, link_files
from pipeline.workers.pool import RewardFailed, RewardPool

BESIDE = """
import json

def beside(completions, **kwargs):
    with open("lookup.json") as file:
        table = json.load(file)
    with open("new.txt", "w") as file:
        file.write("x")
    return [float(table["x"])] * len(completions)

def elsewhere(completions, **kwargs):
    open("data/none.json")
"""


async def scored(function: str, parts: bool = False) -> float:
    python = {"function": function}
    plugin = Plugin(name="python", options=python)
    if parts:
        plugin = Plugin(name="sum", options={"of": [{"python": python}]})
    async with RewardPool(plugin, WorkersConfig()) as pool:
        return (await pool.score_sample(sample_of("a"))).value


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    (tmp_path / "lookup.json").write_text('{"x": 0.5}')
    (tmp_path / "fns.py").write_text(BESIDE)
    return tmp_path


@pytest.mark.parametrize("parts", [False, True])
async def test_a_reward_opens_a_file_beside_it_and_writes_none_there(functions: Path, parts: bool):
    assert await scored(f"{functions / 'fns.py'}:beside", parts) == 0.5
    assert sorted(path.name for path in functions.iterdir() if path.suffix) == [
        "fns.py", "lookup.json",
    ]  # fmt: skip


async def test_a_file_that_is_not_beside_it_is_told_with_the_directory(functions: Path):
    with pytest.raises(RewardFailed, match="No such file.*in a directory of their own, with links"):
        await scored(f"{functions / 'fns.py'}:elsewhere")


def test_links_leave_out_hidden_files_and_the_first_of_equal_names_counts(tmp_path: Path):
    for folder, text in (("a", "1"), ("b", "2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.txt").write_text(text)
        (tmp_path / folder / ".env").write_text("SECRET")
    (tmp_path / "work").mkdir()
    link_files([str(tmp_path / "a"), str(tmp_path / "b"), "/nowhere"], str(tmp_path / "work"))
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["same.txt"]
    assert (tmp_path / "work" / "same.txt").read_text() == "1"


class Own:
    """A reward class of a user's."""


def test_a_class_of_the_users_has_the_folder_of_its_module():
    assert folders_of(Own()) == [str(Path(__file__).parent)]
    assert folders_of(sample_of("")) == [], "darts' own have none"
