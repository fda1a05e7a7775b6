"""Names that users bring from verl and TRL are answered with the settings that say the same."""

from __future__ import annotations

import pytest

from learner.losses.dapo import Dapo
from pipeline.config.load import ConfigError, load
from pipeline.plugins import registry
from pipeline.plugins.elsewhere import NAMES
from pipeline.plugins.rewards.exact import Exact
from tests.paths import ROOT

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
ELSEWHERE = [(kind, name) for kind, names in NAMES.items() for name in names]


def complaint(override: str) -> str:
    with pytest.raises(ConfigError) as raised:
        load(QUICKSTART, [override])
    return "\n".join(raised.value.problems)


@pytest.mark.parametrize("kind, name", ELSEWHERE)
def test_what_a_name_is_answered_with_can_be_written_as_it_stands(kind: str, name: str):
    assert name not in registry.plugin_names(kind), "it is ours now: take it out of the table"
    load(QUICKSTART, NAMES[kind][name].split(" "))
    assert f"; here it is {NAMES[kind][name]}" in complaint(f"{kind}={name}")


@pytest.mark.parametrize(
    "override, says",
    [
        (
            "loss_type=dr_grpo",
            "loss_type: unknown key; here it is loss=dapo learner.aggregate=constant",
        ),
        ("loss_type=bnpo", "here it is loss=dapo learner.aggregate=token"),
        ("loss_type=sapo", "here it is loss=sapo"),
        ("loss_type=nothing", "here it is loss"),
        ("adv_estimator=grpo", "adv_estimator: unknown key; here it is advantage=grpo"),
        ("learner.loss_agg_mode=seq-mean-token-mean", "seq-mean-token-mean: sequence"),
        ("loss=gspo-token", "no loss named 'gspo-token'; here it is loss=gspo (known: "),
        ("loss=Clip-Cov", "here it is loss=clip_cov"),
        ("loss=dapoo", "did you mean dapo?"),
        ("beta=0.1", "TRL's beta is loss.dapo.kl, with learner.reference=start here"),
        ("learner.beta=[0.9, 0.95]", "did you mean learner.betas?"),
        ("learner.entropy_coeff=0.1", "verl's entropy_coeff is learner.entropy_bonus here"),
        ("clip_ratio=0.2", "verl's clip_ratio is loss.dapo.clip_low and clip_high here"),
        ("learner.tis_imp_ratio_cap=2", "is learner.importance_cap, with learner.importance"),
        ("off_policy_mask_threshold=1", "is learner.reject_drift here"),
    ],
)
def test_keys_and_names_of_other_libraries_are_answered_with_ours(override: str, says: str):
    assert says in complaint(override)


def test_a_plugin_of_worker_processes_may_not_offer_a_state(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Exact, "state", lambda _: {}, raising=False)
    monkeypatch.setattr(Exact, "restore", lambda *_: None, raising=False)
    with pytest.raises(registry.PluginError, match="reward 'exact' may not offer state"):
        registry.find_plugin("reward", "exact")
    monkeypatch.setattr(Dapo, "state", lambda _: {}, raising=False)
    monkeypatch.setattr(Dapo, "restore", lambda *_: None, raising=False)
    assert registry.find_plugin("loss", "dapo") is Dapo
