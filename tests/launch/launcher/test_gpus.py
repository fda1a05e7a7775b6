"""Engines are spread over a machine's GPUs behind the learner ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.launcher import gpus


def test_gpus_are_those_of_the_environment_else_the_devices_that_there_are(tmp_path: Path):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert gpus.machine_gpus({}, tmp_path) == ["0", "1"]
    assert gpus.machine_gpus({"CUDA_VISIBLE_DEVICES": "3,GPU-ab"}, tmp_path) == ["3", "GPU-ab"]
    assert gpus.machine_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == []


@pytest.mark.parametrize(
    "count, learners, engines, each",
    [(8, 4, 4, 1), (8, 0, 8, 1), (8, 2, 3, 2), (8, 0, 2, 4)],
)
def test_nobody_shares_where_there_are_enough(count: int, learners: int, engines: int, each: int):
    machine = [str(number) for number in range(count)]
    taken = machine[:learners]
    for number in range(engines):
        told = gpus.engine_gpus(machine, learners, number, each)["CUDA_VISIBLE_DEVICES"]
        taken += told.split(",")
    assert sorted(taken) == sorted(set(taken))


def test_with_too_few_all_of_them_are_used():
    machine = ["0", "1"]
    told = [gpus.engine_gpus(machine, 1, n, 1)["CUDA_VISIBLE_DEVICES"] for n in range(3)]
    assert told == ["1", "0", "1"]


def test_without_a_gpu_nothing_is_set():
    assert gpus.engine_gpus([], 1, 0, 1) == {}
