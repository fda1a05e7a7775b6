"""Names of plug-ins in verl, TRL and papers -> the settings that are the same here.

Read when a name is unknown, so that the error says what to write; names of keys are in
`pipeline.config.other_names`. Pure.
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
