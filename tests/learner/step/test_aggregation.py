"""The means of `learner.aggregate` by hand, and streamed = whole with each of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from learner.deepspeed.engine import Zero
from learner.losses import Loss
from learner.losses.cispo import Cispo
from learner.losses.dapo import Dapo
from learner.losses.drpo import Drpo
from learner.losses.gspo import Gspo
from learner.step.aggregation import Aggregation, Kind, aggregation_of
from learner.step.base import LearnerStep
from learner.step.multi_update import MultiUpdateStep
from learner.step.passes import Passes
from learner.step.single_update import SingleUpdateStep
from pipeline.config.schema import LearnerConfig
from pipeline.wire.messages import CloseStep, GroupTrained, TrainGroup, TrainMember, floats, ints
from tests.learner.ranks import TEMPERATURE, group_of, make_model
from tests.learner.step.test_steps import PlainRank, relative

KINDS: tuple[Kind, ...] = ("token", "sequence", "group", "constant")
LIMIT = 50
"""`sampling.max_tokens`."""


def member(trajectory: int, tokens: int, weight: float = 1.0, **more: Any) -> TrainMember:
    return TrainMember(
        trajectory=trajectory,
        response=bytes(4 * tokens),
        behaviour=bytes(4 * tokens),
        reward=0.0,
        advantage=1.0,
        weight=weight,
        **more,
    )


def group() -> TrainGroup:
    """Sampled tokens 2, 6 and 4, of weights 1, .5 and 1; two more are appended."""
    members = (member(0, 2), member(1, 8, 0.5, appended=((3, 2),)), member(2, 4))
    return TrainGroup(step=0, group=0, prompt=bytes(4), members=members)


@pytest.mark.parametrize(
    "kind, weights, counted",
    [
        ("token", [1, 0.5, 1], 9),  # 2 + 3 + 4
        ("sequence", [1 / 2, 0.5 / 6, 1 / 4], 2.5),
        ("group", [1 / 9, 0.5 / 9, 1 / 9], 1),
        ("constant", [1, 0.5, 1], 125),  # 2.5 x 50
    ],
)
def test_weights_of_tokens_and_what_a_group_counts_by_hand(
    kind: Kind, weights: list[float], counted: float
):
    aggregation = Aggregation(kind, LIMIT)
    found = aggregation.weighed(group())
    assert [m.weight for m in found.members] == pytest.approx(weights)
    assert aggregation.counted(group()) == pytest.approx(counted)


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_without_weight_counts_nothing_and_a_member_without_tokens_divides_nothing(
    kind: Kind,
):
    aggregation = Aggregation(kind, LIMIT)
    nothing = TrainGroup(step=0, group=0, prompt=bytes(4), members=(member(0, 3, 0.0),))
    assert aggregation.counted(nothing) == 0
    assert [m.weight for m in aggregation.weighed(nothing).members] == [0.0]
    empty = msgspec.structs.replace(nothing, members=(member(0, 2, appended=((0, 2),)),))
    assert [m.weight for m in aggregation.weighed(empty).members] == [1.0]


def test_auto_is_what_the_loss_names_and_a_setting_overrules_it():
    def kind_of(loss: Loss, **settings: Any) -> str:
        return aggregation_of(LearnerConfig(**settings), loss, LIMIT).kind

    assert [kind_of(loss) for loss in (Dapo(), Gspo(), Drpo())] == ["token", "sequence", "group"]
    assert kind_of(Gspo(), aggregate="token") == "token"

    class Odd(Dapo):
        aggregate = "tokens"

    with pytest.raises(ValueError, match="loss Odd: aggregate is 'tokens', expected token, seq"):
        kind_of(Odd())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    directory: Path = make_model(tmp_path_factory.mktemp("model"))
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def logprobs(model: Any, prompt: bytes, response: bytes) -> torch.Tensor:
    """Of the response's tokens, by one plain forward."""
    first, taken = ints(prompt).tolist(), ints(response).tolist()
    logits = model(input_ids=torch.tensor([first + taken])).logits[0, len(first) - 1 : -1]
    scaled = (logits / TEMPERATURE).log_softmax(-1)
    return scaled.gather(-1, torch.tensor(taken)[:, None])[:, 0]


def mean_by_hand(model: Any, groups: Sequence[TrainGroup], kind: Kind) -> torch.Tensor:
    """The published mean over a whole batch, of each token's -A log p."""
    means: list[tuple[float, torch.Tensor]] = []  # (divisor, sum) of each thing averaged over
    for found in groups:
        terms = [
            (m.weight, -m.advantage * logprobs(model, found.prompt, m.response))
            for m in found.members
            if m.weight
        ]
        match kind:
            case "token":
                means += [(w * len(loss), w * loss.sum()) for w, loss in terms]
            case "sequence":
                means += [(w, w * loss.mean()) for w, loss in terms]
            case "group":
                tokens = sum(w * len(loss) for w, loss in terms)
                means.append(
                    (1.0, sum((w * loss.sum() for w, loss in terms), torch.zeros(())) / tokens)
                )
            case "constant":
                means += [(w * LIMIT, w * loss.sum()) for w, loss in terms]
    whole = sum((total for _, total in means), torch.zeros(()))
    return whole / sum(divisor for divisor, _ in means)


def step_of(
    rank: PlainRank, loss: Loss, section: LearnerConfig, kind: type[LearnerStep] = SingleUpdateStep
) -> LearnerStep:
    passes = Passes(cast(Zero, rank), loss, section, temperature=TEMPERATURE, max_tokens=LIMIT)
    return MultiUpdateStep(passes, section) if kind is MultiUpdateStep else SingleUpdateStep(passes)


def trained(
    model: Any,
    loss: Loss,
    packs: Sequence[Sequence[TrainGroup]],
    section: LearnerConfig,
    kind: type[LearnerStep] = SingleUpdateStep,
) -> torch.Tensor:
    """Gradient of the step over groups that came in these packs, divided by its N."""
    rank = PlainRank(model)
    step = step_of(rank, loss, section, kind)
    counted = 0.0
    for pack in packs:
        for report in step.add_groups(pack):
            assert isinstance(report, GroupTrained)
            counted += report.tokens
    names = tuple(found.group for pack in packs for found in pack)
    step.close(CloseStep(step=0, groups=names, normaliser=counted), 0)
    [(gradient, _, _)] = rank.applied
    return gradient


GROUPS = [group_of(number) for number in (2, 5, 9, 3)]
"""Of 5 the second member is silent, of 9 all are: they count and are not computed."""


@pytest.mark.parametrize("step", [SingleUpdateStep, MultiUpdateStep])
@pytest.mark.parametrize("kind", KINDS)
def test_groups_that_stream_in_give_the_gradient_of_the_mean_over_the_whole_batch(
    model: Any, kind: Kind, step: type[LearnerStep]
):
    rank = PlainRank(model)
    mean_by_hand(model, GROUPS, kind).backward()
    expected = rank.gradient
    rank.zero_gradients()
    section = LearnerConfig(tokens_per_micro_batch=60, aggregate=kind)
    streamed = trained(model, Dapo(), [[found] for found in GROUPS], section, step)
    assert relative(streamed, expected) < 1e-5
    whole = trained(
        model, Dapo(), [GROUPS], msgspec.structs.replace(section, tokens_per_micro_batch=9999), step
    )
    assert relative(whole, expected) < 1e-5


@pytest.mark.parametrize("loss", [Gspo, Cispo, Drpo])
def test_losses_of_sequences_and_groups_stream_in_as_well(model: Any, loss: type[Any]):
    groups = [
        msgspec.structs.replace(
            found,
            members=tuple(
                msgspec.structs.replace(m, reward=float(at % 2))
                for at, m in enumerate(found.members)
            ),
        )
        for found in GROUPS
    ]
    section = LearnerConfig(tokens_per_micro_batch=9999)
    whole = trained(model, loss(), [groups], section)
    small = msgspec.structs.replace(section, tokens_per_micro_batch=40)
    assert relative(trained(model, loss(), [[g] for g in groups], small), whole) < 1e-5


def test_a_loss_that_compares_members_gets_groups_whole_in_a_call_whatever_its_size(model: Any):
    seen: list[list[int]] = []

    class Whole(Dapo):
        whole_groups = True

        def loss(self, batch: Any):
            seen.append(batch.group_B.tolist())
            return super().loss(batch)

    section = LearnerConfig(tokens_per_micro_batch=10)
    trained(model, Whole(), [GROUPS], section)
    counts = {g.group: sum(1 for m in g.members if m.weight) for g in GROUPS}
    assert sorted(seen) == sorted([name] * count for name, count in counts.items())


# --- advantages of single tokens --------------------------------------------------------------


def with_tokens(found: TrainGroup, seed: int = 0) -> TrainGroup:
    """Each token's own advantage; the member's number says nothing, here 0."""
    rng = np.random.default_rng(seed)
    members = tuple(
        msgspec.structs.replace(
            m,
            advantage=0.0,
            token_advantages=rng.normal(size=len(m.response) // 4).astype("<f4").tobytes(),
        )
        for m in found.members
    )
    return msgspec.structs.replace(found, members=members)


def test_advantages_of_tokens_take_the_place_of_the_members(model: Any):
    given = with_tokens(group_of(3))
    rank = PlainRank(model)
    terms = [
        -m.weight
        * (
            torch.tensor(floats(m.token_advantages)) * logprobs(model, given.prompt, m.response)
        ).sum()
        for m in given.members
    ]
    tokens = sum(m.weight * m.sampled_tokens for m in given.members)
    (sum(terms, torch.zeros(())) / tokens).backward()
    expected = rank.gradient
    rank.zero_gradients()
    assert relative(trained(model, Dapo(), [[given]], LearnerConfig()), expected) < 1e-5


def test_a_member_is_silent_only_if_all_of_its_tokens_are():
    response = bytes(12)
    heard = np.array([0.0, 0.0, -0.5], "<f4").tobytes()

    def silent(advantage: float, tokens: bytes) -> bool:
        return not TrainMember(
            trajectory=0, response=response, behaviour=response, reward=0.0,
            advantage=advantage, token_advantages=tokens,
        ).has_advantage  # fmt: skip

    assert not silent(0.0, heard)
    assert silent(1.0, bytes(12))
    assert silent(0.0, b"")
    assert not silent(1.0, b"")


def test_numbers_for_another_count_of_tokens_are_named(model: Any):
    given = group_of(3)
    first, *others = given.members
    short = msgspec.structs.replace(first, token_advantages=bytes(4))
    given = msgspec.structs.replace(given, members=(short, *others))
    tokens = len(first.response) // 4
    assert tokens > 1
    step = step_of(PlainRank(model), NotSilent(), LearnerConfig())
    with pytest.raises(ValueError, match=f"trajectory 300: {tokens} tokens, 1 advantages"):
        step.add_groups([given])


class NotSilent(Dapo):
    def __init__(self) -> None:
        super().__init__()
        self.silent_without_advantage = False


@pytest.mark.parametrize("step", [SingleUpdateStep, MultiUpdateStep])
def test_a_group_whose_token_advantages_are_no_numbers_fails_alone(
    model: Any, step: type[LearnerStep]
):
    good, bad = group_of(2), with_tokens(group_of(3))
    first, *others = bad.members
    spoiled = np.full(len(first.response) // 4, np.nan, "<f4").tobytes()
    first = msgspec.structs.replace(first, token_advantages=spoiled)
    bad = msgspec.structs.replace(bad, members=(first, *others))
    reports = step_of(PlainRank(model), Dapo(), LearnerConfig(), step).add_groups([good, bad])
    assert [type(report).__name__ for report in reports] == ["GroupTrained", "GroupFailed"]
