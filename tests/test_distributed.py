"""Two processes train what one trains, write everything once, and survive the loss of a worker."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import processes
import pytest
import torch

import pyro_vae as pv
from pyro_vae.cli.main import main
from pyro_vae.engine import distributed
from pyro_vae.training import fit

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)
linux = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="processes are found as Linux shows them"
)

EPOCHS = 25
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "default",
    "PYTHONPATH": str(ROOT),
}


def torchrun(*argv):
    return subprocess.Popen(
        [*LAUNCHER, *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def finished(*argv):
    """The exit code, the output and the errors of a job."""
    with torchrun(*argv) as process:
        out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def metrics(path):
    """The records of a run, without times."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "second" not in name} for line in lines]


@pytest.fixture(scope="module")
def flags(tmp_path_factory, digits):
    """Options of a run on the digits, as a file: the processes need not import scikit-learn."""
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, images=digits.train.x, labels=digits.train.labels)
    options = [
        "--data",
        str(path),
        "--device",
        "cpu",
        "--latent_dim",
        "4",
        "--clip_grad_norm",
        "3",
        "--batch_size",
        "100",
    ]
    return [*options, "--report", "false"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What both processes computed."""
    path = tmp_path_factory.mktemp("two")
    code, _, err = finished(ROOT / "tests" / "processes.py", path)
    assert code == 0, err
    return [torch.load(path / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("name", processes.TRAININGS)
def test_without_noise_two_processes_train_what_one_trains(two, name, monkeypatch):
    """The last batch has 49 images: 24 and 25. The last chunk of validation images has one."""
    monkeypatch.setattr(fit, "default_batch_size", lambda vae, x: 20)
    state, records = processes.train(name)
    others, other_records = two[0]["trained"][name]
    assert records[-1]["loss"] != records[0]["loss"]
    for record, other in zip(records, other_records, strict=True):
        assert {k: v for k, v in other.items() if "second" not in k} == pytest.approx(
            {k: v for k, v in record.items() if "second" not in k}, rel=1e-5
        )
    for key, value in state.items():
        assert (others[key] - value).norm() <= 1e-5 * value.norm(), key
        assert torch.equal(others[key], two[1]["trained"][name][0][key])


def test_two_processes_infer_the_labels_that_one_infers(two, monkeypatch):
    monkeypatch.setattr(fit, "default_batch_size", lambda vae, x: 20)
    state, records = processes.infer_labels()
    others, other_records = two[0]["inferred"]
    for record, other in zip(records, other_records, strict=True):
        for name in ("loss", "elbo", "validation_elbo"):
            assert other[name] == pytest.approx(record[name], rel=1e-5)
    for key, value in state.items():
        assert (others[key] - value).norm() <= 1e-5 * value.norm(), key


@pytest.mark.parametrize("name", processes.OBJECTIVES)
def test_means_over_the_batch_are_those_of_one_process(two, name):
    for rank in (0, 1):
        for one, other in zip(processes.gradient(name), two[rank]["gradients"][name], strict=True):
            torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-12)


def test_ranks_agree_on_everything_but_the_noise(two):
    """With batch normalization and dropout; equal seeds give equal runs.

    The initial parameters differ.
    """
    for (state, records, after), (other, others, other_after) in zip(
        two[0]["noisy"], two[1]["noisy"], strict=True
    ):
        assert torch.equal(state, other)
        assert torch.equal(after, other_after)
        assert [record["validation_elbo"] for record in records] == [
            record["validation_elbo"] for record in others
        ]
    first, same, different = (state for state, _, _ in two[0]["noisy"])
    assert torch.equal(first, same)
    assert not torch.equal(first, different)


@pytest.mark.parametrize("rows", [1, 5])
def test_evaluation_of_fewer_or_more_images_than_processes(two, rows):
    scores = [result["scores"][rows] for result in two]
    for one, other, exact in zip(*scores, processes.score(rows), strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, exact, atol=1.0, rtol=0)


def test_each_rank_draws_noise_of_its_own(monkeypatch):
    """Afterwards the random state is that before; one process keeps its noise."""
    monkeypatch.setattr(distributed, "broadcast", lambda tensor: tensor)
    drawn = []
    for rank in (0, 1):
        Processes(monkeypatch, rank, 2)
        torch.manual_seed(3)
        with distributed.own_noise(torch.device("cpu")):
            drawn.append(torch.rand(3))
        assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(3)))
    assert (drawn[0] != drawn[1]).all()


@pytest.fixture(scope="module")
def job(flags, tmp_path_factory):
    """A run of two processes, and what it printed."""
    path = tmp_path_factory.mktemp("job") / "run"
    code, out, err = finished(
        "-m", "pyro_vae", "train", *flags, "--epochs", str(EPOCHS), "--run_dir", path
    )
    assert code == 0, err
    return path, out


def test_everything_is_written_once(job):
    path, out = job
    assert out.count(f"epoch {EPOCHS}/{EPOCHS}") == out.count("run folder: ") == 1
    assert [line["epoch"] for line in metrics(path)] == list(range(1, EPOCHS + 1))


def test_one_process_goes_on_from_two(job, tmp_path):
    path = shutil.copytree(job[0], tmp_path / "run")
    assert main(["train", "--run_dir", str(path), "--resume", "--epochs", str(EPOCHS + 1)]) == 0
    assert [line["epoch"] for line in metrics(path)] == list(range(1, EPOCHS + 2))


@linux
def test_a_job_survives_the_loss_of_workers(job, flags, tmp_path, monkeypatch):
    """It restarts itself, and its result equals that of an undisturbed run, bit for bit."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    from restarts import Job
    from robustness import contents

    for name in ("OMP_NUM_THREADS", "PYTHONPATH"):
        monkeypatch.setenv(name, ENVIRONMENT[name])
    killed = Job(tmp_path / "run", [*flags, "--epochs", str(EPOCHS)], restarts=3)
    generator = random.Random(1)
    for training in (True, False, True):
        assert killed.kill(generator, training)
    _, err = killed.process.communicate(timeout=300)
    assert killed.process.returncode == 0, err
    assert killed.restarted < 30
    assert contents(tmp_path / "run") == contents(job[0])


@linux
@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_worker_ends_the_job_with_a_line_and_a_checkpoint(flags, tmp_path, rank):
    """The main process says how to continue; if it is lost, another says that."""
    path = tmp_path / "run"
    options = [
        *flags,
        "--engine",
        "traced",
        "--epochs",
        "100000",
    ]  # compiling would take most of the time
    with torchrun("-m", "pyro_vae", "train", *options, "--run_dir", path) as process:
        deadline = time.monotonic() + 120
        while not (path / "metrics.jsonl").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ranks = {pid: Path(f"/proc/{pid}/environ").read_text().split("\0") for pid in children}
        os.kill(
            next(int(pid) for pid, environment in ranks.items() if f"RANK={rank}" in environment),
            signal.SIGKILL,
        )
        _, err = process.communicate(timeout=30)
    assert process.returncode != 0
    assert err.count("error: a worker process exited") == 1
    assert (f"python -m pyro_vae.train --run_dir {path} --resume" in err) == (rank == 1)
    done = len(metrics(path))
    assert main(["train", "--run_dir", str(path), "--resume", "--epochs", str(done + 2)]) == 0


@pytest.mark.parametrize("rank", [0, 1])
def test_rejected_in_one_line(flags, tmp_path, monkeypatch, capfd, rank):
    """As each of two processes, before they join."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    assert main(["train", *flags, "--prior", "Foo", "--run_dir", str(tmp_path / "run")]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert (err.count("\n"), "prior" in err) == ((1, True) if rank == 0 else (0, False))
    assert not (tmp_path / "run").exists()


class Processes:
    """Stands in for `torch.distributed`, as the process of a rank."""

    def __init__(self, monkeypatch, rank, size):
        monkeypatch.setattr(distributed, "world_size", lambda: size)
        monkeypatch.setattr(distributed, "rank", lambda: rank)


@pytest.mark.parametrize("batch_size", [1, 1348])
def test_a_batch_has_a_row_for_each_process(monkeypatch, digits, batch_size):
    Processes(monkeypatch, 0, 2)
    with pytest.raises(pv.RequestError, match="batch_size"):
        pv.fit(processes.small_vae(digits, pv.DiagonalNormal()), digits, batch_size=batch_size)


@pytest.mark.parametrize("rows", [2, 5, 128])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_shards_cover_all_rows_once(monkeypatch, rows, size):
    covered = []
    for rank in range(size):
        Processes(monkeypatch, rank, size)
        covered += list(range(rows))[distributed.shard(rows)]
    assert covered == list(range(rows))


def test_evaluation_is_split_over_processes(run_dir):
    """Every image is scored once, and the metrics are written once."""
    argv = ["evaluate", str(run_dir), "--num_samples", "300", "--check_images", "0"]
    assert main(argv) == 0
    (file,) = run_dir.glob("results-*K300-*.json")
    one = json.loads(file.read_text())
    code, out, err = finished("-m", "pyro_vae", *argv)
    assert code == 0, err
    assert out.count("test set, last checkpoint") == 1
    two = json.loads(file.read_text())
    assert two["log_likelihood"]["num_images"] == one["log_likelihood"]["num_images"] == 299
    assert two["log_likelihood"]["mean"] == pytest.approx(one["log_likelihood"]["mean"], abs=0.02)
    assert two["active_units"] == one["active_units"]
