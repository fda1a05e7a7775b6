"""Paths of a configuration -> absolute ones of what is there, and back to what is saved of them.

A relative path is looked for in the current directory, then in the one above the
folder of the configuration's file, then among what comes with darts. Of models and data, what is
not there may be a name on the Hugging Face hub (`pipeline.config.hub`). What is nowhere is a
complaint with its key.
"""

from __future__ import annotations

import contextlib
import difflib
import glob
import os
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from pipeline.config import hub, rules, shipped
from pipeline.config.evaluation import EvalConfig, EvalFileConfig
from pipeline.config.pace import PaceError, engine_pace, is_profile, learner_pace, pace_name
from pipeline.config.schema import Config, EngineConfig


def resolved(
    config: Config, file: Path | None, problem: Callable[[str, str], None], *, weights: bool = True
) -> Config:
    """The configuration with every path absolute.

    Args:
        file: the configuration's own; None: it was read from none.
        problem: told of each complaint: key, text.
        weights: fetch a model's weights too, where they are on the hub.
    """
    finder = _Finder(file, problem)
    model, learner = config.model, config.learner
    if model:
        model = finder.model("model", model, "no such directory", weights=weights)
    if model and not (Path(model) / "config.json").is_file():
        is_run = (Path(model) / "config.yaml").is_file()
        cure = (
            f"darts export {shlex.quote(model)} DIR writes one"
            if is_run
            else "name one of save_pretrained"
        )
        problem("model", f"{model} holds no config.json: not a Hugging Face directory; {cure}")
    changed: dict[str, Any] = {}
    train, held_out = config.data.train, config.data.held_out
    if isinstance(train, str):
        changed["train"] = finder.data("data.train", train)
    else:
        changed["train"] = tuple(
            msgspec.structs.replace(source, path=finder.data(f"data.train.{n}.path", source.path))
            for n, source in enumerate(train)
        )
    if isinstance(held_out, str):
        changed["held_out"] = finder.data("data.held_out", held_out)
    if config.data.chat_template:
        given = config.data.chat_template
        changed["chat_template"] = finder.found("data.chat_template", given, "no such file")
    data = msgspec.structs.replace(config.data, **changed)
    evaluation = _with_sets(config.eval, lambda name, path: finder.data(f"eval.sets.{name}", path))
    if learner.reference_folder:
        rule = "neither start, average nor a directory"
        reference = finder.model("learner.reference", learner.reference, rule, weights=weights)
        learner = msgspec.structs.replace(learner, reference=reference)
    if learner.deepspeed:
        settings = finder.found("learner.deepspeed", learner.deepspeed, "no such file")
        learner = msgspec.structs.replace(learner, deepspeed=settings)
    engine = _with_pace(config.engine, finder, problem)
    try:
        learner_pace(learner.pace)
    except PaceError as error:
        problem("learner.pace", str(error))
    return msgspec.structs.replace(
        config, model=model, data=data, learner=learner, engine=engine, eval=evaluation
    )


def as_saved(config: Config) -> Config:
    """A loaded configuration with the names and commits of what came from the hub, for its paths
    in the cache: those are another machine's elsewhere."""
    data, learner = config.data, config.learner
    train = data.train
    data = msgspec.structs.replace(
        data,
        train=hub.pinned(train)
        if isinstance(train, str)
        else tuple(msgspec.structs.replace(one, path=hub.pinned(one.path)) for one in train),
        held_out=hub.pinned(data.held_out) if isinstance(data.held_out, str) else data.held_out,
    )
    return msgspec.structs.replace(
        config,
        model=hub.pinned(config.model),
        data=data,
        eval=_with_sets(config.eval, lambda _, path: hub.pinned(path)),
        learner=msgspec.structs.replace(learner, reference=hub.pinned(learner.reference)),
    )


def names_without_commit(config: Config, written: str) -> list[str]:
    """What came from the hub, with its commit, where that does not stand in the settings as they
    were written: another load of them may find a later one."""
    saved = as_saved(config)
    train, sets = saved.data.train, saved.eval.sets.values()
    places = [
        *(saved.model, saved.learner.reference, saved.data.held_out),
        *([train] if isinstance(train, str) else (source.path for source in train)),
        *(one if isinstance(one, str) else one.path for one in sets),
    ]
    named = {place: hub.parsed(place) for place in places if isinstance(place, str)}
    return [
        place
        for place, name in named.items()
        if name and hub.is_commit(name.revision) and name.revision not in written
    ]


def _with_sets(section: EvalConfig, place: Callable[[str, str], str]) -> EvalConfig:
    """The section with the path that `place` says for each set's name and path."""
    sets: dict[str, str | EvalFileConfig] = {}
    for name, given in section.sets.items():
        path = place(name, given if isinstance(given, str) else given.path)
        sets[name] = path if isinstance(given, str) else msgspec.structs.replace(given, path=path)
    return msgspec.structs.replace(section, sets=sets)


def _with_pace(
    section: EngineConfig, finder: _Finder, problem: Callable[[str, str], None]
) -> EngineConfig:
    """The section with an absolute path of a measured pace, which is read once as a check."""
    pace = section.pace
    if is_profile(pace_name(pace)):
        path = finder.found("engine.pace", pace_name(pace), "no such file")
        if not path:
            return section
        pace = path if isinstance(pace, str) else msgspec.structs.replace(pace, name=path)
    try:
        engine_pace(pace)
    except PaceError as error:
        problem("engine.pace", str(error))
    return msgspec.structs.replace(section, pace=pace)


class _Finder:
    """Looks from the current directory, and beside the folder of the configuration's file."""

    def __init__(self, file: Path | None, problem: Callable[[str, str], None]) -> None:
        self._bases = bases_of(file)
        self._problem = problem

    def found(
        self, key: str, given: str, rule: str, fits: Callable[[Path], bool] = Path.is_file
    ) -> str:
        """Its absolute path; "" if it is not there, which has been said."""
        found, why = self._look_for(given, fits)
        if not found:
            self._problem(key, f"found {given!r:.500}: {rule}; {why:.500}; mend the path")
        return found

    def _look_for(self, given: str, fits: Callable[[Path], bool]) -> tuple[str, str]:
        bases = [*self._bases, *([shipped.ROOT] if shipped.holds(given) else [])]
        return look_for(given, bases, fits)

    def model(self, key: str, given: str, rule: str, *, weights: bool) -> str:
        """The directory of a model, here or in the hub's cache."""
        return self._here_or_on_hub(
            key, given, rule, Path.is_dir, lambda name: hub.model_folder(name, weights=weights)
        )

    def _here_or_on_hub(
        self,
        key: str,
        given: str,
        rule: str,
        fits: Callable[[Path], bool],
        fetched: Callable[[hub.HubName], str],
    ) -> str:
        """The absolute path of what is here, which comes first, or of what the hub has under that
        name; "" if neither, which has been said."""
        found, why = self._look_for(given, fits)
        name = hub.parsed(given)
        if found or name is None:
            return found or self.found(key, given, rule, fits)
        try:
            return fetched(name)
        except hub.HubError as error:
            text = f"found {given!r:.500}: {rule}; {why:.500}; mend the path. As a name on the"
            self._problem(key, f"{text} Hugging Face hub: {error}")
            return ""

    def data(self, key: str, given: str) -> str:
        """A task's name as it is, or the absolute path of a file, a folder or a pattern."""
        tasks = rules.tasks()
        if given in tasks:
            return given
        for base in self._bases if is_pattern(given) else ():
            with contextlib.suppress(RuntimeError, ValueError):  # "~somebody"; a NUL in it
                pattern = str(base / Path(given).expanduser())
                if next(glob.iglob(pattern, recursive=True), None) is not None:
                    return pattern
        near = difflib.get_close_matches(given, tasks, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        rule = f"neither a built-in task ({', '.join(tasks)}){hint} nor a file, a folder or a "
        rule = f"{rule}pattern that fits one"
        return self._here_or_on_hub(key, given, rule, _file_or_folder, hub.data_place)


def bases_of(file: Path | None) -> list[Path]:
    """Where relative paths are looked for: here, and above the folder of the configuration."""
    # Unlike `Path.resolve` it does not raise where links go round in a circle.
    return [Path.cwd(), *([Path(os.path.realpath(file)).parent.parent] if file else [])]


def _file_or_folder(path: Path) -> bool:
    return path.is_file() or path.is_dir()


def look_for(given: str, bases: Iterable[Path], fits: Callable[[Path], bool]) -> tuple[str, str]:
    """(absolute path without links, "") of the first that is there and fits, or ("", why none is).

    Args:
        fits: `Path.is_file` or `Path.is_dir`: a device or a pipe is neither, and has no end.
    """
    if not given:
        return "", "it is empty"
    try:
        path = Path(given).expanduser()
    except RuntimeError as error:  # "~somebody", whom nobody knows
        return "", str(error)
    tried = dict.fromkeys(base / path for base in bases)
    for candidate in tried:
        try:
            if fits(candidate):
                return str(candidate.resolve()), ""
        except (OSError, ValueError):  # longer than any path, or with a NUL in it
            continue
    return "", f"looked for {' and '.join(map(str, tried))}"


def is_pattern(source: str) -> bool:
    """Whether a path of the configuration is a glob pattern."""
    return glob.has_magic(source)
