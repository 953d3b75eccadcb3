"""The whole run on small synthetic images whose kernel is known."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdeblur import InputError, deblur
from jaxdeblur.classical import finish, initialiser
from jaxdeblur.classical.correction import correct
from jaxdeblur.classical.width import widened
from jaxdeblur.config import (
    Config,
    FitConfig,
    KernelMlpConfig,
    LossInterval,
    ShakeConfig,
    SkipNetConfig,
    StoppingConfig,
    constant,
)
from jaxdeblur.evaluation.metrics import aligned_metrics, kernel_similarity, psnr
from jaxdeblur.operators import blur
from jaxdeblur.pipeline import Photo, case, deblur_batch, refinish, stages
from jaxdeblur.presets import PRESETS
from tests.scenes import NOISE_STD, QUICK, scene

CLASSICAL = Config(initialiser=QUICK, kernel_size=11)
# All tests of fits share its programs as far as they can; dropout is there for the posterior samples.
TINY_FIT = FitConfig(
    image_generator=SkipNetConfig(num_scales=1, channels=4, skip_channels=2, latent_channels=2, non_local=False),
    kernel_generator=KernelMlpConfig(hidden_sizes=(8,)),
    num_iterations=4,
    loss_intervals=(LossInterval(0, (("mse", 1.0),)),),
    dropout_rate=constant(0.2),
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
    def test_image_and_kernel_come_back(self, blind):
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
        assert result.chosen == "classical kernel, learned"
        assert set(result.seconds) == {"observe", "initialise", "highlights", "judge", "finish"}  # a few pixels may be clipped
        assert result.history == {}
        assert result.warnings == ()
        assert result.noise_std == pytest.approx(NOISE_STD, rel=0.5)
        assert {phase for phase, *_ in calls} == {"kernel", "final image"}
        assert all(0 <= done <= total for _, done, total, _ in calls)

    def test_it_is_restored_with_a_kernel_wider_than_the_estimate(self, blind):
        estimate = initialiser.estimate_kernel(scene().blurry, QUICK, kernel_size=11, noise_std=blind[0].noise_std)
        np.testing.assert_array_equal(blind[0].kernel, widened(estimate.kernel, QUICK, noise_std=blind[0].noise_std))
        known = deblur(scene().blurry, CLASSICAL, key=KEY, kernel=estimate.kernel)
        np.testing.assert_array_equal(known.kernel, estimate.kernel)  # a given one is taken at its word

    @pytest.mark.slow
    def test_the_kernel_that_it_is_restored_with_is_corrected_and_no_other(self, blind):
        # Half of the way: the image has 96 pixels a side, half of those that are trusted.
        config = dataclasses.replace(QUICK, correction_share=1.0, correction_trusted_side=192, vary_iterations=1)
        estimate = initialiser.estimate_kernel(scene().blurry, config, kernel_size=11, noise_std=blind[0].noise_std)
        result = deblur(scene().blurry, dataclasses.replace(CLASSICAL, initialiser=config), key=KEY)
        expected = correct(scene().blurry, estimate.kernel, noise_std=result.noise_std, share=0.5)
        np.testing.assert_array_equal(result.kernel, expected)
        for candidate in result.candidates:
            before = estimate.kernels[candidate.name]
            wide = expected if candidate.chosen else widened(before, config, noise_std=result.noise_std)
            np.testing.assert_array_equal(candidate.kernel, wide)

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

    @pytest.mark.slow
    def test_a_kernel_too_large_for_the_first_support_makes_it_grow(self, monkeypatch):
        monkeypatch.setattr(initialiser, "first_kernel_size", lambda _: 13)
        known = scene(kernel_size=17, seed=3)
        one_support = dataclasses.replace(QUICK, support_shares=(1.0,))
        result = deblur(known.blurry, Config(initialiser=one_support), key=KEY)
        assert result.kernel_size > 15
        assert gain(result.restored, known) > 5.0

    @pytest.mark.slow
    def test_a_kernel_that_has_no_room_is_told_of(self):
        result = deblur(scene().blurry, dataclasses.replace(CLASSICAL, kernel_size=5), key=KEY)
        assert result.kernel.shape == (5, 5)
        assert any("border of its 5-pixel support" in warning for warning in result.warnings)


class TestShown:
    def test_a_notebook_shows_before_after_and_kernel(self, blind):
        result, _ = blind
        with Image.open(io.BytesIO(result._repr_png_())) as image:
            assert image.width > 3 * 96
        assert dataclasses.replace(result, blurry=None)._repr_png_() is None
        assert repr(result).startswith("Result(96×96 pixels, kernel 11×11, final image: classical kernel, learned, ")

    def test_it_is_saved_and_saved_again(self, blind, tmp_path):
        result, _ = blind
        posterior = {"posterior_mean": scene().blurry, "posterior_std": scene().blurry, "history": {"error": [0.1, 0.05]}}
        for found, count in ((result, 4), (dataclasses.replace(result, **posterior), 7)):
            paths = found.save(tmp_path / "new" / "folder", "x")
            assert [path.exists() for path in paths] == [True] * count
            assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(path.name for path in paths)
        np.testing.assert_array_equal(np.load(paths[2]), result.kernel)
        with Image.open(paths[0]) as image:
            np.testing.assert_allclose(np.asarray(image) / 255, result.restored, atol=0.5 / 255 + 1e-6)


class TestRegion:
    @pytest.mark.slow
    def test_the_kernel_is_that_of_the_region_and_the_whole_image_is_restored(self, blind):
        """The scene, and beside it as much that another kernel has blurred, with stronger edges."""
        left = scene().blurry
        other = np.flip(scene(seed=5).blurry, 0)  # blurred by the mirrored kernel
        both = np.concatenate([left, other], 1)
        result = deblur(both, CLASSICAL, key=KEY, region=(0, 0, 96, 96))
        assert result.restored.shape == both.shape
        assert kernel_similarity(result.kernel, scene().kernel) > 0.95
        mirrored = deblur(both, CLASSICAL, key=KEY, region=(96, 0, 96, 96))
        assert kernel_similarity(mirrored.kernel, np.flip(scene().kernel, 0)) > 0.95

    @pytest.mark.parametrize(
        ("region", "reason"), [((0, 0, 31, 40), "too small"), ((60, 0, 37, 40), "beyond"), ((-1, 0, 40, 40), "beyond")]
    )
    def test_regions_that_cannot_be_used(self, region, reason):
        with pytest.raises(InputError, match=reason):
            deblur(scene().blurry, CLASSICAL, key=KEY, region=region)

    def test_a_kernel_size_as_large_as_the_region(self):
        with pytest.raises(InputError, match="41 does not fit an image of 40×40"):
            deblur(scene().blurry, dataclasses.replace(CLASSICAL, kernel_size=41), key=KEY, region=(0, 0, 40, 40))


class TestRefinish:
    def test_it_is_the_last_step_of_a_run(self, blind):
        result, _ = blind
        again = refinish(scene().blurry, result.kernel, CLASSICAL)
        np.testing.assert_array_equal(again.restored, result.restored)
        assert set(again.seconds) == {"observe", "judge", "finish"}

    def test_smoothness_and_amount(self, blind):
        result, _ = blind
        smooth = refinish(scene().blurry, result.kernel, CLASSICAL, smoothness=10.0).restored
        assert np.abs(np.diff(smooth)).sum() < 0.99 * np.abs(np.diff(result.restored)).sum()
        half = refinish(scene().blurry, result.kernel, CLASSICAL, amount=0.5).restored
        np.testing.assert_allclose(half, 0.5 * (scene().blurry + result.restored), atol=1e-6)

    @pytest.mark.parametrize("name", ["mc_small", "weak_dmphn", "selfdeblur_nonblind"])
    def test_presets_with_networks_are_left_with_a_non_blind_step(self, name):
        last = PRESETS[name].last_step_only()
        assert (last.fit, last.teacher, last.final) == (None, None, "auto")


def test_an_exception_in_the_callback_ends_the_run():
    class Cancelled(Exception):
        pass

    seen = []

    def cancel(phase, step, total, metrics):
        seen.append(phase)
        raise Cancelled

    with pytest.raises(Cancelled):
        deblur(scene().blurry, CLASSICAL, key=KEY, progress=cancel)
    assert seen == ["kernel"]


@pytest.mark.parametrize("found_then", [True, False])
def test_hardly_any_blur_is_doubted_and_sought_with_more_noise(monkeypatch, found_then):
    none = np.zeros((9, 9), np.float32)
    none[4, 4] = 1.0
    noises = []

    def estimate(blurry, config, *, noise_std, **_):
        noises.append((noise_std, config.smallest_noise_std))
        kernel = scene().kernel if found_then and len(noises) == 2 else none
        return initialiser.KernelEstimate({"classical": kernel}, {"classical": float("nan")}, (), False)

    monkeypatch.setattr(stages, "estimate_kernel", estimate)
    result = deblur(scene().blurry, CLASSICAL, key=KEY)
    doubting = CLASSICAL.initialiser.doubting_noise_std
    assert noises == [(pytest.approx(result.noise_std), 0.0), (doubting, doubting)]
    assert initialiser.hardly_blurs(result.kernel) == (not found_then)
    assert result.noise_std < 0.005  # the image is restored as before

    noises.clear()
    noisy = dataclasses.replace(CLASSICAL, smallest_noise_std=doubting)
    deblur(scene().blurry, noisy, key=KEY)
    assert len(noises) == 1  # there is nothing to be gained by the same again


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_an_image_that_is_found_sharp_is_told_of_and_its_kernel_not_corrected(monkeypatch, share):
    kernel = np.zeros((9, 9), np.float32)
    kernel[4, 3:6] = share / 2, 1.0 - share, share / 2
    found = initialiser.KernelEstimate({"classical": kernel}, {"classical": float("nan")}, (), False)
    corrected = np.roll(kernel, 1, axis=0)
    monkeypatch.setattr(stages, "estimate_kernel", lambda *_, **__: found)
    monkeypatch.setattr(case, "correct", lambda *_, **__: corrected)
    correcting = dataclasses.replace(QUICK, correction_share=1.0, doubting_noise_std=0.0)
    config = dataclasses.replace(CLASSICAL, initialiser=correcting, final="sparse")
    result = deblur(0.8 * scene().sharp, config, key=KEY)
    np.testing.assert_array_equal(result.kernel, kernel if share == 0.1 else corrected)
    assert any("next to no blur" in warning for warning in result.warnings) == (share == 0.1)


def test_a_kernel_that_hardly_blurs_has_its_mass_in_one_place():
    assert not initialiser.hardly_blurs(scene().kernel)
    spread = np.full((5, 5), 0.3 / 16, np.float32)
    spread[:3, :3] = 0.7 / 9
    spread[0, 0] += 1e-3
    assert not initialiser.hardly_blurs(spread)  # a pixel from the peak, which is in the corner, lie four of the nine
    spread[1, 1] += 1e-2
    assert initialiser.hardly_blurs(spread)


@pytest.mark.slow
def test_an_image_that_no_kernel_explains_is_left_as_it_was(monkeypatch):
    monkeypatch.setattr(finish, "overshoot", lambda restored, method: 0.5)
    result = deblur(scene().blurry, CLASSICAL, key=KEY)
    assert result.chosen == "input"
    np.testing.assert_allclose(result.restored, scene().blurry, atol=1e-6)
    assert any("left as it was" in warning for warning in result.warnings)


def test_no_more_than_two_kernels_of_a_kind_are_tried():
    names = ["varying", "classical, softness 1", "classical, softness 0.4", "classical, softness 0.7", "deep prior"]
    assert stages._worth_trying(names) == [*names[:3], "deep prior"]


@pytest.fixture(scope="module")
def night():
    """A scene with a dozen lights of eight times white."""
    known, generator = scene(), np.random.default_rng(0)
    radiance = np.pad(0.5 * known.sharp, known.kernel.shape[0] // 2, mode="edge")
    for row, column in generator.integers(5, 90, (12, 2)):
        radiance[row : row + 3, column : column + 3] += 8.0
    seen = np.asarray(blur.blur_valid(jnp.asarray(radiance, jnp.float32), jnp.asarray(known.kernel)))
    return np.clip(seen + generator.normal(0.0, NOISE_STD, seen.shape), 0.0, 1.0).astype(np.float32)


class TestHighlights:
    """Lights several times brighter than white, which the sensor clipped."""

    @pytest.mark.slow
    def test_a_kernel_that_leaves_them_unexplained_is_sought_again_without_them(self, night):
        phases = []
        result = deblur(night, CLASSICAL, key=KEY, progress=lambda phase, *_: phases.append(phase))
        assert result.chosen == "without clipped pixels: classical kernel, saturated"
        assert list(dict.fromkeys(phases)) == ["kernel", "final image", "highlights", "kernel without clipped pixels"]
        found = {candidate.name: kernel_similarity(candidate.kernel, scene().kernel) for candidate in result.candidates}
        assert found["without clipped pixels: classical"] > 0.9
        assert found["classical"] < found["without clipped pixels: classical"] - 0.1
        assert result.seconds["highlights"] > 0.0

    @pytest.mark.parametrize("lead", [-0.01, 0.01])
    @pytest.mark.slow
    def test_a_kernel_that_no_guess_leads_is_where_the_second_estimate_starts(self, night, monkeypatch, lead):
        starts = []

        def estimate(*arguments, start, original=stages.estimate_kernel, **named):
            starts.append(start)
            return original(*arguments, start=start, **named)

        monkeypatch.setattr(stages, "estimate_kernel", estimate)
        monkeypatch.setattr(stages, "lead_of_guesses", lambda *_, **__: lead)
        believed = dataclasses.replace(CLASSICAL, initialiser=dataclasses.replace(QUICK, doubting_noise_std=0.0))
        result = deblur(night, believed, key=KEY)
        found = {candidate.name: candidate.kernel for candidate in result.candidates}
        assert set(found) == {"classical", "without clipped pixels: classical"}
        assert starts[0] is None
        if lead > 0.0:
            assert starts[1] is None
        else:
            np.testing.assert_array_equal(widened(starts[1], QUICK, noise_std=result.noise_std), found["classical"])

    @pytest.mark.slow
    def test_of_a_large_image_a_part_is_looked_at(self, night, monkeypatch):
        shapes = []

        def restore(scene, kernel, progress, original=stages._restore):
            shapes.append(scene.grey.shape)
            return original(scene, kernel, progress)

        monkeypatch.setattr(stages, "_restore", restore)
        large = dataclasses.replace(QUICK, image_side=80, refine_side=64)
        result = deblur(night, dataclasses.replace(CLASSICAL, initialiser=large), key=KEY)
        assert result.chosen == "without clipped pixels: classical kernel, saturated"
        assert shapes == [(64, 64), (96, 96)]

    def test_white_that_the_kernel_explains_is_left_in(self):
        known = scene()
        white = np.clip(known.blurry + 0.1, 0.0, 0.97).astype(np.float32)
        result = deblur(white, CLASSICAL, key=KEY)
        assert white.max() > 0.9
        assert [candidate.name for candidate in result.candidates] == ["classical"]

    @pytest.mark.parametrize("image", [0.8 * scene().blurry, np.maximum(scene().blurry, 0.97)], ids=["none", "nearly all"])
    def test_where_no_pixel_is_clipped_or_nearly_all_are_nothing_is_looked_at(self, image):
        assert "highlights" not in deblur(image, CLASSICAL, key=KEY).seconds


class TestKnownKernel:
    @pytest.mark.parametrize("final", ["auto", "sparse", "learned", "hyper_laplacian", "saturated"])
    def test_only_the_image_is_sought(self, final):
        known = scene()
        result = deblur(known.blurry, dataclasses.replace(CLASSICAL, final=final), key=KEY, kernel=3.0 * known.kernel)
        np.testing.assert_allclose(result.kernel, known.kernel, atol=1e-6)
        assert [candidate.name for candidate in result.candidates] == ["given"]
        assert result.chosen == f"given kernel, {'learned' if final == 'auto' else final}"
        assert "initialise" not in result.seconds
        assert psnr(result.restored, known.sharp) > psnr(known.blurry, known.sharp) + 9.0  # not shifted, either

    def test_saturated_highlights_are_told_of_and_restored_by_the_method_for_them(self):
        known = scene()
        light = np.zeros_like(known.sharp)
        light[30:33, 40:43] = 8.0
        radiance = np.pad(known.sharp * 0.5 + light, known.kernel.shape[0] // 2, mode="edge")
        blurry = np.clip(np.asarray(blur.blur_valid(jnp.asarray(radiance, jnp.float32), jnp.asarray(known.kernel))), 0, 1)
        results = {
            final: deblur(blurry, dataclasses.replace(CLASSICAL, final=final), key=KEY, kernel=known.kernel)
            for final in ("learned", "saturated", "auto")
        }
        assert any("--final=saturated" in warning for warning in results["learned"].warnings)
        np.testing.assert_array_equal(results["auto"].restored, results["saturated"].restored)
        assert results["saturated"].warnings == ()
        assert results["saturated"].chosen == "given kernel, saturated"
        sharp = np.clip(known.sharp * 0.5 + light, 0, 1)
        assert psnr(results["saturated"].restored, sharp) > psnr(results["learned"].restored, sharp) + 3.0

    def test_a_preset_may_know_more_noise_than_can_be_seen(self):
        noisier = dataclasses.replace(CLASSICAL, smallest_noise_std=0.02)
        assert deblur(scene().blurry, noisier, key=KEY, kernel=scene().kernel).noise_std == 0.02

    def test_an_implausible_result_of_a_given_kernel_is_told_of(self, monkeypatch):
        monkeypatch.setattr(finish, "overshoot", lambda restored, method: 0.5)
        result = deblur(scene().blurry, CLASSICAL, key=KEY, kernel=scene().kernel)
        assert result.chosen == "given kernel, learned"
        assert any("kernel may be wrong" in warning for warning in result.warnings)

    @pytest.mark.slow
    def test_sides_may_differ(self):
        kernel = np.full((1, 5), 0.2, np.float32)
        assert deblur(scene().blurry, CLASSICAL, key=KEY, kernel=kernel).restored.shape == (96, 96)


@pytest.mark.usefixtures("light_compilation_here")
class TestDeepPrior:
    @pytest.mark.slow
    def test_the_likelier_kernel_is_used(self):
        """Four steps make no good kernel out of a flat one: the classical one must win."""
        result = deblur(scene().blurry, dataclasses.replace(CLASSICAL, fit=TINY_FIT), key=KEY)
        scores = {candidate.name: candidate.score for candidate in result.candidates}
        assert set(scores) == {"classical", "deep prior"}
        assert scores["classical"] < scores["deep prior"]
        assert result.chosen == "classical kernel, learned"
        assert len(result.history["fit"]) == 4
        assert gain(result.restored, scene()) > 9.0

    @pytest.mark.slow
    def test_the_generators_own_image_and_the_blurry_images_chroma(self):
        known = scene(colour=True)
        result = deblur(known.blurry, dataclasses.replace(CLASSICAL, fit=TINY_FIT, final="generator"), key=KEY)
        assert result.chosen == "generator"
        assert result.restored.shape == known.blurry.shape
        assert np.isfinite(result.restored).all()

    @pytest.mark.slow
    def test_the_kernel_may_be_left_to_the_classical_estimate(self):
        """Without a kernel generator the deep prior restores for the kernel that was estimated, or given."""
        image_only = dataclasses.replace(TINY_FIT, kernel_generator=None)
        config = dataclasses.replace(CLASSICAL, fit=image_only, final="generator")
        result = deblur(scene().blurry, config, key=KEY)
        assert [candidate.name for candidate in result.candidates] == ["classical"]
        assert kernel_similarity(result.kernel, scene().kernel) > 0.95
        alone = dataclasses.replace(config, initialiser=None, name="alone")
        known = np.pad(scene().kernel, 1)
        np.testing.assert_allclose(deblur(scene().blurry, alone, key=KEY, kernel=known).kernel, known, atol=1e-6)
        with pytest.raises(InputError, match="'alone' restores the image for a known kernel only"):
            deblur(scene().blurry, alone, key=KEY)

    @pytest.mark.slow
    def test_posterior_samples_cover_the_whole_image(self):
        config = dataclasses.replace(CLASSICAL, initialiser=None, fit=TINY_FIT, final="sparse", num_posterior_samples=3)
        result = deblur(scene().blurry, config, key=KEY)
        assert result.posterior_mean.shape == result.posterior_std.shape == scene().blurry.shape
        assert (result.posterior_std > 0).all()

    @pytest.mark.slow
    def test_an_early_end_is_told_of(self):
        """The error cannot fall while nothing moves: the first step that counts is the best."""
        still = dataclasses.replace(
            TINY_FIT,
            num_iterations=40,
            image_learning_rate=0.0,
            kernel_learning_rate=0.0,
            input_noise_std=constant(0.0),
            dropout_rate=constant(0.0),
            stopping=StoppingConfig(patience=6, from_step=3),
        )
        config = dataclasses.replace(CLASSICAL, initialiser=None, fit=still, final="generator")
        result = deblur(scene().blurry, config, key=KEY)
        assert (result.stop.best_step, result.stop.step, result.stop.criterion) == (3, 9, "error")
        assert len(result.history["fit"]) == len(result.history["error"]) == 10


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


@pytest.mark.usefixtures("light_compilation_here")
class TestBatch:
    CONFIG = Config(initialiser=None, kernel_size=11, fit=TINY_FIT, final="generator")

    @pytest.mark.slow
    def test_images_of_several_shapes_come_back_in_their_order(self):
        grey, colour = scene().blurry, scene(colour=True).blurry
        snapshots = []
        photos = [
            Photo(grey, KEY),
            Photo(colour[:80], KEY),
            Photo(np.flip(grey, 0).copy(), KEY, snapshot=lambda *found: snapshots.append(found)),
        ]
        results = deblur_batch(photos, self.CONFIG)
        for photo, result in zip(photos, results, strict=True):
            alone = deblur(photo.image, self.CONFIG, key=KEY)
            assert result.restored.shape == photo.image.shape
            np.testing.assert_allclose(result.restored, alone.restored, atol=1e-3)
            np.testing.assert_allclose(result.kernel, alone.kernel, atol=1e-3)
            assert result.seconds.keys() == alone.seconds.keys()
        assert [steps for steps, *_ in snapshots] == [2, 4]

    @pytest.mark.slow
    def test_a_checkpoint_takes_up_every_shape(self, tmp_path):
        photos = [Photo(scene().blurry, KEY), Photo(scene().blurry[:80], KEY)]
        path = tmp_path / "fit"
        first = deblur_batch(photos, self.CONFIG, checkpoint=path)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["fit", "fit.1"]
        fitted = []
        again = deblur_batch(photos, self.CONFIG, checkpoint=path, progress=lambda phase, *_: fitted.append(phase))
        assert "fit" not in fitted
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one.restored, other.restored)

    def test_presets_without_a_deep_prior_go_through_one_by_one(self):
        photos = [Photo(scene().blurry, KEY), Photo(scene().blurry, KEY, kernel=scene().kernel)]
        blind, known = deblur_batch(photos, CLASSICAL)
        assert (blind.chosen, known.chosen) == ("classical kernel, learned", "given kernel, learned")


class TestBlurThatVaries:
    SHAKE = ShakeConfig(
        scales=(0.5, 1.0), degrees=(1, 1), descents=(3, 0), iterations=(6, 6), patch_side=48, num_patches=4, node_spacing=32
    )

    # A hundred pixels are too few to find a turn.
    WITHOUT_DESCENT = dataclasses.replace(SHAKE, scales=(1.0,), degrees=(1,), descents=(0,), iterations=(6,))

    @pytest.mark.slow
    def test_an_image_of_a_still_camera_stays_uniform(self, blind):
        config = dataclasses.replace(CLASSICAL, blur="auto", shake=self.SHAKE)
        result = deblur(scene().blurry, config, key=KEY)
        assert result.shake is not None
        assert not result.shake.chosen
        assert result.shake.gain < config.shake.smallest_gain
        assert result.chosen == "classical kernel, learned"
        assert result.restored.tobytes() == blind[0].restored.tobytes()
        assert "shake" in result.seconds

    @pytest.mark.slow
    def test_kernels_for_each_part_where_they_are_asked_for(self):
        result = deblur(scene().blurry, dataclasses.replace(CLASSICAL, blur="varying", shake=self.WITHOUT_DESCENT), key=KEY)
        assert result.chosen == "varying kernel, learned"
        assert result.shake is not None
        assert result.shake.chosen
        assert result.kernel.shape[:2] == (3, 3)
        np.testing.assert_allclose(result.kernel.sum((2, 3)), 1.0, atol=1e-5)
        assert [(one.name, one.chosen) for one in result.candidates] == [("classical", False), ("varying", True)]
        assert any("hardly better than one does" in warning for warning in result.warnings)  # the camera was still
        assert gain(result.restored, scene()) > 5.0

    @pytest.mark.slow
    def test_kernels_that_give_no_plausible_image_are_left(self, blind, monkeypatch):
        shares = iter([0.0, 0.5, 0.0])  # of the first kernel, before all; of those that vary; of the first again
        monkeypatch.setattr(finish, "overshoot", lambda restored, method: next(shares))
        result = deblur(scene().blurry, dataclasses.replace(CLASSICAL, blur="varying", shake=self.WITHOUT_DESCENT), key=KEY)
        assert result.restored.tobytes() == blind[0].restored.tobytes()
        assert result.shake is not None
        assert not result.shake.chosen
        assert any("vary over the image give no plausible" in warning for warning in result.warnings)

    @pytest.mark.slow
    def test_given_kernels_are_used(self):
        known = scene()
        kernels = np.broadcast_to(3.0 * known.kernel, (2, 3, *known.kernel.shape))
        result = deblur(known.blurry, CLASSICAL, key=KEY, kernel=kernels)
        assert result.kernel.shape == kernels.shape
        assert result.chosen == "given kernel, learned"
        assert psnr(result.restored, known.sharp) > psnr(known.blurry, known.sharp) + 9.0

    @pytest.mark.slow
    def test_a_deep_prior_takes_them_in_its_forward_model(self):
        known = scene()
        kernels = np.broadcast_to(known.kernel, (2, 2, *known.kernel.shape))
        config = Config(initialiser=None, fit=TINY_FIT, final="generator")
        result = deblur(known.blurry, config, key=KEY, kernel=kernels)
        assert result.chosen == "generator"
        assert np.isfinite(result.history["fit"]).all()
        one = deblur(known.blurry, config, key=KEY, kernel=known.kernel)
        # Equal kernels everywhere are one kernel.
        np.testing.assert_allclose(result.history["fit"], one.history["fit"], rtol=1e-3)

    @pytest.mark.parametrize(
        "changes", [{"blur": "wavy"}, {"blur": "varying", "final": "hyper_laplacian"}, {"blur": "auto", "initialiser": None}]
    )
    def test_what_does_not_go_together_is_refused(self, changes):
        with pytest.raises(InputError):
            dataclasses.replace(CLASSICAL, fit=TINY_FIT, **changes)

    def test_kernels_for_too_many_parts_are_refused(self):
        with pytest.raises(InputError, match="too many parts"):
            deblur(scene().blurry, CLASSICAL, key=KEY, kernel=np.ones((20, 2, 5, 5), np.float32))
