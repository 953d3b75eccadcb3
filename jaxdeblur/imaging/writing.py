"""Writing results as images.

Files are opened here and handed to imageio open, because in a path it gives "~" and ".zip" a meaning of its own.
"""

from __future__ import annotations

import pathlib
from typing import Any

import imageio.v3 as iio
import numpy as np
from imageio.plugins.tifffile_v3 import TifffilePlugin

from jaxdeblur.imaging import metadata
from jaxdeblur.imaging.stored_image import StoredImage


def write_image(path: pathlib.Path, image: StoredImage, restored: np.ndarray) -> None:
    """Writes ``restored``, shaped as ``image.pixels`` and in [0, 1], in the image's format, depth and range.

    Transparency, EXIF and ICC profile are the image's own.
    """
    samples = image.to_samples(restored)
    if image.alpha is not None:
        samples = np.dstack([samples, image.alpha])
    if image.format == "TIFF":
        _write_tiff(path, image, samples)
        return
    options: dict[str, Any] = {} if image.format == "BMP" else {"exif": image.exif, "icc_profile": image.icc or None}
    if image.format == "WEBP":
        options |= {"lossless": True, "exact": True}
    with path.open("wb") as file:
        iio.imwrite(file, samples, plugin="pillow", extension=image.suffix, is_batch=False, **options)


def write_jpeg(path: pathlib.Path, image: StoredImage, restored: np.ndarray, *, quality: int = 95) -> None:
    """Writes ``restored``, shaped as ``image.pixels`` and in [0, 1], as a JPEG of 8 bits with the image's EXIF and profile.

    For who would rather have their camera's format than one without loss. Transparency, which no JPEG holds, is left out.
    """
    levels = np.rint(np.clip(restored, 0.0, 1.0) * 255).astype(np.uint8)
    options: dict[str, Any] = {"exif": image.exif, "icc_profile": image.icc or None}
    with path.open("wb") as file:
        iio.imwrite(file, levels, plugin="pillow", extension=".jpg", is_batch=False, quality=quality, subsampling=0, **options)


def write_grey(path: pathlib.Path, pixels: np.ndarray) -> None:
    """Writes ``pixels [H, W]`` in [0, 1] as an 8-bit grey PNG."""
    write_levels(path, np.rint(np.clip(pixels, 0.0, 1.0) * 255).astype(np.uint8))


def write_levels(path: pathlib.Path, levels: np.ndarray) -> None:
    """Writes 8-bit grey ``levels [H, W]`` as a PNG."""
    with path.open("wb") as file:
        iio.imwrite(file, levels, plugin="pillow", extension=".png", is_batch=False)


def _write_tiff(path: pathlib.Path, image: StoredImage, samples: np.ndarray) -> None:
    alpha_kind = "assocalpha" if image.associated_alpha else "unassalpha"
    with path.open("wb") as file, iio.imopen(file, "w", plugin=TifffilePlugin, byteorder="<") as body:
        body.write(
            samples,
            photometric="rgb" if image.pixels.ndim == 3 else "minisblack",
            planarconfig="contig",
            extrasamples=[alpha_kind] if image.alpha is not None else None,
            compression="zlib",
            metadata=None,  # no description of our own
            software=False,
            iccprofile=image.icc or None,
            extratags=metadata.tiff_tags(image.exif) if image.exif else (),
            **(metadata.tiff_resolution(image.exif) if image.exif else {}),
        )
    if image.exif:
        metadata.append_tiff_directories(path, image.exif)
