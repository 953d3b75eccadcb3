"""The page of a run: whole in itself, safe whatever files are called, and small."""

import html.parser
import json
import re

import numpy as np
import pytest

from jaxdeblur.config import Config
from jaxdeblur.errors import InputError
from jaxdeblur.jobs.html_report import _template, json_within, write_html_report, write_page
from jaxdeblur.jobs.report import to_json
from jaxdeblur.jobs.saved_run import read_report

NAME = "<script>alert(1)</script> & $name.jpg"


def account(**more):
    return {
        "version": "1",
        "input": {"file": NAME, "path": NAME, "width": 40, "height": 30},
        "config": Config(),
        "chosen": "classical kernel, learned",
        "kernel_size": 5,
        "noise_std": 0.01,
        "candidates": [
            {"name": "classical", "score": -1.5, "chosen": True},
            {"name": "deep prior", "score": float("nan"), "chosen": False},
        ],
        "metrics": {"input": {"psnr": 20.0, "ssim": 0.5}, "output": {"psnr": 25.0, "ssim": 0.75}},
        "warnings": ["a <b>warning</b>"],
        "seconds": {"initialise": 1.5, "finish": 0.5, "total": 2.0},
        "losses": {},
    } | more


def write(path, shape=(30, 40, 3), **more):
    blurry = np.random.default_rng(0).random(shape, np.float32)
    kernels = {"classical": np.eye(5, dtype=np.float32) / 5}
    write_html_report(path, account(**more), blurry=blurry, restored=blurry, kernels=kernels, run_file="x_report.json")
    return path.read_text(encoding="utf-8")


class Parser(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.addresses, self.texts, self.stack = [], [], []

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        self.stack.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def parsed(tmp_path):
    parser = Parser()
    parser.feed(write(tmp_path / "x_report.html"))
    return parser


def test_nothing_is_fetched_from_elsewhere(tmp_path, parsed):
    assert len(parsed.addresses) == 3  # before, after, and the one kernel that is known
    assert all(address.startswith("data:image/") for address in parsed.addresses)
    assert not re.search(r"(src|href)=.?https?:|@import|url\(", (tmp_path / "x_report.html").read_text())


def test_it_tells_of_candidates_seconds_warnings_metrics_and_how_to_run_it_again(parsed):
    text = " ".join(parsed.texts)
    for wanted in (NAME, "a <b>warning</b>", "score -1.5000", "not compared", "25.00 dB", "1.50", "--config=x_report.json"):
        assert wanted in text, wanted
    assert "Losses" not in text  # nothing was fitted


def test_names_are_no_markup(tmp_path):
    text = write(tmp_path / "x_report.html")
    assert "<script>alert" not in text
    assert "<b>warning" not in text


def test_the_report_comes_back_out_of_it(tmp_path):
    write(tmp_path / "x_report.html")
    assert json.loads(read_report(tmp_path / "x_report.html")) == json.loads(json.dumps(to_json(account())))
    (tmp_path / "y_report.html").write_text("<p>nothing</p>")
    with pytest.raises(InputError, match=r"y_report\.html"):
        read_report(tmp_path / "y_report.html")
    with pytest.raises(ValueError, match="no report"):
        json_within("")


def test_the_pages_of_runs_and_folders_look_alike(tmp_path):
    """What they share has one place, and nothing of it is left unfilled."""
    write_page(tmp_path / "index.html", "index.html", {"version": "1", "title": "x", "summary": "y"}, {"entries": ""})
    pages = [write(tmp_path / "x_report.html"), (tmp_path / "index.html").read_text(encoding="utf-8")]
    shared = _template("head.html").substitute({"version": "1"})
    assert "prefers-color-scheme: dark" in shared
    for page in pages:
        assert page.count(shared) == 1
        assert page.index(shared) < page.index("</head>")
        assert len(re.findall("--paper:", page)) == 2


def test_curves_of_a_fit_are_drawn_and_thinned(tmp_path):
    losses = {"fit": [1.0 / (1 + step) for step in range(5000)], "error": [float("nan"), 0.0, 1e-3, 1e-4]}
    text = write(tmp_path / "x_report.html", losses=losses)
    drawing = text[text.index("<svg") : text.index("</svg>")]
    assert drawing.count("<path") == 2
    assert len(drawing) < 20_000
    assert "NaN" not in drawing


def test_a_photograph_of_twelve_megapixels_stays_under_three_megabytes(tmp_path):
    noise = write(tmp_path / "x_report.html", shape=(2000, 3000, 3))  # reduced like a larger one; nothing compresses worse
    assert len(noise) < 6_000_000
    smooth = np.cumsum(np.random.default_rng(0).normal(0, 0.01, (300, 400, 1)), 1).astype(np.float32) + 0.5
    large = np.clip(np.kron(smooth, np.ones((10, 10, 3), np.float32)), 0, 1)
    write_html_report(tmp_path / "y.html", account(), blurry=large, restored=large, kernels={}, run_file="y.json")
    assert (tmp_path / "y.html").stat().st_size < 3_000_000
