import json

import numpy as np
import pytest
import scipy.signal
from PIL import Image

from experiments import make_synthetic as ms
from jaxdeblur.errors import InputError
from jaxdeblur.evaluation.datasets import find_examples
from tests import scenes

RECIPE = ms.Recipe(kinds=("motion", "defocus", "gaussian"), kernel_sizes=(7, 11), num_motions=2, noise_stds=(0.0, 0.02))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in (("a", False), ("b", True)):
        levels = np.rint(scenes.dead_leaves(60, 3) * 255).astype(np.uint8)
        Image.fromarray(np.stack([levels, levels // 2, 255 - levels], -1) if colour else levels).save(folder / f"{name}.png")
    return folder


def test_every_image_is_its_sharp_one_blurred_by_its_kernel(photos, tmp_path):
    count = ms.make_set(photos, tmp_path / "set", RECIPE)
    assert count == 2 * (2 * 2 + 2 + 2) * 2
    examples = {example.name: example for example in find_examples("folder", tmp_path / "set")}
    assert len(examples) == count
    written = json.loads((tmp_path / "set/set.json").read_text())
    assert {row["name"] for row in written["pictures"]} == set(examples)
    for row in written["pictures"]:
        example = examples[row["name"]]
        blurry, sharp = example.load()
        kernel = example.load_kernel()
        assert example.kernel_size == row["kernel_size"] == len(kernel)
        assert blurry.shape == sharp.shape == (50, 50)
        again = scipy.signal.convolve2d(sharp, kernel, mode="valid")
        half = len(kernel) // 2
        residual = blurry[half:-half, half:-half] - again
        # The luma of a colour image averages its channels' noise.
        noise_std = row["noise_std"] * (1.0 if row["image"] == "a.png" else np.sqrt(0.299**2 + 0.587**2 + 0.114**2))
        assert residual.std() == pytest.approx(noise_std, rel=0.15, abs=1.5e-3)
        assert noise_std > 0.0 or np.abs(residual).max() < 1 / 255 + 1e-6


def test_the_same_seed_gives_the_same_bytes_and_another_other_kernels(photos, tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        ms.make_set(photos, tmp_path / name, ms.Recipe(kinds=("motion",), kernel_sizes=(9,), num_motions=1, seed=seed))

    def content(name):
        return {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}

    assert content("one") == content("again")
    kernels = [next((tmp_path / name / "kernels").iterdir()).read_bytes() for name in ("one", "other")]
    assert kernels[0] != kernels[1]


def test_a_kernel_does_not_depend_on_which_others_are_made():
    few = {blur.name: blur.kernel for blur in ms.make_blurs(ms.Recipe(kinds=("motion",), kernel_sizes=(15,), num_motions=1))}
    for blur in ms.make_blurs(ms.Recipe(kernel_sizes=(9, 15), num_motions=3)):
        if blur.name in few:
            np.testing.assert_array_equal(blur.kernel, few[blur.name])
        assert blur.kernel.sum() == pytest.approx(1.0, abs=1e-5)


def test_disc_and_gaussian_have_the_moments_of_theirs():
    offsets = np.arange(21) - 10
    for kernel, variance in ((ms.disc_kernel(21), 10.5**2 / 4), (ms.gaussian_kernel(21), 3.5**2)):
        np.testing.assert_allclose(kernel, kernel.T)
        np.testing.assert_allclose(kernel, kernel[::-1])
        assert float(kernel.sum(0) @ offsets**2) == pytest.approx(variance, rel=0.05)


def test_exposure_saturates_after_the_blur():
    sharp = np.full((50, 50), 0.2)
    sharp[20:25, 20:25] = 1.0
    kernel = ms.gaussian_kernel(9)
    options = {"margin": 4, "noise_std": 0.0, "generator": np.random.default_rng(0)}
    dim, _ = ms.degrade(sharp, kernel, exposure=1.0, **options)
    bright, truth = ms.degrade(sharp, kernel, exposure=3.0, **options)
    assert truth[18, 18] == bright[18, 18] == 255
    assert dim[18, 18] < 255
    # Light beyond the clipping point has spread, as it has not where the clipped image is blurred.
    clipped, _ = ms.degrade(np.minimum(3.0 * sharp, 1.0), kernel, exposure=1.0, **options)
    assert bright[14, 18] > clipped[14, 18] + 20


def test_only_the_middle_of_larger_images_is_used(photos, tmp_path):
    ms.make_set(photos, tmp_path / "set", ms.Recipe(kinds=("gaussian",), kernel_sizes=(5,), side=48))
    blurry, _ = find_examples("folder", tmp_path / "set")[0].load()
    assert blurry.shape == (44, 44)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kinds": ("motion", "zoom")}, "zoom"),
        ({"kernel_sizes": (8,)}, "odd number"),
        ({"kernel_sizes": ()}, "at least one"),
        ({"noise_stds": (-0.1,)}, "noise_stds"),
        ({"exposure": 0.0}, "positive"),
    ],
)
def test_recipes_that_cannot_be_made_are_refused(values, message):
    with pytest.raises(InputError, match=message) as error:
        ms.Recipe(**values)
    assert "\n" not in str(error.value)


def test_nothing_is_written_where_something_is_wrong(photos, tmp_path):
    with pytest.raises(InputError, match=r"a\.png: 60×60"):
        ms.make_set(photos, tmp_path / "set", ms.Recipe(kernel_sizes=(31,)))
    with pytest.raises(InputError, match="no such folder"):
        ms.make_set(tmp_path / "absent", tmp_path / "set", RECIPE)
    assert not (tmp_path / "set").exists()
    with pytest.raises(InputError, match="new or an empty"):
        ms.make_set(photos, photos, RECIPE)
    Image.fromarray(np.zeros((60, 60), np.uint8)).save(photos / "a.bmp")
    with pytest.raises(InputError, match="rename"):
        ms.make_set(photos, tmp_path / "set", RECIPE)


def test_command_line(photos, tmp_path, capsys):
    def run(*arguments):
        status = ms.main(["make_synthetic.py", *arguments])
        captured = capsys.readouterr()
        return status, captured.out.strip(), captured.err.strip()

    images, output = f"--image_dir={photos}", f"--output_dir={tmp_path / 'set'}"
    assert run(images, output, "--blurs=defocus", "--kernel_sizes=5,9") == (0, f"{tmp_path / 'set'}: 4 blurry images", "")
    assert run("--help")[0] == 0
    for arguments, message in [
        ((images, output, "--kernel_sizes=5,wide"), "--kernel_sizes=5,wide is no list of numbers"),
        ((images,), "--output_dir is missing"),
        ((images, output, "extra"), "unexpected argument 'extra'"),
        ((images, output, "--num_motions=0"), "num_motions"),
        ((images, output, "--nosie=0"), "nosie"),
    ]:
        status, _, told = run(*arguments)
        assert status == 1
        assert message in told
        assert "\n" not in told
