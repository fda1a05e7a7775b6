"""What a job says of torchrun's own rendezvous."""

from __future__ import annotations

import pytest

from launch.torchrun.agent import rendezvous_warning

HOLE = "runs code as you"


@pytest.mark.parametrize(
    "words, environment, said",
    [
        (["torchrun", "--master-addr=10.0.0.1", "--node-rank=1"], {}, ""),
        (["torchrun", "--rdzv-backend=static", "--rdzv-endpoint=a:1"], {}, ""),
        (["torchrun", "--rdzv-backend=c10d", "--rdzv-endpoint=10.0.0.1:29500"], {}, HOLE),
        (["torchrun", "--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:1"], {}, HOLE),
        (["torchrun", "--standalone"], {}, HOLE),
        (["torchrun"], {"PET_RDZV_BACKEND": "c10d", "PET_RDZV_ENDPOINT": "h:1"}, "h:1"),
        (["torchrun", "train.py", "--rdzv-endpoint=x"], {}, ""),
        ([], {}, ""),
    ],
)
def test_a_rendezvous_that_runs_strangers_code_is_named(
    words: list[str], environment: dict[str, str], said: str
) -> None:
    warning = rendezvous_warning(words, environment)
    assert (said in warning) if said else warning == ""
