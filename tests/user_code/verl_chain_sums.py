"""A data set and a reward for verl, laid out as its documentation does for GSM8K.

Source: verl's documentation, "Prepare data for post-training" (the columns data_source, prompt,
ability, reward_model, extra_info; `dataset.map`, `to_parquet`) and "Implement reward function"
(`custom_reward_function.path`, `compute_score`). Nothing here knows darts.
"""

import os
import re

import datasets

DATA_SOURCE = "chain/sums"
QUESTIONS = [("7+9+2=", "18"), ("1+1=", "2"), ("3+4=", "7"), ("5+5+5=", "15"), ("8+1=", "9")]


def make_map_fn(split):
    def process_fn(example, idx):
        question = example.pop("question")
        solution = example.pop("answer")
        return {
            "data_source": DATA_SOURCE,
            "prompt": [{"role": "user", "content": question}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": solution},
            "extra_info": {"split": split, "index": idx, "question": question},
        }

    return process_fn


def prepare(local_dir):
    raw = [{"question": question, "answer": answer} for question, answer in QUESTIONS * 4]
    for split in ("train", "test"):
        dataset = datasets.Dataset.from_list(raw)
        dataset = dataset.map(function=make_map_fn(split), with_indices=True)
        dataset.to_parquet(os.path.join(local_dir, f"{split}.parquet"))


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    if data_source != DATA_SOURCE:
        raise NotImplementedError(f"Reward function is not implemented for {data_source=}")
    assert extra_info is not None
    assert dict(QUESTIONS)[extra_info["question"]] == ground_truth
    solution = re.findall("#([0-9]+)", solution_str)
    score = 0.0 if not solution else 1.0 if solution[-1] == ground_truth else 0.1
    return {"score": score, "answered": bool(solution)}
