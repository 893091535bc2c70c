"""`zosam analyze`: writes what `zosam_jax.analysis` finds in finished runs into their folders."""

import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

from zosam_jax import trees
from zosam_jax.analysis import features, hessian, sharpness, surface, variance
from zosam_jax.analysis.estimator import PerturbationQuality
from zosam_jax.commands.options import OpeningConfig
from zosam_jax.commands.refusal import refusing
from zosam_jax.commands.steps import Steps
from zosam_jax.data.dataset import Images, Labels, Split
from zosam_jax.errors import check_count, check_number
from zosam_jax.optimizers import ESTIMATORS
from zosam_jax.training import contents, devices, pictures, run_folder, step
from zosam_jax.training.problem import Examples
from zosam_jax.training.run_folder import UnreadableRunError, UnwritableError
from zosam_jax.training.saved_run import SavedRun, complete_runs, opener
from zosam_jax.training.step import RunState
from zosam_jax.trees import Array, PyTree

Part: TypeAlias = Literal["variance", "hessian", "sharpness", "surface", "features"]
PARTS: tuple[Part, ...] = get_args(Part)

# Models of fewer blocks show the layers that are asked for only.
_DEPTHS = 3

# The length of the line along the Hessian's leading direction, as a fraction of the random one's.
_STEEP = 0.03

# How many training images to use, and how many of them in a pass, by default.
_IMAGES, _BATCH_SIZE = 1000, 250

# All runs are analysed on the same images and along the same random directions.
_SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalyzeConfig(OpeningConfig):
    """Measure curvature, gradient variance and loss surfaces of finished runs, and draw them."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, and folders that hold run folders (a sweep's)."""

    parts: tuple[Part, ...] | None = None
    """What to measure. variance: of the minibatch gradient and the angle of the perturbation to the
    gradient, at each checkpoint that the run kept (`zosam train --keep-every`). The others at the
    newest one. hessian: eigenvalues and trace; sharpness: the worst and the average rise of the
    loss nearby; surface: the loss along a line and on a plane; features: the activations of three
    layers. Default: all; without variance for a run of fewer than two batches."""

    images: int | None = None
    """How many training images to use. Default: 1000, or two of the run's batches; fewer where
    there are fewer."""

    batch_size: int | None = None
    """Images a pass; those of variance are the run's own batches. Default: at most 250."""

    statistics: Literal["running", "batch"] = "running"
    """What BatchNorm normalises by: the running statistics, as in inference, or the batch's own,
    as in training. variance always takes the batch's own, as the steps do."""

    eigenvalues: int = 5
    """hessian: how many of the largest."""

    lanczos_steps: int = 30
    """hessian: dimension of the Krylov space; each is a pass of Hessian-vector products."""

    samples: int = 10
    """hessian, sharpness: random directions for the trace and for the average rise."""

    rho: float = 0.1
    """sharpness: Euclidean radius of the ball in which the worst point is searched."""

    adaptive_rho: float = 0.5
    """sharpness: radius of the ball in units of each weight's own size, ‖ε/|θ|‖."""

    average_rho: float = 0.1
    """sharpness: length of the random displacements, as a fraction of each filter's norm."""

    ascent_steps: int = 10
    """sharpness: steps of gradient ascent to the worst point."""

    distance: float = 1.0
    """surface: how far to go from the weights, in lengths of each filter; along the Hessian's
    leading direction 3% of that."""

    points: int = 21
    """surface: points on the line."""

    plane_points: int = 11
    """surface: points on a side of the plane; 0 leaves it out."""

    layers: str | None = None
    """features: regular expression for the layers' names. Default: a shallow, a middle and a deep
    block, where the model has three."""

    def __post_init__(self) -> None:
        """Checks what the types cannot say."""
        if not self.runs:
            raise ValueError("runs=() must name at least one run folder.")
        for name in ("images", "batch_size", "eigenvalues", "lanczos_steps", "ascent_steps"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        for name in ("samples", "points", "plane_points"):
            value = getattr(self, name)
            if value < 2 and (name, value) != ("plane_points", 0):
                raise ValueError(f"{name}={value} must be at least 2.")
        for name in ("rho", "adaptive_rho", "average_rho", "distance"):
            check_number(name, getattr(self, name), above=0.0, inclusive=False)
        if self.images and self.batch_size and self.images % self.batch_size:
            raise ValueError(f"batch_size={self.batch_size} must divide images={self.images}.")
        if self.eigenvalues > self.lanczos_steps:
            raise ValueError(
                f"eigenvalues={self.eigenvalues} must be at most "
                f"lanczos_steps={self.lanczos_steps}."
            )
        try:
            re.compile(self.layers or "")
        except re.error as error:
            raise ValueError(
                f"layers={self.layers!r} is not a regular expression: {error}."
            ) from error


def run(config: AnalyzeConfig, console: Console) -> None:
    """`analyze`, with compiled programs kept on the disk."""
    devices.keep_compiled(None)
    with refusing():
        analyze(config, console)


def analyze(config: AnalyzeConfig, console: Console) -> None:
    """Writes analysis.json and pictures into every run folder.

    Parts of an earlier analysis that are not asked for stay, if they are of the same checkpoint and
    options.
    """
    left_out: list[str] = []
    kind: type[Exception] = ValueError
    say = functools.partial(console.print, markup=False)
    open_next = opener(data_dir=config.data_dir, code=config.code, say=say)
    with Steps(console) as steps:
        for path in complete_runs(config.runs):
            try:
                with open_next(path) as saved:
                    found = _analysed(_fitted(config, saved), saved, steps)
            except (ValueError, OSError) as error:
                left_out.append(f"left out: {path}: {error}")
                if isinstance(error, UnwritableError):  # the same command may succeed later
                    kind = UnwritableError
            else:
                say(f"{path}: {_in_words(found)}")
    if left_out:
        raise kind("\n".join(left_out))


def _fitted(config: AnalyzeConfig, saved: SavedRun) -> AnalyzeConfig:
    """The options with defaults that suit the run's data."""
    there, own = saved.run.problem.feed.info.train_images, saved.config.batch_size
    parts = config.parts
    if parts is None:
        parts = tuple(part for part in PARTS if part != "variance" or there >= 2 * own)
    needed = 2 * own if "variance" in parts else 0
    if config.images is None:
        images, batch_size = _whole_batches(min(there, max(_IMAGES, needed)), there, config)
        if images < needed and config.batch_size is None:
            images, batch_size = needed, own
    else:
        images = config.images
        batch_size = config.batch_size or _divisor(images)
    if not 0 < images <= there:
        wrong = f"images={images}" if config.images else f"batch_size={batch_size}"
        raise ValueError(f"{wrong} is more than the {there} training images.")
    if images < needed:
        raise ValueError(
            f"images={images} must be at least two of the run's batches of {own}: the variance is "
            "one over batches."
        )
    return dataclasses.replace(config, parts=parts, images=images, batch_size=batch_size)


def _whole_batches(images: int, there: int, config: AnalyzeConfig) -> tuple[int, int]:
    """About so many images, in batches of one size, and that size."""
    size = config.batch_size or math.ceil(images / math.ceil(images / _BATCH_SIZE))
    batches = math.ceil(images / size)
    if batches * size > there:
        size = config.batch_size or there // batches
        batches = there // size
    return (batches * size or size), size


def _divisor(images: int) -> int:
    """The largest batch size that divides a number of images."""
    largest = max(size for size in range(1, _BATCH_SIZE + 1) if images % size == 0)
    if largest < min(images, _BATCH_SIZE // 10):
        raise ValueError(
            f"images={images} has no divisor from {_BATCH_SIZE // 10} to {_BATCH_SIZE} to be the "
            "batch size: pass --batch-size, or another number of images."
        )
    return largest


def _analysed(config: AnalyzeConfig, saved: SavedRun, steps: Steps) -> dict[str, Any]:
    run_folder.check_writable(saved.folder.path)
    checkpoint = saved.run.progress.total_steps
    analysis = _Analysis(config, saved, steps)
    if config.layers and saved.config.task != "image":
        raise ValueError(f"layers={config.layers}: feature maps are drawn of images, not of texts.")
    if "features" in (config.parts or ()) and (config.layers or _has_depths(saved)):
        _draw_features(config, saved)
    header = {
        "checkpoint": checkpoint,
        "images": config.images,
        "batch_size": config.batch_size,
        "split": "train",
        "statistics": config.statistics,
    }
    file = saved.folder.path / run_folder.ANALYSIS
    before = run_folder.read_json(file, contents.Analysis) if os.path.lexists(file) else {}
    stays = all(before.get(name) == value for name, value in header.items())
    found = (before if stays else {}) | header | analysis.numbers()
    saved.folder.write_json(run_folder.ANALYSIS, found)
    title = f"{saved.config.model}, {saved.config.dataset}, {saved.config.optimizer}"
    pictures.analysis(
        saved.folder.path / run_folder.ANALYSIS_PICTURE,
        run_folder.read_json(file, contents.Analysis),
        title,
    )
    return found


def _has_depths(saved: SavedRun) -> bool:
    """Whether it is of images, and has outputs of several blocks that look like some."""
    blocks = getattr(saved.model, "blocks", ())
    return saved.config.task == "image" and len(blocks) >= _DEPTHS


def _draw_features(config: AnalyzeConfig, saved: SavedRun) -> None:
    problem = saved.run.problem
    layers = config.layers or features.shallow_middle_deep(saved.model)
    image, _ = problem.feed.raw(_SEED, 1)
    maps = features.feature_maps(saved.model, problem.pixels(jnp.asarray(image)), layers)
    pictures.features(saved.folder.path / run_folder.FEATURES, image[0], maps)


class _Analysis:
    """One run's numbers.

    What differs from one checkpoint to the next goes into the compiled programs as part of the
    batch, so that all checkpoints share them (and runs of one kind, by the cache on the disk).
    """

    def __init__(self, config: AnalyzeConfig, saved: SavedRun, steps: Steps) -> None:
        self._config, self._saved, self._run, self._steps = config, saved, saved.run, steps
        assert config.images is not None
        self._images = saved.run.problem.feed.raw(_SEED, config.images)

    def numbers(self) -> dict[str, Any]:
        """What goes into analysis.json; see `zosam_jax.report.runs`, which reads it."""
        parts: dict[Part, Callable[[], dict[str, Any]]] = {
            "variance": self._along_the_run,
            "hessian": self._hessian,
            "sharpness": self._sharpness,
            "surface": self._surface,
        }
        images = Split(*self._images)
        accuracy = self._run.problem.accuracy_on(self._run.network, images)
        found: dict[str, Any] = {"train_accuracy": accuracy}
        asked = [part for part in parts if part in (self._config.parts or ())]
        for part in self._steps.each(f"{self._saved.folder.path.name}: measuring", asked):
            found |= parts[part]()
        return found

    def _along_the_run(self) -> dict[str, Any]:
        found = []
        for number in self._saved.checkpoints:
            try:
                progress = self._saved.restore(number)
            except UnreadableRunError as error:
                self._saved.say(f"{error.args[0].rstrip('.')}; left out of the variance")
                continue
            place = {"step": number, "round": progress.round, "epoch": progress.epoch}
            found.append(place | self._noise())
        # The last is the newest one that is whole: the other parts are of that.
        return {"checkpoints": found}

    def _noise(self) -> dict[str, Any]:
        """The variance of the gradient over batches of the run's size; ε's cosine and gain."""
        run = self._run
        batches = list(_batches(*self._images, run.problem.config.batch_size))
        keyed = [
            _StepInput(run.state, run.problem.as_examples(*batch), jax.random.key(i))
            for i, batch in enumerate(batches)
        ]
        gradient = functools.partial(
            variance.gradient_variance, self._training_loss, run.state.params, keyed, mask=run.masks
        )
        if run.sam_tx is None or run.optimizer in ESTIMATORS:
            return {"gradient_variance": gradient()._asdict()}
        found = [jax.device_get(self._aim(*given)) for given in keyed]
        cosines, gains = [one.cosine for one in found], [one.gain for one in found]
        return {
            "gradient_variance": gradient()._asdict(),
            "perturbed_gradient_variance": gradient(perturbation=self._perturbation)._asdict(),
            "estimator": {
                "cosine": float(np.mean(cosines)),
                "cosine_sd": float(np.std(cosines, ddof=1)),
                "ascent_gain": float(np.mean(gains)),
                "ascent_gain_sd": float(np.std(gains, ddof=1)),
            },
        }

    def _training_loss(self, params: PyTree, given: "_StepInput") -> Array:
        return step.value_fn(self._run.problem, given.state)(params, given.examples)

    def _perturbation(self, params: PyTree, given: "_StepInput") -> PyTree:
        assert self._run.sam_tx is not None
        state = given.state._replace(params=params)
        return step.perturbation(
            self._run.problem, self._run.sam_tx, state, given.examples, key=given.key
        )

    @functools.cached_property
    def _aim(self) -> Callable[..., PerturbationQuality]:
        return jax.jit(functools.partial(step.ascent_quality, self._run.problem, self._run.sam_tx))

    def _loss(self, params: PyTree, batch: Any) -> Array:
        model_state, images, labels = batch
        training = self._config.statistics == "batch"
        return self._run.problem.score_loss(model_state, training=training)(params, images, labels)

    @functools.cached_property
    def _point(self) -> dict[str, Any]:
        """The arguments that say at which point the loss is analysed."""
        model_state = self._run.state.model_state
        size = self._config.batch_size
        assert size is not None
        batches = [(model_state, *batch) for batch in _batches(*self._images, size)]
        return {"loss_fn": self._loss, "params": self._run.state.params, "batches": batches}

    @functools.cached_property
    def _spectrum(self) -> hessian.Spectrum:
        return hessian.spectrum(
            **self._point,
            mask=self._run.masks,
            num_eigenvalues=self._config.eigenvalues,
            num_steps=self._config.lanczos_steps,
        )

    def _hessian(self) -> dict[str, Any]:
        trace = hessian.trace(**self._point, mask=self._run.masks, num_samples=self._config.samples)
        return {
            "hessian": {
                "eigenvalues": [float(value) for value in self._spectrum.eigenvalues],
                "residuals": [float(value) for value in self._spectrum.residuals],
                "trace": float(trace.mean),
                "trace_error": float(trace.standard_error),
            }
        }

    def _sharpness(self) -> dict[str, Any]:
        config, mask = self._config, self._run.masks
        worst = functools.partial(
            sharpness.worst_rise, **self._point, mask=mask, num_steps=config.ascent_steps
        )
        average = sharpness.average_rise(
            **self._point,
            rho=config.average_rho,
            radius="filterwise",
            mask=mask,
            num_samples=config.samples,
        )
        return {
            "sharpness": {
                "rho": config.rho,
                "worst_rise": float(worst(rho=config.rho).rise),
                "adaptive_rho": config.adaptive_rho,
                "adaptive_worst_rise": float(
                    worst(rho=config.adaptive_rho, radius="adaptive").rise
                ),
                "average_rho": config.average_rho,
                "average_rise": float(average.mean),
                "average_rise_error": float(average.standard_error),
            }
        }

    def _surface(self) -> dict[str, Any]:
        config = self._config
        u, v = surface.random_plane(self._run.state.params, _SEED, mask=self._run.masks)
        # Along the largest curvature a step as long as the random direction leaves the picture.
        length = _STEEP * trees.norm(u)
        steepest = trees.scale(self._spectrum.eigenvectors[0], length)
        distances = np.linspace(-config.distance, config.distance, config.points)
        sides = np.linspace(-config.distance, config.distance, config.plane_points)
        grid = None
        if config.plane_points:
            losses = surface.plane(**self._point, directions=(u, v), xs=sides, ys=sides)
            grid = {"xs": sides.tolist(), "ys": sides.tolist(), "losses": losses.tolist()}
            grid["directions"] = "random"
        return {
            "surface": {
                "distances": distances.tolist(),
                "random": self._line(u, distances),
                "hessian": self._line(steepest, distances),
                "plane": grid,
            }
        }

    def _line(self, direction: PyTree, distances: np.ndarray) -> list[float]:
        losses: list[float] = surface.line(
            **self._point, direction=direction, distances=distances
        ).tolist()
        return losses


class _StepInput(NamedTuple):
    """What a step takes: the state, a batch, and a random key of its own."""

    state: RunState
    examples: Examples
    key: Array


def _batches(images: Images, labels: Labels, size: int) -> Iterator[tuple[Array, Array]]:
    """Whole batches, on the device."""
    for start in range(0, len(labels) - size + 1, size):
        yield jnp.asarray(images[start : start + size]), jnp.asarray(labels[start : start + size])


def _in_words(found: dict[str, Any]) -> str:
    words = []
    if "checkpoints" in found:
        noise = found["checkpoints"][-1]["gradient_variance"]
        words.append(f"gradient variance {noise['variance']:.3g}")
    if "hessian" in found:
        curvature = found["hessian"]
        words.append(f"largest eigenvalue {curvature['eigenvalues'][0]:.3g}")
        words.append(f"trace {curvature['trace']:.3g} ± {curvature['trace_error']:.2g}")
    if "sharpness" in found:
        nearby = found["sharpness"]
        words.append(f"worst rise {nearby['worst_rise']:.3g} within {nearby['rho']:g}")
    return ", ".join(words) or "pictures only"
