"""What the programs of `make show` make of what they measure; the runs are no tests."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from launch.bench.compare.cells import CellError
from pipeline.config.load import dump, load
from pipeline.data.dataset import Item
from scripts.bench import (
    benches,
    bias_table,
    overlap,
    show,
    tracing,
    trl_peer,
    trl_trainer,
    two_machines,
)
from scripts.bench.overlap import Steps
from tests.scripts.bench.lines import step_line


def steps_of(**changes: float) -> Steps:
    base = Steps(
        step=4.0,
        generation=2.0,
        learning=1.0,
        last_group=0.25,
        optimizer=0.1,
        publish=0.1,
        load=0.05,
        logprobs=0.0,
        hidden=0.0,
    )
    return msgspec.structs.replace(base, **changes)


def test_the_first_step_is_left_out_and_a_load_lasts_from_its_step_to_the_proof() -> None:
    lines = [
        step_line(0, 10.0, backward_s=99.0),
        {"what": "served", "version": 1, "time": 99.0},
        step_line(1, 20.0, backward_s=1.0, optimizer_s=0.1, publish_s=0.1),
        {"what": "served", "version": 2, "time": 20.5},
        step_line(2, 30.0, backward_s=3.0, optimizer_s=0.3, publish_s=0.1),
    ]
    found = overlap.step_means(lines)
    assert (found.learning, found.last_group, found.load) == (2.0, 0.5, 0.5)
    assert found.optimizer == pytest.approx(0.2)
    with pytest.raises(ValueError, match="two steps"):
        overlap.step_means(lines[:1])


def test_no_step_is_faster_than_its_longer_half_and_what_is_serial() -> None:
    sink, off = steps_of(generation=2.0), steps_of(generation=9.0, learning=3.0)
    found = overlap.bound(sink, off)
    assert found["serial"] == pytest.approx(0.5)
    assert found["bound"] == pytest.approx(3.5)
    group = steps_of(step=7.0)
    told = overlap.overlap_summary("backward", {"sink": [sink], "off": [off], "group": [group]})
    assert told["group_over_bound"] == pytest.approx(2.0)


def test_the_hidden_share_is_of_the_seconds_of_logprob_forwards() -> None:
    off, token = steps_of(logprobs=1.0), steps_of(step=2.0, logprobs=2.0, hidden=1.5)
    told = overlap.overlap_summary("logprobs", {"off": [off], "token": [token]})
    assert (told["off_hidden_share"], told["token_hidden_share"]) == (0.0, 0.75)
    assert told["speed_up"] == 2.0


def peer_row(seed: int, seconds: float, target: float | None) -> trl_peer.Row:
    return trl_peer.Row(
        seed=seed,
        step_seconds=seconds,
        seconds_to_target=target,
        accuracy_before=0.5,
        accuracy_after=0.9,
        mean_tokens_after=30.0,
    )


def test_a_ratio_to_trl_needs_the_figure_on_both_sides() -> None:
    darts = [peer_row(0, 1.0, 10.0), peer_row(1, 1.0, None), peer_row(2, 9.0, None)]
    trl = [peer_row(0, 4.0, None), peer_row(1, 6.0, 50.0)]
    assert trl_peer.trl_ratios(darts, trl) == {"step_seconds": 5.0, "seconds_to_target": None}


def test_the_setting_of_trl_with_the_shortest_step_is_compared() -> None:
    def probe(seconds: float | None) -> trl_peer.Probe:
        return trl_peer.Probe(step_seconds=seconds, error="" if seconds else "out of memory")

    assert trl_peer.fastest({"a": probe(None), "b": probe(2.0), "c": probe(3.0)}) == "b"
    with pytest.raises(CellError, match="out of memory"):
        trl_peer.fastest({"a": probe(None)})


def test_every_setting_of_trl_trains_on_a_whole_step_at_once() -> None:
    for setting in trl_trainer.SETTINGS.values():
        given = setting.arguments(384)
        assert given["per_device_train_batch_size"] * given["gradient_accumulation_steps"] == 384
        assert given["steps_per_generation"] == given["gradient_accumulation_steps"]


def test_a_finished_cell_of_trl_is_read_and_one_of_other_settings_is_refused(
    tmp_path: Path,
) -> None:
    peer = trl_peer.Peer(
        size=trl_peer.SIZES["quickstart"], steps=4, every=4, base=tmp_path, overrides=()
    )
    config = dump(load(peer.size.config, [*peer.settings(4, 4), "seed=1"]))
    curve = [{"train_s": s, "accuracy": a, "mean_tokens": 9.0} for s, a in ((0.0, 0.5), (8.0, 0.9))]
    done = {"config": config, "training": {"seconds": [2.0] * 4, "curve": curve}}
    (tmp_path / "trl-one_batch-s1.json").write_text(json.dumps(done))
    row = trl_peer.row_of(peer.trl("one_batch", 1), 1, target=0.8)
    assert (row.step_seconds, row.seconds_to_target, row.accuracy_after) == (2.0, 8.0, 0.9)
    other = msgspec.structs.replace(peer, steps=8)
    with pytest.raises(CellError, match="other settings"):
        other.trl("one_batch", 1)


def test_trl_gets_whole_shuffled_epochs() -> None:
    items = [Item(prompt=str(n), tokens=b"", answer="", columns={}) for n in range(10)]
    order = [item.prompt for item in trl_trainer.prompts_in_order(items, 25, seed=1)]
    assert len(order) == 25
    assert [len(set(order[i : i + 10])) for i in (0, 10)] == [10, 10]
    assert order[:10] != order[10:20]


def test_the_table_of_both_trainers_has_each_size_and_the_settings_that_were_tried() -> None:
    rows = [msgspec.to_builtins(peer_row(0, 1.5, None))]
    size = {
        "config": "configs/bench.yaml",
        "steps": 4,
        "target": 0.75,
        "probes": {"a": {"step_seconds": 7.0}, "b": {"step_seconds": None, "error": "no"}},
        "sides": {"darts": rows, "trl a": rows},
        "ratios": {"darts": {"trl a": {"step_seconds": 4.0, "seconds_to_target": None}}},
    }
    about = {"revision": "abc", "versions": {"trl": "1.16.0"}, "cores": 2}
    told = "\n".join(benches.trl_table({"about": about, "sizes": {"bench": size}}))
    assert "| trl a | 0 | 1.50 | never | 0.500 -> 0.900 | 30.0 |" in told
    assert "trl a over darts, median of the seeds: step seconds 4.0x" in told
    assert "a 7.00 s, b failed" in told


def test_the_document_tells_what_was_measured_and_leaves_out_the_rest(tmp_path: Path) -> None:
    way = {"tokens_per_s": [10.0, 12.0], "ratios": [0.8, 1.0], "ratio": 0.9}
    (tmp_path / "overhead.json").write_text(
        json.dumps(dict.fromkeys(("raw", "sink", "learner"), way))
    )
    hidden = [msgspec.to_builtins(steps_of(logprobs=1.0))]
    (tmp_path / "logprobs.json").write_text(
        json.dumps(
            {
                "off": hidden,
                "token": hidden,
                "off_hidden_share": None,
                "token_hidden_share": 0.95,
                "speed_up": 1.2,
            }
        )
    )
    out = tmp_path / "measured.md"
    show.write_page(tmp_path, out)
    text = out.read_text()
    assert "| `AsyncLLM` alone | 11 | 0.900 | 0.80 to 1.00 |" in text
    assert "| off | 4.00 | 1.00 | - |" in text
    assert "| token | 4.00 | 1.00 | 95% |" in text
    assert "Three seeds" not in text
    assert benches.PEER.title not in text


def test_the_bias_account_is_told_as_means_over_the_audited_steps() -> None:
    audits = [
        {
            "reward_shift": 0.1,
            "tokens_shift": -4.0,
            "advantage_moved": 0.2,
            "advantage_shift_by_kind": {"right_short": 0.1, "right_long": -0.4},
            "members_by_kind": {"right_short": 4, "right_long": 2},
        },
        {
            "reward_shift": 0.3,
            "tokens_shift": -8.0,
            "advantage_moved": 0.5,
            "advantage_shift_by_kind": {"right_short": 0.5},
            "members_by_kind": {"right_short": 12},
        },
        {"groups": 0, "signal_lost": 2},
    ]
    steps = [{"audit": audits[0]}, {}, {"audit": audits[1]}, {"audit": audits[2]}]
    # of the right and short: (4 x 0.1 + 12 x 0.5) / 16; absolute: (6 x 0.2 + 12 x 0.5) / 18
    assert bias_table.bias_row("first_m", steps) == (
        "| first_m | 3 | +0.2 | -6 | 0.4 | +0.4 | -0.4 | - | - |"
    )


def test_a_ratio_of_tracing_is_taken_within_each_repetition() -> None:
    lines = [
        {"what": "step", "seconds": 9.0}, {"what": "timing", "recording_s": 1.0},
        {"what": "step", "seconds": 1.0}, {"what": "timing", "recording_s": 0.01},
        {"what": "step", "seconds": 2.0}, {"what": "timing", "recording_s": 0.03},
    ]  # fmt: skip
    assert tracing.step_and_own_s(lines) == (1.5, pytest.approx(0.02))
    with pytest.raises(ValueError, match="two steps"):
        tracing.step_and_own_s(lines[:2])
    told = tracing.tracing_summary(
        {"off": [(1.0, 0.0), (2.0, 0.0)], "timing": [(1.1, 0.011), (2.0, 0.02)]}
    )
    assert told["timing"]["ratio"] == pytest.approx(1.05)
    assert told["timing"]["own_share"] == pytest.approx(0.01)
    assert benches.tracing_table(told)[2].startswith("| off | 1.5000 | 1.000 | 0.00% |")


def test_two_machines_are_held_against_what_a_seed_changes(tmp_path: Path) -> None:
    one = [{"x": [0.0, 4.0]}, {"x": [2.0, 2.0]}]
    near, far = [{"x": [1.0, 4.0]}, {"x": [2.0, 2.0]}], [{"x": [9.0, 9.0]}, {"x": [9.0, 9.0]}]
    [row] = two_machines.compare_ways(one, near)
    assert (row.one, row.two, row.between_ways, row.between_seeds) == (2.0, 2.25, 0.25, 1.75)
    assert two_machines.distance_table([row])[-1] == "| x | 2 | 2.25 | 0.25 | 1.75 | 0.14 |"
    assert two_machines.compare_ways(one, far)[0].ratio == 7.0
    assert two_machines.compare_ways(far, [{"x": [8.0, 9.0]}, *far[1:]])[0].ratio == 1.0
    run = tmp_path / "metrics.jsonl"
    step = {"what": "step", "reward": 0.5, "tokens_mean": 30.0, "learner": {"grad_norm": 0.1}}
    lines = [step, {"what": "eval", "accuracy": 0.7, "tokens_mean": 31.0}]
    run.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert two_machines.curves(tmp_path) == {
        "reward": [0.5],
        "response tokens": [30.0],
        "gradient norm": [0.1],
        "held-out accuracy": [0.7],
        "held-out tokens": [31.0],
    }
