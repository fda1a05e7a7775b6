"""Settings that hold several values: lists of sections, names with values, sections that may be
absent. Each complaint names the innermost key and its line."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pipeline.config.overrides import apply
from pipeline.config.setting_types import Section
from pipeline.config.values import Misfit, Values, converted
from pipeline.config.yaml_tree import Branch, Leaf, parse, write


class Source(Section, frozen=True, kw_only=True):
    path: str
    weight: float = 1.0


class Adapter(Section, frozen=True, kw_only=True):
    rank: int = 8


class Whole(Section, frozen=True, kw_only=True):
    train: str | tuple[Source, ...] = "task"
    sets: dict[str, str] = {}  # noqa: RUF012
    many: dict[str, Source] = {}  # noqa: RUF012
    free: dict[str, Any] = {}  # noqa: RUF012
    lora: Adapter | None = None
    names: tuple[str, ...] = ()
    count: int = 1


def read(text: str, *overrides: str) -> tuple[Whole, list[str]]:
    problems: list[str] = []
    tree = parse(text, lambda line: f"a.yaml:{line}", problems) or Branch("a.yaml")
    assert isinstance(tree, Branch)
    values = Values(
        lambda key, said, where: problems.append(f"{where or place(key)}: {key}: {said}")
    )
    place = values.place
    for override in overrides:
        apply(Branch("a.yaml", {"data": tree}), f"data.{override}", problems)
    return Whole(**values.fields(Whole, tree, "")), problems


FULL = """
train:
- {path: a.parquet, weight: 2}
- path: b.parquet
sets: {aime: aime.parquet}
many: {gsm: {path: c.parquet}}
free: {max_num_batched_tokens: 8192, compilation: {level: 0, on: [1, off, null]}}
lora:
  rank: 4
names: [A, B]
"""


def test_lists_names_and_sections_that_may_be_absent_are_read_and_written_back():
    found, problems = read(FULL)
    assert problems == []
    assert found == Whole(
        train=(Source(path="a.parquet", weight=2.0), Source(path="b.parquet")),
        sets={"aime": "aime.parquet"},
        many={"gsm": Source(path="c.parquet")},
        free={"max_num_batched_tokens": 8192, "compilation": {"level": 0, "on": [1, "off", None]}},
        lora=Adapter(rank=4),
        names=("A", "B"),
    )
    assert read(write(msgspec.to_builtins(found))) == (found, [])
    assert read(write(msgspec.to_builtins(Whole()))) == (Whole(), [])
    assert read("lora: {}")[0].lora == Adapter()  # there, with its defaults
    assert read("lora:")[0].lora is None


def test_overrides_reach_into_them():
    found, problems = read(
        FULL, "train.1.weight=3", "free.seed=1", "free.compilation.level=3", "lora.rank=16",
        "sets.math=math.parquet",
    )  # fmt: skip
    assert problems == []
    assert isinstance(found.train, tuple)
    assert [source.weight for source in found.train] == [2.0, 3.0]
    assert (found.free["seed"], found.free["compilation"]["level"]) == (1, 3)
    assert found.lora == Adapter(rank=16)
    assert found.sets == {"aime": "aime.parquet", "math": "math.parquet"}
    assert read(FULL, "lora=null")[0].lora is None
    assert read("", "lora.rank=2")[0].lora == Adapter(rank=2)
    assert read("", "free.x=1")[0].free == {"x": 1}
    whole = read(FULL, "train=[{path: z}]", "free={}")[0]
    assert (whole.train, whole.free) == ((Source(path="z"),), {})


LIST = "a list of sections (path, weight)"
EACH = "names with the keys of a section each (path, weight)"


@pytest.mark.parametrize(
    "text, line, claim",
    [
        ("train:\n- path: a\n  weight: b", 3, "train.0.weight: found 'b', expected a number"),
        ("train:\n- path: a\n- {weight: 2}", 3, "train.1: needs the key path"),
        ("train: [{path: a, pat: 2}]", 1, "train.0.pat: unknown key; did you mean train.0.path?"),
        ("train: [a]", 1, "train.0: found 'a', expected the keys of a section"),
        ("train: {a: b}", 1, f"train: found {{'a': 'b'}}, expected text or {LIST}"),
        ("count: 1\nsets: {a: [1]}", 2, "sets.a: found [1], expected text"),
        ("sets: file", 1, "sets: found 'file', expected names with values"),
        ("many:\n  a: {path: p, weight: [1]}", 2, "many.a.weight: found [1], expected a number"),
        ("many: [1]", 1, f"many: found [1], expected {EACH}"),
        ("free: 3", 1, "free: found 3, expected names with values"),
        ("free: {x: {y: .inf}}", 1, "free: found {'x': {'y': inf}}, expected a finite number"),
        ("lora: 8", 1, "lora: found 8, expected the keys of a section or null"),
        ("lora: {rank: x}", 1, "lora.rank: found 'x', expected a whole number"),
    ],
)
def test_what_does_not_fit_is_named_by_its_line_and_innermost_key(text: str, line: int, claim: str):
    assert read(text)[1] == [f"a.yaml:{line}: {claim}"]


def test_an_override_of_a_place_that_a_list_lacks_is_named():
    [problem] = read(FULL, "train.2.path=x")[1]
    assert problem == (
        "override data.train.2.path=x: data.train: found '2' for a place in a list of 2, "
        "expected a number from 0 to 1"
    )


@pytest.mark.parametrize(
    "type_, rule",
    [
        (tuple[int, ...], "a list, of a whole number each"),
        (tuple[str | dict[str, Any], ...], "a list, of text or names with values each"),
        (tuple[float, float], "a list of two numbers"),
    ],
)
def test_what_is_no_list_is_told_of_in_words(type_: Any, rule: str):
    with pytest.raises(Misfit, match=f"^found 4, expected {rule}$"):
        converted(Leaf("here", 4, "4"), type_)
