import json
import math
import pathlib

import numpy as np
import pytest
import scipy.signal
from PIL import Image

from jaxdeblur.errors import InputError
from jaxdeblur.evaluation import metrics, protocol
from jaxdeblur.evaluation.datasets import Example, find_examples
from jaxdeblur.imaging.kernel_files import write_kernel_array
from tests import scenes

DATA = pathlib.Path(__file__).parents[2] / "../shared/data"


def save(path, image):
    Image.fromarray(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def example(tmp_path):
    """A synthetic scene on disk, its kernel stored the other way round."""
    scene = scenes.scene(side=64)
    write_kernel_array(tmp_path / "kernel.npy", scene.kernel[::-1, ::-1])
    blurry, sharp = save(tmp_path / "blurry.png", scene.blurry), save(tmp_path / "sharp.png", scene.sharp)
    return Example("blurry", blurry, sharp, 9, kernel=tmp_path / "kernel.npy", kernel_is_turned=True)


def test_score_is_the_aligned_metrics_of_the_clipped_image(example):
    _, sharp = example.load()
    restored = sharp + np.where(sharp > 0.5, 0.1, -0.02)
    got = protocol.score(restored, example)
    expected = metrics.aligned_metrics(np.clip(restored, 0.0, 1.0), sharp)
    assert (got.psnr, got.ssim) == (expected.psnr, expected.ssim)
    assert (got.squared_error, got.spectral_error) == (expected.squared_error, expected.spectral_error)


def test_error_ratio_in_every_convention(example):
    _, sharp = example.load()
    sharp = 0.2 + 0.6 * sharp
    save(example.sharp, sharp)
    _, sharp = example.load()
    # Smooth, so that a shift between pixels has nothing to gain by averaging it.
    pattern = np.sin(np.arange(sharp.shape[0]) / 9)[:, None] * np.cos(np.arange(sharp.shape[1]) / 7)
    blind, known, same = (protocol.score(sharp + size * pattern, example) for size in (0.03, 0.01, 0.0))
    assert protocol.error_ratio(blind, known) == pytest.approx(3.0)
    assert protocol.error_ratio(blind, known, of_squares=True) == pytest.approx(9.0)
    assert protocol.spectral_error_ratio(blind, known) == pytest.approx(3.0, rel=1e-3)
    assert protocol.error_ratio(blind, same) == math.inf
    assert protocol.error_ratio(same, same) == protocol.spectral_error_ratio(same, same) == 1.0


def test_a_trajectory_of_truths_is_scored_by_its_own_protocol(tmp_path):
    truths = [scenes.dead_leaves(176, seed) for seed in (1, 2, 3)]
    paths = tuple(save(tmp_path / f"truth{index}.png", truth) for index, truth in enumerate(truths))
    example = Example("b", save(tmp_path / "b.png", truths[1]), paths[1], 51, trajectory=paths)
    _, middle = example.load()
    np.testing.assert_array_equal(middle, list(example.load_truths())[1])
    restored = 0.9 * list(example.load_truths())[2] + 0.05
    got = protocol.score(restored, example)
    along = metrics.trajectory_metrics(restored, example.load_truths())
    assert along.best == 2
    assert (got.psnr, got.ssim) == (along.psnr, along.mssim)
    assert protocol.error_ratio(got, got) is None
    assert protocol.spectral_error_ratio(got, got) is None


def test_the_true_kernel_restores_whichever_way_it_is_stored(example):
    blurry, _ = example.load()
    restored = protocol.score(protocol.restore_with_true_kernel(example), example)
    assert restored.psnr > protocol.score(blurry, example).psnr + 6.0
    with pytest.raises(InputError, match="true kernel is not known"):
        protocol.restore_with_true_kernel(Example("x", example.blurry, example.sharp, 9))


def test_infinite_figures_in_means_and_files():
    assert protocol.mean([30.0, math.inf, 34.0]) == 32.0
    assert protocol.mean([math.inf, math.inf]) == math.inf
    for wrong in ([], [30.0, math.nan]):
        with pytest.raises(InputError):
            protocol.mean(wrong)
    for value in (math.inf, 33.07):
        written = json.dumps({"psnr": protocol.to_json_number(value)}, allow_nan=False)
        assert float(json.loads(written)["psnr"]) == value


@pytest.mark.skipif(not (DATA / "levin/gt/kernel1.png").is_file(), reason="needs Levin's kernels in ../shared/data/levin/gt")
def test_levins_kernels_are_read_the_way_they_blur():
    examples = find_examples("levin", DATA / "levin")
    for stored in examples[:8]:
        blurry, sharp = stored.load()
        kernel = stored.load_kernel()
        errors = []
        for candidate in (kernel, kernel[::-1, ::-1]):
            again = np.pad(scipy.signal.convolve2d(sharp, candidate, mode="valid"), len(kernel) // 2, mode="edge")
            errors.append(metrics.aligned_metrics(again, blurry, crop=30).squared_error)
        assert errors[0] < 0.7 * errors[1], stored.name
