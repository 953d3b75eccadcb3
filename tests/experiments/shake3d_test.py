"""Blurry images of a turning camera: the kernels that are written explain them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import make_synthetic as ms
from experiments.shake3d import Shake
from jaxdeblur.evaluation.datasets import find_examples
from jaxdeblur.imaging.kernel_files import read_kernel
from jaxdeblur.operators import filter_flow
from tests.scenes import dead_leaves

SHAKE = Shake(extent=6, roll=4.0, focal_length=35.0, seed=(0, 1))


def test_the_sum_of_frames_is_the_filter_flow_by_its_kernels():
    sharp = np.kron(dead_leaves(60, 3), np.ones((2, 2)))[:112]
    margin = SHAKE.reach(sharp.shape) + 2
    blurry = SHAKE.blur(sharp)[margin:-margin, margin:-margin]
    kernels = SHAKE.kernels(sharp.shape, margin, (8, 8))
    half = kernels.shape[-1] // 2
    latent = sharp[margin - half : len(sharp) - margin + half, margin - half : sharp.shape[1] - margin + half]
    found = jax.jit(filter_flow.blur_varying)(jnp.asarray(latent, jnp.float32), jnp.asarray(kernels))
    unblurred = np.abs(blurry - sharp[margin:-margin, margin:-margin]).mean()
    assert np.abs(found - blurry).mean() < 0.08 * unblurred


def test_the_corners_turn_and_the_middle_does_not():
    kernels = SHAKE.kernels((200, 200), 20, (3, 3))
    rest = Shake(extent=6, roll=1e-6, focal_length=35.0, seed=(0, 1)).kernels((200, 200), 20, (3, 3))
    side = min(kernels.shape[-1], rest.shape[-1])

    def middle(kernel):
        cut = (kernel.shape[-1] - side) // 2
        return kernel[cut : cut + side, cut : cut + side]

    assert np.abs(middle(kernels[1, 1]) - middle(rest[1, 1])).sum() < 0.2
    assert np.abs(middle(kernels[0, 0]) - middle(rest[0, 0])).sum() > 0.5


def test_a_set_of_shakes(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.fromarray((dead_leaves(90, 3) * 255).astype(np.uint8)).save(tmp_path / "photos/a.png")
    recipe = ms.Recipe(kinds=("shake3d",), kernel_sizes=(7,), num_motions=2, noise_stds=(0.0,), jpeg_quality=90)
    assert ms.make_set(tmp_path / "photos", tmp_path / "set", recipe) == 2
    rows = json.loads((tmp_path / "set/set.json").read_text())["pictures"]
    examples = {example.name: example for example in find_examples("folder", tmp_path / "set")}
    kernels = []
    for row in rows:
        assert 0.75 <= row["roll"] <= 1.5
        blurry, sharp = examples[row["name"]].load()
        assert blurry.shape == sharp.shape
        kernels.append(read_kernel(tmp_path / "set/kernels" / f"{row['name']}.npy"))
        assert kernels[-1].ndim == 4
        np.testing.assert_allclose(kernels[-1].sum((2, 3)), 1.0, atol=1e-5)
    assert (tmp_path / "set/blurry" / f"{rows[0]['name']}.jpg").exists()
    assert kernels[0].shape != kernels[1].shape or np.abs(kernels[0] - kernels[1]).max() > 0.01


@pytest.mark.parametrize("flag", ["--max_roll=0", "--focal_length=1", "--jpeg_quality=101"])
def test_values_that_cannot_be_used_are_refused(flag, tmp_path, capsys):
    assert ms.main(["x", f"--image_dir={tmp_path}", f"--output_dir={tmp_path / 'o'}", "--blurs=shake3d", flag]) == 1
    assert flag.split("=")[0] in capsys.readouterr().err
