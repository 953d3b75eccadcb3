"""What a published table or figure is made of, as data: an :class:`Entry`, its rows, and the figures that were printed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

from jaxdeblur.config import Final

AVERAGE = "average"
LAI_CATEGORIES = ("manmade", "natural", "people", "saturated", "text")
LEVIN_KERNELS = tuple(f"kernel {number}" for number in range(1, 9))
LEVIN_IMAGES = ("im1", "im2", "im3", "im4")

# The final image of a "two-stage" row on Lai et al.'s set, as its authors have it: another method where highlights are clipped.
LAI_FINAL: Mapping[str, Final] = {"saturated": "saturated", "": "hyper_laplacian"}

# Printed as a dash or N/A, and lost from the text that the figures were taken from.
NOT_GIVEN, NOT_IN_TEXT = "-", "?"

Metric = Literal["psnr", "ssim", "error_ratio", "seconds", "steps", "posterior_std", "kernel_peak"]
Group = Literal["all", "category", "kernel", "image", "dataset"]
Figure = Literal["curves", "bars", "images"]

HEADINGS: Mapping[Metric, str] = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "error_ratio": "error ratio",
    "seconds": "seconds",
    "steps": "steps",
    "posterior_std": "std. dev. of samples",
    "kernel_peak": "largest kernel pixel",
}
DECIMALS: Mapping[Metric, int] = {
    "psnr": 2,
    "ssim": 3,
    "error_ratio": 3,
    "seconds": 1,
    "steps": 0,
    "posterior_std": 4,
    "kernel_peak": 3,
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One method of a table.

    Attributes:
      label: as printed.
      published: the printed figures: groups parted by spaces, metrics within a group by slashes, in the entry's order of both;
        ``-`` where none was printed, ``?`` where it is lost from the text. Empty if the row is ours alone.
      preset: what is run, by name, or by name per dataset; None for other authors' methods, which are not run.
      known_kernel: whether the true kernel is given.
      final: "two-stage": the kernel found by the preset is handed to this non-blind method, or to one per category (the key
        ``""`` is for all others). None for the preset's own image.
      share_of_steps: the fit is stopped after this share of its steps, its schedules left as they are.
      num_posterior_samples: samples of the fitted generator to take mean and standard deviation of.
      trials: runs of each image, with seeds that follow one another.
    """

    label: str
    published: str = ""
    preset: str | Mapping[str, str] | None = None
    known_kernel: bool = False
    final: Final | Mapping[str, Final] | None = None
    share_of_steps: float = 1.0
    num_posterior_samples: int = 0
    trials: int = 1

    def preset_for(self, dataset: str) -> str | None:
        """The preset's name for a dataset."""
        if isinstance(self.preset, Mapping):
            return self.preset.get(dataset, self.preset.get(""))
        return self.preset

    def final_for(self, category: str) -> Final | None:
        """The non-blind method for a category of images."""
        if isinstance(self.final, Mapping):
            return self.final.get(category, self.final[""])
        return self.final


@dataclasses.dataclass(frozen=True)
class Entry:
    """A published table or figure.

    Attributes:
      name: what it is called on the command line.
      title: what it shows.
      paper: where it is printed.
      datasets: the sets it is about.
      rows: its methods.
      metrics: what is told of each.
      group: how images are put together for means.
      groups: names of these groups in the order of the printed figures.
      images: names of the blurry images it is about; empty for whole sets.
      figure: what is drawn, if it is a figure.
      note: what a reader should know, such as choices that the text leaves open.
    """

    name: str
    title: str
    paper: str
    datasets: tuple[str, ...]
    rows: tuple[Row, ...]
    metrics: tuple[Metric, ...] = ("psnr", "ssim")
    group: Group = "all"
    groups: tuple[str, ...] = (AVERAGE,)
    images: tuple[str, ...] = ()
    figure: Figure | None = None
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            self.published(row)  # a slip in the data shows at once

    def published(self, row: Row) -> dict[tuple[str, Metric], float | None]:
        """The printed figures of a row by group and metric; None for what is lost from the text, absent if never printed."""
        if not row.published:
            return {}
        parts = row.published.split()
        found: dict[tuple[str, Metric], float | None] = {}
        for group, part in zip(self.groups, parts, strict=True):
            for metric, text in zip(self.metrics, part.split("/"), strict=True):
                if text != NOT_GIVEN:
                    found[group, metric] = None if text == NOT_IN_TEXT else float(text)
        return found


def format_metric(metric: Metric, value: float) -> str:
    """``value`` with the digits that its metric is told with."""
    return f"{value:.{DECIMALS[metric]}f}" if math.isfinite(value) else "∞"
