import dataclasses
import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from jaxdeblur.classical import finish, tiles
from jaxdeblur.config import NonblindConfig
from jaxdeblur.errors import InputError
from jaxdeblur.evaluation.metrics import psnr
from jaxdeblur.operators import filter_flow
from tests.scenes import NOISE_STD, scene

LARGE = NonblindConfig(tile_side=1000)
TILED = NonblindConfig(tile_side=256)
SLOW = ("learned", "saturated")  # to compile


@pytest.mark.parametrize("method", finish.METHODS)
@pytest.mark.parametrize("colour", [False, True])
def test_every_method_restores_grey_and_colour(method, colour):
    known = scene(colour=colour)
    found = finish.restore(known.blurry, known.kernel, method, LARGE, noise_std=NOISE_STD)
    assert found.shape == known.blurry.shape
    assert found.dtype == np.float32
    assert psnr(np.clip(found, 0, 1), known.sharp) > psnr(known.blurry, known.sharp) + 7.0


@pytest.mark.parametrize(
    "method", [pytest.param(method, marks=[pytest.mark.slow] if method in SLOW else []) for method in finish.METHODS]
)
def test_tiles_join_without_a_seam(method):
    known = scene(side=300)
    blurry = known.blurry[:, :128]  # three hundred pixels high: two tiles
    calls = []
    whole = finish.restore(blurry, known.kernel, method, LARGE, noise_std=NOISE_STD)
    tiled = finish.restore(blurry, known.kernel, method, TILED, noise_std=NOISE_STD, progress=lambda *call: calls.append(call))
    assert calls == [(1, 2), (2, 2)]
    difference = np.abs(tiled - whole)
    assert difference.max() < 0.05
    assert difference.mean() < 2e-3
    # Nowhere does one row stand out, as a seam would.
    assert difference.mean(1).max() < 0.01
    assert abs(psnr(tiled, known.sharp[:, :128]) - psnr(whole, known.sharp[:, :128])) < 0.2


@pytest.mark.parametrize(
    ("length", "side", "overlap"), [(100, 256, 20), (257, 256, 18), (1000, 256, 60), (4000, 1280, 102), (900, 256, 200)]
)
def test_tiles_cover_the_image_and_share_one_size(length, side, overlap):
    spans = tiles.spans_of(length, side, overlap)
    assert len({span.stop - span.start for span in spans}) == 1
    assert spans[0].stop <= side
    assert (spans[0].start, spans[-1].stop) == (0, length)
    for one, next_one in itertools.pairwise(spans):
        assert one.stop - next_one.start >= min(2 * overlap, side // 2) - 1
    weight = np.zeros(length)
    for span in spans:
        weight[span] += tiles.fade(span, length, overlap)
    assert weight.min() > 0.1


@pytest.mark.parametrize(
    ("shape", "overlap", "expected"),
    [
        ((500, 600, 3), 50, [((0, 500), (0, 350)), ((0, 500), (250, 600))]),
        ((601, 601), 20, [((0, 321), (0, 601)), ((280, 601), (0, 601))]),
        ((599, 100), 20, [((0, 599), (0, 100))]),
        ((500, 600), 151, [((0, 500), (0, 600))]),  # each would be nearly as large as the whole
    ],
)
def test_an_image_without_tiles_is_halved_if_that_is_less_work(shape, overlap, expected):
    halves = tiles.halves_of(shape, overlap, smallest=600)
    assert [tuple((span.start, span.stop) for span in half) for half in halves] == expected


def test_tiles_are_no_longer_than_they_need_to_be():
    """A photograph of twelve megapixels took a third more than its pixels need."""
    rows, columns = (tiles.spans_of(length, 1280, 82) for length in (3000, 4000))
    assert (len(rows), len(columns)) == (3, 4)
    area = (rows[0].stop - rows[0].start) * (columns[0].stop - columns[0].start)
    assert 12 * area < 0.77 * 12 * 1280**2


def test_a_kernel_is_cut_to_its_mass():
    kernel = np.zeros((9, 11), np.float32)
    kernel[4, 5] = kernel[3, 5] = 0.5
    np.testing.assert_array_equal(tiles.tight(kernel), kernel[3:6, 5:6])
    aside = np.zeros_like(kernel)
    aside[4, 8] = 1.0
    np.testing.assert_array_equal(tiles.tight(np.stack([[kernel, aside]])), np.stack([[kernel, aside]])[..., 3:6, 2:9])


def test_what_a_kernel_is_padded_with_costs_and_changes_nothing_in_tiles():
    known = scene(side=300)
    blurry = known.blurry[:, :128]
    plain, padded = (
        finish.restore(blurry, kernel, "learned", TILED, noise_std=NOISE_STD)
        for kernel in (known.kernel, np.pad(known.kernel, 8))
    )
    np.testing.assert_array_equal(plain, padded)


def test_more_noise_asks_for_a_smoother_image():
    known = scene()
    rough, smooth = (finish.restore(known.blurry, known.kernel, "sparse", LARGE, noise_std=noise) for noise in (0.0, 0.05))
    assert np.abs(np.diff(smooth)).sum() < 0.95 * np.abs(np.diff(rough)).sum()


@pytest.mark.parametrize("method", finish.METHODS)
def test_smoothness_weighs_the_prior(method):
    known = scene()
    rough, plain, smooth = (
        finish.restore(known.blurry, known.kernel, method, NonblindConfig(smoothness=factor), noise_std=NOISE_STD)
        for factor in (0.1, 1.0, 10.0)
    )
    steps = [float(np.abs(np.diff(image)).sum()) for image in (rough, plain, smooth)]
    assert steps[0] > 1.01 * steps[1]
    assert steps[1] > 1.01 * steps[2]


def test_amount_blends():
    blurry, restored = np.float32([0.2, 0.4]), np.float32([0.6, 0.0])
    np.testing.assert_allclose(finish.blend(blurry, restored, 0.25), [0.3, 0.3], atol=1e-6)
    assert finish.blend(blurry, restored, 1.0) is restored
    np.testing.assert_array_equal(finish.blend(blurry, restored, 0.0), blurry)


def test_highlights_ring_less_when_clipping_is_in_the_model():
    known = scene()
    radiance = known.sharp * 0.4
    radiance[40:43, 40:43] = 8.0
    blurry = np.clip(scipy.signal.convolve2d(radiance, known.kernel, mode="same", boundary="symm"), 0.0, 1.0).astype(np.float32)
    sharp = np.clip(radiance, 0.0, 1.0)
    plain, aware = (
        np.clip(finish.restore(blurry, known.kernel, method, LARGE, noise_std=0.0), 0.0, 1.0)
        for method in ("sparse", "saturated")
    )
    assert psnr(aware, sharp) > psnr(plain, sharp) + 3.0


@pytest.mark.slow
def test_tiles_without_highlights_are_restored_as_by_the_method_without_clipping():
    known = scene(side=300)
    blurry = 0.9 * known.blurry[:, :128]
    assert blurry.max() < 0.95
    blurry[280:283, 60:70] = 1.0
    linear, aware = (
        finish.restore(blurry, known.kernel, method, TILED, noise_std=NOISE_STD) for method in ("learned", "saturated")
    )
    # The first of two tiles, before the second fades in.
    np.testing.assert_array_equal(aware[:64], linear[:64])
    assert np.abs(aware[250:] - linear[250:]).max() > 0.01


@pytest.mark.parametrize(("light", "method"), [(8.0, "saturated"), (1.0, "learned")])
def test_only_tiles_with_highlights_that_a_linear_image_leaves_unexplained_are_made_again(monkeypatch, light, method):
    known = scene(side=300)
    radiance = 0.4 * known.sharp[:, :128]
    radiance[10:40, 30:60] = 1.0  # in the first tile nothing is brighter than white
    radiance[270:276, 60:66] = light
    blurry = np.clip(scipy.signal.convolve2d(radiance, known.kernel, mode="same"), 0.0, 1.0).astype(np.float32)
    overlap = 2 * max(tiles.tight(known.kernel).shape)
    first, second = (rows.start for rows, _ in tiles.tiles_of(blurry.shape, TILED.tile_side, overlap))
    made = []

    def restored(tile, kernel, *, clipped, **_):
        """The sharp tile, up to white if it is a linear one; its pixels tell which tile it is."""
        (top,) = (top for top in (first, second) if np.array_equal(blurry[top:][: tile.shape[0]], tile))
        made.append((top, clipped))
        sharp = radiance[top:][: tile.shape[0]]
        half = kernel.shape[0] // 2
        return jnp.asarray(np.pad(sharp if clipped else np.clip(sharp, 0.0, 1.0), half))

    monkeypatch.setattr(finish.ln, "learned", restored)
    image, name, misfit = finish.restore_as_needed(blurry, known.kernel, TILED, noise_std=0.0)
    assert name == method
    again = [top for top, clipped in made if clipped]
    assert again == ([second] if method == "saturated" else [])
    assert (misfit > 0.008) == (method == "saturated")
    assert (image.max() > 1.5) == (method == "saturated")


@pytest.mark.parametrize("lights", [1, 4])
def test_far_from_highlights_the_linear_image_stays(monkeypatch, lights):
    known = scene(side=300)
    radiance = 0.4 * known.sharp[:, :128]
    for top in (270, 30, 110, 190)[:lights]:
        radiance[top : top + 6, 60:66] = 8.0
    blurry = np.clip(scipy.signal.convolve2d(radiance, known.kernel, mode="same"), 0.0, 1.0).astype(np.float32)
    made = []

    def restored(tile, kernel, *, clipped, **_):
        """The observed light where clipping is in the model, half of it elsewhere."""
        made.append((tile.shape, clipped))
        return jnp.pad(tile if clipped else 0.5 * tile, kernel.shape[0] // 2)

    monkeypatch.setattr(finish.ln, "learned", restored)
    monkeypatch.setattr(finish, "_PART_SIDE", 64)
    image, name, _ = finish.restore_as_needed(blurry, known.kernel, LARGE, noise_std=0.0)
    assert name == "saturated"
    assert made[0] == (blurry.shape, False)
    if lights == 1:
        assert 0 < sum(math.prod(shape) for shape, _ in made[1:]) < blurry.size
        np.testing.assert_allclose(image[:150], 0.5 * blurry[:150], atol=1e-6)
        np.testing.assert_allclose(image[265:280], blurry[265:280], rtol=0.05)
    else:  # in parts that would be more work than the whole
        assert made[1:] == [(blurry.shape, True)]


def test_an_unknown_method_is_refused_by_name():
    known = scene()
    with pytest.raises(InputError, match="'wiener': choose from hyper_laplacian, learned, sparse, saturated"):
        finish.restore(known.blurry, known.kernel, "wiener", LARGE, noise_std=NOISE_STD)


def test_overshoot_is_the_share_of_values_far_outside():
    values = np.array([[-0.2, -0.05], [0.5, 1.2]])
    assert finish.overshoot(values, "learned") == 0.5
    assert finish.overshoot(values, "saturated") == 0.25  # a highlight is brighter than white


class TestKernelsThatVary:
    """A field of two kinds of kernels: the scene's own, and the same turned a little."""

    @staticmethod
    def blurred(known, grid=(2, 2)):
        kernels = np.broadcast_to(known.kernel, (*grid, *known.kernel.shape)).copy()
        kernels[:, 1:] = kernels[:, 1:].swapaxes(-1, -2)
        half = known.kernel.shape[0] // 2
        channels = np.moveaxis(known.sharp[..., None] if known.sharp.ndim == 2 else known.sharp, -1, 0)
        latent = np.pad(channels, ((0, 0), (half, half), (half, half)), mode="reflect")
        blurry = np.moveaxis(np.asarray(filter_flow.blur_varying(jnp.asarray(latent), jnp.asarray(kernels))), 0, -1)
        return np.clip(blurry if known.sharp.ndim == 3 else blurry[..., 0], 0.0, 1.0), kernels

    @pytest.mark.parametrize("method", finish.VARYING)
    @pytest.mark.parametrize("colour", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_every_method_for_them_restores_grey_and_colour(self, method, colour):
        known = scene(colour=colour)
        blurry, kernels = self.blurred(known)
        found = finish.restore(blurry, kernels, method, LARGE, noise_std=NOISE_STD)
        assert found.shape == blurry.shape
        one = finish.restore(blurry, known.kernel, method, LARGE, noise_std=NOISE_STD)
        assert psnr(np.clip(found, 0, 1), known.sharp) > psnr(blurry, known.sharp) + 7.0
        assert psnr(np.clip(found, 0, 1), known.sharp) > psnr(np.clip(one, 0, 1), known.sharp) + 2.0

    @pytest.mark.parametrize("method", finish.VARYING)
    def test_equal_kernels_give_what_one_gives_that_is_trusted_as_much(self, method):
        known = scene()
        kernels = np.broadcast_to(known.kernel, (2, 2, *known.kernel.shape))
        trusted = dataclasses.replace(LARGE, kernel_std=LARGE.varying_kernel_std)
        one = finish.restore(known.blurry, known.kernel, method, trusted, noise_std=NOISE_STD)
        found = finish.restore(known.blurry, kernels, method, LARGE, noise_std=NOISE_STD)
        np.testing.assert_allclose(found, one, atol=2e-2)
        assert np.abs(found - one).mean() < 1e-3

    @pytest.mark.slow
    def test_tiles_join(self):
        known = scene(side=300)
        blurry, kernels = self.blurred(known, (3, 2))
        blurry = blurry[:, :128]
        kernels = filter_flow.kernels_of_part(kernels, (300, 300), (slice(0, 300), slice(0, 128)))
        whole = finish.restore(blurry, kernels, "sparse", LARGE, noise_std=NOISE_STD)
        tiled = finish.restore(blurry, kernels, "sparse", TILED, noise_std=NOISE_STD)
        assert abs(psnr(tiled, known.sharp[:, :128]) - psnr(whole, known.sharp[:, :128])) < 0.3

    def test_a_method_for_one_kernel_refuses_them(self):
        known = scene()
        with pytest.raises(InputError, match="one kernel for the whole image"):
            finish.restore(known.blurry, known.kernel[None, None], "hyper_laplacian", LARGE, noise_std=NOISE_STD)
