"""The front doors, pyro_vae.__main__ and pyro_vae.train, as processes."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import heeding_ctrl_c

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("command", ["pyro_vae.train --help", "pyro_vae --help"])
def test_help_as_a_process(command):
    argv = [sys.executable, "-W", "error", "-m", *command.split()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")


FORMS = [
    "-m pyro_vae",
    "-m pyro_vae.train",
    "-c 'from pyro_vae.__main__ import main; raise SystemExit(main())'",
]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("form", FORMS)
def test_ctrl_c_while_torch_is_imported(tmp_path, form):
    """In place of torch stands a module whose import does not end."""
    (tmp_path / "torch.py").write_text(
        "import time\nprint('importing', flush=True)\ntime.sleep(60)\n"
    )
    environment, pipe = (
        {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        subprocess.PIPE,
    )
    argv = [sys.executable, *shlex.split(form)]
    with subprocess.Popen(
        argv, stdout=pipe, stderr=pipe, text=True, env=environment, preexec_fn=heeding_ctrl_c
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "stopped by Ctrl-C\n")
