"""The learned prior's fast way, which restores large photographs, against its usual one, with known kernels.

    python -m experiments.fast_finish --images=a.png,b.png

A part of each sharp image is blurred by a kernel of a camera shake, gets noise, and, with ``--quality``, is stored as a JPEG.
Printed are PSNR against the sharp part (a frame of 20 pixels left out), the largest and the mean difference between the two
ways, and the seconds of processor of each (second call; the first compiles).
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.command_line import run_command, start
from experiments.files import as_jpeg
from experiments.make_synthetic import degrade
from jaxdeblur import runtime
from jaxdeblur.classical.learned import learned
from jaxdeblur.classical.noise import noise_std as estimate_noise_std
from jaxdeblur.errors import InputError
from jaxdeblur.evaluation.metrics import psnr
from jaxdeblur.imaging.colour import grey
from jaxdeblur.imaging.reading import read_image
from jaxdeblur.operators.trajectories import motion_kernel

# Such as `jobs` takes for a JPEG, and what is trusted of a kernel that may be estimated.
_SMALLEST_NOISE_STD, _KERNEL_STD = 0.005, 0.003
_FRAME = 20


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One image restored in both ways.

    Attributes:
      usual: PSNR in dB.
      fast: likewise.
      largest: difference between the two, in [0, 1] units, both clipped.
      mean: likewise.
      usual_seconds: of processor.
      fast_seconds: likewise.
    """

    usual: float
    fast: float
    largest: float
    mean: float
    usual_seconds: float
    fast_seconds: float


def compare(blurry: np.ndarray, sharp: np.ndarray, kernel: np.ndarray) -> Outcome:
    """Restores ``blurry [H, W(, 3)]`` in both ways and compares them with ``sharp``, which it shows; ``kernel [h, w]``."""
    noise = max(float(estimate_noise_std(grey(blurry))), _SMALLEST_NOISE_STD)
    (h, w), (rows, columns) = kernel.shape, blurry.shape[:2]
    images, seconds = [], []
    for fast in (False, True):
        for _ in range(2):
            began = time.process_time()
            whole = np.asarray(
                learned(jnp.asarray(blurry), jnp.asarray(kernel), noise_std=noise, kernel_std=_KERNEL_STD, fast=fast)
            )
        seconds.append(time.process_time() - began)
        images.append(np.clip(whole[h // 2 : h // 2 + rows, w // 2 : w // 2 + columns], 0.0, 1.0))
    inner = (slice(_FRAME, rows - _FRAME), slice(_FRAME, columns - _FRAME))
    usual, fast_one = (psnr(image[inner], sharp[inner]) for image in images)
    difference = np.abs(images[1] - images[0])
    return Outcome(usual, fast_one, float(difference.max()), float(difference.mean()), *seconds)


def define_flags() -> flags.FlagValues:
    """The flags, unparsed."""
    values = flags.FlagValues()
    flags.DEFINE_list("images", [], "Sharp images.", flag_values=values)
    flags.DEFINE_integer("side", 400, "Of the part that is blurred, in pixels.", lower_bound=64, flag_values=values)
    flags.DEFINE_integer("kernel", 31, "Side of the kernel's support, odd.", lower_bound=3, flag_values=values)
    flags.DEFINE_float("noise_std", 0.004, "Of the noise, in [0, 1] units.", lower_bound=0.0, flag_values=values)
    flags.DEFINE_integer(
        "quality", None, "Of a JPEG that the blurry image is stored as.", lower_bound=1, upper_bound=95, flag_values=values
    )
    return values


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit status."""
    values = define_flags()

    def work() -> int:
        if not values.images:
            raise InputError("--images is missing: give sharp images, separated by commas")
        _run(values)
        return 0

    return run_command(argv, values, __doc__, work)


def _run(values: flags.FlagValues) -> None:
    runtime.set_up_cache()
    print("| image | usual, dB | fast, dB | largest, mean difference | usual, s | fast, s |\n|---|---|---|---|---|---|")
    for number, name in enumerate(values.images):
        image = read_image(pathlib.Path(name)).pixels
        margin = values.kernel // 2
        sides = [min(values.side + 2 * margin, length) for length in image.shape[:2]]
        top, left = ((length - side) // 2 for length, side in zip(image.shape[:2], sides, strict=True))
        generator = np.random.default_rng(number)
        kernel = motion_kernel(generator, size=values.kernel).astype(np.float32)
        part = image[top : top + sides[0], left : left + sides[1]]
        blurry, sharp = degrade(part, kernel, margin=margin, noise_std=values.noise_std, exposure=1.0, generator=generator)
        if values.quality is not None:
            blurry = as_jpeg(blurry, values.quality)
        one = compare(blurry.astype(np.float32) / 255, sharp.astype(np.float32) / 255, kernel)
        print(
            f"| {pathlib.Path(name).stem} | {one.usual:.2f} | {one.fast:.2f} | {one.largest:.3f}, {one.mean:.4f} "
            f"| {one.usual_seconds:.1f} | {one.fast_seconds:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    start(main)
