"""Early ends: the criteria against slow direct ones, each restart by itself, the best iterate kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.config import FitConfig, KernelMlpConfig, LossInterval, StoppingConfig, UNetConfig, constant
from jaxdeblur.optimise import stopping as early
from jaxdeblur.optimise.loop import fit

BLURRY = np.asarray(jax.random.uniform(jax.random.key(0), (30, 33)))
pytestmark = pytest.mark.usefixtures("light_compilation")

# Criterion, patience and first step are part of the program: one choice of them for all tests of fits.
STOPPING = StoppingConfig(patience=8, from_step=10, window=5)
QUICK = FitConfig(
    image_generator=UNetConfig(num_levels=2, channels=4, latent_channels=2),
    kernel_generator=KernelMlpConfig(latent_size=5, hidden_sizes=(6,)),
    num_iterations=60,
    loss_intervals=(LossInterval(0, (("mse", 1.0),)),),
    input_noise_std=constant(0.05),
    decay_steps=(60,),
    decay_rate=0.0,
    stopping=STOPPING,
    chunk_size=7,
)


def _fit(config=QUICK, **arguments):
    return fit(BLURRY, config, **{"key": jax.random.key(1), "kernel_size": 5, **arguments})


ADVANCE = jax.jit(early.advance, static_argnums=0)


def _published_stop(errors, window):
    """Eq. (6) of the report, word for word: the first n with ``e_n = min(e_n, …, e_{n+w})``."""
    for n in range(len(errors) - window):
        if errors[n] == min(errors[n : n + window + 1]):
            return n
    return None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("window", "first"), [(3, 0), (5, 4), (9, 0)])
def test_the_error_criterion_is_the_published_one(seed, window, first):
    errors = np.abs(np.cumsum(np.random.default_rng(seed).normal(size=80))) + 1.0
    config = StoppingConfig(patience=window, from_step=first)
    params = {"image": jnp.zeros((1, 1))}
    state = early.initial(config, params, (4, 4))
    for number, error in enumerate(errors.astype(np.float32)):
        value, state = early.criterion(config, state, jnp.zeros((1, 4, 4)), jnp.array([error]), jnp.int32(number))
        state = ADVANCE(config, state, value, {"image": jnp.full((1, 1), float(number))}, jnp.int32(number))
    (stop,) = early.stops_of(state, config)
    expected = _published_stop(errors[first:].tolist(), window)
    assert (None if stop is None else stop.best_step) == (None if expected is None else expected + first)
    if stop is not None:
        assert stop.step == stop.best_step + window
        assert float(early.best_params(state, params)["image"][0, 0]) == stop.best_step


def test_the_moving_variance_is_that_of_the_last_images():
    config = StoppingConfig(criterion="variance", window=4, from_step=0)
    state = early.initial(config, {"image": jnp.zeros((2, 1))}, (5, 6))
    images = np.random.default_rng(0).normal(size=(9, 2, 5, 6)).astype(np.float32)
    for number, image in enumerate(images):
        value, state = early.criterion(config, state, jnp.asarray(image), jnp.zeros(2), jnp.int32(number))
        if number < config.window - 1:
            assert np.isinf(value).all()
        else:
            recent = images[number - config.window + 1 : number + 1]
            np.testing.assert_allclose(value, recent.var(axis=0).mean(axis=(1, 2)), rtol=1e-5)


def test_of_large_images_some_pixels_stand_for_all():
    state = early.initial(StoppingConfig(criterion="variance", window=3), {"image": jnp.zeros((1, 1))}, (1000, 700))
    assert early.MAX_PIXELS / 2 < state.recent.shape[-1] <= early.MAX_PIXELS


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["error", "variance"])
def test_a_fit_ends_early_at_its_best_iterate(criterion):
    """Learning has ended at step 20: noise alone moves the value from there on."""
    stopping = dataclasses.replace(STOPPING, criterion=criterion)
    result = _fit(dataclasses.replace(QUICK, stopping=stopping, decay_steps=(20,)))
    stop = result.statuses[0].stop
    assert stop.criterion == criterion
    assert stop.best_step >= 10
    assert stop.step == stop.best_step + 8
    assert np.isfinite(result.losses[0]).sum() == stop.step + 1 < QUICK.num_iterations
    if criterion == "error":
        counted = result.errors[0, 10 : stop.step + 1]
        assert int(np.argmin(counted)) + 10 == stop.best_step


@pytest.mark.slow
def test_the_result_is_the_best_iterate():
    """Cut short right after the step that was kept, the same fit gives the same image."""
    whole = dataclasses.replace(QUICK, image_learning_rate=0.1)
    stopped = _fit(whole)
    best = stopped.statuses[0].stop.best_step
    assert best > 0
    # The iterate of a step is what the steps before it have made.
    cut = _fit(dataclasses.replace(whole, num_iterations=best, stopping=None))
    np.testing.assert_allclose(stopped.images, cut.images, atol=1e-4)
    np.testing.assert_allclose(stopped.kernels, cut.kernels, atol=1e-5)


@pytest.mark.slow
def test_every_restart_has_its_own_end():
    config = dataclasses.replace(QUICK, image_learning_rate=0.1)
    together = _fit(config, num_restarts=3)
    stops = [status.stop for status in together.statuses]
    assert len({stop.step for stop in stops}) > 1
    for losses, stop in zip(together.losses, stops, strict=True):
        assert np.isfinite(losses[: stop.step + 1]).all()
        assert np.isnan(losses[stop.step + 1 :]).all()
    alone = _fit(config)
    assert alone.statuses[0].stop == stops[0]
    np.testing.assert_allclose(together.images[0], alone.images[0], atol=5e-3)


@pytest.mark.slow
def test_a_stopped_fit_goes_on_from_its_checkpoint_to_the_same_end(tmp_path):
    class Interrupted(Exception):
        pass

    def interrupt(phase, done, total, metrics):
        if done >= 7:
            raise Interrupted

    unbroken = _fit()
    path = tmp_path / "fit.msgpack"
    with pytest.raises(Interrupted):
        _fit(checkpoint=path, checkpoint_interval=0.0, progress=interrupt)
    resumed = _fit(checkpoint=path)
    assert resumed.statuses == unbroken.statuses
    np.testing.assert_array_equal(resumed.images, unbroken.images)


@pytest.mark.slow
def test_a_fit_that_does_not_end_early_keeps_its_best_too():
    # Shorter than the first step that counts and the patience.
    config = dataclasses.replace(QUICK, num_iterations=17)
    result = _fit(config)
    assert result.statuses[0].stop is None
    assert np.isfinite(result.losses).all()
    best = int(np.argmin(result.errors[0, 10:])) + 10
    np.testing.assert_allclose(
        result.images, _fit(dataclasses.replace(config, num_iterations=best, stopping=None)).images, atol=1e-4
    )
