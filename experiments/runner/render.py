"""Tables and figures of what was measured, ours beside what was published."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.files import save_figure, write_text
from experiments.runner.tables.entry import AVERAGE, HEADINGS, Entry, Metric, Row, format_metric
from jaxdeblur.errors import InputError
from jaxdeblur.evaluation import protocol

_NOTHING = "–"


@dataclasses.dataclass(frozen=True)
class Measured:
    """One run of one image, for tables.

    Attributes:
      label: of its row.
      preset: that was run.
      dataset: of the image.
      image: name of the blurry image.
      category: of the image, or empty.
      group: that it is averaged in, besides the average over all.
      seed: of the run.
      values: by name of the metric; empty if the run failed or is yet to come.
      state: ``done``, ``failed`` or ``missing``.
      remark: how the image was made, or the last error.
      curve: lists by name, or empty.
      array: reads an array of the result by name.
      array_names: those there are.
    """

    label: str
    preset: str
    dataset: str
    image: str
    category: str
    group: str
    seed: int
    values: Mapping[str, float]
    state: str
    remark: str
    curve: Mapping[str, list[float]]
    array: Callable[[str], np.ndarray]
    array_names: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that is told of an entry.

    Attributes:
      entry: what was asked for.
      runs: by the label of their row; rows that were not run are absent.
      not_run: why a row that has a preset was not run, by label.
      conditions: what was done otherwise than published, a sentence each.
    """

    entry: Entry
    runs: Mapping[str, Sequence[Measured]]
    not_run: Mapping[str, str]
    conditions: Sequence[str]

    def write(self, folder: pathlib.Path) -> None:
        """Writes ``images.csv``, ``table.md``, ``table.html`` and, for a figure, ``figure.png`` into ``folder``."""
        write_text(folder / "images.csv", self.csv())
        if self.entry.figure is not None:
            draw(self, folder / "figure.png")
        write_text(folder / "table.md", self.markdown())
        write_text(folder / "table.html", self.html())

    def csv(self) -> str:
        """One line for each run."""
        names = (
            "psnr",
            "ssim",
            "error_ratio",
            "norm_ratio",
            "kernel_similarity",
            "kernel_peak",
            "posterior_std",
            "steps",
            "seconds",
        )
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["row", "preset", "dataset", "image", "category", "seed", "state", *names, "remark"])
        for runs in self.runs.values():
            for run in runs:
                figures = [f"{run.values[name]:.6g}" if name in run.values else "" for name in names]
                fixed = [run.label, run.preset, run.dataset, run.image, run.category, run.seed, run.state]
                writer.writerow([*fixed, *figures, run.remark])
        return text.getvalue()

    def columns(self) -> list[str]:
        """The groups: the published ones, then those that only we have."""
        ours = [run.group for runs in self.runs.values() for run in runs]
        return list(dict.fromkeys([*self.entry.groups, *ours]))

    def mean(self, row: Row, group: str, metric: Metric) -> float | None:
        """Our mean over a group's images, or None if there is none."""
        runs = self.runs.get(row.label, ())
        values = [run.values[metric] for run in runs if metric in run.values and group in (run.group, AVERAGE)]
        return protocol.mean(values) if values else None

    def cells(self) -> list[list[str]]:
        """The table's text: a heading, then a line for each row. Published figures stand in brackets."""
        groups, metrics = self.columns(), self.entry.metrics
        if len(groups) == 1:
            heading = [HEADINGS[metric] for metric in metrics]
        else:
            together = "/".join(HEADINGS[metric] for metric in metrics)
            heading = [f"{group} {together}" for group in groups]
        lines = [["method", *heading, "images"]]
        for row in self.entry.rows:
            figures = [[self._cell(row, group, metric) for metric in metrics] for group in groups]
            merged = [_pair(pair) for pair in figures[0]] if len(groups) == 1 else [_merged(pairs) for pairs in figures]
            lines.append([row.label, *merged, self._images(row)])
        return lines

    def _cell(self, row: Row, group: str, metric: Metric) -> tuple[str, str]:
        published = self.entry.published(row)
        ours = self.mean(row, group, metric)
        theirs = ""
        if (group, metric) in published:
            value = published[group, metric]
            theirs = "not in the text" if value is None else format_metric(metric, value)
        return (_NOTHING if ours is None else format_metric(metric, ours)), theirs

    def _images(self, row: Row) -> str:
        if row.preset is None:
            return "published only"
        if row.label in self.not_run:
            return f"not run: {self.not_run[row.label]}"
        runs = self.runs[row.label]
        done = sum(run.state == "done" for run in runs)
        return str(done) if done == len(runs) else f"{done} of {len(runs)}"

    def notes(self) -> list[str]:
        """The sentences below the table."""
        lines = ["Ours, and in brackets the published figure, which is the paper's own and over all of its images."]
        return [*lines, *self.conditions, *([self.entry.note] if self.entry.note else [])]

    def markdown(self) -> str:
        """The table as Markdown."""
        heading, *lines = self.cells()
        rule = ["---", *["---:"] * (len(heading) - 2), "---"]
        table = "\n".join("| " + " | ".join(line) + " |" for line in (heading, rule, *lines))
        figure = f"\n![{self.entry.title}](figure.png)\n" if self.entry.figure else ""
        notes = "\n".join(f"- {note}" for note in self.notes())
        return f"# {self.entry.title}\n\n{self.entry.paper}; `{self.entry.name}`\n{figure}\n{table}\n\n{notes}\n"

    def html(self) -> str:
        """The table as a page that needs nothing but the figure beside it."""

        def line(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        heading, *lines = self.cells()
        body = "\n".join(line(cells, "td") for cells in lines)
        figure = '<p><img src="figure.png" alt=""></p>\n' if self.entry.figure else ""
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes())
        title = html.escape(self.entry.title)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n<style>{_STYLE}</style>'
            f"</head>\n<body>\n<h1>{title}</h1>\n<p>{html.escape(self.entry.paper)}</p>\n{figure}"
            f"<table>\n{line(heading, 'th')}\n{body}\n</table>\n<ul>{notes}</ul>\n</body></html>\n"
        )


_STYLE = (
    "body{font:15px/1.4 sans-serif;margin:2em auto;max-width:75em;padding:0 1em}table{border-collapse:collapse}"
    "th,td{padding:.3em .7em;border-bottom:1px solid #ccc;text-align:right}th:first-child,td:first-child{text-align:left}"
    "img{max-width:100%}"
)


def _pair(pair: tuple[str, str]) -> str:
    ours, theirs = pair
    return f"{ours} ({theirs})" if theirs else ours


def _merged(pairs: Sequence[tuple[str, str]]) -> str:
    """Several metrics in one cell: ``33.1/.93 (33.07/.931)``."""
    ours, theirs = ("/".join(part) for part in zip(*pairs, strict=True))
    if set(ours) <= set(f"{_NOTHING}/"):
        ours = _NOTHING
    known = {their for _, their in pairs}
    if known == {""}:
        return ours
    return f"{ours} ({known.pop() if len(known) == 1 else theirs})"


def require_matplotlib() -> None:
    """Raises InputError unless figures can be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise InputError("figures need matplotlib: install jaxdeblur's extra 'eval'") from None


def draw(report: Report, path: pathlib.Path) -> None:
    """Draws an entry's figure as a PNG, as far as there are results."""
    from matplotlib.figure import Figure

    kinds = {"curves": _draw_curves, "bars": _draw_bars, "images": _draw_images}
    figure = Figure(layout="constrained")
    figure.suptitle(report.entry.title)
    kinds[str(report.entry.figure)](figure, report)
    save_figure(figure, path)


def _done(report: Report) -> list[tuple[str, list[Measured]]]:
    found = [(label, [run for run in runs if run.state == "done"]) for label, runs in report.runs.items()]
    return [(label, runs) for label, runs in found if runs]


def _draw_curves(figure: Any, report: Report) -> None:
    """Loss and metrics over the steps, the mean over all runs of a row; below, what its first run's generators showed."""
    done = _done(report)
    names = [
        name for name in ("loss", "kernel_mse", "psnr", "ssim") if any(name in run.curve for _, runs in done for run in runs)
    ]
    strips = [(label, _snapshots(runs[0])) for label, runs in done]
    longest = max((len(strip) for _, strip in strips), default=0)
    figure.set_size_inches(5.0 * max(len(names), 1), 4.0 + (2.0 * len(strips) if longest else 0.0))
    if not names:
        return
    parts = figure.subfigures(2, 1, height_ratios=(4.0, 2.0 * len(strips))) if longest else [figure]
    axes = parts[0].subplots(1, len(names), squeeze=False)[0]
    titles = {"loss": "training loss", "kernel_mse": "squared error of the kernel", "psnr": "PSNR (dB)", "ssim": "SSIM"}
    for axis, name in zip(axes, names, strict=True):
        for label, runs in done:
            curves = [run.curve[name] for run in runs if run.curve.get(name)]
            if not curves:
                continue
            length = min(len(curve) for curve in curves)
            values = np.mean([curve[:length] for curve in curves], axis=0)
            last = float(runs[0].curve["step"][-1])
            steps = np.linspace(0.0, last, length) if name == "loss" else np.asarray(runs[0].curve["step"][:length])
            axis.plot(steps, values, label=label, linewidth=1.2)
        axis.set(title=titles[name], xlabel="step")
        if name in ("loss", "kernel_mse"):
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    if longest:
        grid = parts[1].subplots(len(strips), longest, squeeze=False)
        for line, (label, strip) in zip(grid, strips, strict=True):
            for axis in line:
                axis.axis("off")
            for axis, (step, image, kernel) in zip(line, strip, strict=False):
                _show(axis, image, f"{label}, step {step}", kernel)


def _snapshots(run: Measured) -> list[tuple[int, np.ndarray, np.ndarray]]:
    steps = sorted(int(name[4 : -len("_kernel")]) for name in run.array_names if name.startswith("step") and "kernel" in name)
    return [(step, run.array(f"step{step}_restored"), run.array(f"step{step}_kernel")) for step in steps]


def _draw_bars(figure: Any, report: Report) -> None:
    metric, groups = report.entry.metrics[0], [group for group in report.columns() if group != AVERAGE]
    figure.set_size_inches(1.5 + 1.3 * len(groups), 4.5)
    axis = figure.subplots()
    rows = [row for row in report.entry.rows if report.runs.get(row.label)]
    heights = [[report.mean(row, group, metric) for group in groups] for row in rows]
    for index, (row, values) in enumerate(zip(rows, heights, strict=True)):
        places = np.arange(len(groups)) + (index - (len(rows) - 1) / 2) * 0.8 / len(rows)
        axis.bar(places, [math.nan if value is None else value for value in values], 0.8 / len(rows), label=row.label)
    known = [value for values in heights for value in values if value is not None]
    if known:
        axis.set_ylim(min(known) - 2.0, max(known) + 1.0)
        axis.legend(fontsize="small")
    axis.set_xticks(np.arange(len(groups)), groups)
    axis.set_ylabel(HEADINGS[metric])


def _draw_images(figure: Any, report: Report) -> None:
    """The first run of each row: its image with the kernel in a corner, and the samples' deviation if there is one."""
    done = _done(report)
    spread = any("posterior_std" in run.array_names for _, runs in done for run in runs[:1])
    figure.set_size_inches(4.0 * max(len(done), 1), 8.0 if spread else 4.5)
    if not done:
        return
    grid = figure.subplots(2 if spread else 1, len(done), squeeze=False)
    for column, (label, runs) in zip(grid.T, done, strict=True):
        first = runs[0]
        _show(column[0], first.array("restored"), label, first.array("kernel"))
        if spread:
            shown = column[1].imshow(first.array("posterior_std"), cmap="magma")
            column[1].set_title("standard deviation", fontsize="small")
            column[1].axis("off")
            figure.colorbar(shown, ax=column[1], shrink=0.7)


def _show(axis: Any, image: np.ndarray, title: str, kernel: np.ndarray) -> None:
    axis.imshow(image, cmap="gray", vmin=0.0, vmax=1.0)
    axis.set_title(title, fontsize="small")
    axis.axis("off")
    inset = axis.inset_axes((0.0, 0.0, 0.25, 0.25))
    inset.imshow(kernel, cmap="gray")
    inset.set(xticks=[], yticks=[])
