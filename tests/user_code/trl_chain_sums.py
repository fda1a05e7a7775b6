"""A data set and rewards for TRL's GRPOTrainer, conversational, with a column of its own.

Source: TRL's documentation, "GRPO Trainer", "Using a custom reward function" (rewards over
conversations, a reward from a column) and "Dataset formats" (prompt-only, conversational).
Nothing here knows darts.
"""

import re

from datasets import Dataset, DatasetDict

QUESTIONS = [("7+9+2=", "18"), ("1+1=", "2"), ("3+4=", "7"), ("5+5+5=", "15"), ("8+1=", "9")]


def prepare(directory):
    rows = [
        {"prompt": [{"role": "user", "content": question}], "ground_truth": answer}
        for question, answer in QUESTIONS * 4
    ]
    dataset = DatasetDict()
    dataset["train"] = Dataset.from_list(rows)
    dataset["test"] = Dataset.from_list(rows[:4])
    dataset.save_to_disk(directory)


def format_reward_func(completions, **kwargs):
    """Reward function that checks if the completion has a specific format."""
    completion_contents = [completion[0]["content"] for completion in completions]
    matches = [re.search(r"#[0-9]+$", content) for content in completion_contents]
    return [1.0 if match else 0.0 for match in matches]


def reward_func(prompts, completions, ground_truth, **kwargs):
    """Reward function that checks if the completion ends with the ground truth."""
    known = dict(QUESTIONS)
    assert [known[prompt[-1]["content"]] for prompt in prompts] == ground_truth
    contents = [completion[0]["content"].rpartition("#")[2] for completion in completions]
    return [1.0 if c == gt else 0.0 for c, gt in zip(contents, ground_truth, strict=True)]
