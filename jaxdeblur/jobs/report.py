"""The account of a run: a JSON file beside the results."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

# A list of numbers and nulls as json indents it. Strings cannot match: they hold no line breaks.
_NUMBERS = re.compile(r"\[\n\s+((?:[-+.\deE]+|null)(?:,\s+(?:[-+.\deE]+|null))*)\n\s+\]")


def to_json(value: Any) -> Any:
    """``value`` made of what JSON knows: dataclasses become objects, arrays lists, and what is not finite becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): to_json(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic):
        return to_json(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, pathlib.Path):
        return str(value)
    return value


def write_report(path: pathlib.Path, report: Mapping[str, Any]) -> None:
    """Writes ``report`` as indented JSON, each list of numbers on one line, ending in a newline."""
    text = json.dumps(to_json(report), indent=2, ensure_ascii=False, allow_nan=False)
    text = _NUMBERS.sub(lambda match: f"[{' '.join(match[1].split())}]", text)
    # File names may hold bytes that are no text; JSON writes them as Python does.
    path.write_bytes((text + "\n").encode("utf-8", "backslashreplace"))
