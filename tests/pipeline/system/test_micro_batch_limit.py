"""The limit of a micro-batch that a lack of memory leaves in a run's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.system.micro_batch_limit import keep_limit, note, read_limit
from pipeline.system.run_folder import RunError, RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.make_folders()
    return made


def test_a_run_that_never_lacked_memory_has_the_setting_and_no_warning(run: RunFolder) -> None:
    assert read_limit(run, 4096) == 4096
    assert note(run, 4096) == ""


def test_a_kept_limit_holds_until_the_setting_is_changed(run: RunFolder) -> None:
    assert keep_limit(run, 4096, 500)
    assert read_limit(RunFolder(run.path), 4096) == 500
    assert "micro-batches of 500 tokens, not 4096" in note(run, 4096)
    assert (read_limit(run, 2048), note(run, 2048)) == (2048, "")
    assert (read_limit(run, 8192), note(run, 8192)) == (8192, "")


def test_a_limit_only_falls_so_that_restarts_end(run: RunFolder) -> None:
    assert keep_limit(run, 4096, 500)
    for tokens in (500, 600, 4096):
        assert not keep_limit(run, 4096, tokens)
        assert read_limit(run, 4096) == 500
    assert keep_limit(run, 4096, 250)
    assert keep_limit(run, 100, 50), "another setting begins anew"
    assert read_limit(run, 100) == 50


def test_a_damaged_file_is_refused_with_what_to_do(run: RunFolder) -> None:
    run.micro_batches.write_text('{"setting": 4096')
    with pytest.raises(RunError, match=r"micro-batches\.json: .*remove it"):
        read_limit(run, 4096)
