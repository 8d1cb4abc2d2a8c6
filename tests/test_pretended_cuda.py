"""The tests for CUDA pass on a pretended device, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="they run on the GPU")
def test_a_pretended_device():
    """Without the compiled engine, which would run the traced graph."""
    options = ["-q", "-p", "no:cacheprovider", "-p", "pretended_cuda", "-k", "not compiled"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, ROOT / "tests" / "test_cuda.py"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout  # or all were skipped
