"""The table of docs/methods.md, from the comments at the head of the built-in recipes.

The rest of the page is written by hand; the table stands between two marks.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.config.recipes import ACTS_ON, About, builtin_recipes

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods.md"
BEGIN = "<!-- made by `python -m launch.docs.pages` from configs/recipes; do not edit -->"
END = "<!-- end of what is made -->"


def methods_page() -> str:
    """The page as it is, with the table made anew."""
    text = PAGE.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"{PAGE} has lost its mark: {BEGIN}"
    assert end, f"{PAGE} has lost its mark: {END}"
    return f"{before}{BEGIN}\n\n{recipe_tables(builtin_recipes())}\n{END}{after}"


def recipe_tables(recipes: list[About]) -> str:
    """A table for each thing that methods act on; a method stands with the first that it names."""
    lines: list[str] = []
    for kind, meaning in ACTS_ON.items():
        here = [recipe for recipe in recipes if recipe.acts_on[:1] == (kind,)]
        if not here:
            continue
        lines += [f"### {kind.capitalize()}: {meaning}", ""]
        lines += ["| recipe | method | also | exact | our reading |", "|---|---|---|---|---|"]
        lines += [_row(recipe) for recipe in here]
        lines += [""]
    return "\n".join(lines)


def _row(recipe: About) -> str:
    cells = (
        f"`{recipe.name}`",
        f"**{recipe.title}** ({recipe.source}): {recipe.sentence}",
        ", ".join(recipe.acts_on[1:]),
        recipe.exact,
        recipe.ours,
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
