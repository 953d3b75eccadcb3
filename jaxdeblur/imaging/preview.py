"""A small preview that tells how a run went: before, after and kernel side by side."""

from __future__ import annotations

import io
import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxdeblur.imaging.kernel_files import kernel_levels

_MAX_PANEL = 1024  # longest side of the before and after panels
_KERNEL_PANEL = 256  # the kernel is enlarged by a whole factor to about this, or to the image's height where that is less
_MOST_KERNELS = 8  # along a side of a grid that is shown
_GAP = 8
_LABEL_HEIGHT = 24
_FONT_SIZE = 14
_PAPER = (255, 255, 255)
_INK = (40, 40, 40)


def compose_preview(blurry: np.ndarray, restored: np.ndarray, kernel: np.ndarray) -> Image.Image:
    """Before, after and kernel side by side under small labels.

    Args:
      blurry: ``[H, W]`` or ``[H, W, 3]`` in [0, 1].
      restored: as ``blurry``.
      kernel: ``[h, w]``, non-negative; shown scaled to its maximum. ``[rows, columns, h, w]``: as a grid.
    """
    before, after = _panel(blurry), _panel(restored)
    panels = [
        ("before", before),
        ("after", after),
        (_kernel_label(kernel), _kernel_panel(kernel, before.height)),
    ]
    font = ImageFont.load_default(size=_FONT_SIZE)
    widths = [max(panel.width, int(font.getlength(label)) + 1) for label, panel in panels]
    height = max(panel.height for _, panel in panels)
    sheet = Image.new("RGB", (sum(widths) + _GAP * (len(panels) + 1), height + _LABEL_HEIGHT + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    left = _GAP
    for (label, panel), width in zip(panels, widths, strict=True):
        draw.text((left, _LABEL_HEIGHT // 2), label, fill=_INK, font=font, anchor="lm")
        sheet.paste(panel, (left, _LABEL_HEIGHT))
        left += width + _GAP
    return sheet


def write_preview(path: pathlib.Path, blurry: np.ndarray, restored: np.ndarray, kernel: np.ndarray, icc: bytes = b"") -> None:
    """Writes :func:`compose_preview` as a PNG, with the ICC profile of a colour image so that its colours look right."""
    profile = icc if icc and blurry.ndim == 3 else None
    compose_preview(blurry, restored, kernel).save(path, format="PNG", icc_profile=profile)


def jpeg_bytes(pixels: np.ndarray, *, longest_side: int | None = None, quality: int = 92, icc: bytes = b"") -> bytes:
    """A JPEG file for people to look at, with its colours not subsampled.

    Args:
      pixels: ``[H, W]`` or ``[H, W, 3]`` in [0, 1].
      longest_side: what is larger is reduced to this, in pixels; None for no limit.
      quality: of the JPEG, 1 to 95.
      icc: colour profile, or ``b""``.
    """
    content = io.BytesIO()
    image = to_image(pixels, longest_side)
    image.save(content, format="JPEG", quality=quality, subsampling=0, icc_profile=icc or None)
    return content.getvalue()


def png_bytes(pixels: np.ndarray, icc: bytes = b"") -> bytes:
    """A PNG file of 8 bits of ``pixels``, as of :func:`jpeg_bytes`."""
    content = io.BytesIO()
    to_image(pixels).save(content, format="PNG", icc_profile=icc or None)
    return content.getvalue()


def kernel_png_bytes(kernel: np.ndarray) -> bytes:
    """A PNG file of ``kernel [h, w]`` scaled to its maximum, one pixel for each of its own."""
    content = io.BytesIO()
    Image.fromarray(kernel_levels(kernel)).save(content, format="PNG")
    return content.getvalue()


def to_image(pixels: np.ndarray, longest_side: int | None = None) -> Image.Image:
    """``pixels [H, W]`` or ``[H, W, 3]`` in [0, 1] as an 8-bit image, reduced to ``longest_side`` where it is larger."""
    image = Image.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    if longest_side is not None:
        image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    return image


def _panel(pixels: np.ndarray) -> Image.Image:
    return to_image(pixels, _MAX_PANEL).convert("RGB")


def _kernel_label(kernel: np.ndarray) -> str:
    height, width = kernel.shape[-2:]
    return f"kernel {width} x {height}" if kernel.ndim == 2 else "{1} x {0} kernels".format(*kernel.shape[:2])


def _kernel_panel(kernel: np.ndarray, height: int) -> Image.Image:
    if kernel.ndim == 4:  # all of the grid, each kernel where it holds, at the image's own size
        step = -(-np.array(kernel.shape[:2]) // _MOST_KERNELS)
        kernel = kernel[step[0] // 2 :: step[0], step[1] // 2 :: step[1]]
        shown = Image.fromarray(kernel_levels(kernel)).convert("RGB")
        scale = min(height / shown.height, _MAX_PANEL / shown.width)
        size = (max(1, round(shown.width * scale)), max(1, round(shown.height * scale)))
        return shown.resize(size, Image.Resampling.BILINEAR)
    factor = max(1, min(_KERNEL_PANEL, height) // max(kernel.shape))
    levels = np.kron(kernel_levels(kernel), np.ones((factor, factor), np.uint8))
    image = Image.fromarray(levels).convert("RGB")
    image.thumbnail((_MAX_PANEL, _MAX_PANEL), Image.Resampling.NEAREST)
    return image
