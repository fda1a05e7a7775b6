"""Names that verl, TRL and papers use -> the settings that are the same here.

One table for names of plug-ins and one for keys, read when a name or key is unknown, so that the
error says what to write. Pure.
"""

from __future__ import annotations

from collections.abc import Collection

NAMES: dict[str, dict[str, str]] = {
    "loss": {
        "grpo": "loss=dapo learner.aggregate=sequence",
        "dr_grpo": "loss=dapo learner.aggregate=constant",
        "bnpo": "loss=dapo learner.aggregate=token",
        "ppo": "loss=dapo loss.dapo.clip_high=0.2",
        "vanilla": "loss=dapo loss.dapo.clip_high=0.2",
        "dual_clip": "loss=dapo loss.dapo.dual_clip=3",
        "gspo_token": "loss=gspo",
        "geo_mean": "loss=gmpo",
        "luspo": "loss=gspo learner.aggregate=constant",
        "gpg": "loss=reinforce",
        "pg": "loss=reinforce",
        "policy_gradient": "loss=reinforce",
        "rloo": "loss=reinforce advantage=rloo",
        "disco": "loss=drpo loss.drpo.length_scale=1000000",
        "decoupled": "loss=decoupled_ppo",
        "areal": "loss=decoupled_ppo learner.max_staleness=1",
        "ulorl": "loss=dapo loss.dapo.mastered_tau=0.99",
        "tis": "learner.importance=truncate",
        "icepop": "learner.importance=mask",
    },
    "advantage": {
        "dr_grpo": "advantage=grpo advantage.grpo.divide_by_deviation=false",
        "dapo": "advantage=grpo advantage.grpo.drop_equal=true",
        "rloo_vectorized": "advantage=rloo",
        "grpo_vectorized": "advantage=grpo advantage.grpo.divide_by_deviation=true",
    },
    "selector": {
        "none": "selector=all budget.redundancy=1",
        "dynamic_sampling": "advantage.grpo.drop_equal=true",
        "filter_groups": "advantage.grpo.drop_equal=true",
        "random": "selector=first_m",
    },
}
"""Kind -> name elsewhere -> overrides that are the same here."""

KINDS = {
    "loss_type": "loss",
    "loss_mode": "loss",
    "policy_loss": "loss",
    "adv_estimator": "advantage",
}
"""Key elsewhere -> the kind of plug-in that its value names."""

KEYS: dict[str, str] = {
    "loss_agg_mode": "learner.aggregate",
    "importance_sampling_level": "loss=gspo for sequence, loss=dapo for token",
    "clip_ratio": "loss.dapo.clip_low and clip_high",
    "clip_ratio_low": "loss.dapo.clip_low",
    "clip_ratio_high": "loss.dapo.clip_high",
    "clip_ratio_c": "loss.dapo.dual_clip",
    "epsilon": "loss.dapo.clip_low",
    "epsilon_high": "loss.dapo.clip_high",
    "beta": "loss.dapo.kl, with learner.reference=start",
    "kl_loss_coef": "loss.dapo.kl, with learner.reference=start",
    "entropy_coeff": "learner.entropy_bonus",
    "entropy_coef": "learner.entropy_bonus",
    "tis_imp_ratio_cap": "learner.importance_cap, with learner.importance=truncate",
    "norm_adv_by_std_in_grpo": "advantage.grpo.divide_by_deviation",
    "scale_rewards": "advantage.grpo.divide_by_deviation",
    "filter_groups": "advantage.grpo.drop_equal",
    "off_policy_mask_threshold": "learner.reject_drift",
}
"""Key elsewhere, its last part -> the setting here."""

_SHORT = ("beta", "epsilon")

AGGREGATES = {
    "token-mean": "token",
    "seq-mean-token-mean": "sequence",
    "seq-mean-token-sum-norm": "constant",
}
"""Value of verl's `loss_agg_mode` -> of `learner.aggregate`."""


def hint_of_name(kind: str, name: str, known: Collection[str]) -> str:
    """Return the text `; here it is ...` for a plug-in's name elsewhere; "" if it is in no table.

    >>> hint_of_name("loss", "gspo-token", ["dapo", "gspo"])
    '; here it is loss=gspo'
    >>> hint_of_name("loss", "Clip-Cov", ["clip_cov"])
    '; here it is loss=clip_cov'
    """
    plain = name.lower().replace("-", "_").replace("++", "_plus_plus")
    found = f"{kind}={plain}" if plain in known else NAMES.get(kind, {}).get(plain, "")
    return found and f"; here it is {found}"


def hint_of_key(key: str, value: object, known: Collection[str] = ()) -> str:
    """Return the text `; here it is ...` for a key elsewhere; "" if it is in no table.

    Args:
        key: with dots; its last part counts.
        value: what was written for it.
        known: names of the plug-ins that it may name.

    >>> hint_of_key("algorithm.adv_estimator", "grpo", ["grpo"])
    '; here it is advantage=grpo'
    >>> hint_of_key("loss_agg_mode", "token-mean")
    '; here it is learner.aggregate=token'
    """
    last = key.rpartition(".")[2]
    if last in KINDS:
        kind = KINDS[last]
        text = str(value)
        return hint_of_name(kind, text, known) or f"; here it is {kind}"
    if last == "loss_agg_mode" and str(value) in AGGREGATES:
        return f"; here it is learner.aggregate={AGGREGATES[str(value)]}"
    if last in _SHORT and key != last:  # `learner.beta` is a slip of another kind
        return ""
    return f"; here it is {KEYS[last]}" if last in KEYS else ""
