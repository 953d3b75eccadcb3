"""The account of a run as a page that holds everything in itself: images, kernels, curves, settings."""

from __future__ import annotations

import base64
import html
import importlib.resources
import json
import math
import pathlib
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxdeblur.imaging.preview import jpeg_bytes, kernel_png_bytes
from jaxdeblur.jobs.report import to_json

# A page of a photograph of any size stays far below three megabytes, as it is sent by mail.
_LONGEST_SIDE = 1600
_KERNEL_SIDE = 180
_CURVE_POINTS = 500
_OPENING, _CLOSING = '<script type="application/json" id="jaxdeblur-report">', "</script>"


def write_html_report(
    path: pathlib.Path,
    report: Mapping[str, Any],
    *,
    blurry: np.ndarray,
    restored: np.ndarray,
    kernels: Mapping[str, np.ndarray],
    icc: bytes = b"",
    run_file: str,
) -> None:
    """Writes the page of a run.

    Args:
      path: of the page.
      report: what :func:`~jaxdeblur.jobs.report.write_report` would write; it lies in the page too, see :func:`json_within`.
      blurry: ``[H, W]`` or ``[H, W, 3]`` in [0, 1].
      restored: as ``blurry``.
      kernels: ``[h, w]`` by their candidate's name.
      icc: colour profile of the image.
      run_file: name of the file by which ``--config`` repeats the run.
    """
    plain = to_json(report)
    height, width = blurry.shape[:2]
    factor = min(1.0, _LONGEST_SIDE / max(height, width))
    profile = icc if blurry.ndim == 3 else b""
    seconds = {name: value for name, value in plain["seconds"].items() if value is not None}
    settings = json.dumps({name: value for name, value in plain.items() if name != "losses"}, indent=2, ensure_ascii=False)
    fields = {
        "version": plain["version"],
        "name": plain["input"]["file"],
        "summary": _summary(plain, (width, height)),
        "size": f"{width}×{height}",
        "shown": f"{round(factor * width)}×{round(factor * height)}",
        "command": f"python -m jaxdeblur.main --config={run_file} --output_dir=again",
        "settings": settings,
    }
    markup = {
        "warnings": _list(plain["warnings"]),
        "before": data_uri(jpeg_bytes(blurry, longest_side=_LONGEST_SIDE, quality=85, icc=profile), "jpeg"),
        "after": data_uri(jpeg_bytes(restored, longest_side=_LONGEST_SIDE, quality=85, icc=profile), "jpeg"),
        "candidates": "".join(_candidate(one, kernels.get(one["name"])) for one in plain["candidates"]),
        "metrics": _metrics(plain["metrics"]),
        "losses": _curves(plain["losses"]),
        "seconds": _bars(seconds),
        # No markup within a script ends it but this.
        "json": json.dumps(plain, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
    }
    write_page(path, "report.html", fields, markup)


def write_page(path: pathlib.Path, template: str, texts: Mapping[str, str], markup: Mapping[str, str]) -> None:
    """Fills a template of ``jaxdeblur/jobs/templates``: ``texts`` are escaped, ``markup`` goes in as it is.

    What all pages share, such as their colours, is ``head.html``, which goes in for ``$head``.
    """
    values = {name: html.escape(text) for name, text in texts.items()} | dict(markup)
    values["head"] = _template("head.html").substitute({"version": values["version"]})
    path.write_bytes(_template(template).substitute(values).encode("utf-8", "backslashreplace"))


def _template(name: str) -> string.Template:
    folder = importlib.resources.files("jaxdeblur.jobs").joinpath("templates")
    return string.Template(folder.joinpath(name).read_text(encoding="utf-8"))


def json_within(text: str) -> str:
    """The JSON report that a page of :func:`write_html_report` holds.

    Raises:
      ValueError: there is none.
    """
    _, opening, rest = text.partition(_OPENING)
    found, closing, _ = rest.partition(_CLOSING)
    if not (opening and closing):
        raise ValueError("it holds no report")
    return found


def data_uri(content: bytes, kind: str) -> str:
    """An image file of MIME type ``image/kind`` as the address of itself."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _summary(report: Mapping[str, Any], size: tuple[int, int]) -> str:
    parts = [
        f"{size[0]}×{size[1]} pixels",
        f"preset {report['config']['name']}",
        f"final image: {report['chosen']}",
        f"kernel support {report['kernel_size']} pixels",
        f"noise {report['noise_std']:.4f}" if report["noise_std"] is not None else "",
        f"{report['seconds'].get('total') or 0:.1f} s",
        f"jaxdeblur {report['version']}",
    ]
    return " · ".join(filter(None, parts))


def _list(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return '<ul class="warnings">' + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _candidate(candidate: Mapping[str, Any], kernel: np.ndarray | None) -> str:
    name = html.escape(candidate["name"])
    score = "not compared" if candidate["score"] is None else f"score {candidate['score']:.4f}"
    thumbnail = ""
    if kernel is not None:
        side = max(_KERNEL_SIDE // max(kernel.shape), 1)
        width, height = side * kernel.shape[1], side * kernel.shape[0]
        uri = data_uri(kernel_png_bytes(kernel), "png")
        thumbnail = f'<img class="kernel" src="{uri}" width="{width}" height="{height}" alt="Kernel: {name}">'
    chosen = " chosen" if candidate["chosen"] else ""
    return f'<div class="card{chosen}">{thumbnail}<p>{name}</p><p class="soft">{score}</p></div>'


def _metrics(metrics: Mapping[str, Mapping[str, float]] | None) -> str:
    if metrics is None:
        return ""
    rows = "".join(
        f"<tr><td>{name}</td><td>{one['psnr']:.2f} dB</td><td>{one['ssim']:.4f}</td></tr>"
        for name, one in metrics.items()
        if one["psnr"] is not None
    )
    head = "<tr><th>against the reference, aligned</th><th>PSNR</th><th>SSIM</th></tr>"
    return f"<h2>Likeness to the reference</h2><table>{head}{rows}</table>"


def _bars(seconds: Mapping[str, float]) -> str:
    longest = max(seconds.values(), default=0.0) or 1.0
    return "".join(
        f'<tr><th>{html.escape(name)}</th><td>{value:.2f}</td><td><i style="width:{100 * value / longest:.1f}%"></i></td></tr>'
        for name, value in seconds.items()
    )


def _curves(losses: Mapping[str, Sequence[float | None]]) -> str:
    """The curves over the steps on a logarithmic scale, or nothing without a fit."""
    curves = {name: _thinned(values) for name, values in losses.items()}
    heights = [height for points in curves.values() for _, height in points]
    if not heights:
        return ""
    low, high = math.floor(min(heights)), max(math.ceil(max(heights)), math.floor(min(heights)) + 1)
    last = max(step for points in curves.values() for step, _ in points) or 1
    left, right, top, bottom = 60, 780, 20, 260

    def place(step: float, height: float) -> str:
        return f"{left + (right - left) * step / last:.1f},{bottom - (bottom - top) * (height - low) / (high - low):.1f}"

    parts = []
    for power in range(low, high + 1):
        level = place(0, power).split(",")[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{level}" y2="{level}"/>')
        parts.append(f'<text x="{left - 8}" y="{float(level) + 4:.1f}" text-anchor="end">1e{power}</text>')
    for step, anchor in ((0, "start"), (last, "end")):
        parts.append(f'<text x="{place(step, low).split(",")[0]}" y="{bottom + 18}" text-anchor="{anchor}">step {step}</text>')
    for name, points in curves.items():
        if len(points) > 1:
            parts.append(f'<path class="{html.escape(name)}" d="M{" L".join(place(*point) for point in points)}"/>')
    legend = "blue-green: mean squared error of the re-blurred image; red: the loss"
    drawing = f'<svg viewBox="0 0 800 290" width="800" role="img" aria-label="{legend}">{"".join(parts)}</svg>'
    return f'<h2>Losses</h2>{drawing}<p class="soft">{legend}</p>'


def _thinned(values: Iterable[float | None]) -> list[tuple[int, float]]:
    """Steps and logarithms of the positive values, of long curves about five hundred."""
    points = [(step, math.log10(value)) for step, value in enumerate(values) if value is not None and value > 0]
    stride = max(1, len(points) // _CURVE_POINTS)
    return points[::stride]
