"""Reading an image without losing bit depth, transparency, orientation or metadata unsaid.

Pixels are decoded by imageio: 8-bit images by its Pillow plugin, TIFFs of 16 bits or floats by its tifffile plugin, because
Pillow cuts 16-bit colour to 8 bits without a word; for the same reason 16-bit colour PNGs are refused. What has to be known
before that is asked of the two libraries themselves, for imageio does not tell: the file's format (and it would open any that
Pillow knows), how many images are in it, what transparency and the samples of a TIFF mean, and the EXIF block as a whole.
"""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
import warnings
from collections.abc import Iterator

import imageio.v3 as iio
import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from jaxdeblur.errors import InputError, describe
from jaxdeblur.imaging import metadata
from jaxdeblur.imaging.stored_image import StoredImage, to_pixels
from jaxdeblur.imaging.untrusted import BoundedFile, decoding

# The default limit. While it is decoded, an 8-bit colour image takes 43 bytes a pixel, a TIFF of doubles with alpha 68.
MAX_MEGAPIXELS = 200.0
READABLE = "PNG, JPEG, TIFF, WebP or BMP"
# Other formats that Pillow knows are left out because some of them would lose bit depth unnoticed.
_PILLOW_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")
_SUFFIXES = {"PNG": (".png",), "TIFF": (".tif", ".tiff"), "WEBP": (".webp",), "BMP": (".bmp",)}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_GREY = 0
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF_PHOTOMETRICS = {0: "white is zero", 1: "grey", 2: "RGB"}
# A float image whose brightest value is below this is in another unit, not merely dark.
_DARKEST_WHITE = 0.05
# Deflate packs at most 1032 grey pixels into a byte. Some formats pack more of a blank page, where there is nothing to deblur.
_MOST_PIXELS_PER_BYTE = 2000


def read_image(path: pathlib.Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> StoredImage:
    """Reads a PNG, JPEG, TIFF, WebP or BMP of 8 bits, a grey PNG or any TIFF of 16 bits, or a float TIFF.

    Float values in [0, 1] are taken as they are; others are scaled by their extremes, and back again when written.

    Args:
      path: of the file.
      max_megapixels: the largest image that is decoded, in millions of pixels, above 0. The header is asked, before memory is
        taken.

    Raises:
      InputError: the file is missing, empty, damaged, not an image, too large, or could not be written back without loss.
    """
    again = "fetch or export it again"
    with decoding(path, "an image", damaged="damaged or cut short", remedy=again) as size, _pillow_limit(max_megapixels):
        if not size:
            raise InputError(f"{path}: the file is empty; {again}")
        with BoundedFile(path) as file:
            head = file.read(32)
        try:
            if head[:4] in _TIFF_SIGNATURES:
                with _libtiff_silenced():
                    return _read_deep_tiff(path, size, max_megapixels) or _read_with_pillow(path, head, size, max_megapixels)
            return _read_with_pillow(path, head, size, max_megapixels)
        except UnidentifiedImageError:
            raise InputError(f"{path}: not an image that can be read; give a {READABLE} file") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise _too_large(path, max_megapixels) from None


def require_plausible(path: pathlib.Path, pixels: int, size: int, max_megapixels: float) -> None:
    """Checks what a header promises before memory is taken for it.

    Args:
      path: of the file.
      pixels: that the header promises.
      size: of the file in bytes.
      max_megapixels: see :func:`read_image`.

    Raises:
      ValueError: there are none, or no file of this size holds so many.
      InputError: there are more than ``max_megapixels``.
    """
    if pixels < 1:
        raise ValueError("its header promises no pixels")
    if pixels > size * _MOST_PIXELS_PER_BYTE:
        raise ValueError(f"its header promises {pixels} pixels, far more than its {size} bytes can hold")
    if pixels > max_megapixels * 1e6:
        raise _too_large(path, max_megapixels)


def _too_large(path: pathlib.Path, max_megapixels: float) -> InputError:
    return InputError(
        f"{path}: has more than {max_megapixels:g} megapixels, the most that is read; "
        "crop or shrink it, or raise --max_megapixels if you trust the file and have the memory"
    )


@contextlib.contextmanager
def _pillow_limit(max_megapixels: float) -> Iterator[None]:
    """Sets Pillow's own limit, which holds wherever Pillow opens an image, to ours."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = int(max_megapixels * 1e6)
    warnings.simplefilter("error", Image.DecompressionBombWarning)  # `decoding` restores the filters
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@contextlib.contextmanager
def _libtiff_silenced() -> Iterator[None]:
    """Keeps libtiff, which Pillow uses, from writing to the terminal: it knows nothing of Python's streams."""
    try:
        kept = os.dup(2)
    except OSError:  # a process without a terminal
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _read_with_pillow(path: pathlib.Path, head: bytes, size: int, max_megapixels: float) -> StoredImage:
    deep = head[:8] == _PNG_SIGNATURE and head[12:16] == b"IHDR" and head[24] == 16
    if deep and head[25] != _PNG_GREY:
        raise _deep_png_error(path)
    # Open files, not paths: in a path imageio gives "~" and ".zip" a meaning of its own, and Pillow maps uncompressed TIFFs
    # into memory and then scrambles those that EXIF turns by 90°.
    with BoundedFile(path) as file, Image.open(file, formats=_PILLOW_FORMATS) as header:
        require_plausible(path, header.width * header.height, size, max_megapixels)
        _require_single_frame(path, header)
        source_format = header.format or ""
        if deep and "transparency" in header.info:
            raise _deep_png_error(path)
        mode = None if deep else _plain_mode(path, header)
        with BoundedFile(path) as again, iio.imopen(again, "r", plugin="pillow") as body:
            samples = body.read(index=0, mode=mode)
            # Asked of the decoded image: Pillow turns TIFFs upright by itself and then drops the tag.
            orientation = body.metadata(index=0, exclude_applied=False).get("Orientation")
        samples = metadata.turn_upright(samples, metadata.valid_orientation(orientation))
        # While the file is open: inner directories are read only when they are asked for.
        block, notes = _carry(header.getexif(), (samples.shape[1], samples.shape[0]))
        icc = header.info.get("icc_profile") or b""
    samples, alpha = _split_alpha(samples)
    white = float(np.iinfo(samples.dtype).max)
    target = source_format if source_format in _SUFFIXES else "PNG"
    if target == "BMP" and alpha is not None:
        target = "PNG"  # few programs read transparency in a BMP
    return StoredImage(
        pixels=to_pixels(samples, 0.0, white),
        alpha=alpha,
        associated_alpha=False,
        dtype=samples.dtype,
        black=0.0,
        white=white,
        format=target,
        lossy=source_format in ("JPEG", "MPO"),
        suffix=_suffix(path, target),
        exif=block,
        icc=icc,
        notes=notes,
    )


def _deep_png_error(path: pathlib.Path) -> InputError:
    return InputError(
        f"{path}: a 16-bit PNG with colour or transparency would be cut to 8 bits; convert it to a 16-bit TIFF or an 8-bit PNG"
    )


def _require_single_frame(path: pathlib.Path, image: Image.Image) -> None:
    # MPO is a JPEG that carries further images behind the main one, as phones write it.
    if image.format != "MPO" and getattr(image, "is_animated", False) and not _is_tiff_with_previews(path, image):
        frames = getattr(image, "n_frames", 1)
        raise InputError(f"{path}: holds {frames} images; extract the one to deblur into a file of its own")


def _is_tiff_with_previews(path: pathlib.Path, image: Image.Image) -> bool:
    if image.format != "TIFF":
        return False
    with BoundedFile(path) as file, tifffile.TiffFile(file) as tiff:
        return _full_pages(tiff) == 1


def _full_pages(tiff: tifffile.TiffFile) -> int:
    """How many pages are images in their own right, not reduced copies of another."""
    return sum(not (isinstance(page, tifffile.TiffPage) and page.is_reduced) for page in tiff.pages)


def _plain_mode(path: pathlib.Path, image: Image.Image) -> str:
    """The 8-bit mode to read ``image`` in: L, LA, RGB or RGBA."""
    if image.mode in ("RGBa", "PA", "La"):
        return "RGBA"
    if image.mode in ("P", "RGB"):
        return "RGBA" if image.has_transparency_data else "RGB"
    if image.mode in ("1", "L"):
        return "LA" if image.has_transparency_data else "L"
    if image.mode in ("LA", "RGBA"):
        return image.mode
    raise InputError(f"{path}: colours are stored as {image.mode}, which is not supported; convert it to RGB or grey")


def _read_deep_tiff(path: pathlib.Path, size: int, max_megapixels: float) -> StoredImage | None:
    """Reads a TIFF of 16-bit or float samples; None if it is of 8 bits or fewer, which Pillow reads."""
    with BoundedFile(path) as file, tifffile.TiffFile(file) as tiff:
        page = tiff.pages.first
        # A tile is decoded as a whole, even where it is larger than the image.
        require_plausible(path, page.imagewidth * page.imagelength, size, max_megapixels)
        if page.is_tiled:
            require_plausible(path, page.tilewidth * page.tilelength * page.tiledepth, size, max_megapixels)
        kind = np.dtype(page.dtype).kind if page.dtype is not None else ""
        if kind in "ub" and page.bitspersample <= 8:
            return None
        if _full_pages(tiff) > 1:
            raise InputError(f"{path}: holds {_full_pages(tiff)} pages; extract the one to deblur into a file of its own")
        if not (kind == "f" or (kind == "u" and page.bitspersample == 16)):
            raise InputError(
                f"{path}: {page.bitspersample}-bit samples are not supported; convert it to 8 or 16 bits, or float"
            )
        if page.photometric not in _TIFF_PHOTOMETRICS:
            raise InputError(f"{path}: colours of kind {page.photometric} are not supported; convert it to RGB or grey")
        axes, shape, extras = page.axes, page.shape, page.extrasamples
        channels = 1 if axes == "YX" else shape[axes.index("S")] if axes in ("YXS", "SYX") else 0
        if channels - len(extras) not in (1, 3) or len(extras) > 1:
            raise InputError(f"{path}: a TIFF of shape {shape} is not a grey or RGB image; convert it to one")
        if len(page.dataoffsets) < math.prod(page.chunked):  # tifffile would fill the gaps with black
            raise ValueError(
                f"it holds {len(page.dataoffsets)} of the {math.prod(page.chunked)} parts that its header promises"
            )
        try:
            with BoundedFile(path) as again, iio.imopen(again, "r", plugin="tifffile") as body:
                samples = body.read(index=..., page=0)
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            compression = getattr(page.compression, "name", page.compression)
            raise InputError(
                f"{path}: {compression} compression is not supported at this bit depth; "
                "save it with deflate or no compression, or run pip install imagecodecs"
            ) from None
        inverted = page.photometric == 0
        icc = bytes(page.iccprofile or b"")
        exif = _tiff_exif(path, tiff)
    if axes == "SYX":
        samples = np.moveaxis(samples, 0, -1)
    if samples.dtype.kind == "f" and not np.isfinite(samples).all():
        bad = int(samples.size - np.isfinite(samples).sum())
        raise InputError(f"{path}: {bad} samples are NaN or infinite; replace them before deblurring")
    samples = metadata.turn_upright(samples, metadata.valid_orientation(exif.get(metadata.ORIENTATION)))
    samples, alpha = _split_alpha(samples)
    if samples.dtype.kind == "f":
        black, white = _float_range(samples)
        if not math.isfinite(white - black):
            raise InputError(f"{path}: values from {black:g} to {white:g} are too far apart; scale them to [0, 1]")
    else:
        black, white = 0.0, float(np.iinfo(samples.dtype).max)
    if inverted:
        samples = (white + black - samples).astype(samples.dtype)
    width, height = samples.shape[1], samples.shape[0]
    block, notes = _carry(exif, (width, height))
    return StoredImage(
        pixels=to_pixels(samples, black, white),
        alpha=alpha,
        associated_alpha=bool(extras) and int(extras[0]) == 1,
        dtype=samples.dtype.newbyteorder("="),
        black=black,
        white=white,
        format="TIFF",
        suffix=_suffix(path, "TIFF"),
        exif=block,
        icc=icc,
        notes=notes,
    )


def _tiff_exif(path: pathlib.Path, tiff: tifffile.TiffFile) -> Image.Exif:
    # Pillow cannot open every float TIFF, but its EXIF reader can be pointed at the first directory.
    exif = Image.Exif()
    exif.endian, exif.bigtiff = tiff.byteorder, tiff.is_bigtiff
    with BoundedFile(path) as file:
        exif.load_from_fp(file, tiff.pages.first.offset)
        for directory in (metadata.EXIF, metadata.GPS):
            exif.get_ifd(directory)  # read while the file is open
    return exif


def _float_range(samples: np.ndarray) -> tuple[float, float]:
    low, high = float(samples.min()), float(samples.max())
    black = min(low, 0.0)
    white = high if high > 1 or black < high < _DARKEST_WHITE else 1.0
    return black, white


def _split_alpha(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """``samples [H, W]`` or ``[H, W, 1 to 4]`` as (``[H, W]`` or ``[H, W, 3]``, alpha ``[H, W]`` or None)."""
    if samples.ndim == 2:
        return samples, None
    channels = samples.shape[-1]
    colours = samples[..., :3] if channels >= 3 else samples[..., 0]
    return colours, samples[..., -1] if channels in (2, 4) else None


def _carry(exif: Image.Exif, size: tuple[int, int]) -> tuple[bytes, tuple[str, ...]]:
    try:
        return metadata.carried_exif(exif, size), ()
    except Exception as error:  # a malformed block must not stand between the user and the image
        return b"", (f"the EXIF block is malformed and was not carried over ({describe(error, 120)})",)


def _suffix(path: pathlib.Path, target: str) -> str:
    own = path.suffix.lower()
    return own if own in _SUFFIXES[target] else _SUFFIXES[target][0]
