"""Makes the blurry sample image that the repository carries, and the sharp one beside it.

A crop of a freely licensed photograph from scikit-image is blurred by a camera-shake kernel of our own, on the valid support
(no boundary is made up), with Gaussian noise, and rounded to 8 bits. The same command gives the same pixels.

    python -m experiments.make_sample
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import imageio.v3 as iio
import jax.numpy as jnp
import numpy as np
import skimage.data
from absl import flags

from experiments.command_line import run_command, start
from experiments.files import in_8_bits
from jaxdeblur.imaging.kernel_files import write_kernel_image
from jaxdeblur.operators.blur import blur_valid, crop_to_blurry
from jaxdeblur.operators.trajectories import motion_kernel


@dataclasses.dataclass(frozen=True)
class Sample:
    """What the sample is made of.

    Attributes:
      photograph: name of the photograph in ``skimage.data``.
      top: first row of the crop.
      left: first column of the crop.
      height: of the blurry image.
      width: of the blurry image.
      kernel_size: side of the kernel, in pixels.
      noise_std: standard deviation of the noise, pixel values being in [0, 1].
      seed: of the shake and the noise.
    """

    photograph: str = "coffee"
    top: int = 20
    left: int = 90
    height: int = 280
    width: int = 400
    kernel_size: int = 21
    noise_std: float = 0.005
    seed: int = 9


def make_sample(sample: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sample as (blurry ``[H, W, 3]`` uint8, sharp ``[H, W, 3]`` uint8, kernel ``[h, w]`` float32)."""
    generator = np.random.default_rng(sample.seed)
    kernel = motion_kernel(generator, size=sample.kernel_size)
    rows, columns = sample.height + sample.kernel_size - 1, sample.width + sample.kernel_size - 1
    photograph = getattr(skimage.data, sample.photograph)()
    sharp = photograph[sample.top : sample.top + rows, sample.left : sample.left + columns]
    channels = jnp.moveaxis(jnp.asarray(sharp, jnp.float32) / 255, -1, 0)
    blurry = np.moveaxis(np.asarray(blur_valid(channels, jnp.asarray(kernel))), 0, -1)
    blurry = blurry + generator.normal(0.0, sample.noise_std, blurry.shape)
    cropped = np.moveaxis(np.asarray(crop_to_blurry(channels, kernel.shape)), 0, -1)
    return in_8_bits(blurry), in_8_bits(cropped), kernel


def define_flags() -> flags.FlagValues:
    """The flags, unparsed."""
    values = flags.FlagValues()
    default = str(pathlib.Path(__file__).parent / "sample")
    flags.DEFINE_string("output_dir", default, "Where the images go.", flag_values=values)
    return values


def main(argv: Sequence[str]) -> int:
    """Runs a command line: the program's name and its arguments. Returns the exit status."""
    values = define_flags()
    return run_command(argv, values, __doc__, lambda: _write(pathlib.Path(values.output_dir)))


def _write(folder: pathlib.Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    blurry, sharp, kernel = make_sample(Sample())
    for name, image in (("blurry", blurry), ("sharp", sharp)):
        iio.imwrite(folder / f"{name}.png", image, plugin="pillow", optimize=True)
    write_kernel_image(folder / "kernel.png", kernel)
    print(f"{folder}: blurry.png, sharp.png, kernel.png")
    return 0


if __name__ == "__main__":
    start(main)
