"""What torchrun itself was told, as far as a job must know it: who may run code through it.

Its rendezvous `c10d` keeps its state as a pickle in a store without a key, and every torchrun
of the job unpickles what it finds there: whoever reaches that port runs code as the user. Nothing
that this program does can mend that, and `--secret` does not: it seals darts' own words only. So a
job says so; the static rendezvous does not have the hole (docs/nodes.md).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

_STATIC = "static"
_BACKENDS = ("--rdzv-backend", "--rdzv_backend")
_ENDPOINTS = ("--rdzv-endpoint", "--rdzv_endpoint")


def agent_words(pid: int) -> list[str]:
    """Returns the command line of a process; [] if it cannot be read."""
    try:
        content = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [word.decode(errors="replace") for word in content.split(b"\0") if word]


def rendezvous_warning(words: Sequence[str], environment: Mapping[str, str]) -> str:
    """Returns what is to be said of torchrun's rendezvous; '' if strangers cannot use it.

    Args:
        words: torchrun's command line.
        environment: its variables; PET_RDZV_BACKEND stands for the option.
    """
    backend = _option(words, _BACKENDS) or environment.get("PET_RDZV_BACKEND", "")
    alone = "--standalone" in words or environment.get("PET_STANDALONE") == "1"
    if (not backend and not alone) or backend == _STATIC:
        return ""
    endpoint = _option(words, _ENDPOINTS) or environment.get("PET_RDZV_ENDPOINT", "")
    where = endpoint or "a port that torchrun has chosen"
    return (
        f"torchrun's rendezvous ({backend or 'c10d'} at {where}) unpickles what it finds: whoever "
        "reaches that port runs code as you, whatever --secret says. Use --master-addr and "
        "--node-rank instead (docs/nodes.md), or a network of your own"
    )


def warning_of_parent() -> str:
    """The same for the torchrun that has started this process."""
    return rendezvous_warning(agent_words(os.getppid()), os.environ)


def _option(words: Sequence[str], names: Sequence[str]) -> str:
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in names:
            return value if equals else next(iter(words[position + 1 :]), "")
    return ""
