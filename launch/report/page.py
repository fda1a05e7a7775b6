"""Sections -> one self-contained HTML file with style, scripts and data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bokeh.embed import components
from bokeh.model import Model
from bokeh.models import Select
from bokeh.resources import Resources
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from launch.report.section import Section

_HERE = Path(__file__).parent


def render(
    title: str,
    sections: Sequence[Section],
    warnings: Sequence[str],
    modelled: Sequence[str] = (),
) -> str:
    """Renders the whole page.

    Args:
        warnings: what could not be read.
        modelled: what is not real of the runs, a line each.
    """
    models = {
        f"{section.id}{i}": part
        for section in sections
        for i, part in enumerate(section.content)
        if isinstance(part, Model)
    }
    script, places = components(models, wrap_script=False) if models else ("", {})
    # Nothing here needs the tables' bundle or MathJax.
    bokeh = Resources(mode="inline", components=["bokeh", "bokeh-widgets"])
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string((_HERE / "page.html").read_text(encoding="utf-8"))
    return template.render(
        title=title,
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((_HERE / "page.js").read_text(encoding="utf-8")),
        bokeh=Markup(bokeh.render_js()),
        # In a script element only its end tag is markup, and in a string "<\\/" is "</".
        plots=Markup(script.replace("</", "<\\/").replace("<!--", "<\\!--")),
        warnings=warnings,
        modelled=modelled,
        sections=[(section, _parts(section, places)) for section in sections],
    )


def _parts(section: Section, places: dict[str, Any]) -> list[Markup]:
    """Returns the section's HTML, with placeholders for its plots."""
    return [
        part if isinstance(part, Markup)
        else Markup('<div class="{}">{}</div>').format(
            "choice" if isinstance(part, Select) else "plot", Markup(places[f"{section.id}{i}"])
        )
        for i, part in enumerate(section.content)
    ]  # fmt: skip
