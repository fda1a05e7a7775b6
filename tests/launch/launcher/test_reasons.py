"""The innermost error of a log, and what a part of a run gets of the environment."""

from __future__ import annotations

import pytest

from launch.launcher.environment import clean_environment
from launch.launcher.reasons import innermost_reason

VLLM = """\
INFO 11-29 13:00:00 [__init__.py:3] loading
(EngineCore pid=123) ERROR 11-29 13:00:01 [core.py:9] EngineCore failed to start.
(EngineCore pid=123) ERROR 11-29 13:00:01 [core.py:9] Traceback (most recent call last):
(EngineCore pid=123) ERROR 11-29 13:00:01 [core.py:9]   File "envs.py", line 4, in get
(EngineCore pid=123) ERROR 11-29 13:00:01 [core.py:9] ValueError: VLLM_PORT 'tcp://10.1.2.3:8000' is a URI
(EngineCore pid=123) Process EngineCore:
Traceback (most recent call last):
  File "core.py", line 1, in run
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""  # noqa: E501  as vLLM writes it


@pytest.mark.parametrize(
    "log, reason",
    [
        (VLLM, "ValueError: VLLM_PORT 'tcp://10.1.2.3:8000' is a URI"),
        ("torch.OutOfMemoryError: out of memory\n", "torch.OutOfMemoryError: out of memory"),
        ("KeyError: 'a'\nDuring handling\nRuntimeError: b\n", "KeyError: 'a'"),
        ("RuntimeError: Engine core initialization failed.\n",
         "RuntimeError: Engine core initialization failed."),
        ("e0: no such model\nErrors were counted: 0\n", ""),
        ("KeyboardInterrupt\n", "KeyboardInterrupt"),
    ],
)  # fmt: skip
def test_the_innermost_error_is_found(log: str, reason: str) -> None:
    assert innermost_reason(log) == reason


def test_variables_of_the_user_stay_and_those_of_torchrun_go() -> None:
    kept = {"LOCAL_JUDGE_URL": "x", "GROUP_NAME": "x", "MASTER_KEY": "x", "OMP_PLACES": "cores",
            "ROLE_ARN": "x", "RANKING": "x", "VLLM_PORT": "8000"}  # fmt: skip
    gone = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x",
            "PYTHONIOENCODING": "ascii"}  # fmt: skip
    output = {"PYTHONIOENCODING": "utf-8:backslashreplace"}  # that of the logs
    assert clean_environment(kept | gone) == kept | output
    assert clean_environment({"TORCH_LOGS": "", "JUDGE": ""}) == {"JUDGE": "", **output}
    links = ("VLLM_PORT", "VLLM_DP_MASTER_PORT", "VLLM_NIXL_SIDE_CHANNEL_PORT")
    assert clean_environment(dict.fromkeys(links, "tcp://10.1.2.3:8000")) == output
