"""A recorded run gives the same commands again; what does not is found and named."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from launch.cli import app
from launch.replay.command import recorded_plugins
from launch.replay.exact_replay import Replayed, fresh_coordinator, replay
from pipeline.coordinator.events import RewardReady, Tokens
from pipeline.plugins.actions import AnyAction
from pipeline.plugins.interfaces import SelectorEvent
from pipeline.plugins.selectors.first_m import FirstM
from pipeline.plugins.views import GroupView
from pipeline.recording.frames import (
    HEAD_BYTES,
    Entry,
    block_head,
    block_of,
    encode_value,
)
from pipeline.recording.reader import Recording
from tests.pipeline.recording.recorded_world import RecordedWorld


def replayed(path: Path) -> Replayed:
    recording = Recording(path)
    plugins = recorded_plugins(recording, imports=True)
    return replay(recording, fresh_coordinator(recording, plugins))


def darts(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["replay", *arguments])
    return result.exit_code, result.output + result.stderr


@pytest.mark.parametrize("seed", range(6))
def test_a_run_with_faults_replays_to_the_same_commands(seed: int, tmp_path: Path):
    path = tmp_path / "stage-0001.darts"
    world = RecordedWorld(seed, path).play()
    found = replayed(path)
    assert found.difference is None
    assert found == Replayed(events=len(world.log), commands=len(world.commands))
    assert darts(str(path)) == (
        0,
        f"{path}: {len(world.log)} events, {len(world.commands)} commands, equal\n",
    )


def test_a_resumed_run_replays_from_the_snapshot_that_it_restored(tmp_path: Path):
    folder = tmp_path / "run" / "recordings"
    first = RecordedWorld(11, folder / "stage-0001.darts").play(halt_at=250)
    assert first.coordinator.core.step < first.settings.steps
    second = RecordedWorld(11, folder / "stage-0002.darts", first.cuts[-1])
    second.version = first.cuts[-1].version
    second.play()
    assert second.coordinator.core.step == second.settings.steps
    status, text = darts(str(tmp_path / "run"))
    assert status == 0
    assert [line.split(" ")[-1] for line in text.splitlines()] == ["equal", "equal"]
    assert darts(str(tmp_path / "run"), "selector=all")[0] == 2, "name one of two"


def changed(path: Path, number: int, change: Entry) -> None:
    """Write the recording with another entry in the place of one, from 1."""
    content, entries = path.read_bytes(), list(Recording(path).entries())
    length, _ = block_head(content[17 : 17 + HEAD_BYTES])
    entries[number - 1] = change
    head = content[: 17 + HEAD_BYTES + length]
    path.write_bytes(head + block_of(encode_value(entries)))


def test_a_command_that_is_not_the_recorded_one_is_found_and_shown(tmp_path: Path):
    path = tmp_path / "stage-0001.darts"
    RecordedWorld(5, path).play()
    entries = list(Recording(path).entries())
    number, entry = next(
        (n, e) for n, e in enumerate(entries, 1) if any(b"RequestReward" in c for c in e.commands)
    )
    place = next(n for n, c in enumerate(entry.commands) if b"RequestReward" in c)
    mutated = bytearray(entry.commands[place])
    at = mutated.index(b"tokens") + len(b"tokens") + 2
    mutated[at] ^= 1  # one bit of the checksum of its tokens
    commands = (*entry.commands[:place], bytes(mutated), *entry.commands[place + 1 :])
    changed(path, number, Entry(entry.now, entry.event, commands))
    found = replayed(path)
    assert found.events == number - 1
    assert found.difference is not None
    assert (found.difference.event, found.difference.command) == (number, place + 1)
    assert found.difference.name == type(entry.event).__name__
    assert found.difference.expected.startswith("RequestReward(tokens=b")
    assert found.difference.expected != found.difference.came
    status, text = darts(str(path))
    assert status == 1
    assert f"event {number}, {type(entry.event).__name__} at" in text
    assert "each says the same twice here" in text or "no plug-in was asked" in text


def test_a_command_too_few_and_one_too_many_are_differences(tmp_path: Path):
    path = tmp_path / "stage-0001.darts"
    RecordedWorld(5, path).play()
    entries = list(Recording(path).entries())
    number = next(n for n, entry in enumerate(entries, 1) if len(entry.commands) > 1)
    entry = entries[number - 1]
    changed(path, number, Entry(entry.now, entry.event, entry.commands[:-1]))
    found = replayed(path).difference
    assert found is not None
    assert (found.event, found.command) == (number, len(entry.commands))
    assert found.expected == "no more commands"
    changed(path, number, Entry(entry.now, entry.event, (*entry.commands, entry.commands[-1])))
    found = replayed(path).difference
    assert found is not None
    assert found.came == "no more commands"


def test_another_time_or_event_changes_what_comes(tmp_path: Path):
    """Promise: the comparison rests on the events; it would not hold by itself."""
    path = tmp_path / "stage-0001.darts"
    RecordedWorld(5, path).play()
    entries = list(Recording(path).entries())
    number, entry = next(
        (n, e) for n, e in enumerate(entries, 1) if isinstance(e.event, RewardReady)
    )
    event = msgspec.structs.replace(entry.event, value=0.25)
    changed(path, number, Entry(entry.now, event, entry.commands))
    assert replayed(path).difference is not None


class Moody(FirstM):
    """Its reason depends on how often it was ever made: on what no recording holds."""

    made = 0

    def __init__(self, options: object = None) -> None:
        super().__init__()
        Moody.made += 1
        self._mood = Moody.made

    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        for action in super().decide(group, event):
            yield msgspec.structs.replace(action, why=f"mood {self._mood}")


class Faulty(FirstM):
    def decide(self, group: GroupView, event: SelectorEvent) -> Iterable[AnyAction]:
        if len(group.finished) == 2:
            raise RuntimeError("two are enough")
        return super().decide(group, event)


MOODY = f"{__name__}:Moody"


def test_a_plug_in_that_is_not_deterministic_is_named(tmp_path: Path):
    path = tmp_path / "stage-0001.darts"
    RecordedWorld(5, path, selector=MOODY).play()
    status, text = darts(str(path), "--import")
    assert status == 1
    assert "selector Moody is not deterministic: asked the same decide() twice, it said" in text
    assert "mood" in text


def test_a_module_that_a_file_names_is_not_imported_without_a_word(tmp_path: Path):
    path = tmp_path / "stage-0001.darts"
    RecordedWorld(5, path, selector=MOODY).play()
    status, text = darts(str(path))
    assert status == 2
    assert f"names the selector '{MOODY}'" in text
    assert "--import" in text


def test_an_exception_that_was_recorded_comes_again(tmp_path: Path):
    path = tmp_path / "stage-0001.darts"
    world = RecordedWorld(5, path, selector=f"{__name__}:Faulty")
    handle = world.coordinator.handle
    with pytest.raises(Exception, match="two are enough") as raised:
        world.play()
    world.writer.record(world.now, world.log[-1], (), fault=str(raised.value))
    assert handle is world.coordinator.handle
    found = replayed(path)
    assert found.difference is None
    assert found.events == len(world.log)


def test_an_event_that_no_stage_hands_over_is_a_difference_and_no_crash(tmp_path: Path):
    path = tmp_path / "stage-0001.darts"
    RecordedWorld(5, path).play()
    entries = list(Recording(path).entries())
    number, entry = next(
        (n, e) for n, e in enumerate(entries, 1) if isinstance(e.event, Tokens) and e.event.chunks
    )
    changed(
        path,
        number,
        Entry(entry.now, msgspec.structs.replace(entry.event, logprobs=b"1"), entry.commands),
    )
    found = replayed(path).difference
    assert found is not None
    assert (found.event, found.command, found.expected) == (number, 0, "no exception")


def test_what_a_file_says_moves_no_cursor(tmp_path: Path):
    path = tmp_path / "stage-0001.darts"
    RecordedWorld(5, path).play()
    [first, *_] = Recording(path).entries()
    changed(path, 1, Entry(first.now, first.event, (), fault="\x1b[2Jgone"))
    status, text = darts(str(path))
    assert status == 1
    assert "\x1b" not in text
    assert "gone" in text


def test_a_folder_without_a_recording_says_how_to_make_one(tmp_path: Path):
    status, text = darts(str(tmp_path))
    assert status == 2
    assert "debug.record=true" in text
