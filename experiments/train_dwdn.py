"""Trains DWDN, the non-blind teacher, on made-up camera shake over a folder of sharp images.

    python -m experiments.train_dwdn --data_dir=images --output_dir=dwdn --widths=16,24 --num_blocks=1 --num_steps=20 \
        --batch_size=2 --crop=64 --kernel_sizes=7,15
    python -m experiments.train_dwdn --data_dir=images --output_dir=dwdn --num_steps=300000 --batch_size=16 --crop=256

The first is a smoke run for a CPU, the second a real one for a GPU. A run that is started again in its output folder goes on
from its last checkpoint, and ends with the same parameters as an unbroken one. Written to ``--output_dir``:

    checkpoint.msgpack   what a run goes on from
    dwdn.msgpack         the parameters of the best validation so far, for --teacher=dwdn --teacher_weights=PATH
    curve.csv, curve.png loss and validation PSNR over the steps

Every example is a crop of an image's luma (at full size or reduced, turned and mirrored), blurred on the valid support by a
kernel of :func:`jaxdeblur.operators.trajectories.motion_kernel`, with Gaussian noise of 0 to 5 %, small amounts being likelier.
Some images are held out, by whole images; on blurred versions of them the training is validated, and at the end compared
with the sparse prior, which is given the same kernel and estimates the noise itself as in a run of the command line.
"""

from __future__ import annotations

import csv
import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments import checkpoints
from experiments.command_line import run_command, start
from experiments.files import save_figure, written_whole
from experiments.training import turned
from jaxdeblur import runtime
from jaxdeblur.classical import finish
from jaxdeblur.classical.noise import noise_std
from jaxdeblur.config import NonblindConfig
from jaxdeblur.errors import InputError
from jaxdeblur.evaluation.metrics import psnr
from jaxdeblur.imaging.colour import luma
from jaxdeblur.imaging.reading import read_image
from jaxdeblur.imaging.selection import find_images
from jaxdeblur.networks.teachers import dwdn
from jaxdeblur.networks.teachers.weights import save_teacher
from jaxdeblur.operators.blur import blur_valid, crop_to_blurry
from jaxdeblur.operators.trajectories import motion_kernel

_LARGEST_NOISE_STD = 0.05
_TEST_NOISE_STDS = (0.0, 0.01, 0.03)
# Not compared, as in the benchmark sets' protocol: near its edge an image cannot be known.
_MARGIN = 15
_TEST_CROP = 240
_REDUCTIONS = (1.0, 0.7, 0.5)
_NUM_KERNELS = 512
# Every how many-th image of the data folder is held out.
_HELD_OUT_SHARE = 6


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
      model: sizes of the network.
      num_steps: of the whole run; the learning rate depends on it.
      batch_size: crops in a step.
      crop: side of a blurry crop in pixels.
      kernel_sizes: smallest and largest odd side of a kernel.
      learning_rate: Adam's, at its highest.
      validate_every: steps between validations and checkpoints.
      seed: of the start and the examples.
    """

    model: dwdn.DwdnConfig
    num_steps: int
    batch_size: int
    crop: int
    kernel_sizes: tuple[int, int]
    learning_rate: float
    validate_every: int
    seed: int

    def __post_init__(self) -> None:
        small, large = self.kernel_sizes
        if not (3 <= small <= large and small % 2 == large % 2 == 1):
            raise InputError(f"--kernel_sizes={small},{large} cannot be used: give two odd sides, the smaller one first")


@flax.struct.dataclass
class State:
    """What training goes on from; ``step`` steps are done."""

    step: jax.Array
    params: Any
    opt_state: Any
    best_params: Any
    best_psnr: jax.Array


@dataclasses.dataclass(frozen=True)
class Case:
    """A held-out image, blurred: ``blurry`` and ``sharp`` are ``[H, W]``, ``kernel`` ``[h, w]``."""

    name: str
    noise_std: float
    blurry: np.ndarray
    sharp: np.ndarray
    kernel: np.ndarray


def read_images(folder: str, smallest: int) -> dict[str, np.ndarray]:
    """The luma ``[H, W]`` of the images in a folder that are large enough, by file name.

    Raises:
      InputError: there are none, or one cannot be read.
    """
    paths = find_images(folder, print)
    pixels = {path.name: read_image(path).pixels for path in paths}
    grey = {name: luma(image) if image.ndim == 3 else image for name, image in sorted(pixels.items())}
    usable = {name: np.asarray(image, np.float32) for name, image in grey.items() if min(image.shape) >= smallest}
    if not usable:
        raise InputError(f"{folder}: no image of at least {smallest} pixels a side in it; give larger ones or a smaller --crop")
    return usable


def reduced(image: np.ndarray, smallest: int) -> list[np.ndarray]:
    """An image at full size and reduced, as far as ``smallest`` pixels a side are left."""
    shapes = [tuple(round(side * factor) for side in image.shape) for factor in _REDUCTIONS]
    return [
        np.asarray(image if shape == image.shape else jax.image.resize(image, shape, "linear", antialias=True))
        for shape in shapes
        if min(shape) >= smallest
    ]


def kernel_bank(sizes: tuple[int, int], seed: int, *, count: int = _NUM_KERNELS) -> np.ndarray:
    """Kernels of all sides between two odd ones, each in the middle of the largest support: ``[count, h, h]``."""
    generator = np.random.default_rng([seed, 1])
    bank = np.zeros((count, sizes[1], sizes[1]), np.float32)
    for kernel in bank:
        size = int(generator.choice(np.arange(sizes[0], sizes[1] + 1, 2)))
        margin = (sizes[1] - size) // 2
        drawn = motion_kernel(generator, size=size, num_points=500, persistence=generator.uniform(0.97, 0.999))
        kernel[margin : margin + size, margin : margin + size] = drawn
    return bank


def draw_batch(
    images: Sequence[np.ndarray], kernels: np.ndarray, config: TrainConfig, step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The examples of a step, which depend on the seed and the step alone.

    Returns:
      Sharp crops ``[B, crop+h-1, crop+h-1]``, kernels ``[B, h, h]``, noise ``[B, crop, crop]``.
    """
    generator = np.random.default_rng([config.seed, 2, step])
    side = config.crop + kernels.shape[-1] - 1
    crops = []
    for _ in range(config.batch_size):
        image = images[int(generator.integers(len(images)))]
        top, left = (int(generator.integers(length - side + 1)) for length in image.shape)
        turn = int(generator.integers(4))
        crops.append(turned(image[top : top + side, left : left + side], turn if generator.random() < 0.5 else turn + 4))
    chosen = kernels[generator.integers(len(kernels), size=config.batch_size)]
    stds = _LARGEST_NOISE_STD * generator.random(config.batch_size, np.float32) ** 2
    noise = generator.standard_normal((config.batch_size, config.crop, config.crop), np.float32)
    return np.stack(crops), chosen, noise * stds[:, None, None]


def make_step(
    config: TrainConfig,
) -> tuple[Callable[[jax.Array], State], Callable[[State, jax.Array, jax.Array, jax.Array], tuple[State, jax.Array]]]:
    """Functions that make the first state from a key, and the next one and the loss from a state, crops, kernels and noise."""
    module = dwdn.Dwdn(config.model)
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.num_steps, alpha=0.01)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    @jax.jit
    def init(key: jax.Array) -> State:
        params = module.init(key, jnp.zeros((32, 32)), jnp.ones((3, 3)) / 9)["params"]
        return State(jnp.zeros((), jnp.int32), params, tx.init(params), params, jnp.array(-jnp.inf))

    def loss(params: Any, sharp: jax.Array, kernels: jax.Array, noise: jax.Array) -> jax.Array:
        def one(crop: jax.Array, kernel: jax.Array, noise: jax.Array) -> jax.Array:
            restored: Any = module.apply({"params": params}, blur_valid(crop, kernel) + noise, kernel)
            return jnp.mean(jnp.abs(restored - crop_to_blurry(crop, (kernel.shape[0], kernel.shape[1]))))

        return jnp.mean(jax.vmap(one)(sharp, kernels, noise))

    @jax.jit
    def step(state: State, sharp: jax.Array, kernels: jax.Array, noise: jax.Array) -> tuple[State, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(state.params, sharp, kernels, noise)
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state), value

    return init, step


def held_out_cases(images: dict[str, np.ndarray], sizes: tuple[int, int], seed: int) -> list[Case]:
    """The middle of every held-out image, blurred by a kernel of its own at each of the noise levels, 8 bits deep."""
    generator = np.random.default_rng([seed, 3])
    cases = []
    for name, image in images.items():
        for std in _TEST_NOISE_STDS:
            size = int(generator.choice(np.arange(sizes[0], sizes[1] + 1, 2)))
            kernel = motion_kernel(generator, size=size)
            side = min(_TEST_CROP, *(length - size + 1 for length in image.shape)) + size - 1
            top, left = ((length - side) // 2 for length in image.shape)
            crop = image[top : top + side, left : left + side]
            blurry = np.asarray(blur_valid(jnp.asarray(crop), jnp.asarray(kernel)))
            blurry = blurry + generator.normal(0, std, blurry.shape)
            sharp = np.asarray(crop_to_blurry(jnp.asarray(crop), (size, size)))
            cases.append(Case(name, std, np.rint(np.clip(blurry, 0, 1) * 255).astype(np.float32) / 255, sharp, kernel))
    return cases


def case_psnr(case: Case, restored: np.ndarray) -> float:
    """PSNR in dB inside the margin."""
    inner = (slice(_MARGIN, -_MARGIN), slice(_MARGIN, -_MARGIN))
    return psnr(np.clip(restored, 0, 1)[inner], case.sharp[inner])


def network_psnrs(params: Any, cases: Sequence[Case], apply: Callable[..., jax.Array]) -> list[float]:
    """PSNR of the network on each case. Kernels are put into the largest support, so that few shapes are compiled."""
    largest = max(case.kernel.shape[0] for case in cases)
    values = []
    for case in cases:
        margin = (largest - case.kernel.shape[0]) // 2
        values.append(case_psnr(case, np.asarray(apply(params, case.blurry, np.pad(case.kernel, margin)))))
    return values


def compared(params: Any, cases: Sequence[Case]) -> list[tuple[float, float, float, float]]:
    """For each case the noise, and PSNRs in dB: blurry, sparse prior, network; the kernel is known to both."""
    restore = jax.jit(dwdn.restore)
    rows = []
    for case in cases:
        noise = noise_std(case.blurry)
        sparse = finish.restore(case.blurry, case.kernel, "sparse", NonblindConfig(), noise_std=noise)
        ours = np.asarray(restore(params, case.blurry, case.kernel))
        before, usual, found = (case_psnr(case, image) for image in (case.blurry, sparse, ours))
        rows.append((case.noise_std, before, usual, found))
    return rows


def comparison(rows: Sequence[tuple[float, float, float, float]]) -> list[str]:
    """What :func:`compared` found as a table, by noise level."""
    lines = [f"{'noise':>8}{'cases':>7}{'blurry':>9}{'sparse':>9}{'dwdn':>9}  dB"]
    for name, chosen in [*((f"{std:.2f}", [r for r in rows if r[0] == std]) for std in _TEST_NOISE_STDS), ("all", rows)]:
        means = np.mean(chosen, axis=0)[1:]
        lines.append(f"{name:>8}{len(chosen):>7}" + "".join(f"{mean:>9.2f}" for mean in means))
    return lines


def train(
    config: TrainConfig,
    images: Sequence[np.ndarray],
    cases: Sequence[Case],
    folder: pathlib.Path,
    *,
    last_step: int | None = None,
) -> State:
    """Trains from the folder's checkpoint, if it has one, to the end.

    Args:
      config: of the run.
      images: to cut crops from.
      cases: to validate on.
      folder: of checkpoint, parameters and curve.
      last_step: stop (with a checkpoint) after so many steps in all, instead of at the end.

    Raises:
      InputError: the folder's checkpoint is damaged, or of another network.
    """
    init, step = make_step(config)
    state = init(jax.random.key(config.seed))
    checkpoint, curve = folder / "checkpoint.msgpack", folder / "curve.csv"
    if checkpoint.exists():
        other = "is of a network of other sizes: give the same sizes, or another --output_dir"
        state = jax.tree.map(jnp.asarray, checkpoints.restored(checkpoint, state, other=other))
        print(f"going on from step {int(state.step)}", flush=True)
    kernels = kernel_bank(config.kernel_sizes, config.seed)
    apply = jax.jit(lambda params, blurry, kernel: dwdn.Dwdn(config.model).apply({"params": params}, blurry, kernel))
    rows = _curve_until(curve, int(state.step))
    losses: list[float] = []
    began = time.perf_counter()
    last = min(last_step or config.num_steps, config.num_steps)
    for index in range(int(state.step), last):
        sharp, chosen, noise = draw_batch(images, kernels, config, index)
        state, value = step(state, jnp.asarray(sharp), jnp.asarray(chosen), jnp.asarray(noise))
        losses.append(float(value))
        done = index + 1
        if done % config.validate_every == 0 or done == last:
            mean = float(np.mean(network_psnrs(state.params, cases, apply)))
            if mean > float(state.best_psnr):
                state = dataclasses.replace(state, best_params=state.params, best_psnr=jnp.array(mean, jnp.float32))
                save_teacher(folder / "dwdn.msgpack", "dwdn", state.best_params)
            checkpoints.save(checkpoint, state)
            rows.append((done, float(np.mean(losses)), mean))
            _write_curve(curve, rows)
            seconds = (time.perf_counter() - began) / len(losses)
            print(f"step {done}: loss {rows[-1][1]:.4f}, validation {mean:.2f} dB, {seconds:.2f} s a step", flush=True)
            losses, began = [], time.perf_counter()
    return state


def _curve_until(path: pathlib.Path, step: int) -> list[tuple[int, float, float]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = [(int(row["step"]), float(row["loss"]), float(row["psnr"])) for row in csv.DictReader(file)]
    return [row for row in rows if row[0] <= step]


def _write_curve(path: pathlib.Path, rows: Sequence[tuple[int, float, float]]) -> None:
    with written_whole(path) as new, new.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("step", "loss", "psnr"))
        writer.writerows(rows)


def draw_curve(rows: Sequence[tuple[int, float, float]], path: pathlib.Path) -> None:
    """Loss and validation PSNR over the steps, as a figure."""
    from matplotlib.figure import Figure  # only figures of the experiments need it

    steps, losses, psnrs = zip(*rows, strict=True)
    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.subplots()
    left.plot(steps, losses, color="tab:gray")
    left.set(xlabel="step", ylabel="training loss (mean absolute error)", yscale="log")
    right = left.twinx()
    right.plot(steps, psnrs, color="tab:blue")
    right.set_ylabel("validation PSNR in dB", color="tab:blue")
    save_figure(figure, path)


def define_flags() -> flags.FlagValues:
    """The flags, unparsed."""
    values = flags.FlagValues()

    def number(name: str, default: int, text: str, lower_bound: int | None = None) -> None:
        flags.DEFINE_integer(name, default, text, lower_bound=lower_bound, flag_values=values)

    flags.DEFINE_string("data_dir", None, "Folder of sharp images.", flag_values=values)
    flags.DEFINE_string(
        "test_dir", None, "Folder of sharp images to hold out instead of some of --data_dir.", flag_values=values
    )
    flags.DEFINE_string("output_dir", "dwdn", "Where checkpoints, parameters and curves go.", flag_values=values)
    number("features", 16, "Channels that are deconvolved.", 1)
    flags.DEFINE_list("widths", ["32", "64", "128"], "Channels at each resolution.", flag_values=values)
    number("num_blocks", 3, "Residual blocks in each stage.", 1)
    number("num_steps", 300_000, "Steps of the whole run.", 1)
    number("batch_size", 16, "Crops in a step.", 1)
    number("crop", 256, "Side of a blurry crop.", 32)
    flags.DEFINE_list("kernel_sizes", ["7", "31"], "Smallest and largest odd side of a kernel.", flag_values=values)
    flags.DEFINE_float(
        "learning_rate", 1e-3, "Adam's, at its highest; it falls to a hundredth as a cosine.", flag_values=values
    )
    number("validate_every", 250, "Steps between validations and checkpoints.", 1)
    number("seed", 0, "Of the start and the examples.")
    return values


def _config(values: flags.FlagValues) -> TrainConfig:
    try:
        widths = tuple(int(width) for width in values.widths)
        small, large = (int(size) for size in values.kernel_sizes)
    except ValueError:
        raise InputError("--widths and --kernel_sizes take whole numbers with commas between, --kernel_sizes two") from None
    return TrainConfig(
        dwdn.DwdnConfig(values.features, widths, values.num_blocks),
        num_steps=values.num_steps,
        batch_size=values.batch_size,
        crop=values.crop,
        kernel_sizes=(small, large),
        learning_rate=values.learning_rate,
        validate_every=values.validate_every,
        seed=values.seed,
    )


def main(argv: Sequence[str]) -> int:
    """Runs a command line: the program's name and its arguments. Returns the exit status."""
    values = define_flags()

    def work() -> int:
        if not values.data_dir:
            raise InputError("--data_dir is missing: give a folder of sharp images")
        _train_and_compare(_config(values), values)
        return 0

    return run_command(argv, values, __doc__, work)


def _train_and_compare(config: TrainConfig, values: flags.FlagValues) -> None:
    smallest = config.crop + config.kernel_sizes[1] - 1
    images = read_images(values.data_dir, smallest)
    if values.test_dir:
        held_out = read_images(values.test_dir, smallest)
    else:
        held_out = {name: images.pop(name) for name in list(images)[:: max(2, min(_HELD_OUT_SHARE, len(images)))]}
    if not images:
        raise InputError(f"{values.data_dir}: with one image held out none is left to train on; add more")
    runtime.relaunch_with_huge_pages()
    print(f"training on {len(images)} images, held out: {', '.join(held_out)}", flush=True)
    folder = pathlib.Path(values.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    runtime.set_up_cache()
    cases = held_out_cases(held_out, config.kernel_sizes, config.seed)
    crops = [version for image in images.values() for version in reduced(image, smallest)]
    state = train(config, crops, cases, folder)
    draw_curve(_curve_until(folder / "curve.csv", config.num_steps), folder / "curve.png")
    print(*comparison(compared(state.best_params, cases)), sep="\n")


if __name__ == "__main__":
    start(main, interrupted="interrupted; the same command goes on from the last checkpoint")
