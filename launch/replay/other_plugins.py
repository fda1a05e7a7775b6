"""Runs other plug-ins over a recording, in virtual time, beside the recorded ones.

The recorded run is replayed as it was, which gives its figures and what is known of its responses.
Then the simulation plays it twice with the recorded prompts, responses and pace: with the recorded
plug-ins, which shows how far the model is to be believed, and with the others.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from launch.replay.collect import Collected
from launch.replay.command import recorded_plugins
from launch.replay.exact_replay import fresh_coordinator, replay
from launch.replay.figures import Figures, estimates, table
from launch.simulate import CONFIG
from pipeline.config.load import ConfigError, load
from pipeline.config.schema import Plugin
from pipeline.coordinator.coordinator import Coordinator
from pipeline.coordinator.state import PluginFault
from pipeline.coordinator.timeouts import Timeouts
from pipeline.hardware.costs import Machines
from pipeline.plugins.actions import Plan
from pipeline.plugins.views import PlanView
from pipeline.recording.frames import RecordingError
from pipeline.recording.reader import Recording
from pipeline.simulation.loop import Simulation, StandsStill
from pipeline.simulation.recorded_workload import Recorded
from pipeline.stage.build import make_plugins
from pipeline.system.terminal_text import printable

KINDS = ("selector", "budget", "batch", "advantage")
"""Plug-ins that may be another over a recording. The prompts and their order are the recorded."""


class RecordedOrder:
    """Plans the prompts of the recording in the order in which it opened them, and no others."""

    def __init__(self, prompts: Sequence[int]) -> None:
        self._left = list(prompts)

    def plan(self, view: PlanView) -> Plan:
        planned = [prompt for prompt in view.deferred if prompt not in view.outstanding]
        planned = planned[: view.want]
        for prompt in list(self._left):
            if len(planned) == view.want:
                break
            if prompt not in view.outstanding and prompt not in planned:
                self._left.remove(prompt)
                planned.append(prompt)
        return Plan(prompts=tuple(planned))


def other_plugins(
    recorded: Mapping[str, Plugin], overrides: Sequence[str], size: int
) -> dict[str, Plugin]:
    """The recorded plug-ins with overrides, as of a command line. Raises ConfigError."""
    for override in overrides:
        kind = override.partition("=")[0].partition(".")[0]
        if kind not in KINDS:
            known = f"a recording can be replayed with another {', '.join(KINDS)}"
            raise ConfigError([f"override {override}: {known}; all else is as it was recorded"])
    as_recorded = [f"group.size={size}"]
    for kind in KINDS:
        plugin = recorded[kind]
        named = msgspec.json.encode({plugin.name: plugin.options}).decode()
        as_recorded.append(f"{kind}={named}")
    config = load(CONFIG, [*as_recorded, *overrides])
    return {**recorded, **{kind: getattr(config, kind) for kind in KINDS}}


def replay_other(path: Path, overrides: Sequence[str], *, imports: bool) -> int:
    """Prints the table of a recording with other plug-ins; 1 if it cannot be replayed as it was.

    Raises: OSError, RecordingError, PluginError, ConfigError.
    """
    recording = Recording(path)
    header = recording.header
    if header.settings.turns:
        raise RecordingError(f"{path}: made with an environment; one turn is all that is simulated")
    coordinator = fresh_coordinator(recording, recorded_plugins(recording, imports=imports))
    size = header.settings.size
    as_recorded, named = (other_plugins(header.plugins, more, size) for more in ((), overrides))
    known, recorded = Collected(), Figures()
    found = replay(recording, coordinator, [known, recorded])
    if found.difference is not None:
        at = f"differs from what was recorded at event {found.difference.event}"
        print(f"{path}: its replay {at}; darts replay {shlex.quote(str(path))} says how")
        return 1
    if not recorded.steps:
        raise RecordingError(f"{path}: no step of training ended in it")
    machines = known.machines(
        coordinator.core.latency, header.settings.ranks, _chunk_tokens(recording)
    )
    play = functools.partial(simulated, recording, known, machines)
    columns = [("recorded", recorded)]
    for plugins in (as_recorded, named):
        name = f"simulated: {_changed(as_recorded, named, plugins)}"
        columns.append((name, play(plugins)))
    for line in (*table(columns).splitlines(), "", *_notes(recording, machines, columns)):
        print(printable(line))  # the file has a say in it
    return 0


def simulated(
    recording: Recording, known: Collected, machines: Machines, named: Mapping[str, Plugin]
) -> Figures:
    """The figures of these plug-ins with the recorded prompts, responses and pace.

    Raises: RecordingError if the simulation does not come to its end.
    """
    header = recording.header
    settings = msgspec.structs.replace(
        header.settings,
        steps=known.steps,
        held_out=0,
        eval_every=0,
        eval_best="",
        checkpoint_every=0,
        audit_every=0,
        limits=Timeouts(),  # engines may report only at the end of a response
    )
    plugins = make_plugins(named, settings.seed)
    order = RecordedOrder(known.prompts())
    workload = Recorded(known.groups(settings.max_tokens), settings.max_tokens, seed=settings.seed)
    figures = Figures(workload.basis)
    simulation = Simulation(
        Coordinator(
            settings,
            msgspec.structs.replace(plugins, prompt_order=order),
            header.prompt_tokens,
            header.tags,
            header.variants,
            header.solutions,
        ),
        machines,
        workload,
        header.prompt_tokens,
        observers=[figures],
    )
    simulation.begin()
    try:
        simulation.run()
    except (StandsStill, PluginFault) as error:
        at = f"simulated with {named['selector'].name}: it stopped at"
        raise RecordingError(f"{recording.path}, {at} {simulation.now:.1f} s: {error}") from error
    if simulation.over is None or simulation.over.error:
        why = simulation.over.error if simulation.over else "without a word"
        raise RecordingError(f"{recording.path}: the simulation stopped: {why}")
    return figures


class _EnginePart(msgspec.Struct):
    """What the simulation reads of the recorded settings."""

    chunk_tokens: Annotated[int, msgspec.Meta(ge=1)] = 16


class _DebugPart(msgspec.Struct):
    ordered: bool = False


def _chunk_tokens(recording: Recording) -> int:
    return _part(recording, "engine", _EnginePart).chunk_tokens


_Part = TypeVar("_Part")


def _part(recording: Recording, section: str, of: type[_Part]) -> _Part:
    try:
        return msgspec.convert(recording.header.config.get(section, {}), of)
    except msgspec.ValidationError as error:
        raise RecordingError(f"{recording.path}: settings in the header: {error}") from error


def _changed(
    recorded: Mapping[str, Plugin], named: Mapping[str, Plugin], shown: Mapping[str, Plugin]
) -> str:
    """The plug-ins in which the replay is another, by the names of one side."""
    kinds = [kind for kind in KINDS if recorded[kind] != named[kind]] or ["selector"]
    texts: list[str] = []
    for kind in kinds:
        plugin = shown[kind]
        options = [
            f"{name}={value}"
            for name, value in plugin.options.items()
            if recorded[kind].name == named[kind].name
            and recorded[kind].options.get(name) != named[kind].options.get(name)
        ]
        texts.append(" ".join([plugin.name, *options]))
    return ", ".join(texts)


def _notes(
    recording: Recording, machines: Machines, columns: Sequence[tuple[str, Figures]]
) -> Iterator[str]:
    """What each column is, and what it rests on."""
    real = columns[0][1]
    yield f"recorded: {real.steps} steps of {recording.path}, as they were."
    yield (
        f"simulated: the same prompts and responses in virtual time, on {machines.engines} "
        f"engine(s) of {machines.slots} slots with the recorded seconds a token by load. Compare "
        "the simulated columns with each other; the first two show how good the model is."
    )
    if recording.end:
        yield f"The recording is {recording.end}."
    if _part(recording, "debug", _DebugPart).ordered:
        yield "It was made with debug.ordered: its seconds are those of a logical clock."
    for name, figures in columns[1:]:
        yield from estimates(name, figures)
        if figures.steps < real.steps:
            yield f"{name}: {figures.steps} steps: then no recorded prompt was left."
