"""The command line: what it writes, what it refuses, and with which exit status it ends."""

import dataclasses
import itertools
import json
import os
import pathlib
import pickle
import subprocess
import sys
import webbrowser

import numpy as np
import pytest
import tifffile
from PIL import Image

from jaxdeblur import pipeline
from jaxdeblur.config import COMPRESSED_NOISE_STD, Config, ShakeConfig
from jaxdeblur.jobs import images
from jaxdeblur.jobs.cluster import Outcome
from jaxdeblur.jobs.report import to_json
from jaxdeblur.main import define_flags, main
from jaxdeblur.presets import PRESETS
from jaxdeblur.version import __version__
from tests.scenes import QUICK, scene

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = [
    "photo_deblurred.png",
    "photo_kernel.npy",
    "photo_kernel.png",
    "photo_preview.png",
    "photo_report.html",
    "photo_report.json",
]


def random_levels(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, shape=(40, 50, 3), seed=0):
    Image.fromarray(random_levels(shape, seed)).save(path)
    return path


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder to work in, with one photograph."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "photo.png")
    return tmp_path


@pytest.fixture
def quick(monkeypatch):
    """Stands in for the pipeline where files and flags are what is tested; returns the arguments of its calls."""
    calls = []

    def deblur_batch(photos, config, *, progress=None, checkpoint=None, time_budget=None):
        calls.append({"photos": photos, "config": config, "checkpoint": checkpoint, "time_budget": time_budget})
        if progress is not None:
            progress("fit", 0, 2, {"loss": 1.0})
            progress("fit", 2, 2, {"loss": 0.5})
        if checkpoint is not None:
            checkpoint.parent.mkdir(exist_ok=True)
            checkpoint.touch()
        attempts = config.more_attempts if time_budget is None else 2
        return [dataclasses.replace(found(photo.image, photo.kernel, config), more_attempts=attempts) for photo in photos]

    def found(image, kernel, config):
        size = config.kernel_size or 5
        if kernel is None:
            kernel = np.full((size, size), 1 / size**2, np.float32)
        known = {
            "restored": image,
            "kernel": kernel,
            "candidates": (pipeline.Candidate(name="sparse", score=float("nan"), chosen=True, kernel=kernel),),
            "history": {"fit": [1.0, 0.5], "error": [0.1, 0.05]},
            "seconds": {"fit": 0.25},
            "noise_std": 0.01,
            "warnings": ("the kernel is a guess",),
            "kernel_size": size,
            "chosen": "sparse",
        }
        if config.num_posterior_samples:
            known |= {"posterior_mean": image.mean(-1), "posterior_std": np.full(image.shape[:2], 0.25, np.float32)}
        return pipeline.Result(**known)

    monkeypatch.setattr(pipeline, "deblur_batch", deblur_batch)
    monkeypatch.setattr(images, "_setup_cache", lambda setting: None)
    return calls


@pytest.fixture
def cli(capsys):
    """Runs a command line in this process and returns (exit status, lines of stdout, lines of stderr)."""

    def call(*arguments):
        status = main(["jaxdeblur", *arguments])
        captured = capsys.readouterr()
        return status, captured.out.splitlines(), captured.err.splitlines()

    return call


@pytest.fixture
def refused(cli, workplace):
    """Runs a command line that must fail with status 1 and one line, leaving no new file or folder; returns that line."""

    def call(*arguments):
        before = sorted(workplace.rglob("*"))
        status, _, errors = cli(*arguments)
        assert status == 1
        assert len(errors) == 1
        assert sorted(workplace.rglob("*")) == before
        return errors[0]

    return call


class TestResults:
    def test_names_and_contents(self, workplace, quick, cli):
        status, lines, errors = cli("--image=photo.png", "--seed=7")
        assert (status, errors) == (0, [])
        assert files_below(workplace / "deblurred") == RESULTS
        np.testing.assert_array_equal(np.asarray(Image.open("deblurred/photo_deblurred.png")), random_levels((40, 50, 3)))
        assert np.load("deblurred/photo_kernel.npy").sum() == pytest.approx(1)
        assert np.asarray(Image.open("deblurred/photo_kernel.png")).max() == 255
        report = json.loads(pathlib.Path("deblurred/photo_report.json").read_text())
        assert report["input"]["file"] == "photo.png"
        assert report["seed"] == 7
        assert report["losses"] == {"fit": [1.0, 0.5], "error": [0.1, 0.05]}
        assert report["candidates"] == [{"name": "sparse", "score": None, "chosen": True}]
        assert report["warnings"] == ["the kernel is a guess"]
        assert report["noise_std"] == 0.01
        assert report["seconds"]["fit"] == 0.25
        assert report["metrics"] is None
        assert {"version", "jax_version", "device", "config", "kernel_size", "chosen"} <= report.keys()
        assert any("loss 0.5" in line for line in lines)
        assert any("the kernel is a guess" in line for line in lines)

    def test_compression_counts_as_noise(self, workplace, quick, cli):
        save(workplace / "photo.jpg")
        assert cli("--image=photo.png,photo.jpg", "--output_dir=out")[0] == 0
        plain, compressed = (call["config"] for call in quick)
        assert [plain.smallest_noise_std, plain.initialiser.smallest_noise_std] == [0.0, 0.0]
        assert compressed == plain.for_compressed()
        assert compressed.smallest_noise_std == COMPRESSED_NOISE_STD
        assert compressed.initialiser.smallest_noise_std > COMPRESSED_NOISE_STD

    def test_pixels_reach_the_pipeline_without_alpha_and_keep_it(self, workplace, quick, cli):
        save(workplace / "photo.png", (40, 50, 4))
        assert cli("--image=photo.png", "--output_dir=out")[0] == 0
        assert quick[0]["photos"][0].image.shape == (40, 50, 3)
        assert quick[0]["photos"][0].image.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(Image.open("out/photo_deblurred.png")), random_levels((40, 50, 4)))

    def test_16_bit_tiff_stays_so(self, workplace, quick, cli):
        samples = np.random.default_rng(0).integers(0, 65536, (40, 50, 3), dtype=np.uint16)
        tifffile.imwrite("photo.tif", samples, photometric="rgb")
        assert cli("--image=photo.tif", "--output_dir=out")[0] == 0
        np.testing.assert_array_equal(tifffile.imread("out/photo_deblurred.tif"), samples)

    def test_existing_results_are_replaced_only_when_told(self, workplace, quick, cli, refused):
        assert cli("--image=photo.png")[0] == 0
        assert "--overwrite" in refused("--image=photo.png")
        assert len(quick) == 1
        assert cli("--image=photo.png", "--overwrite")[0] == 0

    def test_reference_is_measured_and_recorded(self, workplace, quick, cli):
        noisy = random_levels((40, 50, 3)) // 2
        Image.fromarray(noisy).save("sharp.png")
        status, lines, _ = cli("--image=photo.png", "--reference=sharp.png")
        assert status == 0
        assert any("PSNR" in line and "SSIM" in line for line in lines)
        metrics = json.loads(pathlib.Path("deblurred/photo_report.json").read_text())["metrics"]
        assert metrics["input"]["psnr"] == pytest.approx(metrics["output"]["psnr"], abs=0.01)

    def test_grey_reference_of_a_colour_image(self, workplace, quick, cli):
        save(workplace / "sharp.png", (40, 50))
        assert cli("--image=photo.png", "--reference=sharp.png")[0] == 0

    def test_known_kernel_is_handed_over(self, workplace, quick, cli):
        np.save("k.npy", np.eye(5))
        assert cli("--image=photo.png", "--kernel=k.npy")[0] == 0
        np.testing.assert_allclose(quick[0]["photos"][0].kernel, np.eye(5) / 5)
        np.testing.assert_allclose(np.load("deblurred/photo_kernel.npy"), np.eye(5) / 5)

    def test_flags_override_the_preset(self, workplace, quick, cli):
        assert cli("--image=photo.png", "--preset=selfdeblur", "--kernel_size=9", "--final=sparse", "--num_restarts=2")[0] == 0
        config = quick[0]["config"]
        assert (config.kernel_size, config.final, config.num_restarts) == (9, "sparse", 2)
        assert cli("--image=photo.png", "--kernel_size=auto", "--overwrite")[0] == 0
        assert quick[1]["config"].kernel_size is None

    def test_region_smoothness_and_amount_reach_the_pipeline_and_its_repetition(self, workplace, quick, cli, refused):
        assert cli("--image=photo.png", "--region=2,3,40,33", "--smoothness=2", "--amount=0.5")[0] == 0
        assert cli("--config=deblurred/photo_report.json", "--output_dir=again")[0] == 0
        for call in quick:
            assert call["photos"][0].region == (2, 3, 40, 33)
            assert (call["config"].nonblind.smoothness, call["config"].nonblind.amount) == (2.0, 0.5)
        assert "1,2,3" in refused("--image=photo.png", "--region=1,2,3", "--overwrite")
        assert "photo.png: region 20,3,40,33 reaches beyond the image of 50×40" in refused(
            "--image=photo.png", "--region=20,3,40,33", "--overwrite"
        )
        assert "smoothness must be in [0.01, 100]" in refused("--image=photo.png", "--smoothness=0", "--overwrite")
        assert "amount" in refused("--image=photo.png", "--amount=2", "--overwrite")
        assert "kernel" in refused("--image=photo.png", "--region=0,0,40,33", "--kernel_size=35", "--overwrite")

    def test_posterior_samples_are_written_as_images(self, workplace, quick, cli):
        status, _, errors = cli("--image=photo.png", "--preset=mc", "--kernel_size=9", "--num_posterior_samples=4")
        assert (status, errors) == (0, [])
        assert quick[0]["config"].num_posterior_samples == 4
        extra = ["photo_posterior_mean.png", "photo_trace.png", "photo_uncertainty.png"]
        assert files_below(workplace / "deblurred") == sorted([*RESULTS, *extra])
        uncertainty = np.asarray(Image.open("deblurred/photo_uncertainty.png"))
        assert uncertainty.shape == (40, 50)
        assert uncertainty.min() == 255  # scaled to its maximum, which the report tells
        assert json.loads(pathlib.Path("deblurred/photo_report.json").read_text())["posterior_std"]["max"] == 0.25
        # They are results: a second run over the folder passes them over.
        assert cli("--image=deblurred")[0] == 1


class TestReports:
    @pytest.mark.parametrize(
        ("kind", "written"), [("html", ["photo_report.html"]), ("json", ["photo_report.json"]), ("both", RESULTS[-2:])]
    )
    def test_either_or_both_are_written_and_each_repeats_the_run(self, workplace, quick, cli, kind, written):
        arguments = ["--image=photo.png", f"--report={kind}", "--seed=4", "--smoothness=3", "--region=1,2,40,35"]
        status, lines, _ = cli(*arguments)
        assert status == 0
        assert [name for name in files_below(workplace / "deblurred") if "report" in name] == written
        assert any("photo_report.html" in line for line in lines) == (kind != "json")
        for name in written:
            assert cli(f"--config=deblurred/{name}", f"--output_dir={name}.again")[0] == 0
            assert quick[-1]["config"] == quick[0]["config"]
            assert quick[-1]["photos"][0].key == quick[0]["photos"][0].key
            assert quick[-1]["photos"][0].region == (1, 2, 40, 35)
        # Results, not photographs.
        assert cli("--image=deblurred")[0] == 1

    def test_the_browser_is_shown_the_report_or_the_page_over_all(self, workplace, quick, cli, monkeypatch):
        opened = []
        monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
        assert cli("photo.png", "--open")[0] == 0
        save(workplace / "second.png")
        assert cli("photo.png", "second.png", "--open", "--output_dir=out")[0] == 0
        wanted = [workplace / "deblurred" / "photo_report.html", workplace / "out" / "index.html"]
        assert opened == [path.as_uri() for path in wanted]
        monkeypatch.setattr(webbrowser, "open", lambda address: False)
        assert any("no browser" in line for line in cli("photo.png", "--open", "--overwrite")[1])

    def test_a_folder_has_a_page_over_all_results_also_when_the_run_was_cut(self, workplace, quick, cli, monkeypatch):
        for number in range(3):
            save(workplace / f"p{number}.png", seed=number)

        def interrupt_at_the_last(photos, config, **_):
            if len(quick) == 2:
                raise KeyboardInterrupt
            return usual(photos, config)

        usual = pipeline.deblur_batch
        monkeypatch.setattr(pipeline, "deblur_batch", interrupt_at_the_last)
        assert cli("p0.png", "p1.png", "p2.png", "--output_dir=out")[0] == 130
        page = pathlib.Path("out/index.html").read_text()
        assert page.index("p0_report.html") < page.index("p1_report.html")
        assert "p2.png" not in page
        assert page.count("the kernel is a guess") == 2
        monkeypatch.setattr(pipeline, "deblur_batch", usual)
        assert cli("p2.png", "photo.png", "--output_dir=out", "--report=json")[0] == 0
        page = pathlib.Path("out/index.html").read_text()
        assert [name in page for name in ("p0_report.html", "p1_report.html", "p2_report.json", "photo_report.json")] == [
            True
        ] * 4

    def test_a_page_that_is_not_ours_stays(self, workplace, quick, cli):
        save(workplace / "second.png")
        pathlib.Path("out").mkdir()
        pathlib.Path("out/index.html").write_text("my page")
        status, lines, _ = cli("photo.png", "second.png", "--output_dir=out")
        assert status == 0
        assert any("index.html" in line and "not ours" in line for line in lines)
        assert pathlib.Path("out/index.html").read_text() == "my page"


class TestManyWorkers:
    @pytest.fixture
    def scattered(self, monkeypatch):
        """Stands in for other processes: tasks and results travel by pickle, out of order."""

        def map_batches(function, batches, *, workers, ray_address):
            sent = [(index, pickle.dumps(item)) for index, item in enumerate(itertools.chain.from_iterable(batches))]
            for index, item in reversed(sent):
                task = pickle.loads(item)
                if task.pixels.shape[0] == 41:
                    yield Outcome(index, None, ("RuntimeError: no luck", "RuntimeError: again"), failed=True)
                else:
                    yield Outcome(index, pickle.loads(pickle.dumps(function([task])[0])), (), failed=False)

        monkeypatch.setattr(images, "map_batches", map_batches)
        monkeypatch.setattr(images, "run_tasks", lambda tasks: [(_result_like(task.pixels), 1.0) for task in tasks])

    def test_results_reach_their_own_places_and_failures_are_told_of(self, workplace, quick, scattered, cli):
        save(workplace / "second.png", (44, 50, 3), seed=1)
        save(workplace / "unlucky.png", (41, 50, 3))
        (workplace / "broken.png").touch()
        status, lines, errors = cli("--image=*.png", "--workers=2", "--output_dir=out")
        assert status == 1
        assert len(errors) == 2
        assert any("broken.png" in line for line in errors)
        assert any("unlucky.png: failed, RuntimeError: again" in line for line in errors)
        assert "2 of 4" in lines[-1]
        np.testing.assert_array_equal(np.asarray(Image.open("out/second_deblurred.png")), random_levels((44, 50, 3), 1))
        np.testing.assert_array_equal(np.asarray(Image.open("out/photo_deblurred.png")), random_levels((40, 50, 3)))
        assert not any("unlucky" in name for name in files_below(workplace / "out"))

    @pytest.mark.slow
    def test_processes_give_what_one_process_gives(self, workplace, cli):
        sharp = np.kron(np.random.default_rng(0).integers(0, 2, (12, 12)), np.ones((4, 4))) * 200 + 20
        for name in ("a.png", "b.png"):
            Image.fromarray(sharp.astype(np.uint8)).save(name)
        np.save("k.npy", np.ones((3, 3)))
        common = ["--image=a.png,b.png", "--kernel=k.npy"]
        assert cli(*common, "--output_dir=one")[0] == 0
        assert cli(*common, "--output_dir=two", "--workers=2")[0] == 0
        for name in ("a_deblurred.png", "b_deblurred.png", "a_kernel.npy"):
            assert pathlib.Path("one", name).read_bytes() == pathlib.Path("two", name).read_bytes()

    def test_images_of_one_size_are_fitted_together(self, workplace, quick, cli):
        for number in range(3):
            save(workplace / f"alike{number}.png", seed=number)
        save(workplace / "other.png", (44, 50, 3))
        status, _, errors = cli("--image=*.png", "--preset=mc_small", "--kernel_size=5", "--batch_size=3", "--output_dir=out")
        assert (status, errors) == (0, [])
        assert sorted(len(call["photos"]) for call in quick) == [1, 1, 3]
        for name, seed in (("photo", 0), ("alike2", 2)):
            np.testing.assert_array_equal(np.asarray(Image.open(f"out/{name}_deblurred.png")), random_levels((40, 50, 3), seed))

    def test_on_a_cpu_one_at_a_time(self, workplace, quick, cli):
        save(workplace / "alike.png")
        assert cli("--image=*.png", "--preset=mc_small", "--kernel_size=5")[0] == 0
        assert [len(call["photos"]) for call in quick] == [1, 1]

    def test_an_unfinished_fit_is_kept_until_it_is_done(self, workplace, quick, cli, refused, monkeypatch):
        (workplace / "deeper").mkdir()
        save(workplace / "deeper" / "photo.png", seed=1)
        arguments = ["--preset=mc_small", "--kernel_size=5", "--checkpoint_dir=states"]
        with monkeypatch.context() as patch:

            def full(*_):
                raise OSError(28, "No space left on device")

            patch.setattr(images, "write_report", full)
            assert cli("--image=photo.png,deeper/photo.png", *arguments)[0] == 1
        kept = [call["checkpoint"] for call in quick]
        assert len({path.name for path in kept}) == 2
        assert all(path.exists() for path in kept)
        assert cli("--image=photo.png", *arguments)[0] == 0
        assert [path.exists() for path in kept] == [False, True]
        assert quick[2]["checkpoint"] == kept[0]
        assert "other" in refused("--image=photo.png", *arguments, "--ray=local")
        assert "--batch_size" in refused("--image=photo.png", *arguments, "--batch_size=2")

    def test_a_cluster_that_is_not_there(self, workplace, quick, refused):
        pytest.importorskip("ray", reason="needs Ray (the extra 'cluster')")
        assert "--ray=127.0.0.1:1" in refused("--image=photo.png", "--ray=127.0.0.1:1")


class TestSavedRuns:
    def test_a_report_repeats_its_run(self, workplace, quick, cli):
        np.save("k.npy", np.eye(5))
        arguments = ["--image=photo.png", "--preset=mc_small", "--num_iterations=700", "--seed=4", "--kernel=k.npy"]
        assert cli(*arguments)[0] == 0
        status, _, errors = cli("--config=deblurred/photo_report.json", "--output_dir=again")
        assert (status, errors) == (0, [])
        first, second = quick
        assert second["config"] == first["config"]
        assert second["photos"][0].key == first["photos"][0].key
        np.testing.assert_array_equal(second["photos"][0].image, first["photos"][0].image)
        np.testing.assert_array_equal(second["photos"][0].kernel, first["photos"][0].kernel)
        for name in ("photo_deblurred.png", "photo_kernel.npy"):
            assert pathlib.Path("again", name).read_bytes() == pathlib.Path("deblurred", name).read_bytes()

    def test_other_flags_change_it(self, workplace, quick, cli):
        save(workplace / "other.png")
        assert cli("--image=photo.png", "--preset=mc", "--seed=4")[0] == 0
        arguments = ["--image=other.png", "--num_restarts=3", "--seed=0", "--output_dir=again"]
        assert cli("--config=deblurred/photo_report.json", *arguments)[0] == 0
        assert quick[1]["config"] == dataclasses.replace(quick[0]["config"], num_restarts=3)
        assert quick[1]["photos"][0].key != quick[0]["photos"][0].key
        assert files_below(workplace / "again")[0].startswith("other")

    def test_other_versions_are_told_of(self, workplace, quick, cli):
        assert cli("--image=photo.png")[0] == 0
        path = pathlib.Path("deblurred/photo_report.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"version": "0.0.1"}))
        status, lines, _ = cli(f"--config={path}", "--output_dir=again")
        assert status == 0
        assert any("jaxdeblur 0.0.1" in line for line in lines)


def test_presets_are_listed_with_paper_figure_steps_and_hardware(cli):
    status, lines, _ = cli("--list_presets")
    assert status == 0
    for name, preset in PRESETS.items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert preset.fit is None or f"{preset.fit.num_iterations} steps" in line
    text = "\n".join(lines)
    assert "Ren et al., Neural blind deconvolution using deep priors, CVPR 2020 -- needs a GPU" in text
    assert "34.71/.948 on Levin" in text


class TestSeveralImages:
    def test_a_folder_and_the_second_time_its_results(self, workplace, quick, cli):
        save(workplace / "second.bmp")
        (workplace / "notes.txt").touch()
        assert cli("--image=.", "--output_dir=.")[0] == 0
        assert {"photo_deblurred.png", "second_deblurred.bmp"} <= set(files_below(workplace))
        before = files_below(workplace)
        assert cli("--image=.", "--output_dir=.", "--overwrite")[0] == 0
        assert files_below(workplace) == before

    def test_one_that_fails_does_not_stop_the_others(self, workplace, quick, cli):
        (workplace / "broken.png").touch()
        save(workplace / "second.png")
        status, lines, errors = cli("--image=photo.png,broken.png,missing.png,second.png", "--output_dir=out")
        assert status == 1
        assert len(errors) == 2
        assert "broken.png" in errors[0]
        assert "missing.png" in errors[1]
        assert "2 of 4" in lines[-1]
        assert {"photo_deblurred.png", "second_deblurred.png"} <= set(files_below(workplace / "out"))

    def test_an_unexpected_error_is_one_line_too(self, workplace, quick, cli, monkeypatch):
        def fail(*_, **__):
            raise RuntimeError("out of\nluck")

        monkeypatch.setattr(pipeline, "deblur_batch", fail)
        status, _, errors = cli("--image=photo.png")
        assert status == 1
        assert len(errors) == 1
        assert "photo.png" in errors[0]
        assert "RuntimeError: out of luck" in errors[0]
        assert "--debug" in errors[0]
        assert not (workplace / "deblurred").exists()
        with pytest.raises(RuntimeError):
            cli("--image=photo.png", "--debug")

    def test_same_names_in_different_formats(self, workplace, quick, cli):
        save(workplace / "photo.jpg")
        assert cli("--image=photo.png,photo.jpg", "--output_dir=out")[0] == 0
        assert {"photo_png_deblurred.png", "photo_jpg_deblurred.png"} <= set(files_below(workplace / "out"))

    def test_every_image_gets_the_same_key(self, workplace, quick, cli):
        save(workplace / "second.png")
        assert cli("--image=*.png", "--seed=3")[0] == 0
        assert quick[0]["photos"][0].key == quick[1]["photos"][0].key


def make_bad_images(folder):
    """Images that cannot be deblurred, by name, with a word of the reason."""
    (folder / "empty.png").touch()
    (folder / "words.jpg").write_text("not an image")
    for name in ("cut.png", "cut.jpg"):
        data = save(folder / name, (90, 90, 3)).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    save(folder / "tiny.png", (40, 31, 3))
    nan = np.full((40, 50), 0.5, np.float32)
    nan[0, 0] = np.nan
    tifffile.imwrite(folder / "nan.tif", nan)
    deep = bytearray((folder / "photo.png").read_bytes())
    deep[24] = 16
    (folder / "deep.png").write_bytes(deep)


class TestRefusals:
    @pytest.fixture(autouse=True)
    def _no_compute(self, monkeypatch):
        """A refusal must come before anything slow: reaching the pipeline is an error."""
        monkeypatch.setattr(images, "run_tasks", None)

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("missing.png", "no such file"),
            ("empty.png", "empty"),
            ("words.jpg", "not an image"),
            ("cut.png", "cut short"),
            ("cut.jpg", "cut short"),
            ("tiny.png", "too few"),
            ("nan.tif", "NaN"),
            ("deep.png", "16-bit"),
        ],
    )
    def test_bad_image(self, workplace, refused, name, reason):
        make_bad_images(workplace)
        message = refused(f"--image={name}")
        assert name in message
        assert reason in message

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--kernel_size=4"], ["4", "odd"]),
            (["--kernel_size=-5"], ["-5", "odd"]),
            (["--kernel_size=0"], ["0", "odd"]),
            (["--kernel_size=big"], ["big", "odd"]),
            (["--kernel_size=41"], ["photo.png", "41", "larger"]),
            (["--preset=slow"], ["slow", "--list_presets"]),
            (["--preset=selfdeblu"], ["did you mean selfdeblur"]),
            (["--preset=selfdeblur_nonblind"], ["selfdeblur_nonblind", "--kernel"]),
            (["--preset=mc", "--stopping_patience=5"], ["stopping criterion"]),
            (["--stopping=error"], ["stopping", "fast"]),
            (["--preset=weak_dmphn", "--teacher=dwdn"], ["dwdn", "weak_dwdn"]),
            (["--config=none.json"], ["none.json", "report"]),
            (["--config=photo.png"], ["photo.png", "report"]),
            (["--num_posterior_samples=4"], ["num_posterior_samples", "fast"]),
            (["--num_posterior_samples=1", "--preset=mc"], ["num_posterior_samples=1", "2 or more"]),
            (["--final=best"], ["best", "sparse"]),
            (["--num_iterations=0"], ["num_iterations"]),
            (["--num_restarts=0"], ["num_restarts"]),
            (["--seed=x"], ["seed"]),
            (["--sede=1"], ["sede"]),
            (["photo.png"], ["photo.png", "--image", "two ways"]),
            (["--report=pdf"], ["report", "html"]),
            (["--open", "--report=json"], ["--open", "--report=json"]),
            (["--kernel=none.npy"], ["none.npy"]),
            (["--kernel=zero.npy"], ["zero.npy", "zero"]),
            (["--kernel=negative.npy"], ["negative.npy", "negative"]),
            (["--kernel=black.png"], ["black.png", "zero"]),
            (["--kernel=large.npy"], ["photo.png", "51", "larger"]),
            (["--kernel=good.npy", "--kernel_size=5"], ["--kernel_size"]),
            (["--reference=none.png"], ["none.png"]),
            (["--reference=other.png"], ["photo.png", "50×40", "30×40"]),
            (["--image=*.png", "--reference=photo.png"], ["--reference", "one"]),
            (["--output_dir=photo.png"], ["photo.png", "--output_dir"]),
            (["--output_dir=photo.png/below"], ["photo.png/below", "--output_dir"]),
            (["--image="], ["--image"]),
            (["--image=*.gif"], ["*.gif"]),
        ],
    )
    def test_bad_flag(self, workplace, refused, arguments, words):
        np.save("zero.npy", np.zeros((5, 5)))
        np.save("negative.npy", -np.eye(5))
        np.save("large.npy", np.ones((51, 51)))
        np.save("good.npy", np.ones((5, 5)))
        Image.new("L", (5, 5)).save("black.png")
        save(workplace / "other.png", (40, 30, 3))
        message = refused("--image=photo.png", *arguments)
        for word in words:
            assert word in message

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write everywhere")
    def test_folder_without_permission(self, workplace, refused):
        (workplace / "locked").mkdir(mode=0o500)
        assert "locked" in refused("--image=photo.png", "--output_dir=locked")

    def test_no_image(self, refused):
        assert "--image" in refused()

    def test_a_full_disk_leaves_nothing_behind(self, workplace, quick, refused, monkeypatch):
        monkeypatch.undo()
        monkeypatch.chdir(workplace)

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(images, "run_tasks", lambda tasks: [(_result_like(task.pixels), 0.0) for task in tasks])
        monkeypatch.setattr(images, "write_report", full)
        assert "No space left" in refused("--image=photo.png")


def _result_like(pixels):
    fields = {field.name: None for field in dataclasses.fields(pipeline.Result) if field.default is dataclasses.MISSING}
    known = {
        "restored": pixels,
        "kernel": np.ones((3, 3), np.float32) / 9,
        "candidates": (),
        "history": {},
        "seconds": {},
        "warnings": (),
    }
    return pipeline.Result(**{**fields, **known})


class TestInformation:
    def test_help_names_every_flag_once(self, cli):
        status, lines, _ = cli("--help")
        assert status == 0
        for name in set(define_flags()) - {"flagfile", "undefok"}:
            assert sum(line.startswith(f"  --{name} ") for line in lines) == 1
        assert max(map(len, lines)) <= 100

    def test_version(self, cli):
        status, lines, _ = cli("--version")
        assert (status, lines) == (0, [__version__])

    def test_interrupted(self, workplace, quick, cli, monkeypatch):
        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(pipeline, "deblur_batch", interrupt)
        status, _, errors = cli("--image=photo.png")
        assert status == 130
        assert len(errors) == 1
        assert files_below(workplace) == ["photo.png"]


def test_a_usage_error_does_not_wait_for_jax():
    command = [sys.executable, "-X", "importtime", "-m", "jaxdeblur.main", "--image=no_such_file.png"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "no_such_file.png" in found.stderr
    imported = {line.split("|")[-1].strip() for line in found.stderr.splitlines() if line.startswith("import time:")}
    assert "jax" not in imported
    assert "Traceback" not in found.stderr


class TestRealPipeline:
    """A corner of the sample, through everything: small, so that it is quick."""

    @pytest.fixture
    def corner(self, workplace):
        for name in ("blurry", "sharp"):
            with Image.open(ROOT / "experiments" / "sample" / f"{name}.png") as image:
                image.crop((60, 0, 188, 112)).save(workplace / f"{name}.png")
        return workplace

    @pytest.mark.slow
    def test_known_kernel_in_a_process_of_its_own(self, corner):
        kernel = ROOT / "experiments" / "sample" / "kernel.png"
        command = [sys.executable, "-m", "jaxdeblur.main", "--image=blurry.png", "--reference=sharp.png", f"--kernel={kernel}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        cache = f"--cache_dir={corner / 'cache'}"
        found = subprocess.run([*command, cache], cwd=corner, env=environment, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
        metrics = json.loads((corner / "deblurred" / "blurry_report.json").read_text())["metrics"]
        assert metrics["output"]["psnr"] > metrics["input"]["psnr"] + 3

    @pytest.mark.slow
    @pytest.mark.parametrize("settings", ["quick", "default"])
    def test_blind_and_the_same_twice(self, corner, cli, monkeypatch, settings):
        monkeypatch.delenv("JAXDEBLUR_CACHE_DIR", raising=False)
        chosen = []
        if settings == "quick":
            # Of a size of which other tests have compiled programs.
            Image.fromarray(np.round(255 * scene().blurry).astype(np.uint8)).save(corner / "blurry.png")
            report = {
                "config": to_json(Config(initialiser=QUICK)),
                "seed": 0,
                "input": {"path": "blurry.png"},
                "known_kernel": False,
            }
            (corner / "quick.json").write_text(json.dumps(report | {"version": __version__, "jax_version": "any"}))
            chosen = ["--config=quick.json"]
        for folder in ("one", "two"):
            arguments = ["--image=blurry.png", f"--output_dir={folder}", "--kernel_size=11", *chosen]
            status, _, errors = cli(*arguments)
            assert (status, errors) == (0, [])
        for name in ("blurry_deblurred.png", "blurry_kernel.npy", "blurry_kernel.png", "blurry_preview.png"):
            assert (corner / "one" / name).read_bytes() == (corner / "two" / name).read_bytes()
        report = json.loads((corner / "one" / "blurry_report.json").read_text())
        assert sum(candidate["chosen"] for candidate in report["candidates"]) == 1
        assert np.load(corner / "one" / "blurry_kernel.npy").shape == (11, 11)


@pytest.mark.slow
def test_kernels_that_vary_from_the_command_line(workplace, cli, monkeypatch):
    """A whole run: kernels are found, written as a grid, and taken back as known ones."""
    monkeypatch.setattr(images, "_setup_cache", lambda setting: None)
    Image.fromarray(np.round(255 * scene().blurry).astype(np.uint8)).save(workplace / "blurry.png")
    shake = ShakeConfig(
        scales=(1.0,), degrees=(1,), descents=(0,), iterations=(6,), patch_side=48, num_patches=4, node_spacing=32
    )
    report = {
        "config": to_json(Config(initialiser=QUICK, shake=shake)),
        "seed": 0,
        "input": {"path": "blurry.png"},
        "known_kernel": False,
    }
    (workplace / "quick.json").write_text(json.dumps(report | {"version": __version__, "jax_version": "any"}))
    common = ["--image=blurry.png", "--config=quick.json"]
    status, lines, errors = cli(*common, "--kernel_size=11", "--blur=varying", "--output_dir=one")
    assert (status, errors) == (0, [])
    assert any("in each of 3×3 parts" in line for line in lines)
    kernels = np.load(workplace / "one/blurry_kernel.npy")
    assert kernels.shape[:2] == (3, 3)
    found = json.loads((workplace / "one/blurry_report.json").read_text())
    assert found["config"]["blur"] == "varying"
    assert found["shake"]["chosen"]
    assert found["chosen"] == "varying kernel, learned"
    with Image.open(workplace / "one/blurry_kernel.png") as grid:
        assert grid.size == (3 * (kernels.shape[3] + 1) - 1, 3 * (kernels.shape[2] + 1) - 1)
    status, _, errors = cli(*common, "--kernel=one/blurry_kernel.npy", "--output_dir=two")
    assert (status, errors) == (0, [])
    np.testing.assert_allclose(np.load(workplace / "two/blurry_kernel.npy"), kernels, atol=1e-6)
    found, again = (np.asarray(Image.open(workplace / name / "blurry_deblurred.png"), int) for name in ("one", "two"))
    assert np.abs(again - found).max() <= 1  # a kernel that is read is normalised again, which rounds otherwise


@pytest.mark.parametrize(
    ("reason", "arguments"),
    {
        "no time": ["--minutes=-1"],
        "--minutes=nan": ["--minutes=nan"],
        "preset selfdeblur makes no further attempts": ["--minutes=1", "--preset=selfdeblur"],
        "the kernel is given": ["--minutes=1", "--kernel=k.npy"],
    }.items(),
)
def test_time_for_a_search_that_cannot_be(workplace, refused, reason, arguments):
    np.save(workplace / "k.npy", np.ones((3, 3)) / 9)
    assert reason in refused("--image=photo.png", *arguments)


def test_time_for_a_search_and_its_repetition(workplace, quick, cli):
    assert cli("--image=photo.png", "--minutes=1.5", "--output_dir=one")[0] == 0
    assert quick[-1]["time_budget"] == 90.0
    report = json.loads((workplace / "one/photo_report.json").read_text())
    assert report["config"]["more_attempts"] == 2
    assert cli("--config=one/photo_report.json", "--output_dir=two")[0] == 0
    assert quick[-1]["time_budget"] is None
    assert quick[-1]["config"].more_attempts == 2


def test_a_blur_that_goes_with_no_preset_is_refused(refused):
    assert "hyper_laplacian" in refused("--image=photo.png", "--blur=varying", "--final=hyper_laplacian")
    assert "should be one of" in refused("--image=photo.png", "--blur=wavy")
