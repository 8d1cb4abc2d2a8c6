"""The documentation site. `make docs` builds it in docs/_build/html, without a network.

Its source folder is the repository, so that links are the same in the repository and on the site.
"""

from __future__ import annotations

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import pyro_vae

project = "pyro_vae"
author = "pyro_vae contributors"
project_copyright = f"2026, {author}"
version = release = pyro_vae.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinxcontrib.programoutput",
]
root_doc = "docs/index"
include_patterns = ["docs/**", "experiments/**", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [
    "docs/_build",
    "docs/_templates",
    "docs/pypi.md",
    ".*",
    "pyro_vae",
    "tests",
    "build",
    "runs",
]
default_role = "literal"
nitpicky = True
# Their inventories of names would need a network. Private bases are not documented.
OTHERS = r"(torch|nn|pyro|numpy|np|matplotlib|collections|pathlib|typing|abc|argparse)\b.*"
ALIASES = (
    r"'?(Tensor|Shape|Initialization|Classes|Array|Pixels|Program|Batch|BatchLike|Engine|AnyEngine"
    r"|Precision|AnyPrecision|MakeOptimizer|MakeScheduler|OnNaN|Metrics|Learned|Method|Start|FlowName|Which|PyroOptim|Kind|Dispersion)'?"
)
nitpick_ignore_regex = [
    (r"py:.*", OTHERS),
    (r"py:.*", ALIASES),
    (r"py:.*", r".*\._\w+"),
]

templates_path = ["docs/_templates"]

html_theme = "furo"
html_title = f"pyro_vae {version}"
html_static_path = ["_static"]
html_extra_path = ["_extra", "../experiments/lessons/explorer.html"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False

myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 4
# The stored outputs are shown. The tests run the notebooks and compare.
nb_execution_mode = "off"
nb_merge_streams = True

autosummary_generate = True
# On disks that ignore case the page would be that of the function `calibration`.
autosummary_filename_map = {"pyro_vae.Calibration": "pyro_vae.Calibration-class"}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def mathml(tex: str, display: str = "inline") -> str:
    """A formula as MathML, which browsers draw without a script.

    The converter leaves no space after the name of a function.
    """
    text: str = convert(tex, display=display)
    return re.sub(r"(<mi>(?:log|exp|max|min)</mi>)(?!<mo)", r'\1<mspace width="0.17em"/>', text)


def block_mathml(writer: HTML5Translator, node: nodes.math_block) -> None:
    """Write a displayed formula."""
    writer.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def inline_mathml(writer: HTML5Translator, node: nodes.math) -> None:
    """Write a formula in a line."""
    writer.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Add what the configuration names."""
    app.add_html_math_renderer("mathml", (inline_mathml, None), (block_mathml, None))
