"""An image as the pipeline sees it, with all that is needed to write it back as it came."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """An upright image.

    Attributes:
      pixels: ``[H, W]`` or ``[H, W, 3]``, float32 in [0, 1].
      alpha: ``[H, W]`` as stored, or None. It is not deblurred.
      associated_alpha: whether the colours were stored multiplied by alpha (only some TIFFs).
      dtype: the stored type of a sample: uint8, uint16 or a float type.
      black: the stored value that 0 stands for.
      white: the stored value that 1 stands for.
      format: the lossless format to write it in: ``PNG``, ``TIFF``, ``WEBP`` or ``BMP``.
      suffix: the file name's ending that goes with it, with its dot.
      exif: EXIF block to carry over, or ``b""``.
      icc: ICC profile to carry over, or ``b""``.
      lossy: whether the file was compressed with loss (JPEG).
      notes: what could not be kept, one line each.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    associated_alpha: bool
    dtype: np.dtype
    black: float
    white: float
    format: str
    suffix: str
    exif: bytes
    icc: bytes
    lossy: bool = False
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def to_samples(self, restored: np.ndarray) -> np.ndarray:
        """``restored``, shaped as :attr:`pixels` and clipped to [0, 1], in the stored type and range, without alpha."""
        samples = np.clip(restored, 0, 1).astype(np.float64) * (self.white - self.black) + self.black
        if self.dtype.kind == "u":
            samples = np.rint(samples)
        return samples.astype(self.dtype)


def to_pixels(samples: np.ndarray, black: float, white: float) -> np.ndarray:
    """Stored ``samples`` as float32, ``black`` becoming 0 and ``white`` 1."""
    return ((samples.astype(np.float64) - black) / (white - black)).astype(np.float32)
