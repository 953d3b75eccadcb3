"""Text rendered with the fonts that matplotlib ships: packages hold hardly any photographs of text."""

from __future__ import annotations

import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxdeblur.errors import InputError

# Supersampling: glyphs are drawn this much larger and averaged down, as a sensor integrates over its pixels.
_FINE = 4
_SIDE = 500
_PROSE = (
    "A photograph is the sum of all the light that reached it while the shutter was open. If the hand trembles "
    "meanwhile, every point of the scene draws the same short line, and the picture is the scene convolved with it. "
    "Neither is known: the line has to be read off the blur itself. Where an edge runs, the line shows across it; "
    "where nothing is to be seen, nothing can be learned. Letters are a gift in that respect, for they have edges "
    "in all directions, and paper and ink are nearly the only two values that occur. "
)
_CODE = """def convolve(image, kernel):
    rows, columns = image.shape
    h, w = kernel.shape
    out = np.zeros((rows - h + 1,
                    columns - w + 1))
    for i in range(h):
        for j in range(w):
            out += kernel[i, j] * image[
                h - 1 - i : rows - i,
                w - 1 - j : columns - j]
    return out

assert abs(kernel.sum() - 1) < 1e-6
shifts = [(0, 0), (0, 3), (7, -2)]
best = min(shifts, key=error)  # L2
print(f"{best}: {error(best):.4f}")
"""


def render_page(style: str) -> np.ndarray:
    """``[500, 500]`` float32 in [0, 1]; ``style`` is ``page``, ``sign``, ``code`` or ``news``.

    Raises:
      InputError: matplotlib is not installed.
    """
    paper, draw = {"page": (0.94, _page), "sign": (0.12, _sign), "code": (0.15, _code), "news": (0.85, _news)}[style]
    image = Image.new("L", (_SIDE * _FINE, _SIDE * _FINE), round(255 * paper))
    draw(ImageDraw.Draw(image))
    fine = np.asarray(image, np.float32) / 255
    return fine.reshape(_SIDE, _FINE, _SIDE, _FINE).mean((1, 3))


def _page(draw: ImageDraw.ImageDraw) -> None:
    _write(draw, _PROSE * 4, "DejaVuSerif", size=17, box=(14, 10, 486, 500), ink=25)


def _sign(draw: ImageDraw.ImageDraw) -> None:
    draw.rounded_rectangle([_FINE * value for value in (30, 40, 470, 300)], radius=24 * _FINE, fill=225)
    _write(draw, "Ferry 14:35", "DejaVuSans-Bold", size=58, box=(60, 60, 480, 150), ink=20)
    _write(draw, "Platform B  ·  stairs on the left side of the hall", "DejaVuSans", size=30, box=(60, 150, 450, 290), ink=60)
    _write(
        draw,
        "no bicycles, no dogs, no ice cream; mind the gap",
        "DejaVuSans-Oblique",
        size=22,
        box=(40, 320, 470, 500),
        ink=200,
    )
    _write(draw, "LINE 7", "DejaVuSans-Bold", size=70, box=(40, 385, 480, 500), ink=150)


def _code(draw: ImageDraw.ImageDraw) -> None:
    font = _font("DejaVuSansMono", 19)
    for number, line in enumerate((_CODE * 2).splitlines()):
        ink = (235, 190, 215)[number % 3]
        draw.text((14 * _FINE, (8 + 24 * number) * _FINE), line, fill=ink, font=font)


def _news(draw: ImageDraw.ImageDraw) -> None:
    _write(draw, "The Daily Convolution", "DejaVuSerif-Bold", size=38, box=(12, 8, 500, 60), ink=15)
    draw.line([_FINE * value for value in (10, 62, 490, 62)], fill=40, width=2 * _FINE)
    _write(draw, "Point of light found spread over city", "DejaVuSerif-Bold", size=20, box=(12, 70, 240, 130), ink=25)
    _write(draw, _PROSE * 3, "DejaVuSerif", size=11, box=(12, 130, 240, 500), ink=45)
    draw.rectangle([_FINE * value for value in (258, 72, 488, 210)], fill=120)
    _write(draw, "25%", "DejaVuSans-Bold", size=84, box=(270, 90, 490, 200), ink=250)
    _write(draw, _PROSE[109:] * 3, "DejaVuSans", size=13, box=(258, 220, 490, 500), ink=45)


def _write(
    draw: ImageDraw.ImageDraw, text: str, font_name: str, *, size: int, box: tuple[int, int, int, int], ink: int
) -> None:
    """Wraps text into the box (left, top, right, bottom) and drops what does not fit."""
    font = _font(font_name, size)
    left, top, right, bottom = (_FINE * value for value in box)
    line = ""
    for word in [*text.split(), None]:
        longer = f"{line} {word}".strip()
        if word is not None and draw.textlength(longer, font=font) <= right - left:
            line = longer
            continue
        if top + size * _FINE > bottom:
            return
        draw.text((left, top), line, fill=ink, font=font)
        top += round(1.3 * size * _FINE)
        line = word or ""


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    try:
        import matplotlib
    except ImportError:
        raise InputError("text is rendered with matplotlib's fonts: pip install matplotlib") from None
    path = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    # Without Raqm, so that the layout does not depend on whether it is installed.
    return ImageFont.truetype(path, size * _FINE, layout_engine=ImageFont.Layout.BASIC)
