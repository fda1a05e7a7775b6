"""Section: what selection changed in reward, length and advantages, measured in audited steps."""

from __future__ import annotations

from collections.abc import Sequence

from launch.report.read_run import Run
from launch.report.section import Section, html_table
from launch.run_files.records import Audit, pooled_audit
from pipeline.coordinator.selection_bias import KINDS

_SECTION = Section(
    id="bias", title="What selection changes",
    see="The chosen members against all candidates, in audited steps. An advantage is compared "
    "with the one that the same member would have had among all: below 0 for long right answers "
    "means that verbosity is held back, above 0 that depth is encouraged.",
)  # fmt: skip
_HEAD = ("run", "audited steps", "reward", "tokens", "advantage, absolute",
         *(kind.replace("_", " and ") for kind in KINDS))  # fmt: skip


def bias_section(runs: Sequence[Run]) -> Section:
    """Tabulates the audits of each run, pooled over its steps."""
    audits = {run.name: [s.audit for s in run.steps if s.audit is not None] for run in runs}
    rows = [
        (name, len(found), *_cells(pooled_audit(found))) for name, found in audits.items() if found
    ]
    if not rows:
        return _SECTION.without_data(
            "No step was audited; audit.every=50 audits the last of every 50 steps."
        )
    return _SECTION.showing(html_table(_HEAD, rows))


def _cells(audit: Audit) -> list[str]:
    means = (audit.reward_shift, audit.tokens_shift)
    signed = ["–" if value is None else f"{value:+.3g}" for value in means]
    moved = "–" if audit.advantage_moved is None else f"{audit.advantage_moved:.3g}"
    kinds = [
        f"{audit.advantage_shift_by_kind[kind]:+.3g} (of {audit.members_by_kind[kind]})"
        if kind in audit.advantage_shift_by_kind
        else "–"
        for kind in KINDS
    ]
    return [*signed, moved, *kinds]
