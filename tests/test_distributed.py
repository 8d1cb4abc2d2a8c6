"""Two processes train the same parameters as one, to rounding, and write everything once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import pyro_vae as pv
from pyro_vae.cli.main import main
from pyro_vae.inference import distributed

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

RUN = ["--data", "digits", "--device", "cpu", "--latent_dim", "4", "--clip_grad_norm", "3", "--batch_size", "100"]


def torchrun(*argv, processes=2):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    return subprocess.Popen(
        [*launcher, "-m", "pyro_vae", *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def metrics(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


FIGURES = ("loss", "elbo", "reconstruction", "kl", "validation_loss", "validation_elbo", "active_units", "step", "epoch")


@pytest.mark.parametrize(
    "flags",
    ["", "--posterior FlowPosterior --prior GaussianMixture --objective DReGELBO"],
)
def test_equal_to_one_process_on_the_same_batches(tmp_path, flags):
    """The odd last batch has 49 images: 24 for one, 25 for the other."""
    argv = [*RUN, "--epochs", "2", *flags.split()]
    assert main(["train", *argv, "--engine", "eager", "--run_dir", str(tmp_path / "one")]) == 0
    with torchrun("train", *argv, "--run_dir", tmp_path / "two") as process:
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert out.count("epoch 2/2") == out.count("run folder: ") == 1
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert [two[name] for name in FIGURES] == pytest.approx([one[name] for name in FIGURES], rel=1e-4)
    first, second = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("one", "two"))
    for name, value in first["training"]["vae"].items():
        off = (second["training"]["vae"][name].double() - value.double()).norm()
        assert off <= 1e-3 * value.double().norm(), name
    assert torch.equal(first["training"]["random"]["torch"], second["training"]["random"]["torch"])


def test_one_process_goes_on_from_two(tmp_path):
    path = tmp_path / "run"
    with torchrun("train", *RUN, "--epochs", "1", "--run_dir", path) as process:
        _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert main(["train", "--run_dir", str(path), "--resume", "--epochs", "2"]) == 0
    assert [line["epoch"] for line in metrics(path)] == [1, 2]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found as Linux shows them")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_worker_ends_the_job_with_a_line_and_a_checkpoint(tmp_path, rank):
    """The main process says how to continue; if it is lost, another says that."""
    path = tmp_path / "run"
    with torchrun("train", *RUN, "--epochs", "100000", "--run_dir", path) as process:
        deadline = time.monotonic() + 120
        while not (path / "metrics.jsonl").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
        ranks = {pid: Path(f"/proc/{pid}/environ").read_text().split("\0") for pid in children.split()}
        os.kill(next(int(pid) for pid, environment in ranks.items() if f"RANK={rank}" in environment), signal.SIGKILL)
        _, err = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "a worker process exited" in err
    assert err.count("error: ") == 1
    assert (f"python -m pyro_vae.train --run_dir {path} --resume" in err) == (rank == 1)
    done = len(metrics(path))
    assert main(["train", "--run_dir", str(path), "--resume", "--epochs", str(done + 2)]) == 0


def test_a_worker_that_fails_in_set_up(tmp_path):
    """Each process says in at most one line why it stops; the tracebacks are torchrun's own."""
    with torchrun("train", "--data", "nowhere", "--run_dir", tmp_path / "run") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert err.count("error: there is no data set") == 1
    assert "pyro_vae/" not in err.replace(str(ROOT), "")


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("--prior Foo", "prior"),
        ("--objective FreeBitsELBO", "FreeBitsELBO"),
    ],
)
def test_rejected_in_one_line(tmp_path, flags, name):
    with torchrun("train", *RUN, "--epochs", "1", *flags.split(), "--run_dir", tmp_path / "run") as process:
        _, err = process.communicate(timeout=200)
    assert process.returncode != 0
    assert err.count("error: ") == 1
    assert name in err.split("error: ")[1].split("\n")[0]
    assert not (tmp_path / "run").exists()


class Processes:
    """Stands in for `torch.distributed`, as the process of a rank."""

    def __init__(self, monkeypatch, rank, size):
        monkeypatch.setattr(distributed, "world_size", lambda: size)
        monkeypatch.setattr(distributed, "rank", lambda: rank)


@pytest.mark.parametrize(("option", "value"), [("engine", "compiled"), ("batch_size", 1), ("batch_size", 1348)])
def test_what_two_processes_cannot_share(monkeypatch, digits, option, value):
    Processes(monkeypatch, 0, 2)
    encoder, decoder = pv.MLP(digits.shape, (2, 3)), pv.MLP((3,), (1, *digits.shape))
    vae = pv.VAE(pv.StandardNormal(3), encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli())
    with pytest.raises(pv.RequestError, match=option):
        pv.fit(vae, digits, **{"engine": "eager", option: value})


@pytest.mark.parametrize("rows", [2, 5, 128])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_shards_cover_all_rows_once(monkeypatch, rows, size):
    covered = []
    for rank in range(size):
        Processes(monkeypatch, rank, size)
        covered += list(range(rows))[distributed.shard(rows)]
    assert covered == list(range(rows))


PARTICLES = 2
"""As many as there are rows in one of the shares."""

DRAWS = {
    "randn": lambda n: torch.randn(n, 3),
    "rand_like": lambda n: torch.rand_like(torch.zeros(n, 1, 2)),
    "normal_": lambda n: torch.empty(n, 3).normal_(2.0, 3.0),
    "particles": lambda n: torch.randn(PARTICLES, n, 3).transpose(0, 1),
    "one particle": lambda n: torch.randn(1, n, 3).transpose(0, 1),
    "dropout": lambda n: torch.nn.functional.dropout(torch.ones(n, 50), 0.3),
    "exponential_": lambda n: torch.empty(n).exponential_(),
    "shared by the rows": lambda n: torch.rand(7),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("rows", [2, 5])
def test_the_noise_is_what_one_process_draws(monkeypatch, name, rows):
    torch.manual_seed(3)
    whole, after = DRAWS[name](rows), torch.rand(1)
    parts = []
    for rank in range(2):
        Processes(monkeypatch, rank, 2)
        torch.manual_seed(3)
        own = distributed.shard(rows)
        with distributed.WholeNoise(rows, PARTICLES if name == "particles" else 1):
            parts.append(DRAWS[name](own.stop - own.start))
        assert torch.equal(torch.rand(1), after)
    expected = [whole] * 2 if name == "shared by the rows" else [whole[: rows // 2], whole[rows // 2 :]]
    assert all(torch.equal(a, b) for a, b in zip(parts, expected, strict=True))


@pytest.mark.parametrize("draw", [torch._standard_gamma, torch.bernoulli, lambda p: torch.multinomial(p, 3)])
def test_draws_whose_parameters_differ_by_row_are_refused(monkeypatch, draw):
    Processes(monkeypatch, 0, 2)
    with distributed.WholeNoise(4), pytest.raises(pv.RequestError, match="not supported with several processes"):
        draw(torch.full((2, 3), 0.5))


def test_evaluation_is_split_over_processes(run_dir):
    """Every image is scored once, and the metrics are written once."""
    argv = ["evaluate", str(run_dir), "--num_samples", "2000", "--check_images", "0"]
    assert main(argv) == 0
    (file,) = run_dir.glob("results-*K2000*.json")
    one = json.loads(file.read_text())
    with torchrun(*argv) as process:
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert out.count("test set, last checkpoint") == 1
    two = json.loads(file.read_text())
    assert two["log_likelihood"]["num_images"] == one["log_likelihood"]["num_images"] == 299
    assert two["log_likelihood"]["mean"] == pytest.approx(one["log_likelihood"]["mean"], abs=0.02)
    assert two["active_units"] == one["active_units"]


def test_fewer_images_than_processes_are_rejected(run_dir):
    with torchrun("evaluate", run_dir, "--num_images", "1") as process:
        _, err = process.communicate(timeout=200)
    assert err.count("error: ") == 1
    assert "num_images" in err
