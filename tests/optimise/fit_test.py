"""The engine: what it minimises, and that seeds, restarts, chunks and interruptions do what they say."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.config import FitConfig, KernelLogitsConfig, KernelMlpConfig, LossInterval, SkipNetConfig, UNetConfig, constant
from jaxdeblur.errors import InputError
from jaxdeblur.operators import blur, filter_flow
from jaxdeblur.optimise import loop, restarts, step
from jaxdeblur.optimise.loop import Problem, fit, fit_batch
from jaxdeblur.optimise.losses import Observation
from jaxdeblur.optimise.schedules import loss_and_gradient, plan
from jaxdeblur.optimise.step import Program, blurred, initial_state, run_chunk, train_step

pytestmark = pytest.mark.usefixtures("light_compilation")

# The tied term is zero where no noise is given. Most tests use these terms, networks and numbers of restarts: each other
# choice is another program to compile.
SMALL = FitConfig(
    image_generator=SkipNetConfig(num_scales=1, channels=4, skip_channels=2, latent_channels=2, non_local_channels=4),
    kernel_generator=KernelMlpConfig(hidden_sizes=(20,)),
    num_iterations=7,
    loss_intervals=(LossInterval(0, (("mse", 1.0), ("noise_tied_tv", 0.1))), LossInterval(4, (("one_minus_ssim", 1.0),))),
    decay_steps=(5,),
    chunk_size=3,
)
SAMPLED = dataclasses.replace(
    SMALL,
    image_generator=UNetConfig(num_levels=2, channels=4, latent_channels=2),
    kernel_generator=UNetConfig(num_levels=2, channels=4, latent_channels=2),
    loss_intervals=(LossInterval(0, (("mse", 1.0), ("kernel_energy", 1e-4))),),
    dropout_rate=((0, 0.3), (4, 0.001)),
    input_noise_std=((0, 0.05), (5, 0.001)),
    num_samples=2,
    update="sequential",
)
KERNEL_SIZE = 5
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def scene():
    rows, columns = np.mgrid[:36, :36]
    sharp = 0.5 + 0.3 * np.sign(np.sin(rows / 3) * np.cos(columns / 4))
    kernel = np.zeros((KERNEL_SIZE, KERNEL_SIZE), np.float32)
    kernel[2, :] = 0.2
    return np.asarray(blur.blur_valid(jnp.asarray(sharp, jnp.float32), jnp.asarray(kernel))), kernel


def _fit(scene, config=SMALL, **arguments):
    return fit(scene[0], config, **{"key": KEY, "kernel_size": KERNEL_SIZE, **arguments})


def _assert_same(first, second):
    for name in ("images", "full_images", "kernels", "losses"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    for a, b in zip(jax.tree.leaves(first.state.params), jax.tree.leaves(second.state.params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def unbroken(scene):
    return _fit(scene)


def test_shapes_and_ranges(scene, unbroken):
    height, width = scene[0].shape
    assert unbroken.images.shape == (1, height, width)
    assert unbroken.full_images.shape == (1, 36, 36)
    np.testing.assert_array_equal(unbroken.full_images[:, 2:-2, 2:-2], unbroken.images)
    assert unbroken.losses.shape == (1, SMALL.num_iterations)
    np.testing.assert_allclose(unbroken.kernels.sum((1, 2)), 1.0, rtol=1e-5)
    assert unbroken.statuses[0].ok
    assert np.isfinite(unbroken.losses).all()


def test_same_seed_same_bytes_other_seed_other_image(scene, unbroken):
    _assert_same(_fit(scene), unbroken)
    assert not np.array_equal(_fit(scene, key=jax.random.key(4)).images, unbroken.images)


def test_chunks_and_fits_of_any_length_share_one_program(scene):
    before = run_chunk._cache_size()
    _fit(scene)
    _fit(scene, dataclasses.replace(SMALL, num_iterations=5))
    assert run_chunk._cache_size() <= before + 1


def test_progress_is_called_between_chunks(scene):
    calls = []
    _fit(scene, progress=lambda *call: calls.append(call))
    assert [(phase, done, total) for phase, done, total, _ in calls] == [("fit", n, 7) for n in (3, 6, 7)]
    assert all(np.isfinite(metrics["loss"]) for *_, metrics in calls)


@pytest.mark.slow
def test_restarts_together_equal_single_ones(scene):
    together = _fit(scene, num_restarts=2)
    assert together.losses.shape == (2, SMALL.num_iterations)
    assert together.best in range(2)
    # Restart 0 depends on its own key alone; sums of another order part company by single precision's rounding, times
    # what seven steps of Adam make of it.
    alone = _fit(scene)
    np.testing.assert_allclose(together.losses[0], alone.losses[0], rtol=1e-3)
    np.testing.assert_allclose(together.images[0], alone.images[0], atol=5e-3)
    assert np.abs(together.images[1] - together.images[0]).max() > 1e-3


class TestBatches:
    @pytest.mark.parametrize("num_restarts", [1, 2])
    @pytest.mark.slow
    def test_images_fitted_together_equal_single_ones(self, scene, num_restarts):
        other = np.flip(scene[0], 1).copy()
        seen = []
        problems = [
            Problem(scene[0], KEY, noise_std=0.1),
            Problem(other, jax.random.key(8), snapshot=lambda *found: seen.append(found)),
        ]
        together = fit_batch(problems, SMALL, kernel_size=KERNEL_SIZE, num_restarts=num_restarts)
        for problem, result in zip(problems, together, strict=True):
            alone = fit(
                problem.blurry,
                SMALL,
                key=problem.key,
                kernel_size=KERNEL_SIZE,
                num_restarts=num_restarts,
                noise_std=problem.noise_std,
            )
            np.testing.assert_allclose(result.losses, alone.losses, rtol=1e-3)
            np.testing.assert_allclose(result.images, alone.images, atol=5e-3)
            np.testing.assert_allclose(result.kernels, alone.kernels, atol=1e-3)
            assert result.best == alone.best
            shapes = [[leaf.shape for leaf in jax.tree.leaves(one.state)] for one in (result, alone)]
            assert shapes[0] == shapes[1]
        assert [number for number, _, _ in seen] == [3, 6, 7]
        np.testing.assert_array_equal(seen[-1][1], together[1].images[0])

    @pytest.mark.slow
    def test_each_known_kernel_belongs_to_its_image(self, scene):
        kernels = [scene[1], scene[1].T]
        problems = [Problem(scene[0], KEY, kernel=kernel) for kernel in kernels]
        results = fit_batch(problems, SMALL, kernel_size=KERNEL_SIZE)
        for kernel, result in zip(kernels, results, strict=True):
            np.testing.assert_array_equal(result.kernels[0], kernel)
        assert np.abs(results[0].losses - results[1].losses).max() > 1e-4

    def test_a_collapsed_member_is_fitted_again_to_its_own_image(self, scene, monkeypatch):
        honest, other = restarts.collapse_reason, 0.1 * scene[0]
        calls = []

        def second_image_fails_once(*, steps, blurry_std, **rest):
            if steps == SMALL.num_iterations and blurry_std < 0.7 * scene[0].std():
                calls.append(blurry_std)
                if len(calls) == 1:
                    return "constant image"
            return honest(steps=steps, blurry_std=blurry_std, **rest)

        monkeypatch.setattr(restarts, "collapse_reason", second_image_fails_once)
        first, second = fit_batch([Problem(scene[0], KEY), Problem(other, KEY)], SMALL, kernel_size=KERNEL_SIZE)
        assert (first.statuses[0].retried, second.statuses[0].retried) == ((), ("constant image",))
        # A generator starts grey, which is far from this dark image alone.
        assert first.losses[0, 0] < 0.1 < second.losses[0, 0]

    def test_what_cannot_be_fitted_together_is_refused(self, scene):
        whole = Problem(scene[0], KEY)
        for other in (Problem(scene[0][:-1], KEY), Problem(scene[0], KEY, kernel=scene[1])):
            with pytest.raises(InputError, match="cannot be fitted together"):
                fit_batch([whole, other], SMALL, kernel_size=KERNEL_SIZE)


def _observation(scene, num_restarts=1):
    return Observation.stack([Observation(jnp.asarray(scene[0]))] * num_restarts)


def _program(scene, config):
    return Program.of(config, scene[0].shape, (KERNEL_SIZE, KERNEL_SIZE), kernel_known=False)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sampled(program, name, state, keys, schedules, number):
    params = step.unflatten(program, {name: state.params[name]})[name]
    return step.sample(program, name, params, state.latents[name], keys, schedules, number)


def _one_step(program, observation, config):
    """The state after the first step, and its loss."""
    state, metrics = run_chunk(program, initial_state(program, KEY[None]), observation, plan(config), 1)
    return state, metrics["loss"][0]


class TestSampling:
    @pytest.mark.slow
    def test_more_samples_are_the_mean_of_single_ones_with_the_same_keys(self, scene):
        program, schedules, observation = _program(scene, SAMPLED), plan(SAMPLED), _observation(scene)
        state = initial_state(program, KEY[None])

        @jax.jit
        def loss_and_images(numbers):
            keys = step.sample_keys(state.keys, state.step, numbers)
            params = step.unflatten(program, state.params)

            def drawn(name):
                return step.sample(program, name, params[name], state.latents[name], keys, schedules, state.step)

            images = drawn("image")
            loss, _ = loss_and_gradient(schedules, state.step, step.blurred(images, drawn("kernel")), observation)
            return loss[0], images[0]

        together, images = loss_and_images(jnp.arange(SAMPLED.num_samples))
        single = [loss_and_images(jnp.array([number])) for number in range(SAMPLED.num_samples)]
        np.testing.assert_allclose(together, np.mean([loss for loss, _ in single]), rtol=1e-5)
        np.testing.assert_allclose(images, np.concatenate([own for _, own in single]), atol=1e-5)
        assert np.std([float(loss) for loss, _ in single]) > 0

        _, loss = _one_step(program, observation, SAMPLED)
        np.testing.assert_allclose(loss[0], together, rtol=1e-5)

    @pytest.mark.parametrize(
        "source",
        [
            pytest.param({"dropout_rate": ((0, 0.3), (4, 0.001)), "input_noise_std": constant(0.0)}, marks=pytest.mark.slow),
            {"dropout_rate": constant(0.0), "input_noise_std": ((0, 0.01), (4, 0.0001))},
        ],
        ids=["dropout", "noise"],
    )
    def test_randomness_follows_its_schedule_and_is_absent_at_the_end(self, scene, source):
        config = dataclasses.replace(SAMPLED, **source)
        program, schedules, observation = _program(scene, config), plan(config), _observation(scene)
        state = initial_state(program, KEY[None])

        @jax.jit
        def spread(number):
            """How much samples differ at a step, all else equal."""
            keys = step.sample_keys(state.keys, number, jnp.arange(8))
            params = step.unflatten(program, state.params)
            images = step.sample(program, "image", params["image"], state.latents["image"], keys, schedules, number)
            return jnp.mean(jnp.std(images[0], axis=0))

        spreads = [float(spread(number)) for number in range(7)]
        assert min(spreads[:4]) > 5 * max(spreads[4:])
        assert min(spreads) > 0
        first, second = (step.render(program, state, observation).image for _ in range(2))
        np.testing.assert_array_equal(first, second)

    @pytest.mark.slow
    def test_the_schedules_do_not_recompile(self, scene):
        _fit(scene, SAMPLED)
        before = run_chunk._cache_size()
        other = dataclasses.replace(
            SAMPLED,
            dropout_rate=((0, 0.5), (2, 0.2)),
            input_noise_std=((0, 0.1), (1, 0.2)),
            image_learning_rate=3e-3,
            loss_intervals=(LossInterval(0, (("mse", 2.0), ("kernel_energy", 0.1))),),
            decay_steps=(3,),
        )
        _fit(scene, other)
        assert run_chunk._cache_size() == before

    @pytest.mark.slow
    def test_a_sampled_fit_is_reproducible_and_gives_its_posterior(self, scene):
        first, second = (_fit(scene, SAMPLED, num_posterior_samples=5) for _ in range(2))
        _assert_same(first, second)
        np.testing.assert_array_equal(first.posterior_std, second.posterior_std)
        assert first.posterior_mean.shape == first.posterior_std.shape == first.images.shape
        assert (first.posterior_std >= 0).all()
        assert 0 < first.posterior_std.mean() < 0.2
        # The last step's noise and dropout are small: the mean lies close to the noise-free image, but not on it.
        gap = np.abs(first.posterior_mean - first.images)
        assert 0 < gap.mean() < 4 * first.posterior_std.mean()
        assert _fit(scene, SAMPLED).posterior_std is None

    def test_the_posterior_has_the_mean_and_spread_of_its_samples(self, scene):
        program, schedules = _program(scene, SAMPLED), plan(SAMPLED)
        state = dataclasses.replace(initial_state(program, KEY[None]), step=jnp.int32(3))
        keys = step.sample_keys(state.keys, state.step, jnp.arange(6))
        images = _sampled(program, "image", state, keys, schedules, state.step - 1)
        mean, std = step.posterior(program, state, schedules, 6)
        np.testing.assert_allclose(mean, images.mean(1), atol=1e-5)
        np.testing.assert_allclose(std, images.std(1, ddof=1), atol=1e-5)

    def test_randomised_kernels_differ_between_samples_and_others_do_not(self, scene):
        random = dataclasses.replace(SAMPLED, kernel_dropout_rate=constant(0.3), kernel_input_noise_std=constant(0.05))
        for config, number in ((SAMPLED, 1), (random, 4)):
            program, schedules = _program(scene, config), plan(config)
            state = initial_state(program, KEY[None])
            keys = step.sample_keys(state.keys, state.step, jnp.arange(4))
            # Moved off their start, which is flat whatever is dropped.
            state = dataclasses.replace(state, params={"kernel": state.params["kernel"] + 0.1})
            kernels = _sampled(program, "kernel", state, keys, schedules, state.step)
            assert kernels.shape == (1, number, KERNEL_SIZE, KERNEL_SIZE)
            assert number == 1 or float(jnp.std(kernels, axis=1).max()) > 0

    @pytest.mark.slow
    def test_sequential_updates_show_the_image_the_new_kernel(self, scene):
        """With the kernel's rate at zero both updates agree; otherwise the image's gradient is another."""
        observation = _observation(scene)

        def image_after_a_step(update, rate):
            config = dataclasses.replace(SAMPLED, update=update, kernel_learning_rate=rate)
            state, _ = _one_step(_program(scene, config), observation, config)
            return state.opt_state["image"].mu, state.params["kernel"]

        same = [image_after_a_step(update, 0.0)[0] for update in ("joint", "sequential")]
        np.testing.assert_allclose(*same, atol=1e-7)
        joint, sequential = (image_after_a_step(update, 0.1) for update in ("joint", "sequential"))
        np.testing.assert_allclose(joint[1], sequential[1], atol=1e-6)
        assert np.abs(joint[0] - sequential[0]).max() > 1e-5


def test_snapshots_are_taken_between_chunks(scene, unbroken):
    taken = []
    _fit(scene, snapshot=lambda *found: taken.append(found))
    assert [number for number, _, _ in taken] == [3, 6, 7]
    np.testing.assert_array_equal(taken[-1][1], unbroken.images[0])
    np.testing.assert_array_equal(taken[-1][2], unbroken.kernels[0])


@pytest.mark.slow
def test_a_fit_without_a_kernel_generator_needs_a_kernel(scene):
    config = dataclasses.replace(SMALL, kernel_generator=None)
    with pytest.raises(InputError, match="given kernel only"):
        _fit(scene, config)
    assert set(_fit(scene, config, kernel=scene[1], num_restarts=2).state.params) == {"image"}


def test_a_vmapped_step_equals_single_steps(scene):
    program = Program.of(SMALL, scene[0].shape, (KERNEL_SIZE, KERNEL_SIZE), kernel_known=False)
    keys = jax.random.split(KEY, 2)

    def loss(keys):
        _, metrics = run_chunk(program, initial_state(program, keys), _observation(scene, len(keys)), plan(SMALL), 1)
        return metrics["loss"][0]

    together = loss(keys)
    alone = [loss(keys[r : r + 1])[0] for r in range(2)]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


class _Interrupted(Exception):
    pass


def _interrupt(phase, done, total, metrics):
    if done >= 3:
        raise _Interrupted


def test_a_resumed_fit_equals_an_unbroken_one(scene, unbroken, tmp_path):
    path = tmp_path / "run" / "fit.msgpack"
    with pytest.raises(_Interrupted):
        _fit(scene, checkpoint=path, checkpoint_interval=0.0, progress=_interrupt)
    calls = []
    resumed = _fit(scene, checkpoint=path, progress=lambda *call: calls.append(call[1]))
    assert calls == [6, 7]
    _assert_same(resumed, unbroken)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    # A finished fit is not run again.
    _assert_same(_fit(scene, checkpoint=path, progress=_interrupt), unbroken)


def test_foreign_and_damaged_checkpoints_are_refused(scene, tmp_path):
    path = tmp_path / "fit.msgpack"
    short = dataclasses.replace(SMALL, num_iterations=3)
    _fit(scene, short, checkpoint=path)
    with pytest.raises(InputError, match="another image, seed or settings"):
        _fit(scene, short, checkpoint=path, key=jax.random.key(9))
    with pytest.raises(InputError, match="another image, seed or settings"):
        _fit(scene, short, checkpoint=path, noise_std=0.02)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        _fit(scene, short, checkpoint=path)


def test_a_fit_goes_on_where_the_noise_is_estimated_with_another_rounding(scene, tmp_path):
    path = tmp_path / "fit.msgpack"
    noise = np.float32(0.0123)
    with pytest.raises(_Interrupted):
        _fit(scene, checkpoint=path, checkpoint_interval=0.0, progress=_interrupt, noise_std=float(noise))
    calls = []
    _fit(
        scene,
        checkpoint=path,
        progress=lambda *call: calls.append(call[1]),
        noise_std=float(np.nextafter(noise, np.float32(1.0))),
    )
    assert calls == [6, 7]


def test_known_kernel_is_kept_and_the_image_fits(scene):
    first, second = SMALL.loss_intervals
    config = dataclasses.replace(
        SMALL, num_iterations=60, loss_intervals=(first, dataclasses.replace(second, start=60)), decay_steps=(60,)
    )
    result = _fit(scene, config, kernel=scene[1], num_restarts=2)
    np.testing.assert_array_equal(result.kernels, [scene[1]] * 2)
    assert set(result.state.params) == {"image"}
    assert (result.losses[:, -1] < 0.5 * result.losses[:, 0]).all()


@pytest.mark.slow
def test_logits_start_from_the_given_kernel(scene):
    config = dataclasses.replace(SMALL, num_iterations=1, kernel_generator=KernelLogitsConfig(), kernel_learning_rate=0.0)
    start = np.stack([scene[1], scene[1].T])
    result = _fit(scene, config, initial_kernel=start, num_restarts=2)
    np.testing.assert_allclose(result.kernels, start, atol=1e-3)
    with pytest.raises(InputError, match="choose KernelLogitsConfig"):
        _fit(scene, SMALL, initial_kernel=start)
    with pytest.raises(InputError, match="leave one out"):
        _fit(scene, config, initial_kernel=start, kernel=scene[1])


@pytest.mark.parametrize(("size", "message"), [(4, "odd"), (33, "larger than the image")])
def test_bad_kernel_sizes_are_refused(scene, size, message):
    with pytest.raises(InputError, match=message):
        _fit(scene, kernel_size=size)


def test_alternating_freezes_the_other_set_bitwise(scene):
    program = Program.of(
        dataclasses.replace(SMALL, update="alternating"), scene[0].shape, (KERNEL_SIZE, KERNEL_SIZE), kernel_known=False
    )
    observation = _observation(scene)
    state = initial_state(program, KEY[None])
    step = jax.jit(lambda state: train_step(program, state, observation, plan(SMALL))[0])
    for number in range(4):
        following = step(state)
        moving, frozen = ("image", "kernel") if number % 2 == 0 else ("kernel", "image")
        assert not np.array_equal(following.params[moving], state.params[moving])
        np.testing.assert_array_equal(following.params[frozen], state.params[frozen])
        for new, old in zip(
            jax.tree.leaves(following.opt_state[frozen]), jax.tree.leaves(state.opt_state[frozen]), strict=True
        ):
            np.testing.assert_array_equal(new, old)
        state = following


def test_the_noise_tied_term_needs_noise(scene):
    tied = dataclasses.replace(SMALL, num_iterations=1)
    without, some = _fit(scene, tied), _fit(scene, tied, noise_std=0.1)
    assert some.losses[0, 0] > without.losses[0, 0]


def test_a_collapsed_restart_is_reported_and_retried_with_a_new_key(scene, monkeypatch):
    attempts = []
    honest = restarts.collapse_reason

    def first_attempt_of_restart_one_fails(*, steps, loss, **rest):
        if steps == SMALL.num_iterations:
            attempts.append(loss)
            if len(attempts) == 2:
                return "constant image"
        return honest(steps=steps, loss=loss, **rest)

    monkeypatch.setattr(restarts, "collapse_reason", first_attempt_of_restart_one_fails)
    result = _fit(scene, num_restarts=2)
    assert len(attempts) == 3
    assert attempts[2] != attempts[1]
    assert [status.retried for status in result.statuses] == [(), ("constant image",)]
    assert all(status.ok for status in result.statuses)
    np.testing.assert_allclose(result.losses[:, -1], [attempts[0], attempts[2]])


def test_a_fit_that_breaks_down_is_given_up_and_reported(scene):
    broken = dataclasses.replace(SMALL, image_learning_rate=float("nan"), num_iterations=9)
    result = _fit(scene, broken)
    assert result.statuses[0].collapsed == "not finite"
    assert result.statuses[0].retried == ("not finite",) * loop.NUM_RETRIES
    # Given up at the first look, not at the end.
    assert result.losses.shape[1] == SMALL.chunk_size


def test_the_forward_model_takes_kernels_that_vary():
    generator = np.random.default_rng(0)
    images = jnp.asarray(generator.normal(size=(2, 3, 24, 22)), jnp.float32)
    kernels = jnp.asarray(generator.normal(size=(2, 1, 2, 2, 5, 3)), jnp.float32)
    estimate = jax.jit(blurred)(images, kernels)
    assert estimate.kernel.shape == (2, 3, 2, 2, 5, 3)
    assert estimate.reblurred.shape == (2, 3, 20, 20)
    np.testing.assert_allclose(estimate.reblurred[1, 2], filter_flow.blur_varying(images[1, 2], kernels[1, 0]), atol=1e-4)
