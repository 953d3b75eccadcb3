"""The cases of a set on disk."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import imageio.v3 as iio
import numpy as np

from experiments.generalisation.scenes import INDEX
from jaxdeblur.errors import InputError
from jaxdeblur.imaging.kernel_files import read_kernel


@dataclasses.dataclass(frozen=True)
class Case:
    """A blurry image with its ground truth and kernel.

    Attributes:
      name: prefix of its files.
      split: ``tune`` or ``check``.
      category: of its scene.
      quick: whether it belongs to the quick subset.
      number: index among the images of its scene.
      folder: of its files.
      jpeg: quality it was compressed at, or None.
    """

    name: str
    split: str
    category: str
    quick: bool
    number: int
    folder: pathlib.Path
    jpeg: int | None

    def load(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Blurry image and ground truth, ``[H, W]`` float32 in [0, 1], and the kernel ``[h, w]``.

        Raises:
          InputError: a file is damaged or missing.
        """
        images = []
        for kind in ("blurry", "sharp"):
            path = self.folder / f"{self.name}_{kind}.png"
            try:
                images.append(np.asarray(iio.imread(path, plugin="pillow"), np.float32) / 255)
            except (OSError, ValueError):
                raise InputError(f"{path}: damaged or missing; make the set again") from None
        return images[0], images[1], read_kernel(self.folder / f"{self.name}_kernel.npy")


def read_cases(
    set_dir: pathlib.Path,
    splits: Sequence[str],
    *,
    quick: bool = False,
    only: Sequence[str] = (),
    limit: int | None = None,
) -> list[Case]:
    """The selected cases of a set.

    Args:
      set_dir: folder made by ``--make``.
      splits: ``tune``, ``check`` or both.
      quick: only the quick subset.
      only: categories or prefixes of case names; all if empty.
      limit: at most this many of each split: the first image of every scene, then the second, and so on.

    Raises:
      InputError: there is no set, or no case is selected.
    """
    try:
        entries = json.loads((set_dir / INDEX).read_text(encoding="utf-8"))["cases"]
    except (OSError, ValueError, KeyError):
        raise InputError(
            f"{set_dir}: no set there; make it: python -m experiments.generalisation --make --output_dir={set_dir}"
        ) from None
    seen: dict[str, int] = {}
    cases = []
    for entry in entries:
        number = seen[entry["scene"]] = seen.get(entry["scene"], -1) + 1
        case = Case(
            name=entry["name"],
            split=entry["split"],
            category=entry["category"],
            quick=entry["quick"],
            number=number,
            folder=set_dir / entry["split"],
            jpeg=entry["variation"]["jpeg"],
        )
        chosen = not only or any(case.category == word or case.name.startswith(word) for word in only)
        if case.split in splits and chosen and (case.quick or not quick):
            cases.append(case)
    selected = []
    for split in splits:
        half = sorted((case for case in cases if case.split == split), key=lambda case: case.number)
        selected += half[:limit]
    if not selected:
        raise InputError(f"{set_dir}: no case is selected; check --split, --quick and --only")
    return selected
