"""Kill trainings, watch their memory, and damage run folders.

    python experiments/robustness.py kill --kills 200
    python experiments/robustness.py soak --epochs 300
    python experiments/robustness.py fits --fits 100
    python experiments/robustness.py damage --count 1000

`kill` ends trainings at random moments and compares the result bit for bit with an undisturbed one.
`soak` and `fits` report the memory of one long training and of many short ones; they need Linux.
`damage` changes small run folders as a stranger would (config.yaml, checkpoints, metrics.jsonl,
names of files), loads, samples and resumes each in this process, and prints those that do not hold:
neither a right result nor one line within 10 seconds of CPU time, or with a process, an import or a
file outside.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
import yaml

import pyro_vae as pv
from pyro_vae.cli import train as cli_train
from pyro_vae.cli.main import main as command
from pyro_vae.engine.graphs import Engine
from pyro_vae.runs.checkpoints import read_content, write_content


def train(folder: Path, *flags: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "pyro_vae.train", "--run_dir", str(folder), *flags]
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, stderr = process.communicate()
    if process.returncode:
        sys.exit(f"training exited with {process.returncode}: {stderr.decode()}")


def contents(folder: Path) -> tuple[Any, ...]:
    """What two equal runs have in common: metrics, checkpoints and results, without the times."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [
        {key: value for key, value in record.items() if "second" not in key} for record in records
    ]
    checkpoints = [
        plain(torch.load(folder / name, weights_only=True)) for name in ("checkpoint.pt", "best.pt")
    ]
    return metrics, checkpoints, (folder / "results.json").read_text()


def plain(content: Any) -> Any:
    """Lists and numbers instead of tensors, which can be compared with `==`."""
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    return content.tolist() if isinstance(content, torch.Tensor) else content


def train_with_kills(folder: Path, flags: list[str], seconds: float, most: int) -> tuple[int, int]:
    """Train to the end through at most `most` kills.

    Returns:
        The number of kills, and how many of them came while a file was being written.
    """
    kills = while_writing = 0
    process = train(folder, *flags)
    while kills < most:
        time.sleep(random.uniform(0, seconds))
        if process.poll() is not None and (folder / "results.json").exists():
            break
        process.kill()
        process.wait()
        kills += 1
        while_writing += bool(list(folder.glob(".*.tmp")))
        process = train(folder, *flags)
    finish(process)
    return kills, while_writing


def kill(kills: int, engine: str, epochs: int, longest: float | None) -> None:
    flags = [
        "--data",
        "digits",
        "--epochs",
        str(epochs),
        "--device",
        "cpu",
        "--engine",
        engine,
        "--resume",
        "auto",
    ]
    flags += ["--lr_scheduler", "CosineAnnealingLR", "--lr_scheduler.T_max", str(epochs)]
    done = runs = while_writing = 0
    with tempfile.TemporaryDirectory() as temporary:
        undisturbed, folder = Path(temporary) / "undisturbed", Path(temporary) / "run"
        # It compiles, so that the next one is as fast as those that are killed.
        finish(train(folder, *flags))
        shutil.rmtree(folder)
        start = time.perf_counter()
        finish(train(undisturbed, *flags))
        seconds = time.perf_counter() - start
        while done < kills:
            count, writing = train_with_kills(folder, flags, longest or seconds, kills - done)
            done += count
            runs += 1
            while_writing += writing
            assert contents(folder) == contents(undisturbed), (
                "the resumed run differs from the undisturbed one"
            )
            shutil.rmtree(folder)
            print(f"{done} kills in {runs} runs, all equal to the undisturbed run", flush=True)
    print(f"{engine}: {while_writing} of {done} kills came while a file was being written")


def soak(epochs: int, engine: str) -> None:
    """Train, and report the memory after each epoch and its slope after the first tenth of them."""
    memory: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        flags = ["--data", "digits", "--epochs", str(epochs), "--device", "cpu", "--engine", engine]
        process = train(folder, *flags)
        while process.poll() is None and max(memory, default=0) < epochs:
            time.sleep(0.02)
            memory[epochs_recorded(folder)] = resident_mib(process.pid)
        finish(process)
    after = sorted(epoch for epoch in memory if epoch > epochs // 10)
    slope = np.polyfit(after, [memory[epoch] for epoch in after], 1)[0] * 1024
    print(
        f"{engine}: {memory[1]:.0f} MiB after epoch 1, {memory[after[-1]]:.0f} after {after[-1]};"
        f" {slope:+.2f} KiB per epoch"
    )


def epochs_recorded(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def resident_mib(pid: int) -> float:
    """Memory of a process, as Linux counts it."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def fits(count: int, engine: Engine) -> None:
    """Fit models one after the other in this process; report its memory and the parameter store."""
    data, memory = pv.load_data("digits"), []
    for _ in range(count):
        encoder, decoder = pv.MLP(data.shape, (2, 20)), pv.MLP((20,), (1, *data.shape))
        vae = pv.VAE(pv.StandardNormal(20), encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli())
        deque(pv.fit(vae, data, epochs=1, engine=engine), 0)
        del encoder, decoder, vae
        gc.collect()
        memory.append(resident_mib(os.getpid()))
    slope = np.polyfit(range(count // 10, count), memory[count // 10 :], 1)[0]
    print(
        f"{engine}: {memory[0]:.0f} MiB after fit 1, {memory[-1]:.0f} after {count};"
        f" {slope:+.3f} MiB per fit"
    )
    print(f"{len(pyro.get_param_store())} entries in the parameter store")


# Values that no run writes, for any place of config.yaml and of a checkpoint.
PLAIN = [
    None,
    True,
    -1,
    0,
    1.5,
    10**400,
    2**70,
    float("nan"),
    float("inf"),
    "",
    "x",
    "evil.P",
    "subprocess.Popen",
    "\ud800",
    "$\\frac$",
    [],
    {},
    [[1]] * 1001,
    {"class_path": "evil.P"},
    {"class_path": "torch.nn.Linear", "init_args": {"in_features": 10**9}},
]


def tensors(value: Any) -> list[Any]:
    """Tensors that no run writes, made from one that it does."""
    if not isinstance(value, torch.Tensor):
        return [torch.ones(3), torch.tensor(torch.nan), torch.ones(2, 2).to_sparse()]
    return [
        value.to("meta"),
        value.to_sparse(),
        value.double(),
        value.to(torch.complex64),
        value.reshape(-1)[:1].expand(value.shape),
        value.reshape(-1)[1:],
        torch.full_like(value, torch.nan) if value.is_floating_point() else value + 1,
        torch.nn.Parameter(value.float()),
        torch.empty(0),
    ]


def places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Each container in nested ones, with each of its keys."""
    keys = list(content) if isinstance(content, dict) else range(len(content))
    for key in list(keys)[:30]:
        yield content, key
        if isinstance(content[key], dict | list) and content[key]:
            yield from places(content[key])


def changed(content: dict[str, Any], values: Callable[[Any], list[Any]]) -> str:
    """Replace, remove or add an entry in nested containers; what was done."""
    place, key = random.choice(list(places(content)))
    value = random.choice([*values(place[key]), "remove", "add"])
    if value == "remove":
        del place[key]
    elif value == "add" and isinstance(place, dict):
        place["more"] = 1
    else:
        place[key] = value
    kind = f"{value.dtype} {value.layout}" if isinstance(value, torch.Tensor) else value
    return f"{key}: {str(kind)[:40]}"


def damage_config(folder: Path) -> str:
    file = folder / "config.yaml"
    content = yaml.safe_load(file.read_text())
    done = changed(content, lambda value: PLAIN)
    file.write_text(yaml.safe_dump(content, allow_unicode=True), errors="surrogatepass")
    return f"config.yaml {done}"


def damage_checkpoint(folder: Path) -> str:
    file = folder / "checkpoint.pt"
    content = read_content(file)
    done = changed(content, lambda value: [*PLAIN, *tensors(value)])
    write_content(file, content)
    return f"checkpoint.pt {done}"


def damage_bytes(folder: Path) -> str:
    file = random.choice([path for path in folder.iterdir() if path.stat().st_size])
    content = bytearray(file.read_bytes())
    start = random.randrange(len(content))
    kind = random.choice(["flip", "cut", "insert", "empty"])
    if kind == "flip":
        content[start] ^= 1 << random.randrange(8)
    elif kind == "cut":
        del content[start:]
    elif kind == "insert":
        content[start:start] = random.randbytes(20)
    else:
        content.clear()
    file.unlink()
    file.write_bytes(content)
    return f"{file.name} {kind} at {start}"


def damage_metrics(folder: Path) -> str:
    file = folder / "metrics.jsonl"
    line = file.read_text().splitlines()[0]
    key = random.choice(list(json.loads(line)))
    value = random.choice(["null", "true", "[]", "NaN", "1e999", "9" * 5000, "-1", '"x"', "[" * 99])
    lines = [line.replace(f'"{key}": ', f'"{key}": {value}, "was": ')] * random.choice([1, 10**5])
    file.write_text("\n".join([*lines, ""]))
    return f"metrics.jsonl {key}: {value[:20]}, {len(lines)} lines"


def damage_names(folder: Path) -> str:
    file = random.choice(list(folder.iterdir()))
    kind = random.choice(["remove", "folder", "link", "fifo"])
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "link":
        file.symlink_to("/etc/hostname")
    elif kind == "fifo":
        os.mkfifo(file)
    if random.random() < 0.3:
        (folder / "metrics.damaged").mkdir()
    return f"{file.name}: {kind}"


DAMAGES = [damage_config, damage_checkpoint, damage_bytes, damage_metrics, damage_names]
SECONDS = 10.0


class Watch:
    """An audit hook that notes processes, modules of strangers, and files written elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.seen: list[str] = []
        self.active = False
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.fork", "socket.connect"):
            self.seen.append(event)
        elif event == "import" and str(args[0]).split(".")[0] == "evil":
            self.seen.append(f"import {args[0]}")
        elif event == "open" and isinstance(args[0], str) and isinstance(args[2], int):
            path = os.path.abspath(args[0])
            writes = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and not path.startswith((self.folder, os.devnull)):
                self.seen.append(f"writes {path}")


def outcome(argv: list[str]) -> str:
    """How a command ends: nothing if it holds."""
    stderr = io.StringIO()
    start = time.process_time()
    try:
        with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
            code = command(argv)
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {error}"
    errors = [line for line in stderr.getvalue().splitlines() if line.startswith("error: ")]
    seconds = time.process_time() - start
    if seconds > SECONDS:
        return f"{seconds:.0f} s"
    if code not in (0, 2) or len(errors) != (code == 2):
        return f"exit code {code}, {len(errors)} lines of errors {errors[:1]}"
    return ""


def damage(count: int) -> None:
    """Damage run folders, and count those that hold."""
    kinds: Counter[str] = Counter()
    held: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        original = Path(temporary) / "original"
        flags = ["--data", "digits", "--epochs", "1", "--latent_dim", "2", "--device", "cpu"]
        flags += ["--batch_size", "1349", "--encoder.hidden", "[4]", "--decoder.hidden", "[4]"]
        flags += ["--engine", "eager", "--test_samples", "0", "--report", "false"]
        flags += ["--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "1"]
        finish(train(original, *flags))
        shutil.rmtree(original / "figures", ignore_errors=True)
        cli_train.draw = lambda *args: []  # the figures of a run that was resumed take seconds
        watch = Watch(Path(temporary))
        for number in range(count):
            random.seed(number)
            change = DAMAGES[number % len(DAMAGES)]
            folder = Path(temporary) / "run"
            shutil.copytree(original, folder)
            try:
                done = change(folder)
            except Exception:  # it cannot be written at all, such as a sparse tensor
                done = "nothing"
            run = str(folder)
            watch.seen.clear()
            watch.active = True
            fault = outcome(["generate", run, "samples", "--count", "2", "--format", "npz"])
            fault = fault or outcome(["train", "--run_dir", run, "--resume", "--epochs", "1"])
            watch.active = False
            fault = fault or ", ".join(sorted(set(watch.seen)))
            kinds[change.__name__] += 1
            held[change.__name__] += not fault
            if number % 100 == 99:
                print(f"{held.total()} of {number + 1} hold", flush=True)
            if fault:
                print(f"{number}: {done}: {fault[:200]}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    for kind in kinds:
        print(f"{kind}: {held[kind]} of {kinds[kind]} hold")
    print(f"{held.total()} of {kinds.total()} hold")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["kill", "soak", "fits", "damage"])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument(
        "--seconds",
        type=float,
        help="longest time until a kill; by default that of an undisturbed run",
    )
    parser.add_argument("--fits", type=int, default=100)
    parser.add_argument("--count", type=int, default=1000, help="number of damages")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--engine", default="eager", choices=["eager", "traced", "compiled"])
    args = parser.parse_args()
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, Pyro {pyro.__version__}")
    if args.command == "kill":
        kill(args.kills, args.engine, args.epochs or 40, args.seconds)
    elif args.command == "damage":
        damage(args.count)
    elif args.command == "fits":
        fits(args.fits, args.engine)
    else:
        soak(args.epochs or 300, args.engine)


if __name__ == "__main__":
    main()
