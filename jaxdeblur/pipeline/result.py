"""What a run returns."""

from __future__ import annotations

import dataclasses
import io
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from jaxdeblur.imaging.kernel_files import write_kernel_array, write_kernel_image
from jaxdeblur.imaging.preview import compose_preview, to_image, write_preview
from jaxdeblur.imaging.selection import Outputs
from jaxdeblur.imaging.staging import staged
from jaxdeblur.imaging.trace import write_trace
from jaxdeblur.imaging.writing import write_grey
from jaxdeblur.optimise.loop import FitResult
from jaxdeblur.optimise.restarts import Stop


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A kernel that was considered.

    Attributes:
      name: where it comes from.
      score: by :func:`jaxdeblur.classical.judge.judge`; lower is better. NaN if it was not judged because there was no other.
      chosen: whether the final image was made with it.
      kernel: ``[h, w]``, non-negative, summing to one, or ``[rows, columns, h, w]``; as an image is restored with it: a
        classical estimate that was used for this is corrected (:mod:`jaxdeblur.classical.correction`), any other one is wider
        than it was scored (:mod:`jaxdeblur.classical.width`).
    """

    name: str
    score: float
    chosen: bool
    kernel: np.ndarray


@dataclasses.dataclass(frozen=True)
class Shake:
    """What was found of a camera that turns during the exposure.

    Attributes:
      gain: by how much the negative log evidence per pixel is lower with kernels that vary than with one.
      roll_std: standard deviation of the camera's roll over the exposure, in degrees.
      corner_std: standard deviation in pixels of what the turn adds to the shifts in the image's corners.
      agreement: how well the parts of the image agree about the turn, at most 1: about 1 where the camera turned.
      chosen: whether the final image was made with kernels that vary.
    """

    gain: float
    roll_std: float
    corner_std: float
    agreement: float
    chosen: bool


@dataclasses.dataclass(frozen=True, repr=False)
class Result:
    """What :func:`deblur` found. A notebook shows it as one picture: before, after and kernel.

    Attributes:
      restored: the sharp image, shaped as the input, float32 in [0, 1].
      kernel: ``[h, w]`` of a true convolution, non-negative, summing to one, its mass centred; ``[rows, columns, h, w]``, one
        for each of the equal parts of the image, where the blur varies.
      candidates: the kernels that were compared.
      chosen: how the final image was made: a candidate's name and a non-blind method, or ``generator``.
      history: curves over the deep prior's steps: its loss (``fit``) and the squared error of the re-blurred image (``error``).
      seconds: per phase.
      noise_std: standard deviation of the input's noise that was reckoned with, in [0, 1] units.
      kernel_size: side of the support that was used.
      warnings: what the user should know, one sentence each.
      posterior_mean: mean over samples of the deep prior's grey image, ``[H, W]``; None if no samples were asked for.
      posterior_std: their standard deviation at each pixel, ``[H, W]``.
      stop: where the deep prior's fit ended early, and why; None if it did not.
      shake: what was found of a camera that turns; None if that was not asked.
      more_attempts: at the kernel that were made after the first.
      blurry: the input, shaped as ``restored``; None where it was not worth carrying along.
    """

    restored: np.ndarray
    kernel: np.ndarray
    candidates: tuple[Candidate, ...]
    chosen: str
    history: Mapping[str, list[float]]
    seconds: Mapping[str, float]
    noise_std: float
    kernel_size: int
    warnings: tuple[str, ...]
    posterior_mean: np.ndarray | None = None
    posterior_std: np.ndarray | None = None
    stop: Stop | None = None
    shake: Shake | None = None
    more_attempts: int = 0
    blurry: np.ndarray | None = None

    def __repr__(self) -> str:
        (height, width), (rows, columns) = self.restored.shape[:2], self.kernel.shape[-2:]
        seconds = sum(self.seconds.values())
        return f"Result({width}×{height} pixels, kernel {columns}×{rows}, final image: {self.chosen}, {seconds:.1f} s)"

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows."""
        if self.blurry is None:
            return None
        content = io.BytesIO()
        compose_preview(self.blurry, self.restored, self.kernel).save(content, format="PNG")
        return content.getvalue()

    def save(self, folder: str | pathlib.Path, name: str = "photo") -> list[pathlib.Path]:
        """Writes the result as files; those of the same names are replaced, all of them or none.

        Pixels are written as 8-bit PNG: whoever wants the input's own depth, EXIF and profile uses the command line.

        Args:
          folder: where; it is made if it is not there.
          name: what the files' names begin with.

        Returns:
          The files: ``NAME_deblurred.png``, ``NAME_kernel.png`` and ``.npy`` and, as far as there is something to show,
          ``NAME_preview.png``, ``NAME_trace.png``, ``NAME_posterior_mean.png`` and ``NAME_uncertainty.png``.

        Raises:
          OSError: a file cannot be written.
        """
        outputs = Outputs(pathlib.Path(folder).expanduser(), name)
        outputs.folder.mkdir(parents=True, exist_ok=True)
        writers: dict[pathlib.Path, Callable[[pathlib.Path], None]] = {
            outputs.deblurred(".png"): lambda path: to_image(self.restored).save(path, format="PNG"),
            outputs.kernel_image: lambda path: write_kernel_image(path, self.kernel),
            outputs.kernel_array: lambda path: write_kernel_array(path, self.kernel),
        }
        if (blurry := self.blurry) is not None:
            writers[outputs.preview] = lambda path: write_preview(path, blurry, self.restored, self.kernel)
        if error := self.history.get("error"):
            writers[outputs.trace] = lambda path: write_trace(path, error, "mean squared error of the re-blurred image")
        if (mean := self.posterior_mean) is not None:
            writers[outputs.posterior_mean] = lambda path: write_grey(path, mean)
        if (std := self.posterior_std) is not None:
            writers[outputs.uncertainty] = lambda path: write_grey(path, std / max(float(std.max()), 1e-6))
        paths = list(writers)
        with staged(paths, replace=True) as temporaries:
            for write, temporary in zip(writers.values(), temporaries, strict=True):
                write(temporary)
        return paths


def with_account(result: Result, fitted: FitResult) -> Result:
    """``result`` with what the deep prior's fit has to tell."""
    best = fitted.best
    curves = {"fit": fitted.losses[best], "error": fitted.errors[best]}
    taken = np.isfinite(curves["fit"])
    return dataclasses.replace(
        result,
        history={name: [float(value) for value in curve[taken]] for name, curve in curves.items()},
        posterior_mean=None if fitted.posterior_mean is None else fitted.posterior_mean[best],
        posterior_std=None if fitted.posterior_std is None else fitted.posterior_std[best],
        stop=fitted.statuses[best].stop,
    )
