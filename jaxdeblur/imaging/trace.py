"""A figure of how a fit went: its curve over the steps, and where it ended early."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SIZE = (800, 400)
_LEFT, _TOP, _RIGHT, _BOTTOM = 90, 40, 780, 350
_PAPER = (255, 255, 255)
_INK = (40, 40, 40)
_GRID = (225, 225, 225)
_CURVE = (31, 90, 180)
_BEST = (20, 140, 60)
_STOP = (200, 40, 40)
_FONT_SIZE = 14


def write_trace(
    path: pathlib.Path, values: Sequence[float], label: str, *, best_step: int | None = None, stop_step: int | None = None
) -> None:
    """Writes the curve of ``values`` over the steps, on a logarithmic scale, as a PNG.

    Args:
      path: of the figure.
      values: one per step, positive; what is not finite is left out.
      label: what they are.
      best_step: whose iterate was kept; marked where given.
      stop_step: at which the fit ended early; marked where given.
    """
    curve = np.asarray(values, np.float64)
    steps = np.flatnonzero(np.isfinite(curve) & (curve > 0))
    heights = np.log10(curve[steps])
    low, high = (math.floor(heights.min()), math.ceil(heights.max())) if len(steps) else (-1, 0)
    high = max(high, low + 1)
    last = max(len(curve) - 1, 1)

    def place(step: float, height: float) -> tuple[float, float]:
        across = _LEFT + (_RIGHT - _LEFT) * step / last
        return across, _BOTTOM - (_BOTTOM - _TOP) * (height - low) / (high - low)

    sheet = Image.new("RGB", _SIZE, _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=_FONT_SIZE)
    draw.text((_LEFT, _TOP // 2), label, fill=_INK, font=font, anchor="lm")
    for power in range(low, high + 1):
        _, level = place(0, power)
        draw.line([(_LEFT, level), (_RIGHT, level)], fill=_GRID)
        draw.text((_LEFT - 8, level), f"1e{power}", fill=_INK, font=font, anchor="rm")
    for step in np.unique(np.linspace(0, last, 6).round().astype(int).tolist()):
        across, _ = place(step, low)
        draw.text((across, _BOTTOM + 14), str(step), fill=_INK, font=font, anchor="mm")
    draw.text(((_LEFT + _RIGHT) / 2, _BOTTOM + 34), "step", fill=_INK, font=font, anchor="mm")
    for step, colour, name, row in ((best_step, _BEST, "kept", 0), (stop_step, _STOP, "stopped", 1)):
        if step is not None:
            across, _ = place(step, low)
            draw.line([(across, _TOP), (across, _BOTTOM)], fill=colour)
            side = "rm" if across > (_LEFT + _RIGHT) / 2 else "lm"
            offset = -4 if side == "rm" else 4
            text = f"{name} at step {step}"
            draw.text((across + offset, _TOP + 10 + 18 * row), text, fill=colour, font=font, anchor=side)
    if len(steps) > 1:
        points = [place(step, height) for step, height in zip(steps.tolist(), heights.tolist(), strict=True)]
        draw.line(points, fill=_CURVE, width=2)
    draw.rectangle([(_LEFT, _TOP), (_RIGHT, _BOTTOM)], outline=_INK)
    sheet.save(path, format="PNG")
