"""Copy the lessons for students: without outputs and without the solutions of the exercises.

python experiments/lessons/student.py OUT
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
# What the notebooks read or link to.
OTHERS = ("lessons.mplstyle", "explorer.html")
SOLUTION = re.compile(r"\s*<details>.*?</details>", re.DOTALL)


def for_students(notebook: dict[str, Any]) -> dict[str, Any]:
    """A notebook without outputs and solutions; the notebook itself is left as it is."""
    cells = []
    for cell in notebook["cells"]:
        copy = dict(cell)
        if cell["cell_type"] == "code":
            copy |= {"outputs": [], "execution_count": None}
        else:
            text = SOLUTION.sub("\n", "".join(cell["source"])).rstrip()
            copy["source"] = text.splitlines(keepends=True)
        cells.append(copy)
    return {**notebook, "cells": cells}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="A new folder.")
    out = parser.parse_args().out
    out.mkdir(parents=True)
    for path in sorted(FOLDER.glob("[0-9]*.ipynb")):
        notebook = for_students(json.loads(path.read_text()))
        (out / path.name).write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    for name in OTHERS:
        shutil.copy(FOLDER / name, out)


if __name__ == "__main__":
    main()
