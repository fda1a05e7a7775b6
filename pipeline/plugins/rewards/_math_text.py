r"""The text of an answer, before a library reads it as mathematics.

`answer_in` finds the answer in a response: the content of its last box, behind its thoughts.
`cleaned` takes off what is no part of a value and math-verify reads wrongly or not at all: spaces
and full stops, thousands marks, currency, units, sentences around it. `words_of` tells words from
formulas: the letters of a word are not multiplied, so words are compared as text.
"""

from __future__ import annotations

import json
import re

_THOUGHT = re.compile(r"</(?:think|thinking|thought)>|\[/THINK\]|<\|end_of_thought\|>")
_THINKING = re.compile(r"<(?:think|thinking|thought)>|\[THINK\]|<\|begin_of_thought\|>")
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])")
_PIECE = re.compile(
    r"\\[dtc]?frac\s*(?:\{[^{}]*\}|\S)\s*(?:\{[^{}]*\}|\S)|\\sqrt\s*(?:\{[^{}]*\}|\S)|\S+"
)
_SIGNS = {
    "\u2212": "-",
    "\u2013": "-",
    "\u2044": "/",
    "\u00d7": r"\times ",
    "\u22c5": r"\cdot ",
    "\u00b7": r"\cdot ",
    "\u00f7": "/",
    "\u221e": r"\infty ",
    "\u03c0": r"\pi ",
    "\u2264": r"\le ",
    "\u2265": r"\ge ",
    "\u2260": r"\neq ",
    "\u00b0": r"^\circ ",
    "\u2205": r"\emptyset ",
    "\u00a0": " ",
    "\u202f": " ",
    "\u2009": " ",
    "\u2019": "'",
    "\u00b2": "^2",
    "\u00b3": "^3",
    "\u221a": r"\sqrt ",
    "\u00bd": r"\frac{1}{2}",
    "\u00bc": r"\frac{1}{4}",
    "\u00be": r"\frac{3}{4}",
}
_SPACES = re.compile(r"(?<!\\)\\(?:[ ,;:!>]|quad\b|qquad\b|thinspace\b)|(?<!\\)~")
_STYLE = (
    r"\\(?:textbf|textit|textrm|textnormal|textup|mathbf|mathrm|mathit|mathsf|boldsymbol|bm|emph"
    r"|mbox|hbox|text)"
)
_NUMBER = r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?(?:(?<=[0-9])\.|\.[0-9]+)?"
_FRACTION = r"[-+]?\\[dtc]?frac\s*(?:\{[0-9]+\}|[0-9])\s*(?:\{[0-9]+\}|[0-9])|[-+]?[0-9]+/[0-9]+"
_VALUE = rf"(?P<value>{_FRACTION}|(?=[-+.]?[0-9]){_NUMBER})"
_OF_UNITS = r"(?:cm|mm|km|m|ft|in|inches|feet|meters|metres|units?)\s*\^\s*(?:\{[23]\}|[23])"
_RATIO = (
    r"(?:km|m|cm|mi|ft|miles?|meters?|feet|dollars?|cents?)\s*/\s*"
    r"(?:hour|hr|h|s|sec|second|min|minute|day|lb|kg)"
)
_WITH_UNIT = re.compile(
    rf"^{_VALUE}\s*(?:{_OF_UNITS}|{_RATIO}|(?P<words>[A-Za-z]{{2,}}(?:[ -]+[A-Za-z]+)*)"
    rf"|{_STYLE}\s*\{{(?P<text>[^{{}}]*)\}}(?:\^\{{?[23]\}}?)?)\.?$"
)
_THOUSANDS_MARK = re.compile(r"(?<=[0-9])(?:\{,\}|\\!?,\\?!?|\\ |\\;|,\\!)(?=[0-9]{3}(?![0-9]))")
_THOUSANDS = re.compile(r"^([-+]?)([0-9]{1,3}(?:[, ][0-9]{3})+)(\.[0-9]+)?$")
_SCIENTIFIC = re.compile(r"^([-+]?[0-9]*\.?[0-9]+)[eE]([-+]?[0-9]{1,9})$")
_MIXED = re.compile(r"^([-+]?)([0-9]+)\s+([0-9]+)/([1-9][0-9]*)$")
_REPEATING = re.compile(
    r"^([-+]?)([0-9]*)\.([0-9]*)(?:\\(?:overline|bar|dot)\s*(?:\{([0-9]+)\}|([0-9]))|\(([0-9]+)\))$"
)
_FUNCTION = re.compile(
    r"(?<![a-zA-Z\\])(a?sin|a?cos|a?tan|cot|sec|csc|ln|log|exp)(?=\s*(?:\(|\^|\\))"
)
_ROOT = re.compile(r"(?<![a-zA-Z\\])sqrt\s*\(([^()]*)\)")
_PI = re.compile(r"(?<![a-zA-Z\\])pi(?![a-zA-Z])")
_HALF_OF_DAY = re.compile(r"(?<=[0-9 ])([aApP])\.\s?([mM])(?:\.|$)")
_CURRENCY = re.compile(
    r"^([-+]?)\s*(?:\\?\$|[\u20ac\u00a3\u00a5]|USD\s|\\text\{\s*\\\$\s*\})\s*(?=[-+.]?[0-9\\])"
)
_CURRENCY_BEHIND = re.compile(r"(?<=[0-9}])\s*(?:\\?\$|[\u20ac\u00a3\u00a5])$")
_SENTENCE = re.compile(
    r"^(?:(?:so|thus|hence|therefore|then),?\s+)?(?:the\s+)?(?:final\s+|correct\s+)?"
    r"(?:answer|solution|result)\s*(?:is|are|equals|was|:|=)\s*:?\s*(?=\S)",
    re.IGNORECASE,
)
_STYLED = re.compile(rf"^{_STYLE}\s*\{{([^{{}}]*)\}}$")
_BOLD = re.compile(r"\\(?:textbf|mathbf|boldsymbol|bm|emph)\s*\{([^{}]*)\}")
_TEXT_WITHOUT_LETTERS = re.compile(rf"{_STYLE}\s*\{{([^{{}}a-zA-Z\\]*)\}}")
_TEXT_BEFORE = re.compile(rf"^{_STYLE}\s*\{{[^{{}}]*[a-z]{{2}}[^{{}}]*\}}\s*(?=[-+$\\0-9])")
_WRAPPED = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))
_CHOICE = re.compile(r"^\(?([A-Z])[).:]$|^\(([A-Z])\)$")
_CHOICE_FIRST = re.compile(rf"^(?:{_STYLE}\s*\{{)?(?:\(([A-J])\)[)}}\s:.]|([A-J])[.):]\s)")
_PLAIN = re.compile(r"^[A-Za-z0-9'.,:;!?() -]*$")
_AMOUNTS = re.compile(r"(?:[0-9]+ [a-z]+ ?){2,4}")
"""`2 hours 30 minutes`."""
_LETTERS = re.compile(r"[A-Za-z]+")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MATHS = _words(
    """sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp sqrt pi mod gcd lcm
    max min lim inf infty infinity det deg arg and or percent percentage pct e i frac cdot times pm
    alpha beta gamma delta theta lambda sigma omega phi psi rho mu nu tau emptyset"""
)
"""Words that a formula may hold."""
_UNITS = _words(
    """cm mm km kg mg ml cl dl ft in hr hrs sec secs yr yrs yd oz lb lbs mi mph kmh kph rpm gal sq
    cu cc am pm pts cal kcal hz khz mhz kb mb gb tb usd eur gbp men cats dogs pens cars eggs hats
    keys cups toys ways days cat dog pen car egg hat key cup toy way day man boy boys box bag bags
    pie pies"""
)
"""Short words that count something behind a number."""
_SHORT = _words(
    """no on in yes odd one two six ten all any not nor of to by is it if so up us we he me my be do
    go at an as am pm mon tue wed thu fri sat sun jan feb mar apr may jun jul aug sep oct nov dec
    dne red tie win men man day the for its his her you she who how why few new old big low top out
    off cat dog pen car bus box egg cup hat key map toy sum row end set"""
)
"""Words of two and three letters; others are products of variables."""


def answer_in(response: str) -> str | None:
    r"""The content of the last box of a response, behind its thoughts; None: it has no box.

    "" for one that is empty or does not end. A box is `\boxed{...}`, `\fbox{...}`, or `\boxed 5`
    as in the data set MATH: up to the `$` that ends its formula, or to the next space.
    """
    text = behind_thoughts(response)
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    rest = text[boxes[-1].end() :].lstrip()
    if rest.startswith("{"):
        return _braced(rest).strip()
    line = rest.partition("\n")[0]
    if text[: boxes[-1].start()].count("$") % 2 and "$" in line:  # within a formula
        return line.partition("$")[0].strip()
    piece = _PIECE.match(line)
    return piece[0].strip() if piece else ""


def behind_thoughts(response: str) -> str:
    """What follows the last end of thoughts; "" while they have not ended."""
    ends = list(_THOUGHT.finditer(response))
    text = response[ends[-1].end() :] if ends else response
    return text[: begun.start()] if (begun := _THINKING.search(text)) else text


def golds_of(answer: str) -> list[str]:
    """The gold answers that a data set's answer holds, one of which is to be met.

    Usually one: the content of its last box, what follows `####`, or the whole; several where it
    is a list of texts, in the notation of JSON or Python.
    """
    answer = answer.rpartition("####")[2].strip()
    boxed = answer_in(answer)
    if boxed is not None:
        return [boxed] if boxed else []
    if answer.startswith("[") and answer.endswith("]") and answer[1:].lstrip()[:1] in ("'", '"'):
        return [text for text in _listed(answer) if text.strip()]
    return [answer] if answer else []


def _listed(answer: str) -> list[str]:
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return re.findall(r"'((?:[^'\\]|\\.)*)'", answer) or [answer]
    return [str(item) for item in found]


def _braced(text: str) -> str:
    """The content of the braces that a text begins with; "" if they do not close."""
    depth = 0
    for index, letter in enumerate(text):
        if letter in "{}" and text[index - 1 : index] != "\\":
            depth += 1 if letter == "{" else -1
            if not depth:
                return text[1:index]
    return ""


def cleaned(text: str) -> str:
    r"""An answer without what is no part of its value.

    >>> cleaned(r"\$1,234.00 dollars."), cleaned("The answer is 5."), cleaned(r"\text{ east }")
    ('1234.00', '5', 'east')
    """
    for sign, written in _SIGNS.items():
        text = text.replace(sign, written)
    text = text.replace(r"\varnothing", r"\emptyset").replace("\n", " ").replace("\t", " ")
    text = _THOUSANDS_MARK.sub(",", text)
    text = _SPACES.sub(" ", text.replace(r"\!", ""))
    text = _HALF_OF_DAY.sub(r"\1\2", text)
    text = _FUNCTION.sub(r"\\\1", _ROOT.sub(r"\\sqrt{\1}", _PI.sub(r"\\pi ", text)))
    before = ""
    while text != before:
        before = text
        text = _once(text.strip())
    return text


def _once(text: str) -> str:
    """One round of `cleaned`; each step may make another one fit."""
    for begin, end in _WRAPPED:
        inner = text[len(begin) : -len(end)]
        if len(text) > len(begin + end) and text.startswith(begin) and text.endswith(end):
            if begin not in inner:
                return inner
    text = re.sub(r"(?<!\\)\\$", "", text)  # of a control space
    if not text.endswith(("...", "dots")):
        text = re.sub(r"(?<!\\)\s*[.,;]+$", "", text)
    text = _SENTENCE.sub("", text)
    text = _TEXT_BEFORE.sub("", text)
    text = _BOLD.sub(r"\1", text)
    text = _TEXT_WITHOUT_LETTERS.sub(r"\1", text)
    text = _CURRENCY.sub(r"\1", text)
    text = _CURRENCY_BEHIND.sub("", text)
    if found := _STYLED.match(text):
        return found[1]
    if found := _CHOICE.match(text):
        return found[1] or found[2]
    if found := _THOUSANDS.match(text):
        return f"{found[1]}{re.sub('[, ]', '', found[2])}{found[3] or ''}"
    if found := _MIXED.match(text):
        return rf"{found[1]}\frac{{{int(found[2]) * int(found[4]) + int(found[3])}}}{{{found[4]}}}"
    if found := _REPEATING.match(text):
        return _fraction(found[1], found[2], found[3], found[4] or found[5] or found[6])
    if found := _SCIENTIFIC.match(text):
        return rf"{found[1]} \times 10^{{{int(found[2])}}}"
    found = _WITH_UNIT.match(text)
    if found and _is_unit(found["words"], found["text"]):
        return found["value"]
    return text


def _fraction(sign: str, whole: str, once: str, repeated: str) -> str:
    r"""A decimal whose last digits repeat, as a fraction.

    >>> _fraction("-", "0", "1", "6")
    '-\\frac{15}{90}'
    """
    nines = 10 ** len(repeated) - 1
    above = int(f"{whole}{once}{repeated}" or 0) - int(f"{whole}{once}" or 0)
    return rf"{sign}\frac{{{above}}}{{{nines * 10 ** len(once)}}}"


def _is_unit(plain: str | None, styled: str | None) -> bool:
    """Whether the letters behind a number name what it counts, and are no factors of it.

    Args:
        plain: letters as in `5 cm`; None: there are none, as in a square or a ratio.
        styled: those in text of LaTeX, which are no factors anyway.
    """
    words = [word.lower() for word in _LETTERS.findall(plain or styled or "")]
    if _MATHS & {*words}:
        return False
    return not plain or len(words[0]) > 3 or words[0] in _UNITS


def words_of(text: str) -> str | None:
    """A cleaned answer that is words, with or without digits, in small letters; None: it is none.

    >>> words_of("Infinitely  many"), words_of("ab"), words_of("June 20"), words_of("2 pi")
    ('infinitely many', None, 'june 20', None)
    """
    bare = re.sub(rf"{_STYLE}\s*\{{([^{{}}]*)\}}", r" \1 ", text)
    if not _PLAIN.match(bare):
        return None
    tokens = _LETTERS.findall(bare)
    if not any(_is_word(token) for token in tokens if token.lower() not in _MATHS):
        return None
    return text_of(bare)


def text_of(text: str) -> str:
    """Letters and digits of a text in small letters, with one space between its words."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def is_prose(text: str) -> bool:
    """Whether a cleaned gold answer is a sentence around a number, which nobody will repeat."""
    words = words_of(text)
    if words is None or _AMOUNTS.fullmatch(words):
        return False
    return bool(re.search("[0-9]", words)) and len(words.split()) > 3


def choice_in(text: str) -> str:
    r"""The letter of a choice that an answer begins with, as in `\textbf{(B)} 12`; "" for none."""
    found = _CHOICE_FIRST.match(text.strip())
    return (found[1] or found[2]) if found else ""


def _is_word(token: str) -> bool:
    name = len(token) > 1 and token[0].isupper() and token[1:].islower()
    return len(token) > 3 or name or token.lower() in _SHORT
