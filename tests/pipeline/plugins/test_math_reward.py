r"""The reward `math` and `exact`'s numbers: right verdicts on answers as people and models write.

Pairs follow what graders of MATH, GSM8K and math-verify agree on; where math-verify 0.9.0 itself
errs, darts' own cleaning of the text comes before it.
"""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from pipeline.plugins.rewards import _child
from pipeline.plugins.rewards._child import Child
from pipeline.plugins.rewards._math_text import answer_in, cleaned, golds_of, is_prose, words_of
from pipeline.plugins.rewards.exact import Exact, ExactOptions
from pipeline.plugins.rewards.math import Math, MathOptions
from pipeline.plugins.testing import option_problems, sample_of


@pytest.fixture(scope="module")
def math() -> Math:
    return Math()


UNITS = [
    ("18 dollars", "18", 1),
    (r"\$18", "18", 1),
    ("18", "$18", 1),
    ("18", "18 eggs", 1),
    ("18", r"18 \text{ eggs}", 1),
    ("18", "18 apples and pears", 0),  # two things are counted: not read
    ("5", r"5\mathrm{~cm}", 1),
    ("5", "5 cm^2", 1),
    ("60", "60 km/h", 1),
    ("90", r"90^\circ", 1),
    ("12 hours", "12", 1),
    ("5", "5xy", 0),  # factors, not units
    ("5", "6 cm", 0),
    ("3 feet", "4 feet", 0),
    (r"\frac{1}{2} cup", "0.5", 1),
]
NUMBERS = [
    ("1,234", "1234", 1),
    ("9500", r"\$9{,}500", 1),
    ("9500", r"\$9,500.00", 1),
    ("10000", r"10\,000", 1),
    ("10000", "10 000", 1),
    ("18.", "18", 1),
    ("18", "18.", 1),
    ("5", r"5\ ", 1),
    ("5", r"\ 5 \quad", 1),
    ("6.02e23", r"6.02 \times 10^{23}", 1),
    ("-3", "\N{MINUS SIGN}3", 1),
    ("2.5", "5/2", 1),
    ("1 1/2", "3/2", 1),
    ("7/2", "3 1/2", 1),
    ("1/3", r"0.\overline{3}", 1),
    (r"0.1\overline{6}", r"\frac16", 1),
    (r"-0.\bar{3}", "-1/3", 1),
    ("0.(142857)", "1/7", 1),
    ("1/3", r"0.\overline{4}", 0),
    (r"\frac{\pi}{4}", "pi/4", 1),
    ("tan(x)", r"\tan x", 1),
    (r"\sqrt{2}", "sqrt(2)", 1),
    ("-5", "\N{EN DASH}5", 1),
    ("A", "A. 12", 1),
    ("A", "B. 12", 0),
    ("10:30 a.m.", r"10\!:\!30\text{ AM}", 1),
    ("10:30 AM", "10:30 PM", 0),
    ("2 hours 30 minutes", r"2\text{ hours }30\text{ minutes}", 1),
    ("12", "1,2", 0),
    ("3", "-3", 0),
    (r"\frac{1}{3}", "0.333", 0),
]
WORDS = [
    ("east", "east", 1),
    ("east", r"\text{East}", 1),
    ("east", "seat", 0),
    ("no", "on", 0),
    ("odd", "even", 0),
    ("Amy", "May", 0),
    ("infinitely many", r"\text{infinitely  many}", 1),
    ("June 20", "june 20", 1),
    ("June 20", "June 21", 0),
    ("red and blue", "blue and red", 0),
    ("ab", "ba", 1),  # a product of variables
    (r"\text{A}", "(A)", 1),
    ("B", r"\textbf{(B)}\ 12", 1),
    ("A", "B", 0),
    ("None", "5", 0),
]
WRAPPED = [
    ("5", r"\textbf{5}", 1),
    ("5", r"$5$", 1),
    (r"\(18\)", "18", 1),
    ("$18$", "18", 1),
    ("The answer is 5", "5", 1),
    ("5", r"\text{The answer is }5", 1),
    ("['18']", "18", 1),
    ('["18", "eighteen"]', "Eighteen", 1),
    ("#### 18", "18", 1),
    (r"\text{(2,3)}", "(2, 3)", 1),
    (r"\emptyset", r"\varnothing", 1),
    ("x = 5", "5", 1),
]


@pytest.mark.parametrize("gold, boxed, value", [*UNITS, *NUMBERS, *WORDS, *WRAPPED])
def test_an_answer_is_worth_what_it_says(math: Math, gold: str, boxed: str, value: float):
    assert math.score(sample_of(rf"So it is $\boxed{{{boxed}}}$.", answer=gold)) == value


@pytest.mark.parametrize("gold", [gold for gold, _, value in [*UNITS, *NUMBERS, *WORDS, *WRAPPED]])
def test_such_gold_answers_are_no_complaints(math: Math, gold: str):
    assert math.complaint(sample_of("", answer=gold)) == ""


@pytest.mark.parametrize(
    "answer, says",
    [
        ("She has 5 apples", "a sentence with a number in it"),
        ("18 dollars and 50 cents", "a sentence with a number in it"),
        ("", "cannot read"),
        ("  ", "cannot read"),
        ("#18", "cannot read"),
        (r"\boxed{}", "cannot read"),
        (r"\frac{1}{", "cannot read"),
    ],
)
def test_gold_answers_that_no_response_can_meet_are_complained_of(
    math: Math, answer: str, says: str
):
    assert says in math.complaint(sample_of("", answer=answer))


@pytest.mark.parametrize(
    "response, found",
    [
        (r"It is \boxed 5", "5"),
        (r"It is \boxed 5 and no more", "5"),
        (r"First \boxed{3}, no: $\boxed 5$", "5"),
        (r"$\boxed 5 + 1$ then", "5 + 1"),
        (r"so \boxed\frac{1}{2} holds", r"\frac{1}{2}"),
        (r"\boxed {7}", "7"),
        (r"\fbox{5}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{5", ""),
        (r"\boxed{4} then \boxed{5", ""),
        (r"\boxed{}", ""),
        (r"\boxedx{5}", None),
        ("5", None),
        (r"<think>\boxed{5}</think> I am not sure.", None),
        (r"\boxed{3}</think> \boxed{5}", "5"),
        (r"<think> it may be \boxed{5}", None),
        (r"[THINK]\boxed{3}[/THINK]\boxed{5}", "5"),
    ],
)
def test_the_last_box_behind_the_thoughts_is_the_answer(response: str, found: str | None):
    assert answer_in(response) == found


def test_whole_responses_are_graded_behind_their_thoughts():
    whole = Math(MathOptions(graded="whole"))
    assert whole.score(sample_of("<think>\\boxed{4}</think> the answer is 5", answer="4")) == 0.0
    assert whole.score(sample_of("<think>\\boxed{4}</think> the answer is 5", answer="5")) == 1.0
    assert whole.score(sample_of("So he walks east.", answer="east")) == 1.0


@pytest.mark.parametrize(
    "text, words",
    [
        ("Infinitely many", "infinitely many"),
        ("x + 1", None),
        ("2 pi", None),
        ("sin", None),
        ("xyz", None),
        (r"\text{no solution}", "no solution"),
        ("5 or 6", None),
        ("7", None),
    ],
)
def test_words_are_told_from_formulas(text: str, words: str | None):
    assert words_of(text) == words


def test_a_sentence_with_a_number_is_told_from_a_date():
    assert not is_prose("June 20")
    assert not is_prose("infinitely many solutions there are")
    assert is_prose("He needs 3 more days")


def test_cleaning_ends_and_changes_nothing_twice():
    for gold, boxed, _ in [*UNITS, *NUMBERS, *WORDS, *WRAPPED]:
        for text in (gold, boxed):
            assert cleaned(cleaned(text)) == cleaned(text)
    assert cleaned(r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}").count(r"\\") == 1
    assert golds_of("['1', '2']") == ["1", "2"]


TOWERS = (r"2^{2^{2^{2^{2^{2}}}}}", r"10^{10^{10}}", "9999999!")


def test_what_cannot_be_computed_in_time_is_wrong_and_the_next_is_graded():
    quick = Math(MathOptions(limit_s=1.0))
    for tower in TOWERS:
        begun = time.monotonic()
        assert quick.score(sample_of(rf"\boxed{{{tower}}}", answer="5")) == 0.0
        assert time.monotonic() - begun < 30, "a bound, not a measurement"
        assert quick.score(sample_of(r"\boxed{5}", answer="5")) == 1.0


def test_a_limit_above_that_of_the_call_is_refused():
    class Workers:
        limit_s, env = 2.0, ()

    [line] = MathOptions(limit_s=3.0).worker_problems(Workers())
    assert line.startswith("limit_s is 3, but workers.limit_s is 2")
    assert option_problems(MathOptions, limit_s=0)


HOSTILE = {
    "digits": "9" * 5000,
    "digits behind the point": "0." + "9" * 5000,
    "a fraction of digits": "1/" + "9" * 5000,
    "thousands": "1" + ",000" * 3000,
    "an exponent of digits": "1e" + "9" * 5000,
    "a large exponent": "1e999999999",
    "sentences in sentences": "the answer is " * 9000 + "5",
    "currency": "$" * 50_000 + "5",
    "styles in styles": r"\textbf{" * 5000 + "5" + "}" * 5000,
    "open braces": "{" * 50_000,
    "spaces": " " * 50_000 + "5",
    "lists": "['" + "[" * 50_000,
    "surrogates": "\ud800" * 100,
    "nothing": "\0" * 1000,
}


@pytest.mark.fault("answers that no grader can read or compute", part="rewards", by="direct")
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_an_answer_that_a_policy_writes_is_wrong_and_no_failure(math: Math, text: str) -> None:
    """Promise: a response of thousands of digits, or of a text that grows under the grader, is
    worth 0 for `exact` and `math`; nothing is raised, so no failed reward is counted.
    Bound: `limit_s` of the reward.
    """
    response = rf"#{text} so \boxed{{{text}}}"
    number = Exact(ExactOptions(compare="number"))
    for grader in (Exact(), number, math):
        assert grader.score(sample_of(response, answer="18")) == 0
    # and as gold answers they are complained of, or read, before a run
    for grader in (number, math):
        grader.complaint(sample_of("", answer=text))


# --- the child process ------------------------------------------------------------------------


def answers(question: Any) -> Any:
    if question == "die":
        os.abort()
    if question == "hang":
        time.sleep(60)
    if question == "compute":
        while True:
            pass
    if question == "raise":
        raise ValueError
    return [question, os.getpid()]


def test_a_child_is_replaced_when_it_hangs_or_dies_and_answers_the_next(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(_child, "_WAIT_S", 1.0)
    child = Child(answers, limit_s=1.0)
    text, first = child.ask("a" * 100_000)
    assert (len(text), first != os.getpid()) == (100_000, True)
    assert child.ask("b")[1] == first, "one process for all questions"
    assert child.ask("raise") is None
    assert child.ask("b")[1] == first
    for bad in ("die", "hang", "compute"):
        assert child.ask(bad) is None
        assert child.starved or bad != "hang"
        assert child.ask("b")[0] == "b"
    last = child.ask("b")[1]
    child.close()
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


# --- numbers of exact -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "response, answer, value",
    [
        ("So it is 1,234.\n#### 1,234", "1234", 1),
        ("#### $18", "18", 1),
        ("#### 18 dollars", "18", 1),
        ("#### 18\n\nSo she makes 18 dollars a day.", "18", 1),
        ("#### **18**", "18", 1),
        ("#### 18.00", "18", 1),
        ("#### -3", "-3", 1),
        ("#### 5/2", "2.5", 1),
        ("#### 18", "6 and 12 make 18\n#### 18", 1),
        ("#### 1,234", "#### 1,234", 1),
        ("Not 18 but\n#### 19", "18", 0),
        ("#### 3", "-3", 0),
        ("#### none", "18", 0),
        ("18", "18", 0),
    ],
)
def test_exact_compares_the_first_number_behind_the_marker(
    response: str, answer: str, value: float
):
    number = Exact(ExactOptions(marker="####", compare="number"))
    assert number.score(sample_of(response, answer=answer)) == value


def test_exact_says_which_gold_answers_no_response_can_meet():
    number, text = Exact(ExactOptions(marker="####", compare="number")), Exact()
    assert "expected a number" in number.complaint(sample_of("", answer="eighteen"))
    assert number.complaint(sample_of("", answer="#### 18")) == ""
    assert "holds the marker '#'" in text.complaint(sample_of("", answer="so 18\n#### 18"))
    assert text.complaint(sample_of("", answer="eighteen")) == ""
