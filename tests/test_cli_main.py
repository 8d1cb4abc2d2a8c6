"""The entry point of the commands: exit codes, files that cannot be written, and processes."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from pyro_vae.cli.main import main


def pyro_vae(*argv, **options):
    """A command as a real process."""
    return subprocess.run(
        [sys.executable, *map(str, argv)], capture_output=True, text=True, timeout=120, **options
    )


@pytest.mark.parametrize("path", ["x" * 5000, "/dev/null/x.png"])
@pytest.mark.parametrize("command", ["train", "generate"])
def test_output_files_that_cannot_be_written(capfd, run_dir, images, command, path):
    argv = (
        ["train", "--data", images, "--run_dir"]
        if command == "train"
        else ["generate", run_dir, "samples", "--out"]
    )
    assert main([*map(str, argv), path]) == 1
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert len(err) < 1000


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
@pytest.mark.parametrize(
    "command",
    [
        "generate run samples --out s.npz --count 2000",
        "generate run samples --out s.png",
        "evaluate run",
    ],
)
def test_a_full_disk_leaves_no_part_of_a_file(capfd, run_dir, tmp_path, monkeypatch, command):
    """Stood in for by a limit on the size of files, which is below that of arrays and figures."""
    import resource

    shutil.copytree(run_dir, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    argv, before = (
        [*command.split(), *(["--num_samples", "2"] if command == "evaluate run" else [])],
        [*tmp_path.rglob("*")],
    )
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        assert main(argv) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert capfd.readouterr().err.count("cannot be written") == 1
    assert [*tmp_path.rglob("*")] == before


def test_commands(capfd):
    assert main(["--help"]) == main([]) == 0
    assert main(["tain"]) == 2
    out, err = capfd.readouterr()
    assert all(name in out for name in ("train", "evaluate", "generate"))
    assert err.count("\n") == 1


def test_importing_leaves_torchs_validation_alone():
    """zuko switches it off for everybody."""
    ask = "from torch.distributions import Distribution as D; import pyro"
    ask += "; before = D._validate_args; import pyro_vae.cli.main"
    done = pyro_vae("-c", f"{ask}; print(before, D._validate_args)")
    assert done.stdout == "True True\n", done.stderr
