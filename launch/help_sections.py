"""`darts --help`: the commands by what they are for, in the order in which they are needed."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

SECTIONS = {
    "Train": ("train", "eval", "export"),
    "Before a run": ("doctor", "data", "reward", "config", "plugins", "profile"),
    "While it runs": ("top", "status"),
    "What it did": ("show", "explain", "report"),
    "Try methods": ("simulate", "replay", "bench"),
    "By hand": ("engine", "learner"),
    "Shell": ("completion",),
}


class SectionedGroup(TyperGroup):
    """Lists its commands below the headings of `SECTIONS`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the commands; those without a section come last."""
        named = {name for names in SECTIONS.values() for name in names}
        others = tuple(name for name in self.list_commands(ctx) if name not in named)
        widest = max(map(len, self.commands))
        for title, names in {**SECTIONS, "Others": others}.items():
            rows = [
                (
                    name.ljust(widest),  # one column for all sections
                    command.get_short_help_str(formatter.width - widest - 6),
                )
                for name in names
                if (command := self.get_command(ctx, name)) is not None and not command.hidden
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
