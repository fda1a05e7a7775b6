"""Colours of the page, as people see them who do not tell red from green, and on grey paper."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from launch.report.palette import FATES, PARTS, REST

SEEN = {  # linear RGB; Machado et al., 2009, at full severity
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "protanopia": [
        [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "grey": [[0.2126, 0.7152, 0.0722]] * 3,
}  # fmt: skip
APART = 18.0  # of 100, in lightness L*


def lightness(colour: str, seen: str) -> float:
    """L* of a colour as it is seen."""
    code = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)
    red, green, blue = np.clip(np.array(SEEN[seen]) @ linear, 0, 1)
    return 116 * float(np.cbrt(0.2126 * red + 0.7152 * green + 0.0722 * blue)) - 16


@pytest.mark.parametrize("seen", SEEN)
def test_the_common_fates_are_told_apart_by_lightness_alone(seen: str) -> None:
    common = [lightness(FATES[fate][0], seen) for fate in ("trained", "redundant", "aborted")]
    assert min(abs(a - b) for a, b in itertools.combinations(common, 2)) > APART


@pytest.mark.parametrize("seen", SEEN)
def test_the_two_longest_parts_of_a_path_are_told_apart_by_lightness_alone(seen: str) -> None:
    first, second = (lightness(colour, seen) for colour, _ in PARTS[:2])
    assert abs(first - second) > APART


def test_no_part_of_a_path_looks_like_a_fate_or_like_another_part() -> None:
    fills = [*FATES.values(), *PARTS, REST]
    assert len({colour for colour, _ in fills}) == len(fills)
