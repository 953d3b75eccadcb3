"""The report: what is claimed and whether it holds, a table for each part, what has no result and why, and two figures."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.accelerator import plan
from experiments.accelerator.device import shortest_ms
from experiments.files import save_figure
from experiments.runner.store import Store
from jaxdeblur.errors import InputError

# How far an image's PSNR on the accelerator may be from the processor's, in dB, and the mean of all: sums are rounded in
# another order, and hundreds of iterations magnify that.
TOLERANCE_DB = 0.3
MEAN_TOLERANCE_DB = 0.1
_MOST_PICTURES = 12
_NOTHING = "–"


@dataclasses.dataclass(frozen=True)
class Results:
    """What is known so far.

    Attributes:
      about: the device and the kind of run.
      items: figures by part/item.
      without: why the others have none.
      sources: versions of the code that measured, each with the digest of its files.
    """

    about: Mapping[str, Any]
    items: Mapping[str, Mapping[str, Any]]
    without: Mapping[str, str]
    sources: Sequence[str] = ()

    def of(self, part: str) -> dict[str, Mapping[str, Any]]:
        """The figures of a part by item, in the order of the plan's items as far as they are known."""
        return {name.partition("/")[2]: figures for name, figures in self.items.items() if name.partition("/")[0] == part}

    def value(self, item: str, key: str) -> float | None:
        """One figure, or None."""
        found = self.items.get(item, {}).get(key)
        return None if found is None else float(found)


@dataclasses.dataclass(frozen=True)
class Claim:
    """Something that is said of an accelerator.

    Attributes:
      text: what is said.
      value: what was measured; None if it has not been.
      limit: the largest value with which it holds.
      unit: of both.
    """

    text: str
    value: float | None
    limit: float
    unit: str

    @property
    def holds(self) -> bool | None:
        """Whether it does; None if that is not known."""
        return None if self.value is None else self.value <= self.limit


def claims(results: Results) -> list[Claim]:
    """What is claimed, with what was measured."""

    def ratio(first: float | None, second: float | None) -> float | None:
        return None if first is None or not second else first / second

    def seconds(count: int) -> float | None:
        return results.value(f"restarts/selfdeblur_x{count}", "seconds")

    def step(part: str, item: str) -> float | None:
        return results.value(f"{part}/{item}", "step_ms")

    known = [item["ok"] for name, item in results.items.items() if name.startswith("numerics/") and "ok" in item]
    differences = [abs(row[3]) for row in _against_cpu(results)]
    dwdn, sparse = (results.value("training/compare", f"{name}_psnr") for name in ("dwdn", "sparse"))
    return [
        Claim("numerics: checks in full float32 that fail", float(known.count(False)) if known else None, 0, ""),
        Claim("5000 steps of selfdeblur at 255×255, once compiled", seconds(1), 20, " s"),
        Claim("eight restarts beside one, in time", ratio(seconds(8), seconds(1)), 2.5, " ×"),
        *(
            Claim(f"our step of {name} beside PyTorch's", ratio(step("steps", name), step("steps_torch", name)), 0.7, " ×")
            for name in plan.DEEP_PRIORS
        ),
        Claim("largest difference to the processor's result", max(differences, default=None), TOLERANCE_DB, " dB"),
        Claim(
            "mean of these differences",
            sum(differences) / len(differences) if differences else None,
            MEAN_TOLERANCE_DB,
            " dB",
        ),
        Claim("sparse prior ahead of the trained DWDN", None if dwdn is None or sparse is None else sparse - dwdn, 0, " dB"),
    ]


def _against_cpu(results: Results) -> list[tuple[str, float, float, float]]:
    """Item, PSNR on the accelerator, PSNR on the processor, difference in dB."""
    here, there = results.of("classical"), results.of("classical_cpu")
    return [
        (name, here[name]["psnr"], there[name]["psnr"], here[name]["psnr"] - there[name]["psnr"])
        for name in here
        if name in there
    ]


def markdown(results: Results, parts: Sequence[plan.Part]) -> str:
    """The report as Markdown."""
    about = results.about
    lines = [f"# The accelerator pack: {about.get('kind', 'unknown device')}", ""]
    lines.append(f"jax {about.get('jax')}, backend {about.get('backend')}, device memory {about.get('memory_mb')} MB.")
    if len(results.sources) > 1:
        lines += ["", f"Measured with more than one state of the code: {', '.join(results.sources)}."]
    if about.get("dry_run"):
        lines += ["", "**A dry run: everything is a toy on the processor, and no figure here means anything.**"]
    lines += ["", "![The main figures](report.png)", "", *_table(("claim", "measured", "limit", "holds"), _claim_rows(results))]
    sections = {
        "numerics": _numerics,
        "steps": _steps,
        "steps_large": _steps,
        "fits": _fits,
        "restarts": _fits,
        "precision": _fits,
        "weak": _fits,
        "classical": _classical,
        "training": _training,
    }
    for part in parts:
        if part.name in sections:
            body = sections[part.name](results, part.name)
            lines += ["", f"## {part.title}", "", *(body or ["Not measured."])]
    lines += ["", "## Without a result", ""]
    names = [f"{part.name}/{item.name}" for part, item in plan.named(parts)]
    missing = [(name, results.without.get(name, "not asked for")) for name in names if name not in results.items]
    lines += _table(("item", "why"), missing) if missing else ["Nothing: everything has been measured."]
    return "\n".join(lines) + "\n"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (heading, rule, *rows)]


def _number(value: Any, digits: int = 2) -> str:
    return _NOTHING if value is None else f"{value:.{digits}f}"


def _claim_rows(results: Results) -> list[tuple[str, ...]]:
    words = {True: "yes", False: "**no**", None: _NOTHING}
    return [
        (
            claim.text,
            _NOTHING if claim.value is None else f"{claim.value:.2f}{claim.unit}",
            f"{claim.limit:g}{claim.unit}",
            "not judged" if results.about.get("dry_run") else words[claim.holds],
        )
        for claim in claims(results)
    ]


def _numerics(results: Results, part: str) -> list[str]:
    lines: list[str] = []
    if card := results.items.get(f"{part}/card"):
        sheet = card["sheet"] or {}
        keys = (("bytes_per_s", 1e9, "GB/s"), ("float32", 1e12, "TFLOP/s"), ("tensorfloat32", 1e12, "TFLOP/s"))
        rows = [
            (
                f"{key} ({unit})",
                _number(card["measured"][key] / scale, 1),
                _number(None if sheet.get(key) is None else sheet[key] / scale, 1),
            )
            for key, scale, unit in (*keys, ("bfloat16", 1e12, "TFLOP/s"))
        ]
        lines += _table((f"limits of {card['kind']}", "measured", "data sheet"), rows)
    for name in ("operators", "generators", "gradients"):
        if found := results.items.get(f"{part}/{name}"):
            verdict = "within" if found["ok"] else "**beyond**"
            lines += ["", f"Relative errors, {name} ({verdict} the limits in full float32):", ""]
            lines += _table(("", "precision", "errors"), list(_error_rows(found["errors"])))
    return lines


def _error_rows(errors: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for first, inner in errors.items():
        if first in plan.PRECISIONS:
            yield "", first, ", ".join(f"{name} {value:.1e}" for name, value in inner.items())
        else:
            for second, values in inner.items():
                yield first, second, ", ".join(f"{name} {value:.1e}" for name, value in values.items())


def _steps(results: Results, part: str) -> list[str]:
    ours, theirs = results.of(part), results.of(f"{part}_torch")
    card = results.items.get("numerics/card", {})
    sheet, measured = card.get("sheet"), card.get("measured")
    rows = []
    for name in plan.DEEP_PRIORS:
        own, plain, compiled = ours.get(name, {}), theirs.get(name, {}), theirs.get(f"{name}_compiled", {})
        if not (own or plain or compiled):
            continue
        bounds = [
            shortest_ms(own, one["bytes_per_s"], one["tensorfloat32"]) if own and one else None for one in (sheet, measured)
        ]
        share = None if bounds[1] is None else 100 * bounds[1] / own["step_ms"]
        rows.append(
            (
                name,
                *(_number(side.get("step_ms")) for side in (own, plain, compiled)),
                *(_number(bound) for bound in bounds),
                _number(share, 0),
                *(_number(side.get("compile_s"), 1) for side in (own, compiled)),
                *(_number(side.get("peak_mb"), 0) for side in (own, plain, compiled)),
                _number(own.get("planned_mb"), 0),
                _number(None if own.get("flops") is None else own["flops"] / 1e9, 1),
                _number(None if own.get("bytes") is None else own["bytes"] / 1e9, 2),
            )
        )
    heading = (
        "preset",
        "ours, ms",
        "PyTorch",
        "torch.compile",
        "limit by data sheet, ms",
        "by measured limits",
        "% of that limit",
    )
    more = ("compiled in, s", "torch.compile, s", "peak MB, ours", "PyTorch", "torch.compile", "planned by XLA, MB")
    return _table((*heading, *more, "GFLOP a step", "GB a step"), rows) if rows else []


def _fits(results: Results, part: str) -> list[str]:
    rows = [
        (
            item,
            ", ".join(dict.fromkeys(str(row["name"]) for row in figures["images"])),
            str(figures["together"]),
            _number(_mean(figures["images"], "input_psnr")),
            ", ".join(_number(row["psnr"]) for row in figures["images"]),
            _number(figures["psnr"]),
            _number(figures["two_stage_psnr"]),
            _number(figures["seconds_per_image"], 1) + (" (rest of a fit that was cut)" if figures["resumed"] else ""),
            _number(figures["seconds"], 1),
            _number(figures["first_s"], 1),
            _number(figures["peak_mb"], 0),
        )
        for item, figures in results.of(part).items()
    ]
    heading = (
        "fit",
        "images",
        "in one program",
        "blurry, dB",
        "each, dB",
        "mean",
        "its kernel, sparse prior",
        "s per image",
        "s in all",
    )
    return _table((*heading, "compiling, s", "peak MB"), rows) if rows else []


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(float(row[key]) for row in rows) / len(rows)


def _classical(results: Results, part: str) -> list[str]:
    here, there = results.of(part), results.of(f"{part}_cpu")
    rows = []
    for name in dict.fromkeys((*here, *there)):
        one, other = here.get(name, {}), there.get(name, {})
        difference = one["psnr"] - other["psnr"] if one and other else None
        cells = (_number(side.get(key)) for key in ("psnr", "seconds", "first_s") for side in (one, other))
        twice = {True: "yes", False: "no", None: _NOTHING}[one.get("same_twice")]
        rows.append((name, _number((one or other)["input_psnr"]), *cells, _number(difference), twice))
    heading = (
        "image",
        "blurry, dB",
        "here, dB",
        "processor, dB",
        "here, s",
        "processor, s",
        "first time here, s",
        "processor, s",
    )
    note = f"Tolerance: {TOLERANCE_DB} dB for an image, {MEAN_TOLERANCE_DB} dB in the mean."
    return [*_table((*heading, "difference, dB", "same bytes twice"), rows), "", note] if rows else []


def _training(results: Results, part: str) -> list[str]:
    lines: list[str] = []
    if found := results.items.get(f"{part}/train"):
        lines.append(
            f"{found['steps']} steps of {found['batch_size']} crops of {found['crop']}×{found['crop']} in "
            f"{found['seconds']:.0f} s; {found['parameters']:,} parameters, {found['megabytes']:.1f} MB; trained on "
            f"{', '.join(found['trained_on'])}."
        )
    if found := results.items.get(f"{part}/compare"):
        rows = [
            (
                _number(row["noise_std"]),
                str(row["cases"]),
                *(_number(row[f"{key}_psnr"]) for key in ("input", "sparse", "dwdn")),
            )
            for row in (*found["by_noise"], {**found, "noise_std": None})
        ]
        lines += ["", *_table(("noise", "cases", "blurry, dB", "sparse prior", "DWDN"), rows)]
    return lines


def draw(results: Results, path: pathlib.Path) -> None:
    """Steps, quality, restarts and precisions as a PNG, as far as they are known."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.0, 8.0), layout="constrained")
    toy = ", A DRY RUN: TOYS" if results.about.get("dry_run") else ""
    figure.suptitle(f"{results.about.get('kind')}, jax {results.about.get('jax')}{toy}")
    steps, large, quality, restarts = figure.subplots(2, 2).ravel()
    for axis, part, title in ((steps, "steps", "255×255"), (large, "steps_large", "1024×768")):
        _draw_steps(axis, results, part)
        axis.set(title=f"a step at {title}", ylabel="ms")
    fits = results.of("fits")
    for place, (key, label) in enumerate((("psnr", "generator's image"), ("two_stage_psnr", "its kernel, sparse prior"))):
        quality.barh(
            [index + 0.4 * place for index in range(len(fits))], [item[key] for item in fits.values()], 0.4, label=label
        )
    quality.set_yticks(range(len(fits)), list(fits), fontsize="small")
    if fits:
        quality.set_xlim(left=min(item["psnr"] for item in fits.values()) - 3)
        quality.legend(fontsize="small")
    quality.set(title="fits at published settings", xlabel="mean PSNR (dB)")
    points = sorted((item["num_restarts"], item["seconds"], item["psnr"]) for item in results.of("restarts").values())
    if points:
        restarts.plot([count for count, *_ in points], [seconds for _, seconds, _ in points], "o-")
        for count, seconds, psnr in points:
            restarts.annotate(f"{psnr:.2f} dB", (count, seconds), textcoords="offset points", xytext=(4, -12), fontsize="small")
    restarts.set(title="restarts of one image in one program", xlabel="restarts", ylabel="seconds")
    save_figure(figure, path)


def _draw_steps(axis: Any, results: Results, part: str) -> None:
    ours, theirs = results.of(part), results.of(f"{part}_torch")
    sides = {
        "ours": [ours.get(name, {}).get("step_ms") for name in plan.DEEP_PRIORS],
        "PyTorch": [theirs.get(name, {}).get("step_ms") for name in plan.DEEP_PRIORS],
        "torch.compile": [theirs.get(f"{name}_compiled", {}).get("step_ms") for name in plan.DEEP_PRIORS],
    }
    for place, (label, values) in enumerate(sides.items()):
        places = [index + 0.27 * (place - 1) for index in range(len(values))]
        axis.bar(places, [value or 0.0 for value in values], 0.27, label=label)
    axis.set_xticks(range(len(plan.DEEP_PRIORS)), plan.DEEP_PRIORS)
    axis.legend(fontsize="small")
    axis.grid(axis="y", alpha=0.3)


def draw_images(store: Store, records: Mapping[str, Mapping[str, Any]], path: pathlib.Path) -> None:
    """The first restored image of each item as a PNG; those whose arrays are not at hand are left out."""
    from matplotlib.figure import Figure

    shown: list[tuple[str, np.ndarray, np.ndarray]] = []
    for name, record in records.items():
        restored = next((array for array in record.get("arrays", ()) if array.endswith("restored")), None)
        if restored is None or len(shown) == _MOST_PICTURES:
            continue
        with_kernel = restored.removesuffix("restored") + "kernel"
        try:
            shown.append((name, store.array(name, restored), store.array(name, with_kernel)))
        except InputError:
            continue
    if not shown:
        return
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, (name, image, kernel) in zip(axes, shown, strict=False):
        axis.imshow(image, cmap="gray", vmin=0.0, vmax=1.0)
        axis.set_title(name, fontsize="x-small")
        inset = axis.inset_axes((0.0, 0.0, 0.25, 0.25))
        inset.imshow(kernel, cmap="gray")
        inset.set(xticks=[], yticks=[])
    save_figure(figure, path)
