"""EXIF that travels from a photograph to its deblurred version."""

from __future__ import annotations

import pathlib
import struct
from typing import Any

import numpy as np
import tifffile
from PIL import ExifTags, Image, TiffImagePlugin

ORIENTATION = int(ExifTags.Base.Orientation)
EXIF, GPS = int(ExifTags.IFD.Exif), int(ExifTags.IFD.GPSInfo)
_SUB_DIRECTORIES = (EXIF, GPS)
# What describes the photograph. Anything else in the first directory describes how the old file stored its pixels
# (strips, compression, sizes) and would be wrong in the new one.
_DESCRIPTIVE = {
    int(tag)
    for tag in (
        ExifTags.Base.ImageDescription,
        ExifTags.Base.Make,
        ExifTags.Base.Model,
        ExifTags.Base.XResolution,
        ExifTags.Base.YResolution,
        ExifTags.Base.ResolutionUnit,
        ExifTags.Base.Software,
        ExifTags.Base.DateTime,
        ExifTags.Base.Artist,
        ExifTags.Base.HostComputer,
        ExifTags.Base.Rating,
        ExifTags.Base.RatingPercent,
        ExifTags.Base.Copyright,
        ExifTags.Base.XPTitle,
        ExifTags.Base.XPComment,
        ExifTags.Base.XPAuthor,
        ExifTags.Base.XPKeywords,
        ExifTags.Base.XPSubject,
    )
}
_TIFF_BYTE, _TIFF_ASCII, _TIFF_SHORT, _TIFF_LONG = 1, 2, 3, 4
# tifffile drops pointers to EXIF and GPS directories, so it is given the next tag number, unassigned, in their place: the
# table stays sorted when the number is put right.
_PLACEHOLDER = 1


def valid_orientation(value: object) -> int:
    """The value of an EXIF orientation tag, 1 to 8; 1 (upright) where it is absent or nonsense."""
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns and mirrors ``pixels [H, W, ...]`` as EXIF ``orientation`` (1 to 8) says, so that they stand upright."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def carried_exif(exif: Image.Exif, size: tuple[int, int]) -> bytes:
    """The EXIF block for the deblurred image: descriptive tags, camera and GPS data, orientation 1.

    Left out are the thumbnail, which would show the blurry image, and the maker's note, whose inner offsets hold only in
    the original file.

    Args:
      exif: as read from the input.
      size: (width, height) of the upright image.

    Returns:
      The block as Pillow's writers take it, or ``b""`` if there is nothing to carry.

    Raises:
      Exception: of many kinds, from Pillow, when the block is malformed.
    """
    carried = Image.Exif()
    for tag in _DESCRIPTIVE & set(exif):
        carried[tag] = exif[tag]
    for directory in _SUB_DIRECTORIES:
        entries = {tag: value for tag, value in exif.get_ifd(directory).items() if tag != ExifTags.IFD.MakerNote}
        entries.pop(ExifTags.IFD.Interop, None)
        for tag, length in zip((ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight), size, strict=True):
            if tag in entries:
                entries[int(tag)] = length
        if entries:
            carried[directory] = entries
    if not len(carried):
        return b""
    carried[ORIENTATION] = 1
    return carried.tobytes()


def tiff_tags(exif: bytes) -> list[tuple[int, int, int | None, Any, bool]]:
    """The first directory of an EXIF block as tifffile's ``extratags``, with placeholders for the inner directories."""
    tags: list[tuple[int, int, int | None, Any, bool]] = []
    for tag, value in _parse(exif).items():
        if tag in _SUB_DIRECTORIES:
            tags.append((tag + _PLACEHOLDER, _TIFF_LONG, 1, 0, True))
        elif isinstance(value, str):
            text = value.encode() + b"\0"
            tags.append((tag, _TIFF_ASCII, len(text), text, True))
        elif isinstance(value, bytes):
            tags.append((tag, _TIFF_BYTE, len(value), value, True))
        elif isinstance(value, int) and tag != ExifTags.Base.ResolutionUnit:
            tags.append((tag, _TIFF_SHORT, 1, value, True))
    return tags


def tiff_resolution(exif: bytes) -> dict[str, Any]:
    """The resolution in an EXIF block as arguments of tifffile's writer (empty where none is given)."""
    parsed = _parse(exif)
    across, down = parsed.get(ExifTags.Base.XResolution), parsed.get(ExifTags.Base.YResolution)
    if not across or not down:
        return {}
    return {
        "resolution": (float(across), float(down)),
        "resolutionunit": int(parsed.get(ExifTags.Base.ResolutionUnit, 2)),
    }


def append_tiff_directories(path: pathlib.Path, exif: bytes) -> None:
    """Puts the camera and GPS directories of an EXIF block at the end of a little-endian TIFF and points its tags there.

    Neither Pillow (with compression) nor tifffile writes these directories. The first page must hold the placeholders that
    :func:`tiff_tags` made: each becomes the pointer to the directory appended for it.
    """
    parsed = _parse(exif)
    for directory in _SUB_DIRECTORIES:
        entries = parsed.get_ifd(directory)
        if not entries:
            continue
        table = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
        for tag, value in entries.items():
            table[tag] = value
        with tifffile.TiffFile(path) as tiff:
            placeholder = tiff.pages.first.tags[directory + _PLACEHOLDER]
        with path.open("r+b") as file:
            end = file.seek(0, 2)
            end += file.write(b"\0" * (end % 2))  # directories start at even offsets
            file.write(table.tobytes(end))
            file.seek(placeholder.offset)
            file.write(struct.pack("<HHII", directory, _TIFF_LONG, 1, end))


def _parse(exif: bytes) -> Image.Exif:
    parsed = Image.Exif()
    parsed.load(exif)
    return parsed
