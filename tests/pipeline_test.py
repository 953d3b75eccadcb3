"""The whole run on small synthetic pictures whose kernel is known."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxdeblur import InputError, deblur
from jaxdeblur.classical import initialiser
from jaxdeblur.config import Config, FitConfig, KernelMlpConfig, LossInterval, SkipNetConfig
from jaxdeblur.evaluation.metrics import aligned_metrics, kernel_similarity, psnr
from tests.scenes import NOISE_STD, QUICK, scene

CLASSICAL = Config(initialiser=QUICK, kernel_size=11)
TINY_FIT = FitConfig(
    image_generator=SkipNetConfig(num_scales=1, channels=4, skip_channels=2, latent_channels=2, non_local=False),
    kernel_generator=KernelMlpConfig(hidden_sizes=(8,)),
    num_iterations=4,
    loss_intervals=(LossInterval(0, (("mse", 1.0),)),),
    chunk_size=2,
)
KEY = jax.random.key(0)


def gain(restored, known):
    return aligned_metrics(restored, known.sharp).psnr - aligned_metrics(known.blurry, known.sharp).psnr


@pytest.fixture(scope="module")
def blind():
    calls = []
    return deblur(scene().blurry, CLASSICAL, key=KEY, progress=lambda *call: calls.append(call)), calls


class TestBlind:
    def test_picture_and_kernel_come_back(self, blind):
        result, _ = blind
        assert result.restored.shape == (96, 96)
        assert result.restored.dtype == np.float32
        assert 0.0 <= result.restored.min() <= result.restored.max() <= 1.0
        assert kernel_similarity(result.kernel, scene().kernel) > 0.95
        assert gain(result.restored, scene()) > 9.0

    def test_the_result_tells_how_it_came_about(self, blind):
        result, calls = blind
        assert result.kernel_size == 11
        assert result.kernel.sum() == pytest.approx(1.0, abs=1e-5)
        assert [(candidate.name, candidate.chosen) for candidate in result.candidates] == [("classical", True)]
        assert np.isnan(result.candidates[0].score)  # there was nothing to compare it with
        assert result.chosen == "classical kernel, sparse"
        assert set(result.seconds) == {"observe", "initialise", "judge", "finish"}
        assert result.history == {}
        assert result.warnings == ()
        assert result.noise_std == pytest.approx(NOISE_STD, rel=0.5)
        assert {phase for phase, *_ in calls} == {"kernel", "final image"}
        assert all(0 <= done <= total for _, done, total, _ in calls)

    def test_the_same_call_gives_the_same_bytes(self, blind):
        again = deblur(scene().blurry, CLASSICAL, key=KEY)
        assert again.restored.tobytes() == blind[0].restored.tobytes()
        assert again.kernel.tobytes() == blind[0].kernel.tobytes()

    def test_colour_takes_its_kernel_from_luma(self):
        known = scene(colour=True)
        result = deblur(known.blurry, CLASSICAL, key=KEY)
        assert result.restored.shape == (96, 96, 3)
        assert kernel_similarity(result.kernel, known.kernel) > 0.9
        assert gain(result.restored, known) > 7.0

    def test_a_kernel_too_large_for_the_first_support_makes_it_grow(self, monkeypatch):
        monkeypatch.setattr(initialiser, "_SMALLEST_FIRST_SIZE", 9)
        known = scene(kernel_size=17)
        first = initialiser.first_kernel_size(known.blurry.shape)
        one_support = dataclasses.replace(QUICK, support_shares=(1.0,))
        result = deblur(known.blurry, Config(initialiser=one_support), key=KEY)
        assert first < 15 < result.kernel_size
        assert gain(result.restored, known) > 5.0

    def test_a_kernel_that_has_no_room_is_told_of(self):
        result = deblur(scene().blurry, dataclasses.replace(CLASSICAL, kernel_size=5), key=KEY)
        assert result.kernel.shape == (5, 5)
        assert any("border of its 5-pixel support" in warning for warning in result.warnings)


class TestKnownKernel:
    @pytest.mark.parametrize("final", ["auto", "sparse", "hyper_laplacian"])
    def test_only_the_picture_is_sought(self, final):
        known = scene()
        result = deblur(known.blurry, dataclasses.replace(CLASSICAL, final=final), key=KEY, kernel=3.0 * known.kernel)
        np.testing.assert_allclose(result.kernel, known.kernel, atol=1e-6)
        assert [candidate.name for candidate in result.candidates] == ["given"]
        assert result.chosen == f"given kernel, {'sparse' if final == 'auto' else final}"
        assert "initialise" not in result.seconds
        assert psnr(result.restored, known.sharp) > psnr(known.blurry, known.sharp) + 9.0  # not shifted, either

    def test_clipped_pixels_are_told_of(self):
        blurry = scene().blurry.copy()
        blurry[10:30, 10:30] = 1.0
        result = deblur(blurry, CLASSICAL, key=KEY, kernel=scene().kernel)
        assert any("of the pixels are clipped" in warning for warning in result.warnings)

    def test_a_preset_may_know_more_noise_than_can_be_seen(self):
        noisier = dataclasses.replace(CLASSICAL, smallest_noise_std=0.02)
        assert deblur(scene().blurry, noisier, key=KEY, kernel=scene().kernel).noise_std == 0.02

    def test_sides_may_differ(self):
        kernel = np.full((1, 5), 0.2, np.float32)
        assert deblur(scene().blurry, CLASSICAL, key=KEY, kernel=kernel).restored.shape == (96, 96)


class TestDeepPrior:
    def test_the_likelier_kernel_is_used(self):
        """Four steps make no good kernel out of a flat one: the classical one must win."""
        result = deblur(scene().blurry, dataclasses.replace(CLASSICAL, fit=TINY_FIT), key=KEY)
        scores = {candidate.name: candidate.score for candidate in result.candidates}
        assert set(scores) == {"classical", "deep prior"}
        assert scores["classical"] < scores["deep prior"]
        assert result.chosen == "classical kernel, sparse"
        assert len(result.history["fit"]) == 4
        assert gain(result.restored, scene()) > 9.0

    def test_the_generators_own_picture_and_the_blurry_pictures_chroma(self):
        known = scene(colour=True)
        result = deblur(known.blurry, dataclasses.replace(CLASSICAL, fit=TINY_FIT, final="generator"), key=KEY)
        assert result.chosen == "generator"
        assert result.restored.shape == known.blurry.shape
        assert np.isfinite(result.restored).all()


REFUSED_IMAGES = {
    "shape": np.zeros((40, 40, 4), np.float32),
    "floats": np.zeros((40, 40), np.uint8),
    "too small": np.zeros((40, 31), np.float32),
    "not finite": np.full((40, 40), np.nan, np.float32),
    "scale them": np.full((40, 40), 3.0, np.float32),
}
REFUSED_KERNELS = {
    "odd sides": np.ones((4, 5)),
    "[h, w]": np.ones((3, 3, 3)),
    "larger than the image": np.ones((97, 3)),
    "some mass": np.zeros((5, 5)),
    "non-negative": np.array([[1.0, 1.0, -0.1]]),
    "finite": np.full((3, 3), np.inf),
}


@pytest.mark.parametrize("reason", REFUSED_IMAGES)
def test_images_that_cannot_be_used(reason):
    with pytest.raises(InputError) as caught:
        deblur(REFUSED_IMAGES[reason], CLASSICAL, key=KEY)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reason", REFUSED_KERNELS)
def test_kernels_that_cannot_be_used(reason):
    with pytest.raises(InputError) as caught:
        deblur(scene().blurry, CLASSICAL, key=KEY, kernel=REFUSED_KERNELS[reason])
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_kernel_size_as_large_as_the_image():
    with pytest.raises(InputError, match="97 does not fit an image of 96×96"):
        deblur(scene().blurry, dataclasses.replace(CLASSICAL, kernel_size=97), key=KEY)
