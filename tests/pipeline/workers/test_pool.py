"""The reward pool: bad rewards fail alone, and nothing of them is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import Plugin, WorkersConfig
from pipeline.plugins.rewards._results import checked_score
from pipeline.plugins.testing import sample_of
from pipeline.workers.jobs import NoOpinion
from pipeline.workers.pool import PoolStatistics, RewardFailed, RewardPool, Scored

pytestmark = pytest.mark.timeout(120)


def pool_of(function: str, *, batch: int = 1, limit_s: float = 20.0, **workers: Any) -> RewardPool:
    function = f"tests.pipeline.workers.reward_functions:{function}"
    plugin = Plugin(name="python", options={"function": function, "batch": batch})
    return RewardPool(plugin, WorkersConfig(limit_s=limit_s, **workers))


async def eventually(claim: Callable[[], bool], limit_s: float = 10.0) -> bool:
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        if claim():
            return True
        await asyncio.sleep(0.05)
    return claim()


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.fault(
    "a reward raises, answers nonsense, exits or crashes", part="rewards", by="process"
)
async def test_bad_rewards_fail_alone_and_the_pool_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Promise: this call fails, with its reason, and the next one is served; a worker that died is
    replaced and the call tried once more; too many failures are a verdict that quotes them.
    Bound: one call; a crash is tried twice.
    """
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")  # of a terminal: no matter of what is printed
    async with pool_of("by_response") as pool:
        assert (await pool.score_sample(sample_of("fine"))).value == 1.0
        for response, why in (
            ("raise", "ValueError: no such unit"),
            ("unpicklable", "UnpicklableError: a"),
            ("nan", "ValueError: returned nan, expected a finite number"),
            ("inf", "ValueError: returned inf, expected a finite number"),
            ("text", "TypeError: returned str '0.5', expected a number"),
            ("none", "TypeError: returned NoneType None, expected a number"),
            ("exit", "its worker died twice: exit code 3"),
            ("segv", "its worker died twice: killed by SIGSEGV"),
        ):
            with pytest.raises(RewardFailed) as failed:
                await pool.score_sample(sample_of(response))
            assert failed.value.why == why
            if response == "raise":
                assert "reward_functions.py" in failed.value.traceback
        # a crash is tried once more, since it need not have been this call's fault
        assert (await pool.score_sample(sample_of(f"crash_once {tmp_path}/crashed"))).value == 0.5
        assert (await pool.score_sample(sample_of("print"))).value == 1.0
        metrics = pool.statistics()
        assert (metrics.called, metrics.failed, metrics.running, metrics.queued) == (11, 8, 0, 0)
        assert pool.stop_reason is not None
        assert "failed in 8 of the last 11 calls" in pool.stop_reason
        assert "workers.fail_share 0.2" in pool.stop_reason
        assert "its worker died twice: " in pool.stop_reason


@pytest.mark.fault("a reward's worker is killed while it is built", part="rewards", by="process")
async def test_a_worker_that_is_killed_while_it_is_built_is_started_once_more(tmp_path: Path):
    """Promise: a second one is built and serves; the second death is taken for the reward's own
    fault, and ends the start.
    Bound: that of building it, twice.
    """
    name = "tests.pipeline.workers.reward_functions:DiesWhileItIsBuilt"

    def dying(times: int) -> RewardPool:
        options = {"marks": str(tmp_path / f"marks-{times}"), "times": times}
        return RewardPool(Plugin(name=name, options=options), WorkersConfig(count=1))

    async with dying(1) as pool:
        assert (await pool.score_sample(sample_of("fine"))).value == 1.0
    with pytest.raises(RewardFailed, match=r"its worker died twice while building it .*SIGKILL"):
        await dying(2).__aenter__()


@pytest.mark.fault("a reward hangs", part="rewards", by="process")
async def test_a_hanging_call_is_killed_at_its_limit_with_what_it_started(tmp_path: Path):
    """Promise: its worker and the child that it started are killed, and the next call is served.
    Bound: 5 s at `workers.limit_s` 0.7, and 10 s for its processes.
    """
    note = tmp_path / "pids"
    async with pool_of("by_response", limit_s=0.7) as pool:
        began = time.monotonic()
        with pytest.raises(RewardFailed, match=r"took longer than workers\.limit_s 0\.7"):
            await pool.score_sample(sample_of(f"hang_with_child {note}"))
        assert time.monotonic() - began < 5
        child, worker = map(int, note.read_text().split())
        assert await eventually(lambda: not runs(worker) and not runs(child))
        assert (await pool.score_sample(sample_of("fine"))).value == 1.0


@pytest.mark.fault("a group ends while its reward is judged", part="rewards", by="process")
async def test_a_cancelled_call_is_killed_and_counts_as_nothing(tmp_path: Path):
    """Promise: worker and child are killed, nothing is counted, and the next call is served.
    Bound: 10 s.
    """
    note = tmp_path / "pids"
    async with pool_of("by_response") as pool:
        call = asyncio.ensure_future(
            pool.score_sample(sample_of(f"hang_with_child {note}"), trajectory=7)
        )
        assert await eventually(lambda: note.exists() and len(note.read_text().split()) == 2)
        assert pool.statistics().running == 1
        pool.cancel_call(8)  # unknown: ignored
        pool.cancel_call(7)
        with pytest.raises(asyncio.CancelledError):
            await call
        child, worker = map(int, note.read_text().split())
        assert await eventually(lambda: not runs(worker) and not runs(child))
        assert (pool.statistics().called, pool.statistics().running) == (0, 0)
        assert (await pool.score_sample(sample_of("fine"))).value == 1.0


async def test_responses_that_wait_go_into_one_call_and_a_bad_one_fails_alone():
    async with pool_of("together", batch=4, limit_s=2.0, fail_share=1.0) as pool:

        async def of(*responses: str) -> list[object]:
            calls = [pool.score_sample(sample_of(response)) for response in responses]
            found = await asyncio.gather(*calls, return_exceptions=True)
            return [f.value if isinstance(f, Scored) else str(f) for f in found]

        # the first finds an idle worker; the others wait for it
        assert await of(*"abcdef") == [1.0, 4.0, 4.0, 4.0, 4.0, 1.0]
        assert await of("a", "b", "none", "c") == [
            1.0, 3.0, "reward 'python' has no opinion on it", 3.0
        ]  # fmt: skip
        assert pool.statistics().failed == 0
        for bad, why in (
            ("raise", "ValueError: one of these"),
            ("exit", "its worker died twice: exit code 3"),
            ("hang", "took longer than workers.limit_s 2"),
        ):
            assert await of("a", "b", bad, "c") == [1.0, 1.0, why, 1.0], bad
        assert pool.statistics() == PoolStatistics(queued=0, running=0, called=22, failed=3)


@pytest.mark.parametrize("batch", [1, 4])
async def test_a_response_that_no_worker_can_be_asked_about_fails_at_once_and_alone(batch: int):
    odd = sample_of("none", columns={"image": object()})  # as a column of pictures is decoded
    async with pool_of("together", batch=batch) as pool:
        asked = [pool.score_sample(sample) for sample in (odd, sample_of("fine"))]
        async with asyncio.timeout(20.0):
            failed, scored = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(failed, RewardFailed)
        assert (
            "cannot be sent to a worker: TypeError: Encoding objects of type object" in failed.why
        )
        assert isinstance(scored, Scored)
        assert pool.statistics() == PoolStatistics(queued=0, running=0, called=2, failed=1)


async def test_a_call_goes_on_as_long_as_somebody_waits_for_one_of_its_responses():
    async with pool_of("by_response", batch=3) as pool:
        first = asyncio.ensure_future(pool.score_sample(sample_of("sleep 0.3")))
        names = ("sleep 0.1", "fine", "sleep 0.2")
        calls = [
            asyncio.ensure_future(pool.score_sample(sample_of(n), trajectory=i))
            for i, n in enumerate(names)
        ]
        await first
        assert await eventually(lambda: pool.statistics().running == 3)
        pool.cancel_call(0)
        assert pool.statistics().running == 2
        assert [(await call).value for call in calls[1:]] == [1.0, 1.0]
        with pytest.raises(asyncio.CancelledError):
            await calls[0]


async def test_a_plugin_is_asked_what_is_wrong_with_the_answers_before_a_run():
    plugin = Plugin(name="tests.pipeline.workers.reward_functions:Picky")
    async with RewardPool(plugin, WorkersConfig()) as pool:
        answers = [sample_of("", answer=answer) for answer in ("3", "three")]
        assert await pool.check_answers(answers) == ["", "found 'three', expected digits"]
        with pytest.raises(RewardFailed, match="no such unit"):
            await pool.check_answers([sample_of("", answer="raise")])
    async with RewardPool(Plugin(name="majority"), WorkersConfig()) as pool:
        assert await pool.check_answers(answers) == [], "it checks none"


async def test_signatures_of_trl_and_verl_and_async_functions_work_as_they_are():
    columns = {"prompt": "1+2=", "answer": "3", "terms": 2, "data_source": "sums"}
    sample = sample_of("#3", answer="3", prompt="1+2=", columns=columns)
    async with pool_of("of_trl") as pool:
        assert (await pool.score_sample(sample)).value == 8.0
    async with pool_of("of_verl") as pool:
        score = await pool.score_sample(sample_of("3", answer="3", columns=columns))
        assert (score.value, score.parts) == (1.0, {"length": 1.0})
        assert 0 < score.times[0] <= score.times[1] <= time.monotonic()
    async with pool_of("slow_but_async") as pool:
        assert (await pool.score_sample(sample)).value == 0.25


@pytest.mark.parametrize("function", ["loops_each", "loops_together"])
async def test_async_functions_are_called_in_one_event_loop(function: str):
    async with pool_of(function) as pool:
        assert [(await pool.score_sample(sample_of(""))).value for _ in range(2)] == [1.0, 1.0]


@pytest.mark.fault("a reward plug-in fails to build", part="rewards", by="process")
async def test_a_plugin_that_cannot_be_built_is_an_error_at_start():
    """Promise: it is an error at the start that names the plug-in and what it said.
    Bound: at the start.
    """
    plugin = Plugin(name="tests.pipeline.workers.reward_functions:FailsToBuild")
    pool = RewardPool(plugin, WorkersConfig())
    with pytest.raises(RewardFailed, match="no licence") as failed:
        await pool.start_workers()
    assert "FailsToBuild" in failed.value.why
    await pool.close()
    await pool.close()


@pytest.mark.fault("the process that holds reward workers is killed", part="rewards", by="process")
def test_no_worker_outlives_a_killed_parent():
    """Promise: they end.
    Bound: 10 s.
    """
    script = (
        "import asyncio\n"
        "from pipeline.config.schema import Plugin, WorkersConfig\n"
        "from pipeline.workers.pool import RewardPool\n"
        "from pipeline.plugins.testing import sample_of\n"
        "async def main():\n"
        "    pool = RewardPool(Plugin(name='python', options={'function':"
        " 'tests.pipeline.workers.reward_functions:by_response'}), WorkersConfig())\n"
        "    await pool.start_workers()\n"
        "    print(int((await pool.score_sample(sample_of('pid'))).value), flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "if __name__ == '__main__': asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    assert runs(worker)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert asyncio.run(eventually(lambda: not runs(worker)))
    parent.stdout.close()


def test_a_dict_needs_a_score_and_keeps_its_other_numbers_as_parts():
    assert checked_score({"score": True, "format": 0.5, "note": "x"}) == (1.0, {"format": 0.5})
    with pytest.raises(ValueError, match="without 'score': acc"):
        checked_score({"acc": 1})


def group_pool(limit_s: float = 20.0) -> RewardPool:
    name = "tests.pipeline.workers.reward_functions:Ranks"
    return RewardPool(Plugin(name=name, options={}), WorkersConfig(limit_s=limit_s))


async def test_a_whole_group_is_judged_in_one_call_a_result_for_each():
    async with group_pool() as pool:
        samples = [sample_of(text) for text in ("ccc", "a", "bb", "silent")]
        found = await pool.score_group(samples, [4, 5, 6, 7])
        assert [f.value for f in found if isinstance(f, Scored)] == [2.0, 0.0, 1.0]
        assert isinstance(found[3], NoOpinion)
        assert pool.statistics() == PoolStatistics(queued=0, running=0, called=1, failed=0)


async def test_a_group_whose_reward_raises_has_no_rewards_and_counts_as_one_failure():
    async with group_pool() as pool:
        found = await pool.score_group([sample_of("raise"), sample_of("a")], [4, 5])
        assert [str(f) for f in found] == ["ValueError: no such unit"] * 2
        assert pool.statistics().failed == 1
        assert (await pool.score_sample(sample_of("abc"))).value == 3.0


async def test_the_call_of_a_group_is_ended_once_nobody_wants_it():
    async with group_pool() as pool:
        asked = asyncio.ensure_future(pool.score_group([sample_of("hang"), sample_of("a")], [4, 5]))
        await asyncio.sleep(0.2)
        pool.cancel_call(4)
        await asyncio.sleep(0)
        assert not asked.done()
        pool.cancel_call(5)
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert await eventually(lambda: pool.statistics().running == 0)
