import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from experiments.shake3d import Shake
from jaxdeblur import InputError
from jaxdeblur.classical import shake
from jaxdeblur.config import InitialiserConfig, ShakeConfig
from jaxdeblur.evaluation.metrics import kernel_similarity
from jaxdeblur.operators import blur, filter_flow
from tests.scenes import NOISE_STD, dead_leaves, motion_kernel

# Enough for clean images of 192 pixels.
QUICK_SHAKE = ShakeConfig(
    scales=(0.5, 0.5), degrees=(1, 1), descents=(6, 6), iterations=(12, 12), patch_side=112, num_patches=4, node_spacing=40
)
SIDE, SIZE = 192, 13


def turning(shape, *, roll=6.0, perspective=0.0):
    """A bent path along which the camera rolls, by ``roll`` times the path in pixels at the corners of an image."""
    coefficients, corner = np.array([0.1 * roll, 0.5 * roll]), math.hypot(*shape) / 2
    return shake.Turning(motion_kernel(SIZE), coefficients, SIZE // 2 - 1, corner, perspective)


def warped(latent, known, shape):
    """The sum of warped images, written out: every shift's image, turned by its angle, times its share."""
    margin = (np.array(latent.shape) - shape) // 2
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(float)
    down, across = rows - (shape[0] - 1) / 2, columns - (shape[1] - 1) / 2
    spline = scipy.ndimage.spline_filter(latent.astype(np.float64))
    half = len(known.kernel) // 2
    total = np.zeros(shape)
    for i, j in np.argwhere(known.kernel > 0):
        angle = known.angles[i, j]
        along = known.perspective / known.corner**2 * (down * (i - half) + across * (j - half))
        place = (
            rows + margin[0] - (i - half) + angle * across - along * down,
            columns + margin[1] - (j - half) - angle * down - along * across,
        )
        total += known.kernel[i, j] * scipy.ndimage.map_coordinates(spline, place, prefilter=False)
    return total


@pytest.mark.parametrize(("roll", "perspective"), [(6.0, 0.0), pytest.param(4.0, 0.7, marks=pytest.mark.slow)])
def test_equals_the_sum_of_warped_images(roll, perspective):
    shape = (96, 90)
    known = turning(shape, roll=roll, perspective=perspective)
    kernels = known.field(shape, (12, 12))
    size = kernels.shape[-1]
    latent = scipy.ndimage.gaussian_filter(dead_leaves(96 + size - 1, 4), 1.0)[:, : 90 + size - 1]
    expected = warped(latent, known, shape)
    found = jax.jit(filter_flow.blur_varying)(jnp.asarray(latent), jnp.asarray(kernels))
    uniform = blur.blur_valid(jnp.asarray(latent), jnp.asarray(np.pad(known.kernel, (size - SIZE) // 2)))
    error, without = float(np.abs(found - expected).mean()), float(np.abs(uniform - expected).mean())
    assert error < 2e-3
    assert error < 0.2 * without


def test_kernels_are_linear_in_the_middles_and_have_an_adjoint():
    generator = np.random.default_rng(0)
    positions = jnp.asarray(20.0 * generator.normal(size=(4, 2)), jnp.float32)
    angles = jnp.asarray(0.05 * generator.normal(size=(7, 5)), jnp.float32)
    kernel, kernels = (jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in ((7, 5), (4, 7, 5)))
    interpolations = shake._interpolations(angles, 1e-3, positions)
    forward = shake._kernels(kernel, *interpolations)
    backward = shake._kernels_adjoint(kernels, *interpolations)
    np.testing.assert_allclose(jnp.vdot(forward, kernels), jnp.vdot(kernel, backward), rtol=1e-4)
    in_the_middle = shake.turned_kernels(kernel, angles, 1e-3, jnp.zeros((1, 2)))
    np.testing.assert_allclose(in_the_middle[0], kernel, atol=1e-6)


def test_many_large_kernels_take_little_memory():
    kernel, positions = jax.ShapeDtypeStruct((151, 151), jnp.float32), jax.ShapeDtypeStruct((300, 2), jnp.float32)
    program = jax.jit(shake.turned_kernels).lower(kernel, kernel, 1e-6, positions).compile()
    assert program.memory_analysis().temp_size_in_bytes < 100e6  # the kernels themselves take 27


def test_the_spline_has_one_width_and_sum_wherever_it_lies():
    offsets = np.arange(-4, 5)
    for place in (0.0, 0.2, 0.5, 0.9):
        shares = np.asarray(shake._spline(jnp.asarray(offsets - place)))
        assert shares.sum() == pytest.approx(1.0, abs=1e-6)
        assert shares @ offsets == pytest.approx(place, abs=1e-6)
        assert shares @ (offsets - place) ** 2 == pytest.approx(0.25, abs=1e-6)


def test_every_place_has_its_light_around_the_centre():
    """A mean angle would only turn the image, so there is none."""
    known = turning((100, 80))
    assert np.sum(known.angles * known.kernel) == pytest.approx(0.0, abs=1e-6)
    kernels = known.field((100, 80), (3, 3))
    half = kernels.shape[-1] // 2
    offsets = np.arange(-half, half + 1)
    centres = [(kernel.sum(1) @ offsets, kernel.sum(0) @ offsets) for kernel in kernels.reshape(-1, *kernels.shape[2:])]
    assert np.ptp(np.array(centres), axis=0).max() < 0.3
    np.testing.assert_allclose(kernels.sum((2, 3)), 1.0, atol=1e-5)


def test_the_kernel_is_that_of_its_origin():
    known = dataclasses.replace(turning((100, 80)), origin=(20.0, -10.0))
    field = known.field((100, 80), (5, 4))  # with a middle at that place
    similar = np.array([[kernel_similarity(kernel, known.kernel) for kernel in row] for row in field])
    assert similar[3, 1] > 0.995
    assert similar[0, 3] < 0.9
    larger = known.resized(2 * SIZE + 1, 2.0)
    assert larger.origin == (40.0, -20.0)


def test_without_a_roll_the_kernel_is_the_same_everywhere():
    still = turning((64, 64), roll=0.0)
    assert still.roll_std == 0.0
    for found in still.field((64, 64), (2, 2)).reshape(4, *[still.field((64, 64), (1, 1)).shape[-1]] * 2):
        assert kernel_similarity(found, still.kernel) > 0.99


def test_how_far_corners_differ():
    shape = (100, 80)
    still = turning(shape, roll=0.0)
    assert still.corner_std == 0.0
    rolled, wide = turning(shape, roll=6.0), turning(shape, roll=0.0, perspective=0.5)
    assert rolled.corner_std == pytest.approx(rolled.roll_std * rolled.corner, rel=1e-6)
    assert turning(shape, roll=12.0).corner_std == pytest.approx(2 * rolled.corner_std, rel=1e-6)
    assert 0.3 < wide.corner_std < 0.5 * SIZE / 2


def test_resizing_keeps_the_angles():
    known = turning((100, 80))
    larger = known.resized(2 * SIZE + 1, 2.0)
    assert larger.roll_std == pytest.approx(known.roll_std, rel=0.1)
    assert known.of_degree(2).roll_std == pytest.approx(known.roll_std, rel=1e-6)


def test_perspective_is_that_of_a_pinhole_camera():
    """Pitch and yaw alone, as homographies: at the sides of a wide lens's image light moves further than in the middle."""
    shape, margin = (180, 270), 15
    camera = Shake(extent=15.0, roll=1e-3, focal_length=24.0, seed=(3,))
    exact = camera.kernels(shape, margin, (3, 3))
    inner, focal_length = np.array(shape) - 2 * margin, 24.0 * max(shape) / 36.0
    perspective = (math.hypot(*inner) / 2 / focal_length) ** 2
    similar = []
    for found in (perspective, 0.0):
        known = shake.Turning(camera.kernels(shape, margin, (1, 1))[0, 0], np.zeros(2), 7.0, math.hypot(*inner) / 2, found)
        field = known.field(tuple(inner), (3, 3))
        similar.append([kernel_similarity(field[at], exact[at]) for at in ((0, 0), (1, 0), (2, 2))])
    assert np.min(similar[0]) > 0.9
    assert np.all(np.array(similar[0]) > np.array(similar[1]) + 0.05)


@pytest.fixture(scope="module")
def images():
    """Blurred by a turning camera and by a still one, of the same sharp image."""
    known = turning((SIDE, SIDE), roll=8.0)
    field = known.field((SIDE, SIDE), (4, 4))
    size = field.shape[-1]
    latent = jnp.asarray(dead_leaves(SIDE + size - 1, 7))
    noise = np.random.default_rng(0).normal(0.0, NOISE_STD, (SIDE, SIDE))
    still = jnp.asarray(np.pad(known.kernel, (size - SIZE) // 2))
    blurred = {"turned": jax.jit(filter_flow.blur_varying)(latent, jnp.asarray(field)), "still": blur.blur_valid(latent, still)}
    return {name: (np.asarray(image) + noise).astype(np.float32) for name, image in blurred.items()}, field, known


def estimated(image, start, **options):
    common = {"noise_std": NOISE_STD, "softness_std": 0.5}
    return shake.estimate_shake(image, start, QUICK_SHAKE, InitialiserConfig(), **common, **options)


@pytest.mark.slow
def test_a_turn_is_found_from_the_uniform_kernel(images):
    blurred, field, known = images
    calls = []
    found = estimated(blurred["turned"], known.kernel, progress=lambda *call: calls.append(call))
    assert calls == [(1, 2), (2, 2)]
    assert found.gain > ShakeConfig().smallest_gain
    assert found.clear
    assert found.agreement > ShakeConfig().smallest_agreement
    assert found.corner_std == pytest.approx(known.corner_std, rel=0.4)
    assert found.roll_std == pytest.approx(math.degrees(known.roll_std), rel=0.3)
    nodes = filter_flow.kernels_within(jnp.asarray(found.kernels), (SIDE, SIDE), (slice(None), slice(None)), (4, 4))
    corners = [(i, j) for i in (0, 3) for j in (0, 3)]
    before = np.mean([kernel_similarity(known.kernel, field[corner]) for corner in corners])
    after = np.mean([kernel_similarity(np.asarray(nodes)[corner], field[corner]) for corner in corners])
    assert after > before + 0.15


@pytest.mark.slow
def test_the_likeliest_start_goes_on(images):
    blurred, _, known = images
    reduced = shake._reduced(blurred["turned"], 0.5)
    level = shake._Level.of(reduced, 0.5, 0.5, known.kernel, QUICK_SHAKE, InitialiserConfig(), NOISE_STD, 0.5)
    rounds = [shake._Round(level, 1, 6, 12) for _ in range(2)]
    middle = dataclasses.replace(known, coefficients=np.zeros(0))
    away = known.field((SIDE, SIDE), (6, 6))[2, 3]  # the kernel of another place, which begins there
    right = dataclasses.replace(middle, kernel=np.asarray(away), origin=(-SIDE / 12, SIDE / 12))
    wrong = dataclasses.replace(middle, kernel=np.ascontiguousarray(known.kernel[:, ::-1]))
    reports = []
    start, found, gain = shake._coarse([wrong, right], rounds, 1, lambda: reports.append(1))
    assert start is right
    still = level.fitted(wrong)
    for one in rounds:
        still = one.refined(still)
    assert gain == level.evidence(still) - level.evidence(found)
    assert len(reports) == 2
    assert found.roll_std == pytest.approx(known.roll_std, rel=0.3)
    start, *_ = shake._coarse([wrong, right], rounds, 2, lambda: None)
    assert start is right


def test_a_turn_of_more_than_a_hand_makes_is_implausible():
    kernel = np.zeros((11, 11), np.float32)
    kernel[5, 2:9] = 1 / 7  # a deviation of two pixels
    turning = shake.Turning(kernel, np.array([0.0, 1.0]), 3.0, 100.0)
    assert turning.shift_std == pytest.approx(2.0)
    assert turning.corner_std == pytest.approx(2 / 3)
    assert turning.is_plausible
    assert not dataclasses.replace(turning, coefficients=np.array([0.0, 4.0])).is_plausible
    assert dataclasses.replace(turning, perspective=1.0).is_plausible
    assert not dataclasses.replace(turning, coefficients=np.array([0.0, 2.5]), perspective=1.0).is_plausible


@pytest.mark.parametrize(
    ("still", "turned", "expected"),
    [([1.0, 2.0, 3.0], [0.5, 1.0, 2.0], 1.0), ([1.0, 1.0], [0.0, 1.5], 1 / 3), ([1.0, 2.0], [1.0, 2.0], 0.0)],
)
def test_how_well_patches_agree_about_a_turn(still, turned, expected, monkeypatch):
    image = np.zeros((64, 64), np.float32)
    level = shake._Level.of(image, 1.0, 1.0, np.ones((3, 3)), QUICK_SHAKE, InitialiserConfig(), 0.01, 0.5)
    known = turning((64, 64), perspective=0.1)

    def evidences(_, at):
        assert at.perspective == (0.0 if at.roll_std == 0.0 else 0.1)
        return np.array(still if at.roll_std == 0.0 else turned)

    monkeypatch.setattr(shake._Level, "evidences", evidences)
    assert shake._agreement(level, known) == pytest.approx(expected)


@pytest.mark.slow
def test_the_evidence_is_the_mean_over_patches():
    image = scipy.ndimage.gaussian_filter(dead_leaves(96, 3), 1.0).astype(np.float32)
    config = dataclasses.replace(QUICK_SHAKE, patch_side=48)
    known = turning(image.shape)
    level = shake._Level.of(image, 1.0, 1.0, known.kernel, config, InitialiserConfig(), 0.01, 0.5)
    fitted = level.fitted(known)
    each = level.evidences(fitted)
    assert each.shape == (4,)
    for number, alone in enumerate(each):
        part = slice(number, number + 1)
        one = dataclasses.replace(level, patches=level.patches[part], positions=level.positions[part])
        assert one.evidence(fitted) == pytest.approx(alone, rel=1e-4)
    assert level.evidence(fitted) == pytest.approx(each.mean())


@pytest.mark.slow
def test_where_no_turn_is_plausible_there_is_none(images, monkeypatch):
    blurred, _, known = images
    monkeypatch.setattr(shake, "_MOST_TURN", 0.0)
    found = estimated(blurred["turned"], known.kernel)
    assert (found.gain, found.roll_std, found.clear) == (0.0, 0.0, False)
    assert np.ptp(found.kernels, axis=(0, 1)).max() == 0.0


@pytest.mark.slow
def test_an_implausible_turn_at_full_size_is_not_taken(images, monkeypatch):
    blurred, _, known = images

    def coarse(starts, rounds, *_):
        return starts[0], rounds[0].level.fitted(starts[0]), 0.0

    def fine(_, varying, last, rounds, *__):
        return dataclasses.replace(rounds[-1].level.fitted(varying, share=0.5), coefficients=np.array([90.0, 0.0]))

    monkeypatch.setattr(shake, "_coarse", coarse)
    monkeypatch.setattr(shake, "_fine", fine)
    monkeypatch.setattr(shake, "compile_side_by_side", lambda calls: None)
    config = dataclasses.replace(QUICK_SHAKE, scales=(0.5, 1.0), num_windows=0)
    found = shake.estimate_shake(
        blurred["turned"], known.kernel, config, InitialiserConfig(), noise_std=NOISE_STD, softness_std=0.5
    )
    assert np.ptp(found.kernels, axis=(0, 1)).max() == 0.0
    assert kernel_similarity(found.kernels[0, 0], known.kernel) > 0.8


@pytest.mark.slow
def test_a_still_camera_gains_nothing_and_ends_the_estimate(images):
    blurred, _, known = images
    found = estimated(blurred["still"], known.kernel, only_if_clear=True)
    assert found.gain < ShakeConfig().smallest_gain
    assert found.kernels is None


@pytest.mark.parametrize(
    "changes", [{"scales": (1.0,)}, {"degrees": (2, 2, 1, 1, 1, 1)}, {"node_spacing": 1}, {"num_starts": 0}]
)
def test_settings_are_checked(changes):
    with pytest.raises(InputError, match="shake"):
        dataclasses.replace(ShakeConfig(), **changes)
