"""Warnings of a run in plain words, each with what can be done about it at the press of a button."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_GROWTH = 1.5
_LARGEST_SHARE = 1 / 3


def advice(warnings: Sequence[str], kernel_size: int, size: tuple[int, int]) -> list[dict[str, Any]]:
    """What the page says and offers.

    Args:
      warnings: of a run.
      kernel_size: side of its kernel's support.
      size: (width, height) of the photograph.

    Returns:
      For each warning its ``text`` and, where something can be done, an ``action``, the ``label`` of its button and its
      ``value``: ``saturated`` (use that model), ``kernel_size`` (run again with this one), ``region`` (draw one).
    """
    return [_advice(warning, kernel_size, size) for warning in warnings]


def _advice(warning: str, kernel_size: int, size: tuple[int, int]) -> dict[str, Any]:
    if "saturated highlights" in warning:
        return {
            "text": "Bright lights are burnt out, and leave rings around them.",
            "action": "saturated",
            "label": "Use the model for burnt-out highlights",
        }
    if "border of its" in warning:
        larger = min(round(kernel_size * _GROWTH), int(min(size) * _LARGEST_SHARE)) | 1
        text = f"The blur kernel fills all of its {kernel_size} pixels; the shake may have been longer."
        if larger <= kernel_size:
            return {"text": text, "action": "region", "label": "Draw a region to estimate it from"}
        return {"text": text, "action": "kernel_size", "label": f"Try again with {larger} pixels", "value": larger}
    if "more edges" in warning:
        return {
            "text": "No kernel gives a plausible image, so the photograph was left as it is. There may be too few edges, or "
            "things that moved by themselves.",
            "action": "region",
            "label": "Draw a region with clear edges",
        }
    if "kernel may be wrong" in warning:
        return {
            "text": "Much of the result is far too bright or too dark: this kernel may be wrong.",
            "action": "region",
            "label": "Draw a region to estimate another from",
        }
    return {"text": warning[:1].upper() + warning[1:] + "."}
