"""Damage to metrics.jsonl stops no run: the weights decide, not the log."""

from __future__ import annotations

import os
import shutil

import pytest
from run_folders import epochs, trained

from pyro_vae.runs.folder import Run
from pyro_vae.runs.log import add_record, keep_records, read_records

GARBAGE = {
    "text": lambda lines: ["what?", *lines],
    "an empty line": lambda lines: ["", *lines],
    "a NUL": lambda lines: ["\0", *lines],
    "bytes": lambda lines: ["\udcff", *lines],
    "a list": lambda lines: ["[1]", *lines],
    "other types": lambda lines: ['{"epoch": "one"}', *lines],
    "missing keys": lambda lines: ['{"epoch": 1}', *lines],
    "NaN": lambda lines: [lines[0].replace('"epoch": 1', '"epoch": NaN'), *lines],
    "a long integer": lambda lines: [
        lines[0].replace('"epoch": 1', f'"epoch": {"9" * 5000}'),
        *lines,
    ],
    "a huge number": lambda lines: [
        lines[0].replace('"epoch": 1', f'"epoch": {"9" * 400}'),
        *lines,
    ],
    "brackets": lambda lines: ["[" * 100_000, *lines],
    "later epochs": lambda lines: [*lines, lines[1].replace('"epoch": 2', '"epoch": 3')],
    "half a line": lambda lines: [*lines, lines[1][:50]],
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_damaged_metrics_do_not_stop_a_run(run_dir, tmp_path, garbage):
    """Records up to the checkpoint are kept; the weights decide, not the log."""
    path = tmp_path / "run"
    shutil.copytree(run_dir, path)
    lines = GARBAGE[garbage]((run_dir / "metrics.jsonl").read_text().splitlines())
    (path / "metrics.jsonl").write_text(
        "\n".join(lines) + "\n" * (garbage != "half a line"), errors="surrogateescape"
    )
    trained("train", "--run_dir", path, "--resume", "--epochs", 3)
    assert epochs(path) == [1, 2, 3]


@pytest.mark.parametrize("kind", ["missing", "a directory", "a FIFO", "empty"])
def test_metrics_that_are_no_file_do_not_stop_a_run(run_dir, tmp_path, kind):
    path = tmp_path / "run"
    shutil.copytree(run_dir, path)
    file = path / "metrics.jsonl"
    file.unlink()
    {
        "missing": lambda: None,
        "a directory": file.mkdir,
        "a FIFO": lambda: os.mkfifo(file),
        "empty": file.touch,
    }[kind]()
    trained("train", "--run_dir", path, "--resume", "--epochs", 3)
    assert epochs(path) == [3]


def test_a_directory_beside_the_one_that_was_moved_before(tmp_path):
    run = Run(tmp_path)
    for _ in range(3):
        run.metrics_file.unlink(missing_ok=True)
        run.metrics_file.mkdir()
        keep_records(run, 3)
    names = ["metrics.damaged", "metrics.damaged-2", "metrics.damaged-3", "metrics.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_millions_of_lines_are_not_read(tmp_path, caplog):
    run = Run(tmp_path)
    run.metrics_file.write_bytes(b"\n" * 2**24)
    assert read_records(run) == []
    assert "lines" in caplog.text


@pytest.mark.parametrize("value", ["true", "-1", "1.5", "1e400", "null", "9007199254740993"])
def test_numbers_of_other_types_are_damage(run_dir, tmp_path, value):
    run = Run(tmp_path)
    first, second = (run_dir / "metrics.jsonl").read_text().splitlines()
    damaged = first.replace('"step": ', f'"step": {value}, "was": ')
    run.metrics_file.write_text(f"{damaged}\n{second}\n")
    assert [record["epoch"] for record in read_records(run)] == [2]


def test_records_come_back(run_dir, tmp_path):
    records = read_records(Run(run_dir))
    for record in records:
        add_record(Run(tmp_path), record)
    assert read_records(Run(tmp_path)) == records
    keep_records(Run(tmp_path), 1)
    assert read_records(Run(tmp_path)) == records[:1]
