"""Reward workers: what user code sees and may use, and that nothing it does reaches the stage."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.config.load import ConfigError, load
from pipeline.config.schema import Plugin, WorkersConfig
from pipeline.plugins.testing import sample_of
from pipeline.workers.pool import RewardFailed, RewardPool
from pipeline.workers.process import OUTPUT_BYTES
from pipeline.workers.resource_limits import MARK, without_secrets
from tests.paths import ROOT
from tests.pipeline.workers.test_pool import eventually, runs

pytestmark = pytest.mark.timeout(120)
TEST = "PYTEST_CURRENT_TEST"  # pytest's own variable
SECRETS = {
    "HF_TOKEN": "hf_123",
    "HUGGING_FACE_HUB_TOKEN": "hf_123",
    "WANDB_API_KEY": "w123",
    "AWS_SECRET_ACCESS_KEY": "a123",
    "AWS_PROFILE": "prod",
    "AZURE_CLIENT_SECRET": "z123",
    "GOOGLE_APPLICATION_CREDENTIALS": "/k.json",
    "GITHUB_TOKEN": "g123",
    "OPENAI_API_KEY": "o123",
    "SSH_AUTH_SOCK": "/s",
    "MY_PASSWORD": "p123",
    "my_private_thing": "q123",
    "HTTPS_PROXY": "http://me:pw123@proxy:3128",
    "DATABASE_URL": "postgres://me:pw123@db/x",
}
HARMLESS = {"TOKENIZERS_PARALLELISM": "false", "HTTP_PROXY": "http://proxy:3128", "LANG": "C"}


def pool_of(function: str = "by_response", limit_s: float = 20.0, **workers: Any) -> RewardPool:
    plugin = Plugin(
        name="python", options={"function": f"tests.security.reward_functions:{function}"}
    )
    return RewardPool(plugin, WorkersConfig(limit_s=limit_s, **workers))


@pytest.fixture
async def pool() -> AsyncIterator[RewardPool]:
    async with pool_of(memory_gib=1.0, file_mib=4.0, open_files=64) as pool:
        yield pool


def test_whatever_looks_like_a_secret_is_taken_out_of_the_environment() -> None:
    assert without_secrets(SECRETS | HARMLESS) == HARMLESS
    assert without_secrets(SECRETS, keep=["HF_TOKEN"]) == {"HF_TOKEN": "hf_123"}


async def test_a_worker_sees_no_secret_no_descriptor_and_no_directory_of_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (SECRETS | HARMLESS).items():
        monkeypatch.setenv(name, value)
    note = tmp_path / "seen"
    with open(tmp_path / "secret", "w"):  # noqa: ASYNC230  a descriptor of the stage's
        async with pool_of(memory_gib=1.0, env=("HF_TOKEN",)) as pool:
            await pool.score_sample(sample_of(f"look {note}"))
            seen = json.loads(note.read_text())
            assert seen["environ"]["HF_TOKEN"] == "hf_123"  # asked for
            assert not (SECRETS.keys() - {"HF_TOKEN"}) & seen["environ"].keys()
            assert "123" not in seen["kernel's"].replace("HF_TOKEN=hf_123", "")
            assert HARMLESS.items() <= seen["environ"].items()
            null, out, err, channel = list(seen["descriptors"].values())[:4]
            assert (null, out) == ("/dev/null", err)
            assert channel.startswith("socket:")
            assert not any(str(tmp_path) in place for place in seen["descriptors"].values())
            assert seen["inheritable"] == [0, 1, 2]
            assert seen["holds"] == []
            assert seen["directory"] != str(Path.cwd())
            assert seen["session"] is True
            assert seen["no new privileges"] == 1
            assert seen["limits"] == [1 << 30, 100 << 20, 256]
            assert (seen["core"], seen["umask"]) == (0, 0o077)
        assert not Path(seen["directory"]).exists()


TOO_MUCH = {
    "allocate": "MemoryError",
    "write": "File too large",
    "open": "Too many open files",
    "return": "TypeError: returned str 'xxx",
    "parts": "bytes of numbers",
    "raise": r"ValueError: \\x1b\[2Jyyy",
    "forge": "its worker died twice: its answer does not decode: JSON is malformed",
    "flood": "its worker died twice: it answered 2147483648 bytes",
    "kill": "its worker died twice: killed by SIGKILL",
}


@pytest.mark.fault(
    "a reward takes all memory, files or descriptors, answers too much, or forges answers",
    part="rewards",
    by="process",
)
async def test_what_takes_or_answers_too_much_fails_alone(pool: RewardPool) -> None:
    """Promise: each such call fails with its reason, the next one is served, and the stage grows by
    less than 50 MiB over all of them.
    Bound: one call.
    """
    before = psutil.Process().memory_info().rss
    for response, why in TOO_MUCH.items():
        with pytest.raises(RewardFailed, match=why) as failed:
            await pool.score_sample(sample_of(response))
        assert len(failed.value.why) + len(failed.value.traceback) < 50_000
        assert (await pool.score_sample(sample_of("fine"))).value == 1.0
    assert psutil.Process().memory_info().rss - before < 50 << 20


@pytest.mark.fault("a reward spins", part="rewards", by="process")
async def test_a_call_that_spins_is_killed_by_its_cpu_seconds() -> None:
    """Promise: it is killed by the kernel for its CPU seconds, and the call fails.
    Bound: `cpu_s` (here 1 s of CPU).
    """
    async with pool_of(cpu_s=1.0) as pool:
        with pytest.raises(RewardFailed, match="killed by SIGXCPU"):
            await pool.score_sample(sample_of("spin"))


@pytest.mark.fault("a reward that forks without end", part="rewards", by="process")
async def test_a_call_that_forks_without_end_is_killed_with_all_that_it_has_started() -> None:
    """Promise: the call fails with the reason, every one of them ends, in whichever session it is,
    and the next call is served.
    Bound: `processes` (here 16) and a tenth of a second; 20 s for their ends.
    """
    async with pool_of(processes=16) as pool:
        with pytest.raises(RewardFailed, match="it had started more than 16 processes"):
            await pool.score_sample(sample_of("fork"))
        assert (await pool.score_sample(sample_of("fine"))).value == 1.0
        [worker] = pool._idle
        assert await eventually(lambda: len(forked()) == 1, 20)
        assert forked()[0].pid == worker._process.pid


def forked() -> list[psutil.Process]:
    """The workers of this test and what they have started, whoever is its parent now."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            theirs = process.environ()
            if MARK in theirs and theirs.get(TEST) == os.environ[TEST]:
                found.append(process)
    return found


@pytest.mark.fault("a reward prints 200 MiB", part="rewards", by="process")
async def test_of_what_a_call_prints_the_first_part_is_logged_and_memory_stays_flat(
    pool: RewardPool, caplog: pytest.LogCaptureFixture
) -> None:
    """Promise: the call counts, the first part is logged, and the stage grows by less than 50 MiB.
    Bound: one call.
    """
    caplog.set_level(logging.INFO, logger="stage")
    before = psutil.Process().memory_info().rss
    assert (await pool.score_sample(sample_of("print"))).value == 1.0  # 200 MiB
    assert psutil.Process().memory_info().rss - before < 50 << 20
    said = sum(len(record.getMessage()) for record in caplog.records)
    assert OUTPUT_BYTES / 2 < said < 2 * OUTPUT_BYTES


@pytest.mark.fault(
    "a reward's child leaves its session and ignores signals", part="rewards", by="process"
)
@pytest.mark.parametrize("waits", ["wait", "go"])
async def test_a_child_that_left_its_session_and_ignores_signals_ends_with_its_worker(
    tmp_path: Path, waits: str
) -> None:
    """Promise: it ends with its worker, killed at the limit or closed with the pool.
    Bound: 10 s after the limit (here 3 s) or the close.
    """
    note = tmp_path / "pid"
    async with pool_of(limit_s=3.0) as pool:
        if waits == "wait":
            with pytest.raises(RewardFailed, match="took longer"):
                await pool.score_sample(sample_of(f"stubborn {note}", answer=waits))
        else:
            await pool.score_sample(sample_of(f"stubborn {note}", answer=waits))
        child = int(note.read_text())
        if waits == "wait":
            assert await eventually(lambda: not runs(child))
    assert await eventually(lambda: not runs(child))


@pytest.mark.slow
async def test_a_reward_that_imports_torch_works_under_the_default_limits() -> None:
    async with pool_of("with_torch") as pool:
        assert (await pool.score_sample(sample_of("x"))).value == 3.0


@pytest.mark.parametrize(
    "name,value", [("memory_gib", 0.1), ("cpu_s", -1), ("open_files", 3), ("processes", -1)]
)
def test_a_limit_that_leaves_no_room_is_a_problem_of_the_configuration(
    name: str, value: Any
) -> None:
    with pytest.raises(ConfigError) as raised:
        load(ROOT / "configs" / "quickstart.yaml", [f"workers.{name}={value}"])
    [problem] = raised.value.problems
    assert f": workers.{name}: found {value}, expected at least " in problem
