"""Names of TRL and verl are answered with those of darts, from the table of the migration page."""

from __future__ import annotations

import re

import pytest

from pipeline.config import docs
from pipeline.config.load import ConfigError, load
from pipeline.config.other_names import OTHERS, TRL, VERL, hint, ours
from pipeline.config.schema import Config
from pipeline.plugins import registry
from tests.paths import ROOT

QUICKSTART = ROOT / "configs" / "quickstart.yaml"


def problems(*overrides: str) -> str:
    with pytest.raises(ConfigError) as raised:
        load(QUICKSTART, overrides)
    return "\n".join(raised.value.problems)


@pytest.mark.parametrize(
    "override, says",
    [
        ("learning_rate=1e-6", "TRL's learning_rate is learner.lr here"),
        ("learner.learning_rate=1e-6", "TRL's learning_rate is learner.lr here"),
        ("group.num_generations=8", "TRL's num_generations is group.size here"),
        ("sampling.top_p=0.9", "top_p is eval.top_p here; for evaluations alone: training samples"),
        ("min_p=0.1", "min_p is eval.min_p here; for evaluations alone: training samples"),
        ("sampling.repetition_penalty=1.1", "has no setting here: training samples from all"),
        (
            "generation_kwargs={stop: [x]}",
            "generation_kwargs is sampling.stop for its stop here; the others",
        ),
        ("eval.stop=[x]", "stop is sampling.stop here"),
        ("actor_rollout_ref.rollout.val_kwargs.top_p=0.9", "is eval.top_p here"),
        ("data.train_batch_size=8", "verl's data.train_batch_size is step.prompts here"),
        ("actor_rollout_ref.rollout.n=8", "verl's actor_rollout_ref.rollout.n is group.size here"),
        ("trainer.total_epochs=3", "is prompt_order.shuffled.epochs here"),
        ("algorithm={adv_estimator: grpo}", "a section of verl"),
        ("loss.dapo.epsilon=0.2", "TRL's epsilon is loss.dapo.clip_low here"),
        ("learner.beta=0.9", "did you mean learner.betas?"),
        ("rollout_batch_size=64", "OpenRLHF's rollout_batch_size is step.prompts here"),
        ("gconfig.n_samples=8", "AReaL's n_samples is group.size here"),
        ("orchestrator.rollouts_per_example=8", "prime-rl's rollouts_per_example is group.size"),
        ("enforce_eager=true", "vLLM's enforce_eager is engine.vllm.enforce_eager here"),
        ("warmup_ratio=0.1", "transformers' warmup_ratio is learner.warmup_steps, a number"),
        ("batch_size=8", "unknown key; batch_size is step.prompts here"),
        ("advantage_estimator=rloo", "here it is advantage=rloo"),
        ("loss=bnpo", "here it is loss=dapo learner.aggregate=token"),
    ],
)
def test_a_name_of_theirs_is_answered_with_ours(override: str, says: str):
    assert says in problems(override)


def test_other_words_get_the_nearest_key_as_before():
    assert "did you mean group.size?" in problems("group.sise=3")
    assert (ours("group.sise"), hint("longset")) == ("", "")


def test_every_name_that_is_given_is_a_setting_or_a_plug_in():
    known = {*docs.documentation(), *docs.sections(), *Config.__struct_fields__}
    for kind in registry.PACKAGES:
        for name in registry.builtin_names(kind):
            struct = registry.options_type(registry.find_plugin(kind, name))
            known |= {f"{kind}.{name}", *(f"{kind}.{name}.{o}" for o in struct.__struct_fields__)}
    named = [*VERL.values(), *TRL.values(), *(name for _, name in OTHERS.values())]
    keys = {key for text in named for key in re.findall(r"\b[a-z_]+(?:\.[a-z_]+)+", text)}
    left = {key for key in keys if key not in known and not key.startswith("engine.vllm.")}
    assert left <= {"file.py"}
    given = [key.removeprefix("engine.vllm.") for key in keys if key.startswith("engine.vllm.")]
    load(QUICKSTART, [f"engine.vllm={{{', '.join(f'{key}: null' for key in given)}}}"])


def test_names_of_theirs_are_no_keys_of_ours():
    assert not {*VERL, *OTHERS} & {*docs.documentation()}
    assert not {*TRL} & {*OTHERS}, "one answer to a name"
