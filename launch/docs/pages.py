"""`python -m launch.docs.pages`: the pages of docs/ that are made from the source.

docs/configuration.md from the docstrings of `pipeline.config.schema` and of the
plug-ins' options; docs/states.md from the tables of `pipeline.coordinator.groups`.
`--check` writes nothing and exits with 1 when a page is out of date.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pipeline.config.docs import default_of, documentation, option_documentation, sections
from pipeline.config.rules import CHOICES, RULES
from pipeline.config.schema import Config, Plugin
from pipeline.coordinator.groups import GROUP_TRANSITIONS, TRANSITIONS
from pipeline.plugins import registry

_MADE = "<!-- made by `python -m launch.docs.pages`; do not edit -->"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _value(value: object) -> str:
    """A default as one writes it in YAML."""
    if value is msgspec.NODEFAULT:
        return "(needed)"
    if isinstance(value, Plugin):
        return f"`{value.name}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{json.dumps(value) if not isinstance(value, str) or not value else value}`"


def _table(rows: Iterator[tuple[str, str, str]]) -> Iterator[str]:
    yield "| key | default | meaning |"
    yield "|---|---|---|"
    for key, default, meaning in rows:
        yield f"| `{key}` | {default} | {_cell(meaning)} |"


def _range(key: str, meaning: str) -> str:
    """Allowed values, where the meaning does not say them."""
    if key in CHOICES:
        choices = [f"`{choice}`" for choice in CHOICES[key]]
        told = all(choice.strip("`") in meaning for choice in choices)
        return "" if told else f" One of {', '.join(choices)}."
    rule = RULES[key][1] if key in RULES else ""
    return f" Allowed: {rule}." if rule and rule.split(",")[0] not in meaning else ""


def _settings(section: str) -> Iterator[tuple[str, str, str]]:
    for key, meaning in documentation().items():
        if key.rpartition(".")[0] == section:
            struct = sections()[section] if section else Config
            default = _value(default_of(struct, key.rpartition(".")[2]))
            yield key, default, meaning.rstrip(".") + "." + _range(key, meaning)


def _summary(cls: type[Any]) -> str:
    """First paragraph of the plug-in's module, without "Selector `name`: "."""
    text = inspect.getdoc(sys.modules[cls.__module__]) or ""
    return _cell(text.split("\n\n")[0]).partition(": ")[2]


def _options(kind: str, name: str) -> Iterator[tuple[str, str, str]]:
    struct = registry.options_type(registry.find_plugin(kind, name))
    for field, meaning in option_documentation(struct).items():
        yield f"{kind}.{name}.{field}", _value(default_of(struct, field)), meaning


def configuration_page() -> str:
    """Every setting and every option of the house's plug-ins, with default and meaning."""
    named = dict.fromkeys(key.rpartition(".")[0] for key in documentation())
    lines = [
        "# Settings",
        "",
        _MADE,
        "",
        "A YAML file holds them by section, as in `configs/quickstart.yaml`; a command line",
        "changes single ones: `darts train CONFIG step.prompts=32 selector=dual_end seed=1`. What",
        "is not named has its default. Every problem of a file is reported at once, before",
        "anything starts; `--dry-run` shows the whole configuration, resolved. A relative path is",
        "looked for in the current directory, then in the one above the file's folder.",
        "",
    ]
    for section in named:
        lines += [f"## {section or 'Top level'}", "", *_table(_settings(section)), ""]
    lines += [
        "## Plug-ins",
        "",
        "By name (`selector: dual_end`), with options (`selector: {dual_end: {longest: 2}}`, or",
        "`selector.dual_end.longest=2` on the command line), or as `package.module:Class`.",
        "",
    ]
    for kind in registry.PACKAGES:
        lines += [f"### {kind}", ""]
        for name in registry.builtin_names(kind):
            lines += [f"`{name}`: {_summary(registry.find_plugin(kind, name))}", ""]
            rows = list(_options(kind, name))
            lines += [*_table(iter(rows)), ""] if rows else []
    return "\n".join(lines).rstrip() + "\n"


def states_page() -> str:
    """The state machines, drawn from the tables that the core moves by."""
    lines = [
        "# States",
        "",
        _MADE,
        "",
        "Drawn from the tables in `pipeline/coordinator/groups.py`. A move that is not in them",
        "raises and changes nothing.",
        "",
        "## A trajectory",
        "",
        "```mermaid",
        "stateDiagram-v2",
        "    [*] --> queued",
    ]
    for state, moves in TRANSITIONS.items():
        lines += [f"    {state.value} --> {to.value}: {why.value}" for why, to in moves.items()]
        lines += [] if moves else [f"    {state.value} --> [*]"]
    lines += ["```", "", "## A group", "", "```mermaid", "stateDiagram-v2", "    [*] --> open"]
    for stage, targets in GROUP_TRANSITIONS.items():
        lines += [f"    {stage.value} --> {target.value}" for target in sorted(targets)]
        lines += [] if targets else [f"    {stage.value} --> [*]"]
    lines += [
        "```",
        "",
        "`taken` goes back to `ready` when the step could not be applied, and in a checkpoint.",
        "Groups of an evaluation go from `open` to `evaluated`; no other group does.",
    ]
    return "\n".join(lines) + "\n"


PAGES = {"configuration.md": configuration_page, "states.md": states_page}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if out of date")
    check = parser.parse_args().check
    folder = Path(__file__).resolve().parents[2] / "docs"
    stale = 0
    for name, make in PAGES.items():
        path, text = folder / name, make()
        if path.exists() and path.read_text() == text:
            continue
        stale += 1
        if not check:
            path.write_text(text)
        print(f"{path}: {'out of date' if check else 'written'}")
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
