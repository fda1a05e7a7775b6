"""What a person sees."""

from __future__ import annotations

import io
from typing import Any

import pytest

from launch.monitor.panel import clock, count
from launch.monitor.terminal import TerminalView, result_table

STEP: dict[str, Any] = {
    "step": 0,
    "reward": 0.5,
    "tokens_mean": 30.0,
    "tokens_p95": 60,
    "tokens_max": 64,
    "groups": {"trained": 16, "dropped: every reward is 1": 3, "deferred: surplus": 1},
    "ledger": {"sampled": 12_345, "trained": 9_000, "aborted": 1_200_000},
    "seconds": 2.0,
}
LIVE: dict[str, Any] = {"phase": "training", "step": 3, "steps": 60, "running": 12, "sampled": 99}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(*lines: dict[str, Any], out: io.StringIO | None = None) -> str:
    out = out or io.StringIO()
    view = TerminalView(60, out)
    for line in lines:
        view.on_line(line)
    view.close()
    return out.getvalue()


@pytest.mark.parametrize(
    "seconds,text", [(0, "0:00"), (59.9, "0:59"), (3723, "1:02:03"), (-5, "0:00")]
)
def test_times_are_short(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize("tokens,text", [(9_999, "9999"), (12_345, "12.3k"), (1_234_567, "1.23M")])
def test_counts_are_short(tokens: float, text: str) -> None:
    assert count(tokens) == text


def test_a_step_is_one_line_with_its_number_from_one() -> None:
    text = shown({"step": STEP})
    assert text == (
        "step   1/60  reward 0.50  tokens mean 30 p95 60 max 64  groups 16 (+4)  2.00 s  "
        "ETA 1:58  sampled 12.3k trained 9000 aborted 1.20M\n"
    )


def test_groups_with_equal_rewards_are_counted_in_the_step_s_line() -> None:
    assert "groups 16 (+4)  5 with equal rewards  " in shown({"step": STEP | {"groups_equal": 5}})
    assert "  all with equal rewards  " in shown({"step": STEP | {"groups_equal": 20}})


@pytest.mark.parametrize("width", [50, 80, 200])
def test_on_a_terminal_no_number_is_broken_at_the_edge(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    step = STEP | {"groups_equal": 5, "paced": "h20-7b"}
    lines = [line for line in shown({"step": step}, out=Terminal()).splitlines() if line.strip()]
    assert max(map(len, lines)) <= width
    assert len(lines) == {50: 5, 80: 3, 200: 1}[width]
    whole = "  ".join(line.strip() for line in lines)
    assert whole == shown({"step": step}).strip(), "no field is broken, and none is missing"


def test_an_evaluation_is_one_line() -> None:
    found = dict(
        step=20,
        accuracy=0.9375,
        tokens_mean=21.5,
        tokens_p95=40,
        tokens_max=64,
        samples=1024,
        seconds=3.2,
    )
    assert shown({"eval": found}) == (
        "evaluation at step 20: accuracy 0.938, tokens mean 21.5 p95 40 max 64, "
        "1024 samples in 3.2 s\n"
    )
    graded = {**found, "reward": 0.71, "accuracy": 0.25}
    assert shown({"eval": graded}).startswith("evaluation at step 20: reward 0.710, tokens mean")
    sets = {"aime": {"accuracy": 0.25, "pass@2": 0.5}, "empty": {"samples": 0}}
    more = shown({"eval": {**found, "pass@1": 0.9375, "greedy": 0.95, "sets": sets}})
    assert more.splitlines()[1:] == [
        "  pass@1 0.938, greedy 0.950",
        "  aime: accuracy 0.250, pass@2 0.500",
        "  empty: no metrics",
    ]


def test_off_a_terminal_a_phase_is_said_once_and_nothing_is_erased() -> None:
    text = shown({"live": LIVE}, {"live": LIVE}, {"live": {**LIVE, "phase": "closed"}})
    assert [line.split()[-1] for line in text.splitlines()] == ["training", "closed"]
    assert "\x1b" not in text
    assert "\r" not in text


def test_on_a_terminal_a_panel_stays_below_the_lines_and_nothing_is_left_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    text = shown({"live": LIVE}, {"say": "engine e0 lost"}, {"live": LIVE}, out=Terminal())
    assert text.count("training · step 4 of 60") >= 2
    assert "  ! engine e0 lost" in text
    up_and_erase = "\x1b[1A\x1b[2K"
    height = text.split("engine e0 lost")[0].count("\n")
    assert text.endswith(up_and_erase * height), "every line of the panel is erased"
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is back"


def test_what_it_does_not_know_is_not_shown() -> None:
    assert shown({"over": ""}, {"restart": "e0", "why": "stuck"}) == ""


SCORES = ("reward_before", "reward_after", "accuracy_before", "accuracy_after")
RESULT: dict[str, Any] = {
    "reward_before": 0.5,
    "reward_after": 0.96,
    "accuracy_before": 0.5,
    "accuracy_after": 0.96,
    "mean_tokens_before": 40.0,
    "mean_tokens_after": 20.0,
    "steps": 60,
    "train_seconds": 80.25,
    "tokens": {"trained": 750, "aborted": 250, "lost": 0},
    "tokens_reported_by_engines": 1000,
}


def test_the_table_compares_before_and_after_and_says_where_tokens_went() -> None:
    text = result_table(RESULT, 60)
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines() if line}
    assert rows["held-out accuracy"][-3:] == ["0.500", "0.960", "+92%"]
    assert rows["mean response, tokens"][-3:] == ["40.0", "20.0", "-50%"]
    assert "60 of 60 steps in 80.2 s" in text
    assert [line.split() for line in text.splitlines()[-2:]] == [
        ["trained", "750", "75.0%"],
        ["aborted", "250", "25.0%"],
    ]


def test_loads_of_weights_that_are_not_proved_are_told() -> None:
    assert "not proved" not in result_table({**RESULT, "weights_unsure": 0}, 60)
    text = result_table({**RESULT, "weights_unsure": 2, "weights_proved": 59}, 60)
    assert "2 of 61 loads are not proved" in text


def test_a_run_without_evaluation_has_a_table_too() -> None:
    without = {**RESULT, **dict.fromkeys(SCORES, None)}
    text = result_table({**without, "tokens_reported_by_engines": 0, "tokens": {}}, 60)
    assert "accuracy" not in text
    assert "before" in text, "lengths are compared all the same"


def test_a_table_without_anything_to_compare_has_no_empty_header() -> None:
    metrics = (
        f"{what}_{when}"
        for what in ("reward", "accuracy", "mean_tokens")
        for when in ("before", "after")
    )
    text = result_table({**RESULT, **dict.fromkeys(metrics, None)}, 60)
    assert "before" not in text and "change" not in text
    assert text.startswith("60 of 60 steps")


def test_mean_rewards_that_are_no_accuracy_are_called_reward() -> None:
    text = result_table({**RESULT, "accuracy_after": 0.5}, 60)
    assert "held-out reward" in text
    assert "accuracy" not in text


def test_the_table_says_how_many_groups_had_equal_rewards() -> None:
    text = result_table({**RESULT, "groups": {"ended": 96, "equal": 45}}, 60)
    assert "rewards: all equal in 45 of 96 groups" in text


def test_an_accuracy_of_zero_before_is_no_division() -> None:
    assert "0.000" in result_table({**RESULT, "accuracy_before": 0.0, "reward_before": 0.0}, 60)
