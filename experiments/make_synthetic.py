"""Makes a set of blurry images whose sharp image and kernel are known, from any folder of sharp ones.

    python -m experiments.make_synthetic --image_dir=photos --output_dir=data/synthetic
    python -m experiments.make_synthetic --image_dir=photos --output_dir=data/night --blurs=motion --exposure=3
    python -m experiments.make_synthetic --image_dir=photos --output_dir=data/shakes --blurs=shake3d --max_roll=1.5

Every sharp image is blurred by every kernel at every noise level. The blur is true convolution on the valid support: nothing
is made up beyond the image's border, which is cut off instead, by as much for all kernels, so that all versions of an image
have one size. Then noise is added, and the result is clipped and rounded to 8 bits. The output folder holds blurry/, sharp/ and
kernels/ with files of the same names, as the dataset "folder" reads them, and set.json, which says how each was made. The same
command gives the same bytes.

shake3d is a camera that turns (experiments/shake3d.py): another path for every image, ``--kernel_sizes`` wide in its middle,
with a roll of half of ``--max_roll`` or more. Its kernels are arrays ``[rows, columns, h, w]``, one for each 64 pixels or so.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import imageio.v3 as iio
import numpy as np
import scipy.signal
from absl import flags

from experiments.command_line import run_command, start
from experiments.files import in_8_bits, write_text
from experiments.shake3d import Shake
from jaxdeblur.config import SMALLEST_SIDE, check_kernel_size
from jaxdeblur.errors import InputError
from jaxdeblur.imaging.kernel_files import write_kernel_array
from jaxdeblur.imaging.reading import read_image
from jaxdeblur.imaging.selection import IMAGE_SUFFIXES
from jaxdeblur.operators.trajectories import motion_kernel

KINDS = ("motion", "defocus", "gaussian", "shake3d")
UNIFORM = KINDS[:3]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a set is made of.

    Attributes:
      kinds: of blur, each one of ``KINDS``.
      kernel_sizes: odd sides of the kernels.
      num_motions: motion kernels, or shakes of each image, of each size.
      noise_stds: standard deviations of the noise, in [0, 1] units.
      exposure: factor on the scene's light before the blur.
      side: of the middle that is used of larger images, or None for all of them.
      seed: of kernels and noise.
      max_roll: of shakes, in degrees.
      focal_length: of shakes, in millimetres as of a 35 mm camera.
      jpeg_quality: of the blurry images, from 1 to 100, or None for PNG.

    Raises:
      InputError: a value cannot be used.
    """

    kinds: tuple[str, ...] = UNIFORM
    kernel_sizes: tuple[int, ...] = (15, 25)
    num_motions: int = 2
    noise_stds: tuple[float, ...] = (0.005,)
    exposure: float = 1.0
    side: int | None = None
    seed: int = 0
    max_roll: float = 1.5
    focal_length: float = 35.0
    jpeg_quality: int | None = None

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise InputError(f"--blurs: {kind!r} is no kind of blur: choose from {', '.join(KINDS)}")
        for size in self.kernel_sizes:
            check_kernel_size(size)
        if not (self.kinds and self.kernel_sizes and self.noise_stds):
            raise InputError("--blurs, --kernel_sizes and --noise_stds each need at least one value")
        if not all(0.0 <= std < 1.0 for std in self.noise_stds):
            raise InputError("--noise_stds must be 0 or more and below 1: pixel values are in [0, 1]")
        if not 0.0 < self.exposure < np.inf:
            raise InputError(f"--exposure={self.exposure} is no factor on light: give a positive number")
        if not 0.0 < self.max_roll <= 10.0:
            raise InputError(f"--max_roll={self.max_roll}: give degrees, above 0 and at most 10")
        if not 5.0 <= self.focal_length <= 2000.0:
            raise InputError(f"--focal_length={self.focal_length}: give millimetres, from 5 to 2000")
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise InputError(f"--jpeg_quality={self.jpeg_quality}: give a number from 1 to 100")

    def margin(self, shape: tuple[int, ...]) -> int:
        """Pixels to be cut off each side of an image of ``shape``, whatever it is blurred by."""
        half = max(self.kernel_sizes) // 2
        if "shake3d" not in self.kinds:
            return half
        # About their mean, paths may reach nearly as far as they are wide; perspective adds little.
        return math.ceil(1.1 * (2 * half + math.radians(self.max_roll) * math.hypot(*shape[:2]) / 2)) + 2


@dataclasses.dataclass(frozen=True)
class Blur:
    """One kernel: its kind, its number among those of its kind and size, and the kernel ``[h, w]``."""

    kind: str
    number: int
    kernel: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.kind}{len(self.kernel)}" + (f"_{self.number}" if self.kind == "motion" else "")


def disc_kernel(size: int) -> np.ndarray:
    """``[size, size]`` float32 summing to 1: a disc up to the border, each pixel weighed by how much of it is covered."""
    fine = 16
    offsets = (np.arange(size * fine) + 0.5) / fine - size / 2
    covered = offsets[:, None] ** 2 + offsets[None, :] ** 2 <= (size / 2) ** 2
    return _normalised(covered.reshape(size, fine, size, fine).mean((1, 3)))


def gaussian_kernel(size: int) -> np.ndarray:
    """``[size, size]`` float32 summing to 1: a Gaussian of σ = size/6, so that the support ends at three σ."""
    weights = np.exp(-0.5 * ((np.arange(size) - size // 2) / (size / 6)) ** 2)
    return _normalised(np.outer(weights, weights))


def make_blurs(recipe: Recipe) -> list[Blur]:
    """All kernels of a set."""
    blurs = []
    for kind, size in itertools.product([kind for kind in recipe.kinds if kind in UNIFORM], recipe.kernel_sizes):
        if kind == "motion":
            for number in range(1, recipe.num_motions + 1):
                # Seeded by what it is, so that it does not depend on which others are made.
                generator = np.random.default_rng([recipe.seed, size, number])
                blurs.append(Blur(kind, number, motion_kernel(generator, size=size)))
        else:
            blurs.append(Blur(kind, 1, disc_kernel(size) if kind == "defocus" else gaussian_kernel(size)))
    return blurs


def make_shakes(recipe: Recipe, stem: str) -> list[Shake]:
    """All shakes of the image of that name."""
    shakes = []
    for size in recipe.kernel_sizes if "shake3d" in recipe.kinds else ():
        for number in range(1, recipe.num_motions + 1):
            seed = (recipe.seed, zlib.crc32(stem.encode()), size, number)
            roll = recipe.max_roll * np.random.default_rng(seed).uniform(0.5, 1.0)
            shakes.append(Shake(size - 3, roll, recipe.focal_length, seed))
    return shakes


def shaken(
    sharp: np.ndarray, shake: Shake, *, margin: int, noise_std: float, exposure: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`degrade`, by a turning camera."""
    radiance = exposure * sharp.astype(np.float64)
    inner = (slice(margin, len(radiance) - margin), slice(margin, radiance.shape[1] - margin))
    blurry = shake.blur(radiance)[inner]
    return in_8_bits(blurry + generator.normal(0.0, noise_std, blurry.shape)), in_8_bits(radiance[inner])


def degrade(
    sharp: np.ndarray, kernel: np.ndarray, *, margin: int, noise_std: float, exposure: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A blurry image and the sharp one that it shows: ``y = clip(k * (e·x) + n)`` and ``clip(e·x)``.

    Args:
      sharp: ``[H, W]`` or ``[H, W, 3]`` in [0, 1].
      kernel: ``[h, w]``.
      margin: pixels cut off each side, at least half the kernel's side.
      noise_std: of n, white and Gaussian.
      exposure: e.
      generator: of the noise.

    Returns:
      Both ``[H − 2·margin, W − 2·margin(, 3)]`` uint8.
    """
    radiance = exposure * sharp.astype(np.float64)
    weights = kernel.astype(np.float64).reshape(kernel.shape + (1,) * (sharp.ndim - 2))
    blurry = scipy.signal.fftconvolve(radiance, weights, mode="valid", axes=(0, 1))
    rest = margin - len(kernel) // 2
    blurry = blurry[rest : len(blurry) - rest, rest : blurry.shape[1] - rest]
    truth = radiance[margin : len(radiance) - margin, margin : radiance.shape[1] - margin]
    return in_8_bits(blurry + generator.normal(0.0, noise_std, blurry.shape)), in_8_bits(truth)


def make_set(image_dir: pathlib.Path, output_dir: pathlib.Path, recipe: Recipe) -> int:
    """Writes a set.

    Args:
      image_dir: folder of sharp images.
      output_dir: new or empty folder.
      recipe: what to make.

    Returns:
      How many blurry images were made.

    Raises:
      InputError: a folder or an image cannot be used; nothing is written then.
    """
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise InputError(f"--output_dir={output_dir} holds something already: give a new or an empty folder")
    blurs = make_blurs(recipe)
    paths = _sharp_images(image_dir)
    for path in paths:
        _read_sharp(path, recipe)
    for folder in ("blurry", "sharp", "kernels"):
        (output_dir / folder).mkdir(parents=True, exist_ok=True)

    made = []
    for path in paths:
        sharp = _read_sharp(path, recipe)
        margin = recipe.margin(sharp.shape)
        uniform: list[tuple[str, str, int, Blur | Shake]] = [(blur.name, blur.kind, blur.number, blur) for blur in blurs]
        shakes: list[tuple[str, str, int, Blur | Shake]] = [
            (f"shake3d{round(shake.extent) + 3}_{shake.seed[-1]}", "shake3d", shake.seed[-1], shake)
            for shake in make_shakes(recipe, path.stem)
        ]
        for (label, kind, number, blur), (level, noise_std) in itertools.product(
            [*uniform, *shakes], enumerate(recipe.noise_stds, start=1)
        ):
            name = f"{path.stem}_{label}_noise{level}"
            generator = np.random.default_rng([recipe.seed, zlib.crc32(name.encode())])
            options: dict[str, Any] = {
                "margin": margin,
                "noise_std": noise_std,
                "exposure": recipe.exposure,
                "generator": generator,
            }
            more: dict[str, float] = {}
            if isinstance(blur, Shake):
                blurry, truth = shaken(sharp, blur, **options)
                kernel = blur.kernels((sharp.shape[0], sharp.shape[1]), margin)
                more = {"roll": blur.roll, "extent": blur.extent, "focal_length": blur.focal_length}
            else:
                blurry, truth = degrade(sharp, blur.kernel, **options)
                kernel = blur.kernel
            if recipe.jpeg_quality is None:
                iio.imwrite(output_dir / "blurry" / f"{name}.png", blurry, plugin="pillow")
            else:
                iio.imwrite(output_dir / "blurry" / f"{name}.jpg", blurry, plugin="pillow", quality=recipe.jpeg_quality)
            iio.imwrite(output_dir / "sharp" / f"{name}.png", truth, plugin="pillow")
            write_kernel_array(output_dir / "kernels" / f"{name}.npy", kernel)
            made.append(
                {
                    "name": name,
                    "image": path.name,
                    "blur": kind,
                    "number": number,
                    "kernel_size": kernel.shape[-1],
                    "noise_std": noise_std,
                    "saturated": float(np.mean(blurry == 255)),
                    **more,
                }
            )
    # Written last: a folder without it was not finished.
    content = {"recipe": dataclasses.asdict(recipe), "pictures": made}
    write_text(output_dir / "set.json", json.dumps(content, indent=1) + "\n")
    return len(made)


def _sharp_images(folder: pathlib.Path) -> list[pathlib.Path]:
    if not folder.is_dir():
        raise InputError(f"--image_dir={folder}: no such folder; check the path")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise InputError(f"--image_dir={folder}: no image in it ({', '.join(IMAGE_SUFFIXES)})")
    stems = [path.stem for path in paths]
    for path in paths:
        if stems.count(path.stem) > 1:
            raise InputError(f"{path}: another image has this name but for its ending; rename one of them")
    return paths


def _read_sharp(path: pathlib.Path, recipe: Recipe) -> np.ndarray:
    """The image's pixels, or the middle of them."""
    pixels = read_image(path).pixels
    if recipe.side is not None:
        rows, columns = (
            slice((length - side) // 2, (length - side) // 2 + side)
            for length, side in ((length, min(length, recipe.side)) for length in pixels.shape[:2])
        )
        pixels = pixels[rows, columns]
    smallest = SMALLEST_SIDE + 2 * recipe.margin(pixels.shape)
    if min(pixels.shape[:2]) < smallest:
        raise InputError(
            f"{path}: {pixels.shape[1]}×{pixels.shape[0]} pixels are too few for these kernels: {smallest} a side are needed"
        )
    return pixels


def _normalised(weights: np.ndarray) -> np.ndarray:
    return (weights / weights.sum()).astype(np.float32)


def _numbers(flag: str, values: Sequence[str], kind: type) -> tuple:
    try:
        return tuple(kind(value) for value in values)
    except ValueError:
        raise InputError(f"--{flag}={','.join(values)} is no list of numbers: give them separated by commas") from None


def define_flags() -> flags.FlagValues:
    """The flags, unparsed."""
    values = flags.FlagValues()
    flags.DEFINE_string("image_dir", None, "Folder of sharp images.", flag_values=values)
    flags.DEFINE_string("output_dir", None, "Where the set goes; must be new or empty.", flag_values=values)
    flags.DEFINE_list("blurs", list(UNIFORM), f"Kinds of blur, of {', '.join(KINDS)}.", flag_values=values)
    flags.DEFINE_list("kernel_sizes", ["15", "25"], "Odd sides of the kernels, in pixels.", flag_values=values)
    flags.DEFINE_integer(
        "num_motions", 2, "Motion kernels, or shakes of each image, of each size.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_list("noise_stds", ["0.005"], "Standard deviations of the noise, in [0, 1] units.", flag_values=values)
    flags.DEFINE_float(
        "exposure", 1.0, "Factor on the light before the blur; above 1, highlights are clipped after it.", flag_values=values
    )
    flags.DEFINE_integer(
        "side", None, "Use only the middle of the images, at most this many pixels a side.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer("seed", 0, "Of the motion kernels and the noise.", lower_bound=0, flag_values=values)
    flags.DEFINE_float("max_roll", 1.5, "Largest roll of a shake over its exposure, in degrees.", flag_values=values)
    flags.DEFINE_float("focal_length", 35.0, "Of shakes, in millimetres as of a 35 mm camera.", flag_values=values)
    flags.DEFINE_integer("jpeg_quality", None, "Write the blurry images as JPEGs of this quality.", flag_values=values)
    return values


def main(argv: Sequence[str]) -> int:
    """Runs a command line: the program's name and its arguments. Returns the exit status."""
    values = define_flags()
    return run_command(argv, values, __doc__, lambda: _command(values))


def _command(values: flags.FlagValues) -> int:
    for name in ("image_dir", "output_dir"):
        if not values[name].value:
            raise InputError(f"--{name} is missing: give a folder")
    recipe = Recipe(
        kinds=tuple(values.blurs),
        kernel_sizes=_numbers("kernel_sizes", values.kernel_sizes, int),
        num_motions=values.num_motions,
        noise_stds=_numbers("noise_stds", values.noise_stds, float),
        exposure=values.exposure,
        side=values.side,
        seed=values.seed,
        max_roll=values.max_roll,
        focal_length=values.focal_length,
        jpeg_quality=values.jpeg_quality,
    )
    folder = pathlib.Path(values.output_dir).expanduser()
    count = make_set(pathlib.Path(values.image_dir).expanduser(), folder, recipe)
    print(f"{folder}: {count} blurry images")
    return 0


if __name__ == "__main__":
    start(main)
