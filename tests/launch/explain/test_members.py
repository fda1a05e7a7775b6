"""`darts explain` says which members had a hint or began with another's tokens, counted once."""

from __future__ import annotations

import msgspec

from launch.explain.decisions import Ended, Story
from launch.explain.wording import story_in_words
from tests.launch.explain.test_command import group, member


def test_a_story_tells_of_hints_and_forks_and_counts_shared_tokens_once() -> None:
    line = group(
        1,
        0,
        member(10, 40, chosen=True),
        member(11, 30),
        member(12, 25, chosen=True),
        why="all",
        variants={"11": "hint:0.5"},
        forks={"12": [10, 20]},
    )
    ended = msgspec.json.decode(msgspec.json.encode(line), type=Ended)
    assert (ended.sampled, ended.trained, ended.wasted) == (75, 45, 30)
    told = "\n".join(story_in_words(Story(group=1, prompt=101, ended=ended), "", None))
    assert "11 had hint:0.5 of the data behind its prompt" in told
    assert "12 began with the first 20 tokens of 10" in told
    assert "45 of 75 response tokens trained on" in told
