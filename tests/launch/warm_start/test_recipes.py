"""What the warm starts learn from: prompts of training only, within the model's length."""

from random import Random

import pytest

from launch.warm_start.recipes import RECIPES
from pipeline.tasks import chain_sums


@pytest.mark.parametrize("task", sorted(RECIPES))
def test_a_recipe_draws_traces_of_training_prompts_that_fit_the_model(task: str):
    recipe, rng = RECIPES[task], Random(0)
    for _ in range(500):
        question, text = recipe.draw(rng)
        terms = [int(term) for term in question.removesuffix("=").split("+")]
        assert not chain_sums.is_held_out(terms)
        assert min(len(question + text) + 1, recipe.long_cut) <= recipe.max_tokens
    assert recipe.short_cut < recipe.long_cut <= recipe.max_tokens
