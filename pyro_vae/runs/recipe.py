"""A recipe: everything that a run was asked for, as plain values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from pyro_vae.data.datasets import Binarization, Condition
from pyro_vae.engine.graphs import AnyEngine
from pyro_vae.engine.precision import AnyPrecision
from pyro_vae.errors import RequestError
from pyro_vae.runs.parts import PARTS, Choice
from pyro_vae.runs.recipe_check import Check, UntrustedError
from pyro_vae.runs.store import write
from pyro_vae.runs.strict_yaml import dump_yaml, parse_yaml, read_yaml
from pyro_vae.training.fit import OnNaN

Device = Literal["auto", "cpu", "cuda"]
FigureFormat = Literal["png", "pdf", "svg"]
Logger = Literal["tensorboard"]


def _default(name: str) -> Callable[[], Any]:
    return lambda: PARTS[name].default


@dataclass(kw_only=True)
class Recipe:
    """Everything that a run was asked for, as the plain values of its config.yaml.

    Attributes:
        data: auto, the name of a data set, a path to your own images (a folder, .npy, .npz, .mat,
            .amat, .csv, .h5, .h5ad or IDX), or the import path of a function that returns
            `pyro_vae.Data`.
        data_dir: Folder of the downloaded data sets.
        image_size: Height and width to resize every image to, up to 1024.
        image_shape: Height and width, or channels, height and width, of images that a file stores
            as rows of values.
        condition_on: What models with labels use if the data have labels and covariates; by default
            the covariates.
        labels: Number of training labels to use, the same of each class; the others are hidden, and
            unknown to SemiSupervisedVAE. By default all.
        binarization: How grey pixels become binary: drawn at each presentation, drawn once, or not
            at all; by default what the likelihood needs.
        validation_size: Training images held out for validation; by default a twelfth.
        missing: Share of the values to hide at random, from 0 to less than 1, for experiments.
        latent_dim: Number of latent dimensions.
        epochs: Passes over the training images; by default 20, or more if they have fewer than
            3,000 steps.
        batch_size: Images per step; by default 128, or all training images if there are fewer.
        clip_grad_norm: Maximum norm of the gradient over all parameters.
        normalize_gradients: Scale the gradient of each parameter tensor to norm 1, after clipping.
        average: Decay of an exponential average of the weights over the steps, for example 0.999;
            the average is validated, scored and saved. By default the weights are not averaged.
        patience: Epochs without a better validation ELBO after which training stops.
        engine: What runs the steps; auto depends on the device and the number of steps.
        precision: Precision of the layers of networks in training; validation uses float32. auto is
            bf16 on CPUs that have instructions for it, otherwise float32.
        on_nan: If the loss is not finite, stop, or rewind to the previous epoch with half the
            learning rate, up to 3 times.
        seed: Seed of the random number generators.
        device: Where to compute.
        checkpoint_every: Epochs between checkpoints.
        keep_every: Epochs between checkpoints that are all kept, in epochs/ of the run folder; the
            report has a slider over them.
        logger: tensorboard also writes curves, samples and reconstructions of each epoch to
            tensorboard/ in the run folder.
        report: Write report.html, a page about the run, at the end.
        figure_format: Format of the figures; pdf and svg are written beside the png files.
        test_samples: Importance samples per test image at the end; 0 skips the test set.
        test_images: Test images with `test_samples` samples; the ELBO is of all test images.
        model: The model, like the ten other parts; see `parts.PARTS`.
        prior: A part.
        posterior: A part.
        likelihood: A part.
        encoder: A part.
        decoder: A part.
        classifier: A part, of models that have it; by default an MLP.
        objective: A part; by default that of the model.
        optimizer: A part.
        lr_scheduler: A part; none by default.
        beta: A part.
    """

    data: str = "auto"
    data_dir: str = "data"
    image_size: int | None = None
    image_shape: list[int] | None = None
    condition_on: Condition | None = None
    labels: int | None = None
    binarization: Binarization | None = None
    validation_size: int | None = None
    missing: float | None = None
    latent_dim: int = 20
    epochs: int | None = None
    batch_size: int | None = None
    clip_grad_norm: float | None = None
    normalize_gradients: bool = False
    average: float | None = None
    patience: int | None = None
    engine: AnyEngine = "auto"
    precision: AnyPrecision = "float32"
    on_nan: OnNaN = "stop"
    seed: int = 0
    device: Device = "auto"
    checkpoint_every: int = 1
    keep_every: int | None = None
    logger: Logger | None = None
    report: bool = True
    figure_format: FigureFormat = "png"
    test_samples: int = 1000
    test_images: int = 1000
    model: Choice = field(default_factory=_default("model"))
    prior: Choice = field(default_factory=_default("prior"))
    posterior: Choice = field(default_factory=_default("posterior"))
    likelihood: Choice = field(default_factory=_default("likelihood"))
    encoder: Choice = field(default_factory=_default("encoder"))
    decoder: Choice = field(default_factory=_default("decoder"))
    classifier: Choice | None = None
    objective: Choice | None = None
    optimizer: Choice = field(default_factory=_default("optimizer"))
    lr_scheduler: Choice | None = None
    beta: Choice = field(default_factory=_default("beta"))

    @classmethod
    def from_plain(cls, plain: Mapping[Any, Any]) -> Recipe:
        """From the mapping that a YAML file holds; missing options have their defaults.

        Raises:
            ValueError: If it has other keys.
        """
        names = {item.name for item in fields(cls)}
        for key in plain:
            if key not in names:
                raise RequestError(f"{key} is not an option of a run")
        values = dict(plain)
        for name in PARTS:
            if values.get(name) is not None:
                values[name] = Choice.read(name, values[name])
        return cls(**values)

    @classmethod
    def from_yaml(cls, text: str) -> Recipe:
        """From YAML; raises as `from_plain`."""
        plain = parse_yaml(text)
        if not isinstance(plain, dict):
            raise RequestError("the YAML does not hold options")
        return cls.from_plain(plain)

    @classmethod
    def load(cls, file: Path, trust: bool = False, allowed: Collection[str] = ()) -> Recipe:
        """From the config.yaml of a run folder, checked.

        Raises:
            ValueError: If it cannot be read, or as `check`.
        """
        plain = read_yaml(file)
        try:
            recipe = cls.from_plain(plain)
            recipe.check(trust, allowed)
        except RequestError as error:
            raise RequestError(f"{file}: {error}") from error
        return recipe

    def plain(self) -> dict[str, Any]:
        """The mapping that `from_plain` reads, without what is None."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        for name in PARTS:
            if isinstance(values[name], Choice):
                values[name] = values[name].plain()
        return {name: value for name, value in values.items() if value is not None}

    def to_yaml(self) -> str:
        """As YAML, which `from_yaml` reads."""
        return dump_yaml(self.plain())

    def save(self, file: Path) -> None:
        """Write the config.yaml of a run folder.

        Raises:
            StorageError: If it cannot be written.
        """
        write(file, self.to_yaml().encode())

    def paths(self) -> set[str]:
        """The import paths that it names."""
        plain = self.plain()
        paths = {self.data}
        for name in PARTS:
            paths.update(_strings(plain.get(name)))
        return paths

    def is_known(self) -> bool:
        """Whether it names only known classes, so that run folders with it need no trust."""
        try:
            self.check()
        except UntrustedError:
            return False
        return True

    def check(self, trust: bool = False, allowed: Collection[str] = ()) -> None:
        """Check names, types and ranges, before anything is built or loaded.

        Arguments:
            trust: Accept every import path; this imports its module, which runs code.
            allowed: Further import paths to accept.

        Raises:
            ValueError: If a value is wrong, or names a class that is neither known nor trusted.
        """
        Check(trust, allowed).recipe(self)


def _strings(plain: Any) -> Iterator[str]:
    if isinstance(plain, str):
        yield plain
    elif isinstance(plain, Mapping):
        for child in plain.values():
            yield from _strings(child)
    elif isinstance(plain, Collection):
        for child in plain:
            yield from _strings(child)
