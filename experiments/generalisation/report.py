"""Tables of results: per case, per category and per split."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.files import write_text
from experiments.generalisation.scenes import CATEGORIES, SPLITS
from jaxdeblur.errors import InputError


@dataclasses.dataclass(frozen=True)
class Row:
    """The figures of a case.

    Attributes:
      name: of the case.
      split: ``tune`` or ``check``.
      category: of its scene.
      input: aligned PSNR of the blurry image, in dB.
      result: aligned PSNR of the blind restoration.
      known: aligned PSNR of the restoration with the true kernel by the same last step.
      input_ssim: SSIM of the blurry image.
      ssim: SSIM of the blind restoration.
      known_ssim: SSIM of the restoration with the true kernel.
      seconds: of the blind restoration.
      kernel_similarity: of the estimated and the true kernel.
      warnings: number of warnings.
      regret: PSNR of the best candidate minus that of the chosen one, or None.
      candidates: as :func:`~experiments.generalisation.measure.measure` records them.
    """

    name: str
    split: str
    category: str
    input: float
    result: float
    known: float
    input_ssim: float
    ssim: float
    known_ssim: float
    seconds: float
    kernel_similarity: float
    warnings: int = 0
    regret: float | None = None
    candidates: Sequence[Mapping[str, Any]] = ()

    @property
    def gap(self) -> float:
        """PSNR lost against the true kernel, in dB."""
        return self.known - self.result

    def line(self) -> str:
        """The figures as one line of text."""
        marks = " BELOW INPUT" * (self.result < self.input) + " (warning)" * bool(self.warnings)
        regret = "" if self.regret is None else f", regret {self.regret:.2f}"
        return (
            f"{self.split:<5} {self.category:<8} {self.name:<22} input {self.input:5.2f} dB/{self.input_ssim:.3f}, "
            f"result {self.result:5.2f}/{self.ssim:.3f}, true kernel {self.known:5.2f}/{self.known_ssim:.3f}, "
            f"gap {self.gap:5.2f}{regret}, {self.seconds:.1f} s{marks}"
        )


def row(name: str, split: str, category: str, blind: Mapping[str, Any], known: Mapping[str, Any]) -> Row:
    """The figures from the records of a case's blind and known-kernel runs."""
    ours = {key: float(value) for key, value in blind["metrics"].items()}
    best = {key: float(value) for key, value in known["metrics"].items()}
    return Row(
        name=name,
        split=split,
        category=category,
        input=ours["input_psnr"],
        result=ours["psnr"],
        known=best["psnr"],
        input_ssim=ours["input_ssim"],
        ssim=ours["ssim"],
        known_ssim=best["ssim"],
        seconds=ours["seconds"],
        kernel_similarity=ours["kernel_similarity"],
        warnings=len(blind["warnings"]),
        regret=regret(blind["candidates"]),
        candidates=blind["candidates"],
    )


def regret(candidates: Iterable[Mapping[str, Any]]) -> float | None:
    """PSNR of the best candidate minus that of the chosen one, in dB; None unless all candidates were measured."""
    candidates = list(candidates)
    chosen = [candidate["psnr"] for candidate in candidates if candidate["chosen"]]
    if not chosen or any(candidate["psnr"] is None for candidate in candidates):
        return None
    return max(float(candidate["psnr"]) for candidate in candidates) - float(chosen[0])


def summary(rows: Sequence[Row]) -> list[str]:
    """A Markdown table: for each split a row per category and one in total."""
    with_regret = any(entry.regret is not None for entry in rows)
    head = ["split", "category", "cases", "input", "result", "true kernel", "mean gap", "9th decile", "largest gap", "case"]
    head += [
        "below input",
        "with warnings",
        *(["mean regret", "largest regret"] if with_regret else []),
        "SSIM",
        "SSIM, true kernel",
        "seconds",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for split in SPLITS:
        half = [entry for entry in rows if entry.split == split]
        groups = [(category, [entry for entry in half if entry.category == category]) for category in CATEGORIES]
        for label, group in (*groups, ("**all**", half)):
            if group:
                lines.append("| " + " | ".join([split, label, *_figures(group, with_regret)]) + " |")
    return lines


def _figures(group: Sequence[Row], with_regret: bool) -> list[str]:
    gaps = np.array([entry.gap for entry in group])
    regrets = [entry.regret for entry in group if entry.regret is not None]
    figures = [
        str(len(group)),
        *(f"{_mean([getattr(entry, which) for entry in group]):.2f}" for which in ("input", "result", "known")),
        f"{_mean(gaps):.2f}",
        f"{np.percentile(gaps, 90):.2f}",
        f"{gaps.max():.2f}",
        group[int(np.argmax(gaps))].name,
        str(sum(entry.result < entry.input for entry in group)),
        str(sum(entry.warnings > 0 for entry in group)),
    ]
    if with_regret:
        figures += [f"{_mean(regrets):.2f}", f"{max(regrets):.2f}"] if regrets else ["", ""]
    figures += [f"{_mean([getattr(entry, which) for entry in group]):.3f}" for which in ("ssim", "known_ssim")]
    return [*figures, f"{_mean([entry.seconds for entry in group]):.1f}"]


def comparison(rows: Sequence[Row], before: Mapping[str, float]) -> list[str]:
    """A Markdown table of the change in PSNR against an earlier run, over the cases that both contain."""
    lines = ["| split | category | cases | before | now | mean change | smallest | case | largest |", "|" + "---|" * 9]
    for split in SPLITS:
        half = [entry for entry in rows if entry.split == split and entry.name in before]
        groups = [(category, [entry for entry in half if entry.category == category]) for category in CATEGORIES]
        for label, group in (*groups, ("**all**", half)):
            if not group:
                continue
            old = [before[entry.name] for entry in group]
            changes = np.array([entry.result - value for entry, value in zip(group, old, strict=True)])
            cells = [split, label, str(len(group)), f"{_mean(old):.2f}", f"{_mean([entry.result for entry in group]):.2f}"]
            cells += [f"{changes.mean():+.2f}", f"{changes.min():+.2f}", group[int(np.argmin(changes))].name]
            lines.append("| " + " | ".join([*cells, f"{changes.max():+.2f}"]) + " |")
    return lines


def read_results(path: pathlib.Path) -> dict[str, float]:
    """PSNR of the blind restorations of an earlier run, by case name.

    Raises:
      InputError: the file was not written by :func:`write`.
    """
    try:
        return {entry["name"]: float(entry["result"]) for entry in json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, KeyError):
        raise InputError(f"{path}: not a results file; give the .json of an earlier run") from None


def write(stem: pathlib.Path, rows: Sequence[Row], tables: Sequence[str]) -> None:
    """Writes the rows as JSON, for ``--compare``, and the tables and rows as Markdown."""
    content = [dataclasses.asdict(entry) for entry in rows]
    write_text(stem.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
    lines = [*tables, "", "```", *(entry.line() for entry in rows), "```"]
    write_text(stem.with_suffix(".md"), "\n".join(lines) + "\n")


def _mean(values: Iterable[float]) -> float:
    """Mean of the finite values."""
    finite = [float(value) for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.inf
