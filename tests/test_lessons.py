"""Each lesson runs with the solutions of its exercises, and is stored with its outputs."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "lessons"
LESSONS = [
    "1_elbo",
    "2_svi_step",
    "3_amortization",
    "4_collapse",
    "5_importance_weighting",
    "6_missing",
]
PRIVATE = r"pyro_vae\.(\w+\.)*_|\bpv\.(\w+\.)*_|from pyro_vae\S* import[^\n]*\b_"

each_lesson = pytest.mark.parametrize("lesson", LESSONS)


def read(lesson):
    return nbformat.read(FOLDER / f"{lesson}.ipynb", as_version=4)


def sources(lesson):
    return [cell.source for cell in read(lesson).cells if cell.cell_type == "code"]


def solutions(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return re.findall(r"<details>.*?```python\n(.*?)```.*?</details>", text, re.DOTALL)


def outputs(notebook):
    return [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]


class Shell(InteractiveShell):
    """IPython in this process, so that torch is imported only once."""

    def enable_gui(self, gui=None):
        """`%matplotlib inline` needs no event loop."""


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """A new shell in the folder of the lessons; trainings are short."""
    monkeypatch.setenv("LESSON_EPOCHS", "2")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.chdir(FOLDER)
    backend = plt.get_backend()
    with plt.rc_context():
        yield Shell(config=Config(HistoryManager={"enabled": False}))
    plt.switch_backend(backend)


@each_lesson
@pytest.mark.filterwarnings(
    "ignore:__array:DeprecationWarning"
)  # matplotlib converts tensors by an older protocol of NumPy
def test_runs_with_solutions(lesson, shell, capfd):
    for source in [*sources(lesson), *solutions(read(lesson))]:
        shell.run_cell(source).raise_error()
    assert not capfd.readouterr().err


@each_lesson
def test_has_short_cells_and_three_solutions(lesson):
    assert 10 <= len(read(lesson).cells) <= 25
    assert all(len(source.splitlines()) <= 25 for source in sources(lesson))
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
    assert not re.search(PRIVATE, "\n".join(sources(lesson) + solutions(read(lesson))))


def test_readme_links_all_lessons():
    assert sorted(path.stem for path in FOLDER.glob("[!_]*.ipynb")) == LESSONS
    assert all(f"({lesson}.ipynb)" in (FOLDER / "README.md").read_text() for lesson in LESSONS)


def test_the_explorer_has_ten_questions_and_answers():
    page = (FOLDER / "explorer.html").read_text()
    assert len(page.encode()) < 3e6
    assert page.count("<summary>Answer</summary>") == 10
    for lesson in ("1_elbo", "3_amortization", "5_importance_weighting"):
        assert "(explorer.html)" in (FOLDER / f"{lesson}.ipynb").read_text()


def test_the_explorer_reads_the_document_of_a_report(run_dir):
    code = runpy.run_path(str(FOLDER / "explorer.py"))
    page = (run_dir / "report.html").read_text()
    images = code["explored"](page)
    assert len(images) == 3
    assert all(image["picture"].startswith("data:image/png") for image in images)
    assert code["with_questions"](page, 1.0).count("<summary>Answer</summary>") == 10


def test_student_copies_have_no_outputs_and_no_solutions(tmp_path, monkeypatch):
    code = runpy.run_path(str(FOLDER / "student.py"))
    monkeypatch.setattr("sys.argv", ["student.py", str(tmp_path / "copies")])
    code["main"]()
    assert (tmp_path / "copies" / "lessons.mplstyle").exists()
    for lesson in LESSONS:
        copy = nbformat.read(tmp_path / "copies" / f"{lesson}.ipynb", as_version=4)
        nbformat.validate(copy)
        assert outputs(copy) == []
        assert solutions(copy) == []
        assert [cell.source for cell in copy.cells if cell.cell_type == "code"] == sources(lesson)
        assert any("xercise" in cell.source for cell in copy.cells)
