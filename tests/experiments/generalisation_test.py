import collections
import dataclasses
import hashlib
import json

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from PIL import Image

from experiments.generalisation import __main__ as command
from experiments.generalisation import cases, measure, rendered_text, report
from experiments.generalisation import scenes as sc
from jaxdeblur.config import COMPRESSED_NOISE_STD
from jaxdeblur.errors import InputError
from jaxdeblur.presets import PRESETS
from tests import scenes as made_up

FIXED = sc.read_split()


def test_the_fixed_scenes_are_enough_and_varied():
    free = [scene for scene in FIXED if scene.package not in ("levin", "lai")]
    assert len(free) >= 24
    assert len({scene.name for scene in FIXED}) == len(FIXED)
    sizes = {degradation.size for scene in FIXED for degradation in scene.degradations}
    assert min(sizes) == 11
    assert max(sizes) == 75
    softness = {degradation.softness_std for scene in FIXED for degradation in scene.degradations}
    noise = {degradation.noise_std for scene in FIXED for degradation in scene.degradations}
    assert (min(softness), max(softness), min(noise), max(noise)) == (0, 1.2, 0, 0.02)
    for scene in FIXED:
        assert len({degradation.size for degradation in scene.degradations}) >= 4
        assert 225 <= min(scene.shape) <= max(scene.shape) <= 800
        # Each category is what its name says.
        assert scene.category in sc.CATEGORIES
        assert (scene.jpeg == 80) == (scene.category == "jpeg")
        assert (scene.exposure > 1) == (scene.category == "night")
        assert (scene.exposure < 1) == (scene.category == "dark")
        assert any(degradation.softness_std > 0 for degradation in scene.degradations) == (scene.category == "soft")
        assert scene.licence
    seeds = [degradation.seed for scene in FIXED for degradation in scene.degradations]
    assert len(set(seeds)) == len(seeds)


def test_no_source_is_in_both_halves_and_the_halves_are_alike():
    files = collections.defaultdict(set)
    for scene in FIXED:
        files[scene.package, scene.file].add(scene.split)
    assert all(len(halves) == 1 for halves in files.values())
    free = [scene for scene in FIXED if scene.package not in ("levin", "lai")]
    counts = [collections.Counter(scene.category for scene in free if scene.split == split) for split in sc.SPLITS]
    assert counts[0] == counts[1]
    assert set(counts[0]) == set(sc.CATEGORIES)


def test_published_sets_are_kept_apart():
    # Levin's images have been tuned on for long; Lai's are what generalisation is shown on.
    names = {(scene.package, scene.split, scene.file) for scene in FIXED if scene.package in ("levin", "lai")}
    assert {(package, split) for package, split, _ in names} == {("levin", "tune"), ("lai", "check")}
    assert not any("im4" in file or "_04" in file or "_05" in file for _, _, file in names)


def test_the_small_set_holds_every_category_and_is_small():
    for split in sc.SPLITS:
        quick = [
            (scene, degradation)
            for scene in FIXED
            if scene.split == split
            for degradation in scene.degradations
            if degradation.quick
        ]
        assert len(quick) == 12
        assert {scene.category for scene, _ in quick} == set(sc.CATEGORIES)
        assert max(max(scene.shape) for scene, _ in quick) <= 320
        assert not any(scene.package in ("levin", "lai") for scene, _ in quick)


def scene(source, **fields):
    """A small scene of a package that is unpacked; its crop leaves 40 pixels a side."""
    usual = sc.Scene(
        name="leaves",
        split="tune",
        category="foliage",
        package="leaves-data",
        file="usr/share/leaves.png",
        sha256=hashlib.sha256(source.read_bytes()).hexdigest()[:16],
        licence="made here",
        scale=2,
        crop=(2, 3, 50, 52),
        degradations=(sc.Degradation(7, 1, 0.99, 0.0, 0.0, quick=True), sc.Degradation(11, 2, 0.995, 0.0, 0.01)),
    )
    return dataclasses.replace(usual, **fields)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "packages/leaves-data/usr/share/leaves.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(np.rint(made_up.dead_leaves(120, 3) * 255).astype(np.uint8)).save(path)
    return path


def make(tmp_path, scenes, name="set"):
    return list(sc.make_set(tmp_path / name, scenes, tmp_path / "packages", None))


def test_every_image_is_the_sharp_one_blurred_by_its_kernel(source, tmp_path):
    make(tmp_path, [scene(source)])
    for case, noise in zip(cases.read_cases(tmp_path / "set", ["tune"]), (0.0, 0.01), strict=True):
        blurry, sharp, kernel = case.load()
        assert blurry.shape == sharp.shape == (40, 42)
        half = len(kernel) // 2
        residual = blurry[half:-half, half:-half] - scipy.signal.convolve2d(sharp, kernel, mode="valid")
        assert residual.std() == pytest.approx(noise, rel=0.15, abs=1.5e-3)
        assert noise > 0 or np.abs(residual).max() < 1 / 255 + 1e-6


def test_the_shrunk_source_is_the_mean_over_areas(source):
    fine = np.asarray(Image.open(source), np.float32) / 255
    grey = sc.read_sharp(scene(source), source)
    np.testing.assert_allclose(grey, fine.reshape(60, 2, 60, 2).mean((1, 3)), atol=1e-6)
    np.testing.assert_allclose(sc.read_sharp(scene(source, gamma=2.0), source), grey**2, atol=1e-6)


def test_a_soft_truth_is_the_softened_source(source):
    soft = scene(source, degradations=(sc.Degradation(7, 1, 0.99, 0.9, 0.0),))
    grey = sc.read_sharp(soft, source)
    _, sharp, _ = sc.make_case(soft, soft.degradations[0], grey)
    expected = scipy.ndimage.gaussian_filter(grey, 0.9)[2:52, 3:55][3:-3, 3:-3]
    assert np.abs(sharp / 255 - expected).max() <= 0.5 / 255 + 1e-6


def test_exposure_clips_and_jpeg_compresses(source):
    plain, bright, packed = (scene(source, **fields) for fields in ({}, {"exposure": 3.0}, {"jpeg": 80}))
    grey = sc.read_sharp(plain, source)
    blurry, sharp, _ = sc.make_case(plain, plain.degradations[0], grey)
    clipped, truth, _ = sc.make_case(bright, bright.degradations[0], grey)
    assert np.mean(clipped == 255) > 0.05
    np.testing.assert_array_equal(truth == 255, np.rint(np.minimum(3.0 * grey[7:47, 8:50], 1) * 255) == 255)
    compressed, same, _ = sc.make_case(packed, packed.degradations[0], grey)
    np.testing.assert_array_equal(same, sharp)
    assert 0 < np.abs(compressed.astype(int) - blurry).max() < 40


def test_the_same_set_is_made_again(source, tmp_path):
    for name in ("one", "again"):
        make(tmp_path, [scene(source)], name)
    content = [
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("one", "again")
    ]
    assert len(content[0]) == 7
    assert content[0] == content[1]


def test_a_missing_package_is_named_with_its_remedy(source, tmp_path):
    elsewhere = scene(source, name="other", package="nowhere-data")
    measured = scene(source, name="im", package="levin", file="levin/gt/im1.png")
    lines = make(tmp_path, [scene(source), elsewhere, measured])
    assert any("apt-get download nowhere-data" in line and "other" in line for line in lines)
    assert any("--data_dir" in line and "im" in line for line in lines)
    index = json.loads((tmp_path / "set/index.json").read_text())
    assert index["missing"] == {"nowhere-data": ["other"], "levin": ["im"]}
    assert [entry["name"] for entry in index["cases"]] == ["leaves_7px", "leaves_11px"]


def test_another_version_of_a_source_is_refused(source, tmp_path):
    with pytest.raises(InputError, match="install another version of leaves-data"):
        make(tmp_path, [scene(source, sha256="0" * 16)])
    with pytest.raises(InputError, match="do not contain the crop"):
        make(tmp_path, [scene(source, scale=4)])


@pytest.mark.parametrize("style", ["page", "sign", "code", "news"])
def test_pages_have_letters_all_over(style):
    pytest.importorskip("matplotlib")
    page = rendered_text.render_page(style)
    assert page.shape == (500, 500)
    assert (page.min(), page.max()) >= (0.0, 0.5)
    for rows in np.split(page, 5):
        assert rows.std() > 0.05


def test_cases_are_chosen_by_half_size_and_name(source, tmp_path):
    other = scene(source, name="stones", split="check", category="brick")
    make(tmp_path, [scene(source), scene(source, name="moss"), other])

    def names(splits, **how):
        return [case.name for case in cases.read_cases(tmp_path / "set", splits, **how)]

    assert names(["check"]) == ["stones_7px", "stones_11px"]
    assert names(sc.SPLITS, limit=2) == ["leaves_7px", "moss_7px", "stones_7px", "stones_11px"]
    assert names(sc.SPLITS, quick=True) == ["leaves_7px", "moss_7px", "stones_7px"]
    assert names(sc.SPLITS, only=["brick", "moss_11"]) == ["moss_11px", "stones_7px", "stones_11px"]
    with pytest.raises(InputError, match="no case"):
        names(["check"], only=["sea"])
    with pytest.raises(InputError, match="--make"):
        cases.read_cases(tmp_path / "empty", ["tune"])


def test_the_window_of_shifts_grows_with_the_kernel():
    assert measure.alignment(11) == {"crop": 15, "max_shift": 10}
    window = measure.alignment(75)
    assert window["max_shift"] >= 75 // 2
    assert window["crop"] >= window["max_shift"]


def test_the_last_step_is_shared_by_methods_that_have_it_in_common():
    fast = PRESETS["fast"]
    slower = dataclasses.replace(PRESETS["deep"], num_restarts=2)
    assert measure.known_kernel_config(fast) == measure.known_kernel_config(slower)
    assert measure.known_kernel_config(PRESETS["selfdeblur"]).final == "auto"
    packed = fast.for_compressed()
    assert packed.smallest_noise_std == COMPRESSED_NOISE_STD
    assert measure.known_kernel_config(packed).smallest_noise_std == COMPRESSED_NOISE_STD


@pytest.mark.slow
def test_a_true_kernel_restores_its_image(source):
    plain = scene(source, crop=(0, 0, 60, 60))
    blurry, sharp, kernel = sc.make_case(plain, plain.degradations[1], sc.read_sharp(plain, source))
    config = measure.known_kernel_config(PRESETS["fast"])
    found = measure.measure(measure.Task(blurry / 255, sharp / 255, kernel, config, known=True, cache_dir="off"))
    assert found["metrics"]["psnr"] > found["metrics"]["input_psnr"] + 2
    assert found["metrics"]["kernel_similarity"] == pytest.approx(1.0, abs=0.02)
    assert found["candidates"] == []
    assert found["arrays"]["restored"].shape == blurry.shape


@dataclasses.dataclass
class FakeCandidate:
    """A candidate that tells its kernel."""

    name: str
    score: float
    chosen: bool
    kernel: np.ndarray | None = None


def test_candidates_with_kernels_are_measured_where_regret_is_asked_for(source):
    plain = scene(source, crop=(0, 0, 60, 60))
    blurry, sharp, kernel = sc.make_case(plain, plain.degradations[1], sc.read_sharp(plain, source))
    task = measure.Task(blurry / 255, sharp / 255, kernel, PRESETS["fast"], known=False, regret=True, cache_dir="off")
    no_blur = np.zeros_like(kernel)
    no_blur[5, 5] = 1.0
    found = [measure._candidate(FakeCandidate("none", 2.0, True, no_blur), task)]
    found.append(measure._candidate(FakeCandidate("true", 1.0, False, kernel), task))
    assert report.regret(found) == pytest.approx(found[1]["psnr"] - found[0]["psnr"])
    assert report.regret(found) > 2
    untold = measure._candidate(FakeCandidate("classical", float("nan"), True), task)
    assert untold == {"name": "classical", "score": None, "chosen": True, "psnr": None}
    assert report.regret([untold]) is None


def test_code_that_changed_has_another_digest(tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(measure.jaxdeblur, "__file__", str(package / "__init__.py"))
    first = measure.source_digest()
    (package / "__pycache__").mkdir()
    (package / "__pycache__/x.pyc").write_bytes(b"compiled")
    assert measure.source_digest() == first
    (package / "weights.npz").write_bytes(b"other")
    assert measure.source_digest() != first


def row(name, category, values, split="check", **fields):
    numbers = dict(zip(("input", "result", "known"), values, strict=True))
    usual = {"input_ssim": 0.5, "ssim": 0.7, "known_ssim": 0.8, "seconds": 3.0, "kernel_similarity": 0.9}
    return report.Row(name=name, split=split, category=category, **numbers, **(usual | fields))


def test_a_summary_tells_gaps_and_who_is_worst():
    rows = [row(f"a_{number}", "text", (20.0, 30.0 - number, 31.0)) for number in range(10)]
    rows.append(row("b", "night", (25.0, 24.0, 26.0), regret=0.5, warnings=1))
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.summary(rows)]
    lines = {tuple(cells[:2]): dict(zip(table[0], cells, strict=True)) for cells in table[2:]}
    text, whole = lines["check", "text"], lines["check", "**all**"]
    assert (text["cases"], text["mean gap"], text["9th decile"], text["largest gap"]) == ("10", "5.50", "9.10", "10.00")
    assert text["case"] == "a_9"
    assert (whole["cases"], whole["below input"], whole["with warnings"], whole["mean regret"]) == ("11", "1", "1", "0.50")
    assert "BELOW INPUT" in rows[-1].line()
    assert ("tune", "text") not in lines


def test_results_are_compared_with_older_ones(tmp_path):
    report.write(tmp_path / "old", [row("a", "text", (20, 28, 31)), row("b", "text", (20, 29, 31))], ["table"])
    now = [row("a", "text", (20, 30, 31)), row("b", "text", (20, 28.5, 31)), row("new", "text", (20, 20, 31))]
    lines = report.comparison(now, report.read_results(tmp_path / "old.json"))
    assert lines[-1] == "| check | **all** | 2 | 28.50 | 29.25 | +0.75 | -0.50 | b | +2.00 |"
    with pytest.raises(InputError, match="earlier run"):
        report.read_results(tmp_path / "old.md")


@pytest.fixture
def measured(monkeypatch):
    """The tasks that the command hands out; nothing is computed."""
    tasks = []

    def fake(task):
        if task.config.name == "fast" and task.kernel.shape == (11, 11) and len(tasks) < 2:
            raise ValueError("no luck")
        tasks.append(task)
        values = {"psnr": 30.0 + task.known, "input_psnr": 20.0, "ssim": 0.9, "input_ssim": 0.5}
        values |= {"seconds": 1.0, "kernel_similarity": 0.9}
        arrays = {"restored": task.blurry, "kernel": task.kernel}
        return {"metrics": values, "candidates": [], "warnings": [], "chosen": "fake", "arrays": arrays}

    monkeypatch.setattr(command, "measure", fake)
    return tasks


def run(tmp_path, *arguments):
    return command.main(["x", f"--set_dir={tmp_path / 'set'}", f"--output_dir={tmp_path / 'out'}", *arguments])


def test_the_command_measures_what_is_not_measured_yet(source, tmp_path, measured, monkeypatch, capsys):
    make(tmp_path, [scene(source)])
    assert run(tmp_path, "--limit=1") == 0
    assert [task.known for task in measured] == [False, True]
    assert run(tmp_path) == 0
    assert len(measured) == 4
    assert run(tmp_path, "--split=tune") == 0
    assert len(measured) == 4
    assert "gap  1.00" in (tmp_path / "out/fast.md").read_text()
    # Other settings have results of their own, but what they have in common with the first is not measured again.
    assert (
        run(tmp_path, "--override=initialiser.judging_softness_std=0.5", "--quick", f"--compare={tmp_path / 'out/fast.json'}")
        == 0
    )
    assert [(task.known, task.config.initialiser.judging_softness_std) for task in measured[4:]] == [(False, 0.5)]
    assert "+0.00" in capsys.readouterr().out
    monkeypatch.setattr(command, "source_digest", lambda: "changed")
    assert run(tmp_path) == 0
    assert len(measured) == 9


def test_a_failing_case_costs_the_others_nothing(source, tmp_path, measured, capsys):
    make(tmp_path, [scene(source, degradations=tuple(reversed(scene(source).degradations)))])
    assert run(tmp_path) == 1
    assert "no luck" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "out/fast.json").read_text())) == 1
    assert run(tmp_path) == 0
    assert len(json.loads((tmp_path / "out/fast.json").read_text())) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset=none"], "no such preset"),
        (["--override=initialiser.nothing=1"], "no setting 'nothing'"),
        (["--override=final"], "FIELD=VALUE"),
        (["--split=train"], "split"),
        (["more"], "unexpected"),
        (["--make", "--image_dir=/nowhere/at/all"], "no such folder"),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path, capsys, arguments, message):
    assert run(tmp_path, *arguments) == 1
    assert message in capsys.readouterr().err
