import pathlib

import numpy as np
import pytest
from PIL import Image

from jaxdeblur.errors import InputError
from jaxdeblur.evaluation.datasets import LAYOUTS, find_examples
from jaxdeblur.evaluation.metrics import aligned_metrics

DATA = pathlib.Path(__file__).parents[2] / "../shared/data"


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make_set(folder, dataset, images, *, sharp=None):
    """A set of these images with flat pictures, or ``sharp`` for the truth."""
    layout = LAYOUTS[dataset]
    grey = np.full((40, 48), 100, np.uint8)
    for image in images:
        save(folder / layout.sharp.format(image=image), grey if sharp is None else sharp)
        for number in range(1, len(layout.kernel_sizes) + 1):
            save(folder / layout.blurry.format(image=image, kernel=number), grey)


def test_finds_the_images_that_are_there(tmp_path):
    make_set(tmp_path, "levin", ["im1", "im3"])
    examples = find_examples("levin", tmp_path)
    assert [example.name for example in examples][::8] == ["im1_kernel1_img", "im3_kernel1_img"]
    assert [example.kernel_size for example in examples[:8]] == [17, 15, 13, 27, 11, 19, 21, 21]
    assert all(example.sharp.stem == example.name[:3] for example in examples)


def test_lists_all_missing_files_at_once(tmp_path):
    make_set(tmp_path, "lai", ["natural_02", "text_05"])
    (tmp_path / "blurry/natural_02_kernel_03.png").unlink()
    (tmp_path / "ground_truth/text_05.png").unlink()
    with pytest.raises(InputError, match=r"natural_02_kernel_03\.png, ground_truth/text_05\.png$") as error:
        find_examples("lai", tmp_path)
    assert "\n" not in str(error.value)


def test_nothing_there_and_unknown_sets_are_refused(tmp_path):
    with pytest.raises(InputError, match="no image of the levin set"):
        find_examples("levin", tmp_path / "absent")
    with pytest.raises(InputError, match="choose from lai, levin"):
        find_examples("kodak", tmp_path)


def test_colour_truth_with_alpha_becomes_full_range_luma(tmp_path):
    sharp = np.zeros((40, 48, 4), np.uint8)
    sharp[...] = (200, 100, 50, 7)
    make_set(tmp_path, "lai", ["text_05"], sharp=sharp)
    blurry, truth = find_examples("lai", tmp_path)[0].load()
    assert blurry.shape == truth.shape == (40, 48)
    np.testing.assert_allclose(truth, (0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255, atol=1e-6)
    np.testing.assert_allclose(blurry, 100 / 255, atol=1e-6)


def test_pairs_of_different_size_are_refused(tmp_path):
    make_set(tmp_path, "levin", ["im2"], sharp=np.zeros((41, 48), np.uint8))
    with pytest.raises(InputError, match="48×40 and 48×41"):
        find_examples("levin", tmp_path)[0].load()


@pytest.mark.skipif(not (DATA / "lai").is_dir(), reason="needs Lai's images in ../shared/data/lai")
def test_the_published_lai_images_match_their_truths():
    examples = {example.name: example for example in find_examples("lai", DATA / "lai")}
    blurry, sharp = examples["people_01_kernel_01"].load()
    # The wrong luma conversion (studio range) would move the grey levels by several percent.
    assert abs(float(blurry.mean() - sharp.mean())) < 0.01
    assert aligned_metrics(blurry, sharp).psnr > 20.0
