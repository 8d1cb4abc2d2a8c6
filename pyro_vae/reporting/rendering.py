"""Templates and plots as one HTML file that loads nothing. Needs Bokeh and Jinja2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bokeh.embed import components
from bokeh.plotting import figure
from bokeh.resources import Resources
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from pyro_vae.reporting import style


def render(template: str, context: Mapping[str, Any], drawn: Mapping[str, figure]) -> str:
    """Render a template with its values, and plots by name."""
    script = ""
    divs = {}
    if drawn:
        script, divs = components(drawn)
    environment = Environment(
        loader=PackageLoader("pyro_vae.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    library = Resources(mode="inline", components=["bokeh"], log_level="warn").render()
    return environment.get_template(template).render(
        **context,
        plots={name: Markup(div) for name, div in divs.items()},
        style=style,
        library=Markup(library),
        script=Markup(script),
    )
