"""Run the lessons and write their figures as slides: one PDF and one SVG for each figure.

    python experiments/lessons/slides.py OUT [--lesson 1_elbo]

The names say the lesson and the place, such as 1_elbo-02.pdf. Six lessons take some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

import matplotlib
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.figure import Figure

matplotlib.use("agg")

FOLDER = Path(__file__).parent


def figures_of(notebook: Path) -> Iterator[Figure]:
    """The figures that the cells of a notebook draw, in their order."""
    from matplotlib import pyplot

    shell = InteractiveShell()
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] != "code":
            continue
        lines = "".join(cell["source"]).splitlines(keepends=True)
        source = "".join(line for line in lines if not line.startswith("%"))
        result = shell.run_cell(source, silent=True)
        result.raise_error()
        drawn = [pyplot.figure(number) for number in pyplot.get_fignums()]
        if isinstance(result.result, Figure) and result.result not in drawn:
            drawn.append(result.result)
        yield from drawn
        pyplot.close("all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="The folder of the slides.")
    parser.add_argument("--lesson", default="[0-9]*", help="The name of one lesson.")
    args = parser.parse_args()
    out = args.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(FOLDER)
    for notebook in sorted(Path().glob(f"{args.lesson}.ipynb")):
        for number, figure in enumerate(figures_of(notebook), 1):
            for file_format in ("pdf", "svg"):
                file = out / f"{notebook.stem}-{number:02}.{file_format}"
                figure.savefig(file, bbox_inches="tight")


if __name__ == "__main__":
    main()
