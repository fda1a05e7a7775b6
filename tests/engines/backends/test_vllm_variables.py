"""Variables that vLLM cannot read are named before it starts."""

from __future__ import annotations

import os

import pytest

from engines.backends.vllm import wrong_variables


def test_a_variable_that_does_not_convert_is_named_with_its_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = {name: lambda name=name: int(os.environ[name]) for name in ("A_LIMIT", "B_LIMIT")}
    monkeypatch.setenv("A_LIMIT", "ten")
    monkeypatch.setenv("B_LIMIT", "10")
    [complaint] = wrong_variables(known, os.environ)
    assert complaint.startswith("the variable A_LIMIT is 'ten': ValueError: invalid literal")
    assert complaint.endswith("; mend it or unset it")
    assert list(wrong_variables(known | {"C": lambda: int("x")}, {"B_LIMIT": "10"})) == []
