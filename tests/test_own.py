"""Classes of the user's own, by import path from the current folder, and runs that name them."""

import shutil
import sys

import pytest

import pyro_vae as pv
from pyro_vae.generate import main as generate
from pyro_vae.train import main as train

evaluate = sys.modules["pyro_vae.evaluate"].main

MINE = '''
import pyro.distributions as dist
import torch
import pyro_vae as pv

print("imported")

class MyPrior(pv.Prior):
    """A prior with tails.

    Arguments:
        latent_dim: Number of latent dimensions.
        df: Degrees of freedom of the tails.
    """

    def __init__(self, latent_dim: int, df: float = 3.0) -> None:
        super().__init__()
        self.df = df
        self.log_scale = torch.nn.Parameter(torch.zeros(latent_dim))

    def forward(self):
        return dist.StudentT(self.df, 0.0, self.log_scale.exp()).to_event(1)

class MyPosterior(pv.Posterior):
    def distribution(self, params):
        loc, log_scale = params.unbind(-2)
        return dist.Laplace(loc, log_scale.exp()).to_event(1)

class MyLikelihood(pv.Likelihood):
    num_params = 1
    pixels = "dequantized"

    def forward(self, params):
        return dist.Cauchy(params.squeeze(-4), 0.1).to_event(3)

class MyEncoder(torch.nn.Module):
    def __init__(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...], width: int = 7):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(in_shape[1] * in_shape[2], width), torch.nn.Tanh(),
            torch.nn.Linear(width, out_shape[0] * out_shape[1]), torch.nn.Unflatten(1, out_shape),
        )

    def forward(self, x):
        return self.layers(x)

class MyDecoder(MyEncoder):
    def __init__(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...]):
        torch.nn.Module.__init__(self)
        size = out_shape[0] * out_shape[1] * out_shape[2] * out_shape[3]
        self.layers = torch.nn.Sequential(torch.nn.Linear(in_shape[0], size), torch.nn.Unflatten(1, out_shape))

class MyBeta(pv.Schedule):
    def __init__(self, steps: int = 10) -> None:
        self.steps = steps

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / self.steps)

class MyVAE(pv.VAE):
    pass
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("mine", None)
    (tmp_path / "mine.py").write_text(MINE)
    yield tmp_path
    sys.modules.pop("mine", None)


FLAGS = [
    "--prior mine.MyPrior --prior.df 4",
    "--posterior mine.MyPosterior",
    "--encoder mine.MyEncoder --encoder.width 5 --decoder mine.MyDecoder",
    "--likelihood pyro_vae.likelihoods.Normal --beta mine.MyBeta --beta.steps 3",
    "--model mine.MyVAE --latent_dim 2",
]


@pytest.mark.parametrize("flags", FLAGS)
def test_by_flag_and_from_the_saved_run(folder, capfd, flags):
    argv = ["--data", "digits", "--epochs", "1", "--run_dir", "r", *flags.split()]
    assert train(argv) == 0, capfd.readouterr().err
    sys.modules.pop("mine")
    capfd.readouterr()
    assert evaluate(["r", "--num_samples", "3"]) == 2
    out, err = capfd.readouterr()
    assert "loading it would run its module's code; add --trust" in err
    assert "imported" not in out
    assert evaluate(["r", "--num_samples", "3", "--trust"]) == 0
    assert generate(["r", "samples", "--count", "4", "--trust"]) == 0
    assert generate(["r", "codes", "--trust"]) == 0


def test_its_docstring_is_its_help(folder, capfd):
    with pytest.raises(SystemExit):
        train(["--prior.help", "mine.MyPrior"])
    assert "Degrees of freedom of the tails" in capfd.readouterr().out


def test_in_yaml(folder):
    (folder / "c.yaml").write_text("prior:\n  class_path: mine.MyPrior\n  init_args:\n    df: 5.0\n")
    assert train(["--config", "c.yaml", "--data", "digits", "--epochs", "1", "--run_dir", "r"]) == 0
    assert pv.load_run("r", trust=True).prior.df == 5.0
    assert train(["--config", "r/config.yaml", "--run_dir", "again"]) == 0
    assert (folder / "again" / "metrics.jsonl").exists()


def test_a_module_that_is_gone(folder, capfd):
    assert train(["--data", "digits", "--epochs", "1", "--run_dir", "r", "--prior", "mine.MyPrior"]) == 0
    sys.modules.pop("mine")
    (folder / "mine.py").unlink()
    capfd.readouterr()
    assert evaluate(["r", "--trust"]) == 2
    assert "there is no module mine" in capfd.readouterr().err


@pytest.mark.parametrize("part", ["prior", "encoder", "optimizer", "beta", "model"])
def test_a_hostile_config_is_not_imported(folder, run_dir, part):
    (folder / "mine.py").write_text("open('ran', 'w')")
    (folder / "r").mkdir()
    text = (run_dir / "config.yaml").read_text()
    (folder / "r" / "config.yaml").write_text(f"{text}{part}:\n  class_path: mine.Anything\n")
    (folder / "r" / "checkpoint.pt").write_bytes((run_dir / "checkpoint.pt").read_bytes())
    with pytest.raises(pv.RequestError, match=r"names mine.Anything"):
        pv.load_run("r")
    assert not (folder / "ran").exists()


def test_a_nested_hostile_name_is_not_imported(folder, run_dir):
    (folder / "mine.py").write_text("open('ran', 'w')")
    (folder / "r").mkdir()
    text = (run_dir / "config.yaml").read_text().replace("torch.nn.ReLU", "mine.Anything")
    assert "mine.Anything" in text
    (folder / "r" / "config.yaml").write_text(text)
    with pytest.raises(pv.RequestError, match=r"names mine.Anything"):
        pv.load_run("r")
    assert not (folder / "ran").exists()


def test_a_likelihood_without_a_mean_is_refused_before_training(folder, capfd):
    """Cauchy has none: there would be nothing to draw."""
    assert train(["--data", "digits", "--run_dir", "r", "--likelihood", "mine.MyLikelihood"]) == 2
    assert "the mean of p(x | z) is not finite" in capfd.readouterr().err
    assert not (folder / "r").exists()


def stranger(folder, run_dir, old, new):
    """A run folder as a stranger might hand it over."""
    (folder / "mine.py").write_text("open('ran', 'w')\nimport torch\nclass Evil(torch.nn.ReLU): pass\n")
    (folder / "r").mkdir()
    (folder / "r" / "checkpoint.pt").write_bytes((run_dir / "checkpoint.pt").read_bytes())
    text = (run_dir / "config.yaml").read_text()
    assert old in text
    (folder / "r" / "config.yaml").write_text(text.replace(old, new))


@pytest.mark.parametrize("name", ["evil", "torch.nn.Sneaky", "sub/torch.yaml", "../mine.py"])
@pytest.mark.parametrize("place", [".", "r"])
def test_a_name_that_is_a_file_is_not_read(folder, run_dir, name, place):
    stranger(folder, run_dir, "class_path: torch.nn.ReLU\n      init_args:\n        inplace: false", name)
    text = (folder / "r" / "config.yaml").read_text().replace("activation:\n      ", "activation: ")
    (folder / "r" / "config.yaml").write_text(text)
    file = folder / place / name
    file.parent.mkdir(exist_ok=True)
    if not file.exists():
        file.write_text("class_path: mine.Evil\n")
    with pytest.raises(pv.RequestError, match="add --trust"):
        pv.load_run("r")
    assert not (folder / "ran").exists()


MAKERS = [
    "torch.fx.graph_module.reduce_graph_module",
    "torch.fx.GraphModule",
    "torch.hub.load",
    "torch.load",
    "torch.nn.Module.apply",
]
"""Functions, and a class, that make modules of code that they are given."""


@pytest.mark.parametrize(
    "name", ["torch.os.system", "torch.sys.exit", "pyro_vae.data.shutil.rmtree", "torch/../os.system", *MAKERS]
)
def test_what_a_trusted_package_has_imported_is_not_trusted(folder, run_dir, name):
    stranger(folder, run_dir, "class_path: torch.nn.ReLU", f"class_path: {name}")
    with pytest.raises(pv.RequestError, match="add --trust"):
        pv.load_run("r")


@pytest.mark.parametrize("line", ["prior.class_path: mine.Evil", "config: other.yaml", "prior: other.yaml", "prior: mine.Evil"])
def test_other_ways_to_name_a_class(folder, run_dir, line):
    stranger(folder, run_dir, "seed: 0", "seed: 0")
    with (folder / "r" / "config.yaml").open("a") as file:
        file.write(f"{line}\n")
    (folder / "r" / "other.yaml").write_text("class_path: mine.Evil\n")
    with pytest.raises(pv.RequestError, match="add --trust"):
        pv.load_run("r")
    assert not (folder / "ran").exists()


def test_a_yaml_tag_makes_no_object(folder, run_dir):
    stranger(folder, run_dir, "seed: 0", "seed: !!python/object/apply:os.system ['touch ran']")
    with pytest.raises(pv.RequestError, match="cannot be read"):
        pv.load_run("r")
    assert not (folder / "ran").exists()


def test_resuming_a_strangers_run_asks_for_trust(folder, run_dir, capfd):
    stranger(folder, run_dir, "class_path: torch.nn.ReLU", "class_path: mine.Evil")
    assert train(["--run_dir", "r", "--resume"]) == 2
    assert "names mine.Evil: loading it would run its module's code; add --trust" in capfd.readouterr().err
    assert not (folder / "ran").exists()


def test_a_run_folder_downloads_nothing_by_itself(folder, run_dir, capfd, monkeypatch):
    stranger(folder, run_dir, "data: digits", "data: mnist")
    monkeypatch.setattr("pyro_vae.data._load_idx", lambda source, root: pytest.fail("it was about to download"))
    text = (folder / "r" / "config.yaml").read_text().splitlines()
    text = [f"data_dir: {folder / 'elsewhere'}" if line.startswith("data_dir:") else line for line in text]
    (folder / "r" / "config.yaml").write_text("\n".join(text))
    assert evaluate(["r", "--num_samples", "3"]) == 2
    assert "mnist is not in" in capfd.readouterr().err
    assert not (folder / "elsewhere").exists()


@pytest.mark.parametrize("name", ["results-test-last.json.tmp", "metrics.jsonl", "figures"])
def test_a_link_in_a_run_folder_is_not_written_through(folder, run_dir, capfd, name):
    stranger(folder, run_dir, "data: digits", "data: digits")
    precious = folder / "precious"
    precious.mkdir() if name == "figures" else precious.touch()
    shutil.rmtree(folder / "r" / name, ignore_errors=True) if name == "figures" else (folder / "r" / name).unlink(
        missing_ok=True
    )
    (folder / "r" / name).symlink_to(precious)
    for command in (evaluate, train):
        assert command(["r", "--num_samples", "3"] if command is evaluate else ["--run_dir", "r", "--resume"]) == 2
        assert "is a link, and a run's files must lie in its folder" in capfd.readouterr().err
    assert not (any(precious.iterdir()) if precious.is_dir() else precious.read_text())


def test_a_resumed_run_downloads_nothing_by_itself(folder, run_dir, monkeypatch):
    """Where there is an empty folder of the data set's name, too."""
    stranger(folder, run_dir, "data: digits", "data: mnist")
    text = (folder / "r" / "config.yaml").read_text().splitlines()
    text = [f"data_dir: {folder / 'elsewhere'}" if line.startswith("data_dir:") else line for line in text]
    (folder / "r" / "config.yaml").write_text("\n".join(text))
    (folder / "elsewhere" / "MNIST").mkdir(parents=True)
    seen = []
    monkeypatch.setattr(
        "pyro_vae.data._load_idx", lambda source, root: seen.append(root) or (_ for _ in ()).throw(OSError("no"))
    )
    assert train(["--run_dir", "r", "--resume"]) == evaluate(["r", "--num_samples", "3"]) == 2
    assert (folder / "elsewhere") not in seen
    assert [path.name for path in (folder / "elsewhere").rglob("*")] == ["MNIST"]
