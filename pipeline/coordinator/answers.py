"""What the prompts and budget seams answer, held against what can be."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pipeline.coordinator.groups import Stage
from pipeline.coordinator.state import Core, PluginFault
from pipeline.plugins.actions import Allotment, Plan


def check_plan(core: Core, plan: Plan, want: int, outstanding: Collection[int]) -> None:
    """Raises PluginFault unless every prompt exists, is named once, and is not open."""
    prompts = plan.prompts
    if (
        len(prompts) > want
        or len(set(prompts)) != len(prompts)
        or any(p in outstanding or not 0 <= p < core.settings.prompts for p in prompts)
    ):
        name = type(core.seams.prompts).__name__
        raise PluginFault(f"prompts {name}: plan {prompts}: at most {want}, each once, none open")


def check_allotments(core: Core, allotments: Sequence[Allotment], prompts: int) -> None:
    """Raises PluginFault unless each prompt has one, with candidates and tokens."""
    most = core.settings.most_candidates
    if len(allotments) != prompts or any(
        not 1 <= a.candidates <= most or a.max_tokens < 1 for a in allotments
    ):
        name = type(core.seams.budget).__name__
        raise PluginFault(
            f"budget {name}: {allotments}: one for each of {prompts} prompts, 1 to {most} "
            "candidates, max_tokens at least 1"
        )


def check_top_up(core: Core, given: Sequence[tuple[int, int]], idle: int) -> None:
    """Raises PluginFault unless it names open groups, once each, and no more than is idle."""
    groups = [core.groups.get(group) for group, _ in given]
    if (
        any(g is None or g.kind != "train" or g.stage is not Stage.OPEN for g in groups)
        or len({group for group, _ in given}) != len(given)
        or any(count < 1 for _, count in given)
        or sum(count for _, count in given) > idle
    ):
        name = type(core.seams.budget).__name__
        raise PluginFault(f"budget {name}: top-up {given}: open groups, {idle} candidates in all")
