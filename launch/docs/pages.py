"""`python -m launch.docs.pages`: generates pages of docs/ from the source.

docs/methods.md has a table from the recipes in configs/recipes; docs/configuration.md and
configs/schema.json come from the types and docstrings of
`pipeline.config.schema` and of the plug-ins' options; docs/states.md and its drawings from the
tables of states; the tables of docs/migrating.md from `pipeline.config.other_names`.
`--check` writes nothing and exits with 1 when a page is out of date.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from launch.docs.methods import methods_page
from launch.docs.state_diagram import drawing, moves_of, table_lines
from pipeline.config import other_names
from pipeline.config.docs import (
    default_of,
    documentation,
    in_full,
    option_documentation,
    sections,
    type_of,
)
from pipeline.config.json_schema import json_schema
from pipeline.config.schema import Config, Plugin
from pipeline.coordinator.engine_pool import ENGINE_TRANSITIONS
from pipeline.coordinator.groups import GROUP_TRANSITIONS, TRANSITIONS
from pipeline.coordinator.run_state import RUN_TRANSITIONS
from pipeline.plugins import registry
from pipeline.stage.peers import PEER_TRANSITIONS

_ROOT = Path(__file__).resolve().parents[2]
_MADE = "<!-- made by `python -m launch.docs.pages`; do not edit -->"

_MACHINES: dict[str, tuple[Mapping[Any, Any], str]] = {
    "A trajectory": (TRANSITIONS, "pipeline/coordinator/groups.py"),
    "A group": (GROUP_TRANSITIONS, "pipeline/coordinator/groups.py"),
    "A run": (RUN_TRANSITIONS, "pipeline/coordinator/run_state.py"),
    "An engine, for the coordinator": (ENGINE_TRANSITIONS, "pipeline/coordinator/engine_pool.py"),
    "A peer, for the stage": (PEER_TRANSITIONS, "pipeline/stage/peers.py"),
}
"""State machines: heading -> their table and the file that has it."""
_DRAWINGS = {title: f"states-{title.partition(',')[0].split()[-1]}.svg" for title in _MACHINES}


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _value(value: object) -> str:
    """Formats a default as in YAML."""
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


def _settings(section: str) -> Iterator[tuple[str, str, str]]:
    for key, meaning in documentation().items():
        if key.rpartition(".")[0] == section:
            struct = sections()[section] if section else Config
            name = key.rpartition(".")[2]
            yield key, _value(default_of(struct, name)), in_full(meaning, type_of(struct, name))


def _summary(cls: type[Any]) -> str:
    """Returns the first paragraph of the plug-in's module, without "Selector `name`: "."""
    text = inspect.getdoc(sys.modules[cls.__module__]) or ""
    return _cell(text.split("\n\n")[0]).partition(": ")[2]


def _options(kind: str, name: str) -> Iterator[tuple[str, str, str]]:
    struct = registry.options_type(registry.find_plugin(kind, name))
    for field, meaning in option_documentation(struct).items():
        default = _value(default_of(struct, field))
        yield f"{kind}.{name}.{field}", default, in_full(meaning, type_of(struct, field))


def configuration_page() -> str:
    """Lists every setting and every option of the built-in plug-ins, with default and meaning."""
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
        "looked for in the current directory, then in the one above the file's folder. An editor",
        "that knows JSON Schema shows all this where it is written: `darts config schema`.",
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
    """Draws the state machines from their tables."""
    lines = [
        "# States",
        "",
        _MADE,
        "",
        "Every state machine is a table in the code; a move that is not in it raises and changes",
        "nothing.",
        "",
        *_diagram("A trajectory"),
        *_diagram("A group"),
        "`open`, `enough` and `dead` groups are open: members may still be sampled, chosen or",
        "thrown out. `taken`, `sent` and `accumulated` groups belong to the open step; they go",
        "back to `ready` when the step could not be applied, and in a checkpoint. Groups of an",
        "evaluation go from `open` to `evaluated`; no other group does.",
        "",
        *_diagram("A run"),
        *_diagram("An engine, for the coordinator"),
        "An engine is asked to load each version that is published, and again when a load fails.",
        "",
        *_diagram("A peer, for the stage"),
        "A peer is a connected engine or learner rank. Its state is the stage's own: nothing that",
        "the peer sends is taken for it.",
    ]
    return "\n".join(lines) + "\n"


def _diagram(title: str) -> list[str]:
    """A heading, the drawing and the table; the first state is where it begins."""
    table, file = _MACHINES[title]
    drawn = f"![{title}: its states, and the moves between them]({_DRAWINGS[title]})"
    moves = table_lines(moves_of(table))
    return [f"## {title}", "", f"`{file}`", "", drawn, "", *moves, ""]


def migrating_page() -> str:
    """The page as it is, with its tables of other names made anew."""
    text = (_ROOT / "docs/migrating.md").read_text()
    for whose, table in (("verl", other_names.VERL), ("TRL", other_names.TRL)):
        begin, end = f"<!-- {whose} -->\n", "<!-- end -->"
        before, _, rest = text.partition(begin)
        rows = [f"| `{key}` | {_ours(name)} |" for key, name in table.items()]
        made = "\n".join([f"| {whose} | darts |", "|---|---|", *rows])
        text = f"{before}{begin}{made}\n{end}{rest.partition(end)[2]}"
    return text


def _ours(name: str) -> str:
    return f"`{name}`" if re.fullmatch(r"[\w.]+(=[\w.:]+)?|--\w+", name) else name


def schema_text() -> str:
    """Returns what `darts config schema` prints without installed plug-ins."""
    return json.dumps(json_schema(), indent=1) + "\n"


PAGES = {
    "docs/configuration.md": configuration_page,
    "docs/methods.md": methods_page,
    "docs/migrating.md": migrating_page,
    "docs/states.md": states_page,
    "configs/schema.json": schema_text,
    **{
        f"docs/{_DRAWINGS[title]}": partial(drawing, title, moves_of(table))
        for title, (table, _) in _MACHINES.items()
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if out of date")
    check = parser.parse_args().check
    stale = 0
    for name, make in PAGES.items():
        path, text = _ROOT / name, make()
        if path.exists() and path.read_text() == text:
            continue
        stale += 1
        if not check:
            path.write_text(text)
        print(f"{path}: {'out of date' if check else 'written'}")
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
