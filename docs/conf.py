"""The documentation site. `make docs` builds it in docs/_build/html, without a network.

Its source folder is the repository, so that links are the same in the repository and on the site.
"""

from __future__ import annotations

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
exclude_patterns = ["docs/_build", "docs/_templates", ".*", "pyro_vae", "tests", "build", "runs"]
nitpicky = True
# Their inventories of names would need a network. Private bases are not documented.
OTHERS = r"(torch|nn|pyro|numpy|np|matplotlib|collections|pathlib|typing|abc|argparse)\b.*"
ALIASES = (
    r"'?(Tensor|Shape|Initialization|Classes|Array|Pixels|Program|Batch|BatchLike|Engine|AnyEngine"
    r"|Precision|MakeOptimizer|MakeScheduler|OnNaN|Metrics|Learned|Method|Start|FlowName|Which|PyroOptim)'?"
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
html_extra_path = ["_extra"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False

myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 4
# The stored outputs are shown. The tests run the notebooks and compare.
nb_execution_mode = "off"
nb_merge_streams = True

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def block_mathml(writer: HTML5Translator, node: nodes.math_block) -> None:
    """Write a displayed formula as MathML, which browsers draw without a script."""
    writer.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def inline_mathml(writer: HTML5Translator, node: nodes.math) -> None:
    """Write a formula in a line as MathML."""
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Add what the configuration names."""
    inline, block = (inline_mathml, None), (block_mathml, None)
    app.add_html_math_renderer("mathml", inline, block)
