"""Each lesson runs from a clean state with the solutions of its exercises, and is stored with its outputs."""

from __future__ import annotations

import asyncio
import re
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "lessons"
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
    """Settings of a kernel: few epochs, this checkout of the package, and sockets instead of ports, which may be taken."""
    settings = {"LESSON_EPOCHS": "2", "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(tmp_path), "MPLBACKEND": ""}
    settings |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore:IProgress not found"}  # tqdm warns without widgets
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with tempfile.TemporaryDirectory() as folder:  # the path of a socket must be short
        yield Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"})


@each_lesson
def test_runs_with_solutions(lesson, kernel):
    notebook = read(lesson)
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in solutions(notebook)]
    client = NotebookClient(notebook, config=kernel, timeout=300, resources={"metadata": {"path": str(FOLDER)}})
    asyncio.run(client.async_execute())
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]


@each_lesson
def test_has_short_cells_and_three_solutions(lesson):
    assert 10 <= len(read(lesson).cells) <= 25
    assert all(len(cell.source.splitlines()) <= 25 for cell in read(lesson).cells if cell.cell_type == "code")
    assert len(solutions(read(lesson))) == 3


@each_lesson
def test_is_stored_with_outputs(lesson):
    kinds = [output.get("name", output.output_type) for output in outputs(read(lesson))]
    assert {"stdout", "display_data"} <= set(kinds) <= {"stdout", "display_data", "execute_result"}
    assert any("image/png" in output.get("data", {}) for output in outputs(read(lesson)))
    counts = [cell.execution_count for cell in read(lesson).cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


@each_lesson
def test_names_no_machine(lesson):
    assert not re.search(r"/(home|root|Users|tmp|work)/", (FOLDER / f"{lesson}.ipynb").read_text())


@each_lesson
def test_uses_public_names_only(lesson):
    code = [cell.source for cell in read(lesson).cells if cell.cell_type == "code"] + solutions(read(lesson))
    assert not re.search(PRIVATE, "\n".join(code))


def test_readme_links_all_lessons():
    assert sorted(path.stem for path in FOLDER.glob("[!_]*.ipynb")) == LESSONS
    assert all(f"({lesson}.ipynb)" in (FOLDER / "README.md").read_text() for lesson in LESSONS)


def test_the_explorer_has_ten_questions_and_answers():
    page = (FOLDER / "explorer.html").read_text()
    assert len(page.encode()) < 3e6
    assert page.count("<summary>Answer</summary>") == 10
    for lesson in ("1_elbo", "3_amortization", "5_importance_weighting"):
        assert "(explorer.html)" in (FOLDER / f"{lesson}.ipynb").read_text()
