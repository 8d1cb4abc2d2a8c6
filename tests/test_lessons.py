"""Each lesson runs from a clean state, with its exercises solved, and is committed with its outputs."""

from __future__ import annotations

import asyncio
import re
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

FOLDER = Path(__file__).parents[1] / "experiments" / "lessons"
LESSONS = ["1_elbo", "2_svi_step", "3_amortization", "4_collapse", "5_importance_weighting"]
PRIVATE = r"pyro_vae\.(\w+\.)*_|\bpv\.(\w+\.)*_|from pyro_vae\S* import[^\n]*\b_"

each_lesson = pytest.mark.parametrize("lesson", LESSONS)


def read(lesson):
    return nbformat.read(FOLDER / f"{lesson}.ipynb", as_version=4)


def solutions(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return re.findall(r"<details>.*?```python\n(.*?)```.*?</details>", text, re.DOTALL)


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Settings of a kernel: few epochs, a folder of its own, and no port that another test might take."""
    settings = {"LESSON_EPOCHS": "2", "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(tmp_path), "MPLBACKEND": ""}
    settings["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm asks for widgets
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with tempfile.TemporaryDirectory() as folder:  # a socket's path must be short
        yield Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"})


@each_lesson
def test_it_runs_with_its_exercises_solved(lesson, kernel):
    notebook = read(lesson)
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in solutions(notebook)]
    client = NotebookClient(notebook, config=kernel, timeout=300, resources={"metadata": {"path": str(FOLDER)}})
    asyncio.run(client.async_execute())
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]


@each_lesson
def test_it_has_10_to_20_cells_and_three_solutions(lesson):
    assert 10 <= len(read(lesson).cells) <= 20
    assert len(solutions(read(lesson))) == 3


@each_lesson
def test_it_is_committed_with_its_outputs(lesson):
    kinds = [output.get("name", output.output_type) for output in outputs(read(lesson))]
    assert {"stdout", "display_data"} <= set(kinds) <= {"stdout", "display_data", "execute_result"}
    assert any("image/png" in output.get("data", {}) for output in outputs(read(lesson)))
    counts = [cell.execution_count for cell in read(lesson).cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


@each_lesson
def test_it_names_no_machine(lesson):
    assert not re.search(r"/(home|root|Users|tmp|work)/", (FOLDER / f"{lesson}.ipynb").read_text())


@each_lesson
def test_it_uses_public_names_only(lesson):
    code = [cell.source for cell in read(lesson).cells if cell.cell_type == "code"] + solutions(read(lesson))
    assert not re.search(PRIVATE, "\n".join(code))


def test_the_lessons_are_all_here():
    assert sorted(path.stem for path in FOLDER.glob("[!_]*.ipynb")) == LESSONS
    assert all(f"({lesson}.ipynb)" in (FOLDER / "README.md").read_text() for lesson in LESSONS)
