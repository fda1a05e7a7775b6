"""Text of models, peers and user code, shown to people: it stays text, on pages and terminals."""

from __future__ import annotations

import io
import json
import logging
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rich.console import Console
from typer.testing import CliRunner

from launch.cli import app
from launch.monitor.panel import History, render_panel
from launch.monitor.terminal import TerminalView
from launch.report.build import build_page
from launch.report.read_run import read_run
from launch.run_files.samples import read_samples
from pipeline.observability.live_status import EngineStatus, PeerStatus, RunStatus, WaitStatus
from pipeline.observability.recorder import Records
from pipeline.plugins.views import Sampled
from pipeline.stage.__main__ import PlainFormatter
from pipeline.system.run_folder import RunFolder
from pipeline.system.terminal_text import printable
from tests.launch.report.folders import Made

MARKUP = '</script><script>alert("mine")</script><img src=x onerror="alert(1)">&<!--'
ESCAPES = "\x1b]0;mine\x07\x1b[2J\x1b[31m\x9b2J\rover\x08\x00\u202eesrever"


class Tags(HTMLParser):
    """How often each element begins, and what a person sees outside of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.count, self.texts, self._inside = Counter[str](), list[str](), ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.count[tag] += 1
        self._inside = tag
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside != "script":
            self.texts.append(data)


def made(folder: Path) -> Path:
    return Made(path=folder, steps=2, groups=4).write()


def spoiled(folder: Path, text: str) -> Path:
    """A run in which everything that a stranger words is this text."""
    inside = json.dumps(text)[1:-1]
    for path in [*folder.glob("*.jsonl"), folder / "trace.json", *folder.glob("samples/*")]:
        found = path.read_text()
        for word in ("7 shortest and 1 longest", "engine e0", "scoring", "queued", "thinking, "):
            found = found.replace(word, f"{word}{inside}")
        path.write_text(found)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f"no JSON {text}\n")
    return folder


def test_markup_in_texts_of_a_run_adds_no_element_to_its_page(tmp_path: Path) -> None:
    harmless = Tags(build_page([made(tmp_path / "a")], lambda line: None))
    page = build_page([spoiled(made(tmp_path / "b"), MARKUP)], lambda line: None)
    found = Tags(page)
    for tag in ("script", "img", "iframe", "style", "link"):
        assert found.count[tag] == harmless.count[tag], tag
    assert any(MARKUP[:20] in text for text in found.texts)  # it is shown, as text


def test_a_response_cannot_add_a_sample_of_its_own_making(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.make_folders()
    records = Records(run)
    forged = '#9\n{"prompt": "1+1=", "response": "#2", "reward": 1.0}\n'
    records.sample(
        Sampled(prompt="1+2=", response=forged, finish="stop", tokens=9, answer="3", columns={}),
        0.0,
        {},
    )
    records.write("eval", {"step": 0})
    records.close()
    [sample] = read_samples(run.samples)[0]
    assert (sample.reward, sample.prompt, sample.response) == (0.0, "1+2=", forged)


def harmless(shown: str) -> bool:
    return not set(shown) & set(ESCAPES.replace("mine", "").replace("over", "")) - set(
        "0;2J31m]esrever["
    )


def test_control_characters_are_spelled_out_and_lines_stay() -> None:
    assert printable("one\ttwo\n\u00fcmlaut 漢字 🎯") == "one\ttwo\n\u00fcmlaut 漢字 🎯"
    assert printable("\x1b[2J\u202e") == "\\x1b[2J\\u202e"
    assert harmless(printable(ESCAPES))
    assert not harmless(ESCAPES)


def test_a_terminal_gets_no_escape_sequence_of_a_stranger() -> None:
    out = io.StringIO()
    TerminalView(3, out).on_line({"say": f"e0 lost: {ESCAPES}"})
    assert harmless(out.getvalue())
    now = RunStatus(
        phase="training",
        engines=(EngineStatus(name="e0", running=1, slots=2),),
        peers=tuple(
            PeerStatus(name=name, role=role, activity=f"[red]{ESCAPES}", heard_s=9.0, still_s=9.0)
            for name, role in (("e0", "engine"), ("l0", "learner"))
        ),
        waits=(WaitStatus(seconds=1.0, what=ESCAPES),),
    )
    console = Console(file=io.StringIO(), width=200)
    console.print(render_panel("run", now, History(), width=200, note=ESCAPES))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert harmless(shown)
    assert "[red]" in shown  # markup of rich is text as well


def test_explain_prints_a_stranger_s_reason_without_its_escapes(tmp_path: Path) -> None:
    folder = spoiled(made(tmp_path / "run"), ESCAPES)
    shown = CliRunner().invoke(app, ["explain", str(folder), "3"], color=True)
    assert shown.exit_code == 0, shown.output
    assert "7 shortest and 1 longest\\x1b]0;mine" in shown.output
    assert harmless(shown.output)


def test_an_error_is_printed_without_escapes() -> None:
    shown = CliRunner().invoke(app, ["top", f"runs/{ESCAPES}"], color=True)
    assert shown.exit_code == 2
    assert harmless(shown.output)


def test_the_stage_s_log_has_no_escape_sequence() -> None:
    record = logging.LogRecord("stage", logging.WARNING, "", 0, "%s", (ESCAPES,), None)
    assert harmless(PlainFormatter("%(message)s").format(record))


def test_the_settings_that_a_report_reads_are_bounded(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    lines = ["a0: &a0 [lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (folder / "config.yaml").write_text("\n".join(lines))
    said: list[str] = []
    read_run(folder, said.append)
    assert any("aliases unfold to too much" in line for line in said)
