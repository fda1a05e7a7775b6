"""What a part of a run keeps of its launcher's environment: everything but what is listed here.

Each name has its reason. Nothing is left out by how its name begins, but where a program owns a
prefix: a variable of the user's may begin like one of torchrun's (LOCAL_JUDGE_URL), and a reward
was promised it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from pipeline.system.cache_dir import name_for_a_nameless_user

_RANK = "torchrun's, for one of its ranks: a part of a run would believe that it is one"
LEFT_OUT: dict[str, str] = {
    **dict.fromkeys(
        (
            *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK"),
            *("GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR"),
            "MASTER_PORT",
        ),
        _RANK,
    ),
    "OMP_NUM_THREADS": "torchrun sets 1; learner.threads and engine.cpu_cores say how many",
    "PYTHONOPTIMIZE": "it takes docstrings and asserts away, which torch and others need",
    "PYTHONSTARTUP": "a file of a person's interactive Python",
}
"""Name -> why a part of a run does not get it."""
_OUTPUT = {"PYTHONIOENCODING": "utf-8:backslashreplace"}
LEFT_OUT_PREFIXES: dict[str, str] = {"TORCHELASTIC_": _RANK}
_NOT_EMPTY = re.compile(r"TORCH_\w+")
_EMPTY = "torch takes an empty one for a setting, and fails to read it (TORCH_LOGS)"
"""Why a variable that this pattern fits is left out where it is empty."""
_LINK = re.compile(r"VLLM_(\w+_)?PORT")
_LINKED = (
    "Kubernetes sets it to tcp://... for a service of that name; vLLM wants a number, and ends"
)
"""Why a variable that this pattern fits is left out unless it is a number."""


def clean_environment(given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns this process's environment without what is listed above, and with a name for a user
    who has none. What a part prints goes into a log, which is UTF-8."""
    found = os.environ if given is None else given
    kept = {name: value for name, value in found.items() if not _why_left_out(name, value)}
    return kept | _OUTPUT | name_for_a_nameless_user(kept)


def _why_left_out(name: str, value: str) -> str:
    if not value and _NOT_EMPTY.fullmatch(name):
        return _EMPTY
    if _LINK.fullmatch(name) and not (value.isascii() and value.isdecimal()):
        return _LINKED
    by_prefix = (why for prefix, why in LEFT_OUT_PREFIXES.items() if name.startswith(prefix))
    return LEFT_OUT.get(name) or next(by_prefix, "")
