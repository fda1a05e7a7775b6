"""Stale tokens are trained on with the old logprobs of their own version, at every ZeRO stage.

Beside plain torch: the version is closed, the weights change, and half of each response counts as
sampled before. The reference keeps the weights of both versions and one padded batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from learner.step.close_version import MESSAGE_BYTES, messages_of
from learner.step.mini_batches import mini_batches
from pipeline.wire.codec import MAX_REPORT_BYTES, encode_message
from pipeline.wire.messages import Piece, ints
from tests.learner.ranks import (
    CASES,
    SECTION,
    STEPS,
    TEMPERATURE,
    ZEROS,
    group_of,
    make_model,
    run_ranks,
)
from tests.learner.stale_ranks import STALE
from tests.learner.test_exactness import Plain, groups_of, load, padded, relative

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]
Results = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stale")
    make_model(directory / "reference", seed=4)
    return make_model(directory / "model")


@pytest.fixture(scope="module")
def results(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """world -> what each of its ranks wrote down."""
    out, program = tmp_path_factory.mktemp("ranks"), "tests.learner.stale_ranks"
    return {world: run_ranks(model, out / f"world{world}", world, program) for world in (1, 2)}


def with_weights(model: Path, weights: torch.Tensor) -> Any:
    net = load(model)
    torch.nn.utils.vector_to_parameters(weights, net.parameters())
    return net


def distributions(net: Any) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Trajectory of step 1 -> logprobs of its tokens and entropies, by one plain forward each."""
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for group in groups_of(1):
        prompt = ints(group.prompt).tolist()
        for member in group.members:
            response = ints(member.response).tolist()
            with torch.no_grad():
                logits = net(input_ids=torch.tensor([prompt + response])).logits[0]
            policy = torch.distributions.Categorical(
                logits=logits[len(prompt) - 1 : -1] / TEMPERATURE
            )
            found[member.trajectory] = policy.log_prob(torch.tensor(response)), policy.entropy()
    return found


@pytest.mark.parametrize("zero,world", CASES)
def test_a_closed_versions_logprobs_are_those_of_whole_forwards_under_its_weights(
    results: Results, model: Path, zero: int, world: int
):
    expected = distributions(load(model))
    for rank in results[world]:
        found = rank[f"single{zero}"]["old"]
        assert set(found) == set(expected)
        for name, (logprobs, _) in expected.items():
            assert torch.tensor(found[name]) == pytest.approx(logprobs, abs=1e-4)


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("zero,world", CASES)
def test_the_gradient_has_new_over_old_of_each_tokens_own_version(
    results: Results, model: Path, zero: int, world: int, updates: int
):
    """Ratio new over old clipped, importance old over behaviour truncated, apart."""
    case = f"{'single' if updates == 1 else 'several'}{zero}"
    section = msgspec.structs.replace(SECTION, **STALE)
    plain = Plain(model, cap=2.0, section=section)
    parts = [
        [
            [group_of(number) for number in names]
            for names in mini_batches(STEPS[step], updates=updates, epochs=1, step=0)
        ]
        for step in range(2)
    ]
    first = plain.net
    with torch.no_grad():
        before = [plain.logprobs(first, padded(groups)) for groups in parts[1]]
    plain.step(*parts[0])
    with torch.no_grad():
        present = [plain.logprobs(plain.net, padded(groups)) for groups in parts[1]]
    mixed = [
        torch.where(stale_places(groups), old, new)
        for groups, old, new in zip(parts[1], before, present, strict=True)
    ]
    uncorrected = Plain(model, cap=2.0, section=section)
    uncorrected.step(*parts[0])
    uncorrected.step(*parts[1])
    plain.step(*parts[1], olds=mixed)
    for rank in results[world]:
        assert relative(rank[case]["momentum"], plain.momentum()) < 1e-3
    assert relative(uncorrected.momentum(), plain.momentum()) > 0.02
    if updates == 2:
        assert results[world][0][case]["metrics"]["clipped"] > 0


def stale_places(groups: Any) -> torch.Tensor:
    """True at the response tokens that `stale_half` says are of version 0."""
    rows = [(group, member) for group in groups for member in group.members]
    found = torch.zeros_like(padded(groups).weights, dtype=torch.bool)
    for row, (group, member) in enumerate(rows):
        begin, tokens = len(ints(group.prompt)) - 1, len(member.response) // 4
        found[row, begin : begin + (tokens + 1) // 2] = True
    return found


@pytest.mark.parametrize("zero", sorted({*ZEROS[1]} & {*ZEROS[2]}))
def test_a_close_that_is_given_up_ends_on_all_ranks_that_communicate(results: Results, zero: int):
    [alone] = [rank[f"stopped{zero}"] for rank in results[1]]
    first, second = [rank[f"stopped{zero}"] for rank in results[2]]
    assert alone == first == 1
    assert second == 1 if zero == 3 else second > 1


@pytest.mark.parametrize("case", ["roomy", "crowded"])
@pytest.mark.parametrize("version", [0, 1])
def test_a_stream_answers_with_logprobs_and_entropies_of_the_present_weights(
    results: Results, model: Path, version: int, case: str
):
    """Also after a publish: nothing of the version before is left (4.34 nats were seen)."""
    [found] = [rank[case] for rank in results[1]]
    net = with_weights(model, found[f"weights{version}"])
    expected = distributions(net)
    assert found[f"ahead{version}"] > 0
    reached: dict[int, int] = {}
    entropies = 0
    for name, first, logprobs, looked in found[f"pieces{version}"]:
        cut = slice(first, first + len(logprobs))
        assert torch.tensor(logprobs) == pytest.approx(expected[name][0][cut], abs=1e-4)
        if looked:
            assert torch.tensor(looked) == pytest.approx(expected[name][1][cut], abs=1e-4)
        entropies += len(looked)
        assert first <= reached.get(name, 0), "a gap"
        reached[name] = max(reached.get(name, 0), first + len(logprobs))
    assert reached == {name: len(values) for name, (values, _) in expected.items()}
    assert entropies > 0
    if version:
        other = distributions(with_weights(model, found["weights0"]))
        moved = max(float((other[name][0] - expected[name][0]).abs().max()) for name in other)
        assert moved > 0.05, "the weights must have changed for the case to show anything"


def test_what_a_rank_answers_fits_into_messages_and_stays_whole():
    tokens = MESSAGE_BYTES // 4
    values = -torch.arange(2 * tokens + 3).numpy().astype("<f4")
    long = Piece(7, 5, values.tobytes(), values.tobytes())
    sent = list(messages_of(3, [Piece(1, 0, bytes(8)), long, Piece(2, 0, bytes(4))]))
    assert all(len(encode_message(m)) < MAX_REPORT_BYTES and m.version == 3 for m in sent)
    parts = [piece for message in sent for piece in message.pieces]
    assert [(p.trajectory, p.first, len(p.logprobs)) for p in parts] == [
        (1, 0, 8),
        (7, 5, 4 * tokens),
        (7, 5 + tokens, 4 * tokens),
        (7, 5 + 2 * tokens, 12),
        (2, 0, 4),
    ]
    assert b"".join(p.entropies for p in parts[1:4]) == long.entropies == long.logprobs
