import csv
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from scenes import QUICK, scene

from experiments.runner import command as run
from experiments.runner import job, plan
from experiments.runner.plan import Settings, find_images, plan_entry
from experiments.runner.tables import TABLES, Entry, Row
from experiments.runner.tables.entry import AVERAGE, LAI_CATEGORIES, NOT_GIVEN
from jaxdeblur.config import Config, FitConfig, KernelMlpConfig, UNetConfig
from jaxdeblur.errors import InputError
from jaxdeblur.presets import PRESETS

TINY = {
    "fast": Config(name="fast", initialiser=QUICK),
    "other": Config(name="other", initialiser=QUICK, final="hyper_laplacian"),
}
# What the papers print as averages of these does not follow from what they print for the categories.
ODD_AVERAGES = {
    ("selfdeblur_table4", "Pan-DCP Δ"),
    ("mc_table2", "Xu & Jia"),
    ("mc_table2", "Kupyn et al. (supervised)"),
    ("mc_table5", "dropout only"),
}
PAIR = Entry(
    name="pair",
    title="A synthetic pair",
    paper="nobody's",
    datasets=("levin",),
    metrics=("psnr", "ssim", "error_ratio"),
    rows=(
        Row("known kernel", "34.53/.9492/1.0000", preset="fast", known_kernel=True, final="sparse"),
        Row("somebody's", "30.57/.8966/-"),
        Row("ours", "33.07/?/1.1968", preset="fast"),
        Row("ours, two-stage", preset="fast", final="hyper_laplacian"),
    ),
)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(plan, "PRESETS", TINY)


@pytest.fixture
def data(tmp_path):
    return write_images(tmp_path / "data")


def write_images(folder, count=2, side=64, kernel_size=7):
    for name in ("blurry", "sharp", "kernels"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        made = scene(side=side, kernel_size=kernel_size, seed=number + 2)
        for name, pixels in (("blurry", made.blurry), ("sharp", made.sharp)):
            Image.fromarray(np.round(pixels * 255).astype(np.uint8)).save(folder / name / f"scene{number}.png")
        np.save(folder / "kernels" / f"scene{number}.npy", made.kernel)
    return folder


def settings_for(data, output, **changes):
    return Settings(data_dir=data, output_dir=output, dataset="folder", workers=1, **changes)


def one_by_one(do):
    return lambda tasks: [do(task) for task in tasks]


def fake_result(task, psnr=30.0):
    kernel = np.ones((7, 7), np.float32) / 49
    values = {
        "psnr": psnr,
        "ssim": 0.9,
        "seconds": 1.0,
        "squared_error": 2.0,
        "spectral_error": 1.0,
        "kernel_peak": 0.02,
        "steps": 3.0,
    }
    arrays = {"restored": task.example.load_blurry(), "kernel": kernel}
    return {"metrics": values, "curve": {}, "chosen": "made up", "warnings": [], "arrays": arrays, "machine": {}}


class TestTheTables:
    @pytest.mark.parametrize("name", TABLES)
    def test_presets_exist(self, name):
        presets = {row.preset_for(dataset) for row in TABLES[name].rows for dataset in TABLES[name].datasets} - {None}
        assert presets
        assert presets <= set(PRESETS)
        assert {f"{preset}_small" for preset in presets if PRESETS[preset].fit is not None} <= set(PRESETS)

    @pytest.mark.parametrize("name", [name for name, entry in TABLES.items() if entry.group == "category"])
    def test_printed_averages_follow_from_the_categories(self, name):
        entry = TABLES[name]
        for row in entry.rows:
            printed = entry.published(row)
            if not printed or (name, row.label) in ODD_AVERAGES:
                continue
            for metric in entry.metrics:
                mean = np.mean([printed[category, metric] for category in LAI_CATEGORIES])
                assert printed[AVERAGE, metric] == pytest.approx(mean, abs=0.011 if metric == "psnr" else 0.0011)

    def test_rows_of_a_table_differ_in_name(self):
        for entry in TABLES.values():
            assert len({row.label for row in entry.rows}) == len(entry.rows)

    def test_a_slip_in_the_data_shows(self):
        with pytest.raises(ValueError, match="zip"):
            dataclasses.replace(PAIR, rows=(Row("one figure too few", "33.07/.931"),))

    def test_what_was_not_printed_is_no_figure(self):
        known, theirs, ours, _ = PAIR.rows
        assert PAIR.published(known)[AVERAGE, "psnr"] == 34.53
        assert (AVERAGE, "error_ratio") not in PAIR.published(theirs)
        assert PAIR.published(ours)[AVERAGE, "ssim"] is None
        assert NOT_GIVEN in theirs.published


@pytest.mark.slow
def test_an_entry_end_to_end_and_again_for_nothing(tiny, tmp_path, monkeypatch):
    said = []
    data = write_images(tmp_path / "data", side=96, kernel_size=11)  # sizes of which other tests have compiled programs
    settings = settings_for(data, tmp_path / "out")
    assert run.reproduce([PAIR], settings, say=said.append) == 0

    folder = tmp_path / "out" / "pair"
    table = (folder / "table.md").read_text()
    assert "(34.53)" in table
    assert "| somebody's | – (30.57) | – (0.897) | – | published only |" in table
    assert "(not in the text)" in table
    assert "33.07" in (folder / "table.html").read_text()
    with (folder / "images.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["image"] for line in lines if line["row"] == "ours"] == ["scene0", "scene1"]
    assert all(line["state"] == "done" and float(line["psnr"]) > 20 for line in lines)
    known = [line for line in lines if line["row"] == "known kernel"]
    assert [float(line["error_ratio"]) for line in known] == pytest.approx([1.0, 1.0])
    assert all(float(line["psnr"]) > 28 for line in known)
    # The two-stage row took the kernel of the row before and made another image with it.
    ours, two_stage = ([line for line in lines if line["row"] == row] for row in ("ours", "ours, two-stage"))
    assert [line["kernel_similarity"] for line in ours] == [line["kernel_similarity"] for line in two_stage]
    assert [line["psnr"] for line in ours] != [line["psnr"] for line in two_stage]
    assert all("hyper_laplacian" in line["remark"] for line in two_stage)

    monkeypatch.setattr(job, "run_tasks", lambda tasks: pytest.fail("there is nothing left to do"))
    assert run.reproduce([PAIR], settings, say=said.append) == 0
    assert "6 runs, 6 of them done before" in said
    assert (folder / "table.md").read_text() == table


def test_a_failing_image_is_retried_once_recorded_and_done_later(tiny, data, tmp_path, monkeypatch):
    attempts, broken = [], True

    def sometimes(task):
        attempts.append(task.example.name)
        if task.example.name == "scene1" and broken:
            raise RuntimeError("it broke")
        return fake_result(task)

    monkeypatch.setattr(job, "run_tasks", one_by_one(sometimes))
    rows = tuple(dataclasses.replace(row, published="") for row in PAIR.rows[2:])
    entry = dataclasses.replace(PAIR, name="broken", rows=rows, metrics=("psnr",))
    said = []
    settings = settings_for(data, tmp_path / "out")
    assert run.reproduce([entry], settings, say=said.append) == 1
    assert attempts.count("scene1") == 2
    assert "2 failed" in said[-1]
    states = [line["state"] for line in csv.DictReader((tmp_path / "out/broken/images.csv").open(newline=""))]
    assert states == ["done", "failed", "done", "failed"]
    assert "it broke" in (tmp_path / "out/broken/images.csv").read_text()
    assert "| ours | 30.00 | 1 of 2 |" in (tmp_path / "out/broken/table.md").read_text()

    broken = False
    attempts.clear()
    assert run.reproduce([entry], settings, say=said.append) == 0
    assert set(attempts) == {"scene1"}


def test_ctrl_c_keeps_what_is_finished(tiny, data, tmp_path, monkeypatch):
    def interrupted(task):
        if task.example.name == "scene1":
            raise KeyboardInterrupt
        return fake_result(task)

    monkeypatch.setattr(job, "run_tasks", one_by_one(interrupted))
    said = []
    with pytest.raises(KeyboardInterrupt):
        run.reproduce([dataclasses.replace(PAIR, rows=PAIR.rows[2:3])], settings_for(data, tmp_path / "out"), say=said.append)
    assert "| ours | 30.00 (33.07) |" in (tmp_path / "out/pair/table.md").read_text()
    assert "1 of 2" in (tmp_path / "out/pair/table.md").read_text()
    assert "1 yet to come" in said[-1]


def test_what_a_result_depends_on_is_in_its_name(tiny, data, tmp_path):
    def names(entry=PAIR, **changes):
        settings = settings_for(data, tmp_path, **changes)
        return {one.name for one in plan_entry(entry, find_images([entry], settings), settings).runs()}

    before = names()
    assert names() == before
    assert not names(seed=1) & before
    assert not names(crop=64) ^ before  # the images have 64 pixels
    overridden = names(preset_override="fast=other")
    assert {name for name in overridden if "known" not in name}.isdisjoint(before)
    image = data / "blurry" / "scene0.png"
    pixels = np.array(Image.open(image))
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(image)
    changed = names()
    assert {name for name in changed if "scene1" in name} == {name for name in before if "scene1" in name}
    assert {name for name in changed if "scene0" in name}.isdisjoint(before)


def test_damaged_results_are_made_again(tiny, data, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "run_tasks", one_by_one(fake_result))
    entry = dataclasses.replace(PAIR, rows=PAIR.rows[2:3])
    settings = settings_for(data, tmp_path / "out")
    assert run.reproduce([entry], settings, say=lambda line: None) == 0
    results = sorted((tmp_path / "out/results").glob("*/*/result.json"))
    results[0].write_text(results[0].read_text()[:50])
    results[1].parent.joinpath(".new-half").mkdir()
    said = []
    assert run.reproduce([entry], settings, say=said.append) == 0
    assert f"{len(results)} runs, {len(results) - 1} of them done before" in said
    assert json.loads(results[0].read_text())["chosen"] == "made up"


def test_a_second_runner_is_kept_out(tiny, data, tmp_path, monkeypatch):
    settings = settings_for(data, tmp_path / "out")

    def another(task):
        with pytest.raises(InputError, match="another run is at work"):
            run.reproduce([PAIR], settings, say=lambda line: None)
        return fake_result(task)

    monkeypatch.setattr(job, "run_tasks", one_by_one(another))
    assert run.reproduce([PAIR], settings, say=lambda line: None) == 0


def test_what_cannot_be_used_is_told_before_any_work(data, tmp_path, capsys):
    def command(*flags):
        status = run.main(["run", f"--data_dir={data}", f"--output_dir={tmp_path / 'out'}", *flags])
        return status, capsys.readouterr().err

    assert command() == (1, f"--table is missing; {run.USAGE}\n")
    status, error = command("--table=selfdeblur_table9")
    assert status == 1
    assert "unknown table selfdeblur_table9" in error
    assert command("--table=weak_table1", "--teacher_weights=nowhere") == (1, "nowhere: no weights there; check the path\n")
    status, error = command("--table=mc_table6")
    assert status == 1
    assert all(name in error for name in ("levin", "lai", "kohler"))
    status, error = command("--table=mc_table1", "--dataset=folder", "--preset_override=mc=monte,selfdeblur=carlo")
    assert status == 1
    assert "no preset called carlo, monte" in error
    status, error = command("--table=mc_table1", "--dataset=folder", "--preset_override=tiny")
    assert status == 1
    assert "give 'small' or OLD=NEW" in error
    assert not (tmp_path / "out").exists()


def test_images_too_small_for_their_sets_metric_are_told_before_any_work(data, tmp_path, monkeypatch):
    """Those of a set with a truth for each point of a trajectory."""
    found = plan.find_examples("folder", data)
    along = [dataclasses.replace(example, trajectory=(example.sharp,)) for example in found]
    monkeypatch.setattr(plan, "find_examples", lambda name, folder: along)
    with pytest.raises(InputError, match="scene0: 64×64 pixels are too few") as error:
        find_images([PAIR], settings_for(data, tmp_path / "out"))
    assert "--crop of 176" in str(error.value)
    assert len(str(error.value).splitlines()) == 2


def test_rows_whose_teacher_has_no_weights_are_not_run(data, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "run_tasks", one_by_one(fake_result))
    entry = TABLES["weak_table5"]
    settings = settings_for(data, tmp_path / "out", preset_override="small")
    assert run.reproduce([entry], settings, say=lambda line: None) == 0
    table = (tmp_path / "out/weak_table5/table.md").read_text()
    assert table.count("not run: weights of") == 4
    assert "| SelfDeblur | 30.00 (33.07) |" in table


def test_overrides_and_stages(data, tmp_path):
    entry = Entry(
        name="deep",
        title="",
        paper="",
        datasets=("folder",),
        rows=(
            Row("short", preset="mc", share_of_steps=0.1, num_posterior_samples=3),
            Row("trials", preset="selfdeblur", trials=3, final="sparse"),
        ),
    )
    settings = settings_for(data, tmp_path, preset_override="small", limit=2, num_iterations=100)
    rows = plan_entry(entry, find_images([entry], settings), settings).rows
    whole = PRESETS["mc_small"].fit.stretched(100)
    short = rows["short"][0].config
    assert short.num_posterior_samples == 3
    assert short.fit == dataclasses.replace(whole, num_iterations=10)
    assert short.kernel_size == 7
    assert [one.seed for one in rows["trials"]] == [0, 1, 0, 1]
    assert {one.base.config.name for one in rows["trials"]} == {"selfdeblur_small"}
    assert {(one.config.name, one.config.final) for one in rows["trials"]} == {("fast", "sparse")}


def test_the_table_tells_what_differs_from_the_paper(data, tmp_path):
    entry = TABLES["mc_figure10"]
    settings = dataclasses.replace(settings_for(data, tmp_path), dataset=None, limit=2, crop=64, num_iterations=9)
    images = find_images([PAIR], settings_for(data, tmp_path))["folder"]
    names = {"name": entry.images[0]}
    images = [dataclasses.replace(one, dataset="lai", example=dataclasses.replace(one.example, **names)) for one in images[:1]]
    told = run._conditions(plan_entry(entry, {"lai": images}, settings), settings)
    assert [any(part in line for line in told) for part in ("trials", "64 pixels", "9 steps", "another")] == [True] * 3 + [
        False
    ]
    assert not any("of the" in line for line in told)
    whole = dataclasses.replace(entry, images=())
    assert "Ours is over 1 of the 100 images of lai." in run._conditions(plan_entry(whole, {"lai": images}, settings), settings)


def test_short_fits_are_looked_at_often_enough_for_a_curve(data, tmp_path):
    entry = TABLES["selfdeblur_figure3"]
    images = find_images([PAIR], settings_for(data, tmp_path))
    for steps, often in ((20, 1), (400, 10), (5000, 50)):
        settings = settings_for(data, tmp_path, num_iterations=steps)
        [first, _] = plan_entry(entry, images, settings).rows["SelfDeblur"]
        assert (first.config.fit.num_iterations, first.config.fit.chunk_size) == (steps, often)


@pytest.mark.parametrize("name", ["selfdeblur_figure3", "mc_figure3", "mc_figure10", "weak_figure5"])
def test_figures_are_drawn(data, tmp_path, monkeypatch, name):
    pytest.importorskip("matplotlib")

    def with_curve(task):
        result = fake_result(task)
        restored, kernel = result["arrays"].values()
        result["arrays"] |= {"posterior_std": restored, "step2_restored": restored, "step2_kernel": kernel}
        result["metrics"] |= {"posterior_std": 0.01}
        result["curve"] = {"step": [1, 2], "psnr": [20.0, 30.0], "ssim": [0.8, 0.9], "loss": [0.2, 0.1]}
        return result

    monkeypatch.setattr(job, "run_tasks", one_by_one(with_curve))
    settings = settings_for(data, tmp_path / "out", preset_override="small", limit=2)
    assert run.reproduce([TABLES[name]], settings, say=lambda line: None) == 0
    with Image.open(tmp_path / "out" / name / "figure.png") as figure:
        assert min(figure.size) > 200
        assert len(figure.convert("L").getcolors()) > 20
    assert "figure.png" in (tmp_path / "out" / name / "table.html").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("light_compilation_here")
def test_a_fit_is_followed(data):
    """The whole job of a figure's run: metrics over the steps, images on the way, samples at the end."""
    [image, _] = find_images([PAIR], settings_for(data, data))["folder"]
    generator = UNetConfig(num_levels=2, channels=4, latent_channels=2)
    kernel_generator = KernelMlpConfig(latent_size=5, hidden_sizes=(6,))
    fit = FitConfig(image_generator=generator, kernel_generator=kernel_generator, num_iterations=6, chunk_size=2)
    config = Config(initialiser=None, fit=fit, kernel_size=7, final="generator", num_posterior_samples=2)
    task = job.Task(
        example=job.load_example(image.example, None),
        config=config,
        seed=0,
        kernel=None,
        curve=True,
        cache_dir=None,
    )
    [result] = job.run_tasks([task])
    assert result["curve"]["step"] == [2, 4, 6]
    assert len(result["curve"]["psnr"]) == len(result["curve"]["kernel_mse"]) == 3
    assert len(result["curve"]["loss"]) == 6
    assert result["metrics"]["steps"] == 6
    assert result["metrics"]["posterior_std"] > 0
    assert result["arrays"]["step6_restored"].shape == result["arrays"]["restored"].shape == (64, 64)
    assert "step2_kernel" in result["arrays"]


def test_kernel_error_knows_no_shift():
    generator = np.random.default_rng(0)
    kernel = np.zeros((9, 9))
    kernel[2:5, 3:6] = generator.random((3, 3))
    kernel /= kernel.sum()
    assert job.kernel_error(np.roll(kernel, (2, -1), (0, 1)), kernel) == pytest.approx(0.0, abs=1e-12)
    delta = np.zeros((9, 9))
    delta[4, 4] = 1.0
    shifts = [np.roll(delta, (down, across), (0, 1)) for down in range(-4, 5) for across in range(-4, 5)]
    assert job.kernel_error(delta, kernel) == pytest.approx(min(np.mean((one - kernel) ** 2) for one in shifts))


def test_a_crop_is_the_middle_of_both_images(data):
    [image, _] = find_images([PAIR], settings_for(data, data))["folder"]
    whole, part = job.load_example(image.example, None), job.load_example(image.example, 40)
    np.testing.assert_array_equal(part.load()[0], whole.load()[0][12:52, 12:52])
    np.testing.assert_array_equal(next(iter(part.load_truths())), whole.load()[1][12:52, 12:52])


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_table(tiny, data, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (extra 'cluster')")
    entry = dataclasses.replace(PAIR, rows=PAIR.rows[2:3])
    for which, ray in (("here", None), ("cluster", "local")):
        settings = dataclasses.replace(settings_for(data, tmp_path / which, ray=ray), workers=2 if ray else 1)
        assert run.reproduce([entry], settings, say=lambda line: None) == 0
    here, cluster = ((tmp_path / which / "pair/table.md").read_text() for which in ("here", "cluster"))
    assert here == cluster


KILLED = """
import sys
sys.path[:0] = [{tests!r}]
from experiments.runner import command as run
from experiments.runner import job, plan
import runner_test
plan.PRESETS = runner_test.TINY
settings = runner_test.settings_for(*map(runner_test.pathlib.Path, sys.argv[1:3]))
if __name__ == "__main__":
    sys.exit(run.reproduce([runner_test.PAIR], settings))
"""


@pytest.mark.slow
def test_killed_in_mid_run_and_started_again(tiny, tmp_path):
    """No image done twice, none lost, and the table is that of an unbroken run."""
    data = write_images(tmp_path / "data", count=3)
    program = tmp_path / "program.py"
    program.write_text(KILLED.format(tests=str(pathlib.Path(__file__).parent)))
    root = pathlib.Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(program), str(data), str(tmp_path / "broken")]

    def start():
        return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True)

    def finished():
        return {str(path): path.stat().st_mtime_ns for path in (tmp_path / "broken/results").glob("*/*/result.json")}

    with start() as process:
        while len(finished()) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    before = finished()
    assert 2 <= len(before) < 9
    assert not (tmp_path / "broken" / "pair").exists()

    with start() as process:
        said = process.communicate()[0]
        assert process.returncode == 0
    assert f"9 runs, {len(before)} of them done before" in said
    after = finished()
    assert len(after) == 9
    assert {path: after[path] for path in before} == before
    assert not list((tmp_path / "broken/results").glob("*/.new-*"))

    assert run.reproduce([PAIR], settings_for(data, tmp_path / "unbroken"), say=lambda line: None) == 0
    tables = [(tmp_path / which / "pair/table.md").read_text() for which in ("broken", "unbroken")]
    assert tables[0] == tables[1]
