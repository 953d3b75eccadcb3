"""The presets: as published, each departing from its parent in the fields that are listed here and in no other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur import deblur, runtime
from jaxdeblur.config import Config, FitConfig, KernelLogitsConfig, KernelMlpConfig, SkipNetConfig, UNetConfig
from jaxdeblur.networks.teachers.dwdn import Dwdn, DwdnConfig
from jaxdeblur.networks.teachers.teacher import Teacher
from jaxdeblur.optimise.losses import Observation
from jaxdeblur.optimise.schedules import learning_rate, piecewise_constant, plan
from jaxdeblur.optimise.step import METRICS, Program, initial_state, train_step
from jaxdeblur.presets import ABOUT, PRESETS, differences, small

pytestmark = pytest.mark.usefixtures("light_compilation")

FITTING = [name for name, preset in PRESETS.items() if preset.fit is not None]
SMALL = [name for name in FITTING if name.endswith("_small")]

# Per preset, the fields of its fit (or of the whole, see WHOLE) in which it departs from its parent.
WHOLE = {"initialiser", "teacher"}
DEPARTURES = {
    "selfdeblur_lai": {"loss_intervals"},
    "selfdeblur_colour": {"num_iterations", "loss_intervals", "decay_steps"},
    "selfdeblur_paper": {"loss_intervals"},
    "selfdeblur_alternating": {"update"},
    "selfdeblur_k_minus": {"kernel_generator.hidden_sizes"},
    "selfdeblur_k_plus": {"kernel_generator.hidden_sizes"},
    "double_dip": {"kernel_generator"},
    "selfdeblur_nonblind": {"kernel_generator", "num_iterations", "loss_intervals", "decay_steps"},
    "mc_ssim": {"loss_intervals"},
    "mc_large": {"input_noise_std"},
    "mc_deterministic": {"dropout_rate", "input_noise_std"},
    "mc_s1": {"dropout_rate", "input_noise_std"},
    "mc_s2": {"dropout_rate", "input_noise_std"},
    "mc_s3": {"input_noise_std"},
    "mc_s4": {"dropout_rate", "input_noise_std"},
    "mc_s5": {"dropout_rate", "input_noise_std"},
    "mc_s6": {"dropout_rate"},
    "mc_random_kernel": {"dropout_rate", "input_noise_std", "kernel_dropout_rate", "kernel_input_noise_std"},
    "mc_random_both": {"kernel_dropout_rate", "kernel_input_noise_std"},
    "selfdeblur_mc": {"image_generator", "kernel_generator"},
    "selfdeblur_mc_large": {"input_noise_std"},
    "weak_none": {"loss_intervals"},
    "weak_dmphn": {"loss_intervals", "teacher"},
    "weak_dmphn_a1": {"loss_intervals"},
    "weak_dmphn_a01": {"loss_intervals"},
    "weak_dmphn_a001": {"loss_intervals"},
    "weak_dmphn_w5": {"stopping"},
    "weak_dmphn_w10": {"stopping"},
    "weak_dmphn_w30": {"stopping"},
    "weak_dmphn_w50": {"stopping"},
    "weak_dwdn": {"initialiser", "loss_intervals", "teacher"},
    "weak_dwdn_a1": {"loss_intervals"},
    "weak_dwdn_a01": {"loss_intervals"},
    "weak_dwdn_a001": {"loss_intervals"},
    "weak_dwdn_beta": {"loss_intervals"},
    "staged": {"loss_intervals"},
    "staged_mse": {"loss_intervals"},
    "staged_mae": {"loss_intervals"},
    "staged_ssim": {"loss_intervals"},
    "staged_mae_ssim": {"loss_intervals"},
}
# What a small variant may change.
SCALED = {
    "image_generator.channels",
    "image_generator.non_local",
    "stopping.from_step",
    "kernel_learning_rate",
    "num_iterations",
    "loss_intervals",
    "decay_steps",
    "dropout_rate",
    "input_noise_std",
    "kernel_dropout_rate",
    "kernel_input_noise_std",
}


def test_presets_go_by_their_own_names_and_cannot_be_changed():
    assert {"fast", "selfdeblur", "mc", "staged"} <= set(PRESETS)
    assert list(ABOUT) == list(PRESETS)
    for name, preset in PRESETS.items():
        assert isinstance(preset, Config)
        assert preset.name == name
        hash(preset)
    with pytest.raises(TypeError):
        PRESETS["mine"] = Config()


def test_every_preset_with_a_parent_is_listed():
    assert {name for name, about in ABOUT.items() if about.parent} == {*DEPARTURES, *SMALL, "deep"}


@pytest.mark.parametrize("name", DEPARTURES)
def test_presets_depart_from_their_parents_only_as_listed(name):
    found = differences(PRESETS[name], PRESETS[ABOUT[name].parent])
    assert set(found) == {field if field in WHOLE else f"fit.{field}" for field in DEPARTURES[name]}


@pytest.mark.parametrize("name", SMALL)
def test_small_presets_are_their_parents_scaled_down(name):
    parent = PRESETS[name.removesuffix("_small")]
    assert ABOUT[name].parent == parent.name
    assert PRESETS[name] == dataclasses.replace(small(parent), name=name)
    found = differences(PRESETS[name], parent)
    assert {field.removeprefix("fit.") for field in found} <= SCALED
    assert {"fit.num_iterations", "fit.image_generator.channels"} <= set(found)
    # Terms, values and their order stay; only the steps at which they change move.
    ours, theirs = PRESETS[name].fit, parent.fit
    assert [interval.terms for interval in ours.loss_intervals] == [interval.terms for interval in theirs.loss_intervals]
    for field in ("dropout_rate", "input_noise_std"):
        assert [value for _, value in getattr(ours, field)] == [value for _, value in getattr(theirs, field)]


def test_differences_of_equal_and_of_unlike_parts():
    assert differences(PRESETS["mc"], dataclasses.replace(PRESETS["mc"], name="other")) == {}
    found = differences(PRESETS["mc"], PRESETS["selfdeblur"])
    assert found["fit.image_generator"] == (UNetConfig(), SkipNetConfig())
    assert found["fit.update"] == ("sequential", "joint")


def test_the_default_finds_the_kernel_size_by_itself():
    assert PRESETS["fast"].kernel_size is None
    assert deblur.__defaults__ == (PRESETS["fast"],)


def _values(schedule, *steps):
    return [float(piecewise_constant(schedule).at(jnp.asarray(step))) for step in steps]


def test_selfdeblur_is_as_published():
    """Ren et al., CVPR 2020, and its public code for grey images."""
    preset = PRESETS["selfdeblur"]
    fit = preset.fit
    assert preset.initialiser is None
    assert preset.final == "generator"
    assert fit.num_iterations == 5000
    assert [(interval.start, interval.terms) for interval in fit.loss_intervals] == [
        (0, (("mse", 1.0),)),
        (1000, (("one_minus_ssim", 1.0),)),
    ]
    rates = _values(learning_rate(fit.image_learning_rate, fit), 0, 1999, 2500, 3500, 4500)
    np.testing.assert_allclose(rates, [1e-2, 1e-2, 5e-3, 2.5e-3, 1.25e-3], rtol=1e-5)
    assert fit.kernel_learning_rate == 1e-4
    image, kernel = fit.image_generator, fit.kernel_generator
    assert (image.num_scales, image.channels, image.skip_channels, image.latent_channels) == (5, 128, 16, 8)
    assert image.non_local
    assert (kernel.name, kernel.latent_size, kernel.hidden_sizes) == ("mlp", 200, (1000,))
    np.testing.assert_allclose(_values(fit.input_noise_std, 0, 4999), 0.001)


def test_mc_is_as_published():
    """Li, Nan & Ji, section 3.1."""
    fit = PRESETS["mc"].fit
    assert (fit.image_generator.num_levels, fit.image_generator.channels, fit.image_generator.negative_slope) == (6, 128, 0.1)
    assert (fit.kernel_generator.num_levels, fit.kernel_generator.channels) == (4, 64)
    assert (fit.num_iterations, fit.num_samples) == (5000, 1)
    assert dict(fit.loss_intervals[0].terms) == {"mse": 1.0, "kernel_energy": 1e-4}
    np.testing.assert_allclose(_values(fit.dropout_rate, 0, 1499, 1500, 4999), [0.3, 0.3, 0.001, 0.001])
    np.testing.assert_allclose(_values(fit.input_noise_std, 0, 3499, 3500), [0.01, 0.01, 0.001])
    np.testing.assert_allclose(_values(learning_rate(fit.image_learning_rate, fit), 2999, 3000), [1e-2, 5e-3])
    np.testing.assert_allclose(_values(PRESETS["mc_large"].fit.input_noise_std, 0, 3500), [0.05, 0.001])


def _tiny(network):
    """``network`` at a size that compiles fast; presets that differ in size alone then share a program."""
    if isinstance(network, SkipNetConfig):
        return dataclasses.replace(network, num_scales=1, channels=4, skip_channels=2, latent_channels=2, non_local=False)
    if isinstance(network, UNetConfig):
        return dataclasses.replace(network, num_levels=2, channels=4, latent_channels=2)
    if isinstance(network, KernelMlpConfig):
        return dataclasses.replace(network, latent_size=5, hidden_sizes=tuple(6 for _ in network.hidden_sizes))
    return network


@pytest.fixture(scope="module")
def one_step():
    return jax.jit(train_step, static_argnums=0)


def _terms(fit):
    return {name for interval in fit.loss_intervals for name, _ in interval.terms}


@pytest.fixture(scope="module")
def teacher():
    """A DWDN of the smallest size, untrained."""
    module = Dwdn(DwdnConfig(features=1, widths=(1,), num_residual_blocks=1, num_scales=1, filter_size=3))
    kernel = jnp.full((3, 3), 1 / 9)
    return Teacher("dwdn", jax.jit(module.init)(jax.random.key(0), jnp.zeros((22, 25)), kernel)["params"])


@pytest.fixture(autouse=True)
def _clear_executables_now_and_then(request):
    """Every preset compiles its own, and a process may map only so many pieces of memory."""
    yield
    if request.node.name.startswith("test_restarts"):
        runtime.clear_compiled_executables()


BLURRY_SHAPE, KERNEL_SHAPE = (22, 25), (9, 9)


def _shrunk(fit: FitConfig) -> FitConfig:
    return dataclasses.replace(
        fit,
        image_generator=_tiny(fit.image_generator),
        kernel_generator=None if fit.kernel_generator is None else _tiny(fit.kernel_generator),
        # Otherwise what two programs round differently is magnified by Adam's first, sign-like steps.
        image_learning_rate=1e-3,
        kernel_learning_rate=1e-3,
        stopping=None,
    )


def _two_restarts(fit: FitConfig, teacher):
    """The program of two restarts, what they observe, and where their kernels start."""
    known = fit.kernel_generator is None
    program, _, _ = _compiled(fit)
    blurry = jax.random.uniform(jax.random.key(5), BLURRY_SHAPE)
    flat = jnp.full(KERNEL_SHAPE, 1 / 81)
    agrees = "teacher_agreement" in _terms(fit)
    scene = Observation(
        blurry,
        noise_std=0.01,
        kernel=flat if known else None,
        teacher=teacher if agrees else None,
        teacher_kernel=flat if agrees else None,
        surrogate=jnp.flip(blurry) if fit.needs_teacher else None,
    )
    logits = jnp.zeros((2, *KERNEL_SHAPE)) if isinstance(fit.kernel_generator, KernelLogitsConfig) else None
    return program, Observation.stack([scene, scene]), logits


# Small variants differ from these in sizes and numbers, which a tiny net does not see.
LARGE = [name for name in FITTING if name not in SMALL]


def _compiled(fit: FitConfig):
    """What the compiled step depends on: presets that share it differ only in the numbers that it is given."""
    known = fit.kernel_generator is None
    return Program.of(fit, BLURRY_SHAPE, KERNEL_SHAPE, kernel_known=known), frozenset(_terms(fit)), fit.needs_teacher


# One preset for each program.
DISTINCT = list({_compiled(_shrunk(PRESETS[name].fit)): name for name in reversed(LARGE)}.values())


@functools.cache
def _traced(program, structure):
    """Traces a step of two restarts once for all presets of one program: the shapes that went in and those that came out."""
    plan, observation, logits = jax.tree.unflatten(*structure)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(1), 2))
    state = initial_state.eval_shape(program, keys, logits)
    return state, *jax.eval_shape(functools.partial(train_step, program), state, observation, plan)


@pytest.mark.parametrize("name", LARGE)
def test_every_presets_step_has_its_losses_and_keeps_its_shapes(name, teacher):
    fit = _shrunk(PRESETS[name].fit)
    program, observation, logits = _two_restarts(fit, teacher)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), (plan(fit), observation, logits)
    )
    leaves, structure = jax.tree.flatten(shapes)
    before, after, metrics = _traced(program, (structure, tuple(leaves)))
    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), before
    )
    assert set(after.params) == ({"image"} if fit.kernel_generator is None else {"image", "kernel"})
    assert {name: metric.shape for name, metric in metrics.items()} == dict.fromkeys(METRICS, (2,))


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTINCT)
def test_restarts_side_by_side_equal_single_ones(name, one_step, teacher):
    """Three steps of two restarts against each alone with the same key: equal up to the order of sums in single precision."""
    fit = _shrunk(PRESETS[name].fit)
    program, observation, logits = _two_restarts(fit, teacher)
    keys = jax.random.split(jax.random.key(1), 2)

    def losses(which):
        state, record = initial_state(program, keys[which], None if logits is None else logits[which]), []
        for _ in range(3):
            state, metrics = one_step(program, state, observation.take(np.arange(2)[which]), plan(fit))
            record.append(metrics["loss"])
        return np.array(record)

    together = losses(slice(None))
    for restart in range(2):
        np.testing.assert_allclose(together[:, restart], losses(slice(restart, restart + 1))[:, 0], rtol=1e-4)
    assert (np.diff(together, axis=0) != 0).all()
    assert (together[:, 0] != together[:, 1]).all()
