"""The loss terms that ask a pre-trained network, with a tiny one in its place."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.config import Config, FitConfig, KernelMlpConfig, LossInterval, SkipNetConfig, TeacherConfig
from jaxdeblur.errors import InputError
from jaxdeblur.networks.teachers.dwdn import Dwdn, DwdnConfig
from jaxdeblur.networks.teachers.teacher import Teacher, restoration
from jaxdeblur.operators import blur
from jaxdeblur.optimise import losses
from jaxdeblur.optimise.loop import fit

pytestmark = pytest.mark.usefixtures("light_compilation")

KERNEL = jnp.full((3, 3), 1 / 9)
BLURRY = jax.random.uniform(jax.random.key(0), (16, 18))
TERM = jax.jit(losses.term, static_argnums=0)
WEAK_TERMS = {"weak_mse": losses.mse, "weak_mae": losses.mae, "weak_one_minus_ssim": losses.one_minus_ssim}


@pytest.fixture(scope="module")
def teacher():
    module = Dwdn(DwdnConfig(features=2, widths=(2, 3), num_residual_blocks=1, num_scales=1, filter_size=3))
    params = jax.jit(module.init)(jax.random.key(3), BLURRY, KERNEL)["params"]
    # Fresh ones start some layers at zero, which would hide mistakes.
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(4), len(leaves))
    moved = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return Teacher("dwdn", jax.tree.unflatten(structure, moved))


def _estimate():
    image = jax.random.uniform(jax.random.key(1), (18, 20))
    return losses.Estimate(image=image, kernel=KERNEL, reblurred=blur.blur_valid(image, KERNEL))


@pytest.mark.parametrize("name", WEAK_TERMS)
def test_weak_terms_measure_the_distance_to_the_teachers_image(teacher, name):
    estimate, surrogate = _estimate(), jnp.asarray(restoration(teacher, np.asarray(BLURRY), KERNEL))
    expected = WEAK_TERMS[name](estimate.image[1:-1, 1:-1], surrogate)
    known = losses.Observation(BLURRY, teacher=teacher, teacher_kernel=KERNEL, surrogate=surrogate)
    asked = losses.Observation(BLURRY, teacher=teacher)
    np.testing.assert_allclose(TERM(name, estimate, known), expected, rtol=1e-6)
    # With the kernel of the moment the teacher is asked anew; here that is the same kernel.
    np.testing.assert_allclose(TERM(name, estimate, asked), expected, rtol=1e-4)


def test_no_gradient_reaches_the_kernel_through_the_teacher(teacher):
    asked = losses.Observation(BLURRY, teacher=teacher)
    gradient = jax.jit(jax.grad(lambda e: losses.term("weak_mse", e, asked)))(_estimate())
    assert float(jnp.abs(gradient.kernel).max()) == 0
    assert float(jnp.abs(gradient.image).max()) > 0


@pytest.mark.slow
def test_the_agreements_gradient_passes_through_the_teacher(teacher):
    """Against finite differences in double precision's stead: central ones along random directions."""
    estimate = _estimate()
    surrogate = jnp.asarray(restoration(teacher, np.asarray(BLURRY), KERNEL))
    observation = losses.Observation(BLURRY, teacher=teacher, teacher_kernel=KERNEL, surrogate=surrogate)

    @jax.jit
    def agreement(image):
        reblurred = blur.blur_valid(image, KERNEL)
        return losses.term("teacher_agreement", dataclasses.replace(estimate, image=image, reblurred=reblurred), observation)

    direct = jax.jit(teacher.restore)(estimate.reblurred, KERNEL) - observation.surrogate
    np.testing.assert_allclose(agreement(estimate.image), jnp.sqrt(jnp.mean(direct**2)), rtol=1e-4)
    gradient = jax.jit(jax.grad(agreement))(estimate.image)
    for seed in range(4):
        direction = jax.random.normal(jax.random.key(seed), estimate.image.shape)
        direction = direction / jnp.linalg.norm(direction)
        step = 3e-3
        slope = (agreement(estimate.image + step * direction) - agreement(estimate.image - step * direction)) / (2 * step)
        np.testing.assert_allclose(jnp.vdot(gradient, direction), slope, atol=0.03 * float(jnp.linalg.norm(gradient)))


def _fit_config(**terms):
    return FitConfig(
        image_generator=SkipNetConfig(num_scales=1, channels=4, skip_channels=2, non_local=False),
        kernel_generator=KernelMlpConfig(hidden_sizes=(6,)),
        num_iterations=30,
        loss_intervals=(LossInterval(0, tuple(terms.items())),),
        decay_steps=(),
    )


@pytest.mark.slow
def test_a_fit_is_pulled_towards_the_teacher_and_leaves_it_alone(teacher):
    before = jax.tree.map(np.array, teacher.params)
    arguments = {"key": jax.random.key(0), "kernel_size": 3, "teacher": teacher, "teacher_kernel": KERNEL}
    surrogate = np.clip(restoration(teacher, np.asarray(BLURRY), KERNEL), 0, 1)
    free, pulled = (
        fit(BLURRY, _fit_config(mse=1.0, weak_mae=alpha), surrogate=surrogate, **arguments) for alpha in (0.0, 10.0)
    )
    distances = [float(np.mean(np.abs(result.image - surrogate))) for result in (free, pulled)]
    assert distances[1] < 0.8 * distances[0]
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(teacher.params), strict=True):
        np.testing.assert_array_equal(old, new)


def test_terms_without_a_teacher_are_refused(teacher):
    with pytest.raises(InputError, match="give a teacher"):
        fit(BLURRY, _fit_config(weak_mse=1.0), key=jax.random.key(0), kernel_size=3)
    with pytest.raises(InputError, match="none is named"):
        Config(fit=_fit_config(teacher_agreement=1.0))
    with pytest.raises(InputError, match="unknown teacher"):
        TeacherConfig("resnet")
    with pytest.raises(InputError, match="uses no pre-trained network"):
        Config().override(teacher="dmphn")
