"""The HTML page about one model. Needs Bokeh and Jinja2."""

from __future__ import annotations

import torch
from bokeh.plotting import figure

from pyro_vae.engine.random_state import forked_rng
from pyro_vae.reporting.numbers import headlines
from pyro_vae.reporting.overview import FULL, Effort
from pyro_vae.reporting.panels import PANELS, material
from pyro_vae.reporting.rendering import render
from pyro_vae.reporting.subject import Subject


def page(subject: Subject, effort: Effort = FULL, seed: int = 0) -> str:
    """The page about one model. Leaves the random state as it is."""
    with forked_rng():
        torch.manual_seed(seed)
        made = material(subject, effort)
        made_panels = [make(made) for make in PANELS]
    panels = [panel for panel in made_panels if panel]
    drawn: dict[str, figure] = {}
    for panel in panels:
        drawn |= panel.plots
    context = {
        "title": subject.name,
        "subject": subject,
        "each": subject.test.noun,
        "headlines": headlines(subject),
        "panels": panels,
        "chosen": made.chosen,
        "epochs": len(made.snapshots),
        "data": made.document(),
    }
    return render("one.html", context, drawn)
