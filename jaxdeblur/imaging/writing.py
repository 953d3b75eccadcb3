"""Writing results: whole files or none.

Files are opened here and handed to imageio open, because in a path it gives "~" and ".zip" a meaning of its own.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import imageio.v3 as iio
import numpy as np
from imageio.plugins.tifffile_v3 import TifffilePlugin

from jaxdeblur.imaging import metadata
from jaxdeblur.imaging.picture import Picture


@contextlib.contextmanager
def staged(paths: Sequence[pathlib.Path]) -> Iterator[list[pathlib.Path]]:
    """Lends temporary names beside ``paths``; on leaving, renames them into place, or removes them if anything failed.

    A reader of ``paths`` never sees half a file, and a failure in the last one leaves none of the others behind.

    Yields:
      One temporary path for each of ``paths``, in the same folder.
    """
    temporaries = [path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}") for path in paths]
    try:
        yield temporaries
        for temporary, path in zip(temporaries, paths, strict=True):
            temporary.replace(path)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def write_picture(path: pathlib.Path, picture: Picture, restored: np.ndarray) -> None:
    """Writes ``restored``, shaped as ``picture.pixels`` and in [0, 1], in the picture's format, depth and range.

    Transparency, EXIF and ICC profile are the picture's own.
    """
    samples = picture.to_samples(restored)
    if picture.alpha is not None:
        samples = np.dstack([samples, picture.alpha])
    if picture.format == "TIFF":
        _write_tiff(path, picture, samples)
        return
    options: dict[str, Any] = {} if picture.format == "BMP" else {"exif": picture.exif, "icc_profile": picture.icc or None}
    if picture.format == "WEBP":
        options |= {"lossless": True, "exact": True}
    with path.open("wb") as file:
        iio.imwrite(file, samples, plugin="pillow", extension=picture.suffix, is_batch=False, **options)


def write_grey(path: pathlib.Path, pixels: np.ndarray) -> None:
    """Writes ``pixels [H, W]`` in [0, 1] as an 8-bit grey PNG."""
    write_levels(path, np.rint(np.clip(pixels, 0.0, 1.0) * 255).astype(np.uint8))


def write_levels(path: pathlib.Path, levels: np.ndarray) -> None:
    """Writes 8-bit grey ``levels [H, W]`` as a PNG."""
    with path.open("wb") as file:
        iio.imwrite(file, levels, plugin="pillow", extension=".png", is_batch=False)


def _write_tiff(path: pathlib.Path, picture: Picture, samples: np.ndarray) -> None:
    alpha_kind = "assocalpha" if picture.associated_alpha else "unassalpha"
    with path.open("wb") as file, iio.imopen(file, "w", plugin=TifffilePlugin, byteorder="<") as body:
        body.write(
            samples,
            photometric="rgb" if picture.pixels.ndim == 3 else "minisblack",
            planarconfig="contig",
            extrasamples=[alpha_kind] if picture.alpha is not None else None,
            compression="zlib",
            metadata=None,  # no description of our own
            software=False,
            iccprofile=picture.icc or None,
            extratags=metadata.tiff_tags(picture.exif) if picture.exif else (),
            **(metadata.tiff_resolution(picture.exif) if picture.exif else {}),
        )
    if picture.exif:
        metadata.append_tiff_directories(path, picture.exif)
