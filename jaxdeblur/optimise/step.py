"""The one optimisation step, for all restarts at once, and the compiled chunk of steps."""

from __future__ import annotations

import dataclasses
import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import flatten_util, lax

from jaxdeblur import schedules
from jaxdeblur.config import FitConfig
from jaxdeblur.losses import Estimate
from jaxdeblur.networks import registry
from jaxdeblur.operators import blur
from jaxdeblur.optimise.state import Params, TrainState

# In alternating updates the sets take turns in this order.
_TURNS = ("image", "kernel")
# What is recorded at every step, for every restart.
METRICS = ("loss", "image_std", "kernel_peak")


@dataclasses.dataclass(frozen=True)
class Program:
    """What the compiled step depends on, apart from arrays; hashable.

    Attributes:
      config: the fit's; its ``num_iterations`` plays no part.
      blurry_shape: ``(H, W)``.
      kernel_shape: ``(h, w)``.
      kernel_known: no kernel generator is trained.
    """

    config: FitConfig
    blurry_shape: tuple[int, int]
    kernel_shape: tuple[int, int]
    kernel_known: bool

    def generators(self) -> dict[str, registry.Generator]:
        """The generators to be trained, by name."""
        shape = blur.latent_shape(self.blurry_shape, self.kernel_shape)
        found = {"image": registry.image_generator(self.config.image_generator, shape)}
        if not self.kernel_known:
            found["kernel"] = registry.kernel_generator(self.config.kernel_generator, self.kernel_shape)
        return found

    def tx(self) -> optax.GradientTransformation:
        """Adam's direction, without a learning rate.

        The rate is a function of the fit's step and not of the optimiser's own count, which stands still while
        alternating updates freeze a set.

        Source: Kingma & Ba, "Adam: a method for stochastic optimization", ICLR 2015, https://arxiv.org/abs/1412.6980.
        """
        return optax.scale_by_adam()


@flax.struct.dataclass
class Observation:
    """What is known of the scene.

    Attributes:
      blurry: ``[H, W]``.
      kernel: ``[h, w]`` if known, else None.
      total_variation_weight: scalar added to the TV weight of every loss interval, or None.
    """

    blurry: jax.Array
    kernel: jax.Array | None = None
    total_variation_weight: jax.Array | None = None


@functools.partial(jax.jit, static_argnames="program")
def initial_state(program: Program, keys: jax.Array, kernel_logits: jax.Array | None = None) -> TrainState:
    """Draws parameters and latents of every restart from its own key.

    Args:
      program: says which generators.
      keys: ``[R]``.
      kernel_logits: ``[R, h, w]``, where a ``logits`` kernel generator starts.
    """
    generators = program.generators()

    def draw(key: jax.Array) -> tuple[dict[str, jax.Array], dict[str, jax.Array], jax.Array]:
        step_key, draw_key = jax.random.split(key)
        # Over a hundred small draws: this generator's programs compile several times faster than the default's. It does not
        # commute with vmap, hence the map over restarts.
        draw_key = jax.random.wrap_key_data(jax.random.bits(draw_key, (4,)), impl="unsafe_rbg")
        params, latents = {}, {}
        for index, (name, generator) in enumerate(generators.items()):
            latent_key, params_key = jax.random.split(jax.random.fold_in(draw_key, index))
            latents[name] = generator.draw_latent(latent_key)
            params[name], _ = flatten_util.ravel_pytree(generator.module.init(params_key, latents[name])["params"])
        return params, latents, step_key

    params, latents, step_keys = lax.map(draw, keys)
    if kernel_logits is not None:
        params["kernel"] = kernel_logits.reshape(len(kernel_logits), -1)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state={name: program.tx().init(own) for name, own in params.items()},
        latents=latents,
        keys=step_keys,
    )


def unflatten(program: Program, params: dict[str, jax.Array]) -> dict[str, Params]:
    """The state's parameter vectors ``[R, P]`` as the networks' parameters, leaves with a leading axis R."""
    trees = {}
    for name, generator in program.generators().items():
        key, latent = jax.random.key(0), jax.ShapeDtypeStruct(generator.latent_shape, jnp.float32)
        shapes = jax.eval_shape(generator.module.init, key, latent)["params"]
        leaves, treedef = jax.tree.flatten(shapes)
        ends = np.cumsum([leaf.size for leaf in leaves])
        flat, restarts = params[name], params[name].shape[0]
        cut = [flat[:, end - leaf.size : end].reshape(restarts, *leaf.shape) for end, leaf in zip(ends, leaves, strict=True)]
        trees[name] = jax.tree.unflatten(treedef, cut)
    return trees


def _flatten(tree: Params) -> jax.Array:
    """Inverse of :func:`unflatten` for one network."""
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)], axis=1)


def generate(program: Program, params: dict[str, Params], latents: dict[str, jax.Array], observation: Observation) -> Estimate:
    """Runs the generators of all restarts and blurs: fields ``[R, …]``."""
    generators = program.generators()

    def run(name: str) -> jax.Array:
        module = generators[name].module
        return jnp.asarray(jax.vmap(lambda own, latent: module.apply({"params": own}, latent))(params[name], latents[name]))

    image = run("image")[..., 0]
    if observation.kernel is None:
        kernel = run("kernel")
    else:
        kernel = jnp.broadcast_to(observation.kernel, (image.shape[0], *program.kernel_shape))
    return Estimate(image=image, kernel=kernel, reblurred=blur.blur_valid(image, kernel))


def _perturbed(program: Program, state: TrainState) -> dict[str, jax.Array]:
    std = program.config.input_noise_std
    if std == 0:
        return state.latents

    def perturb(key: jax.Array, latent: jax.Array) -> jax.Array:
        return latent + std * jax.random.normal(jax.random.fold_in(key, state.step), latent.shape)

    return {**state.latents, "image": jax.vmap(perturb)(state.keys, state.latents["image"])}


def train_step(program: Program, state: TrainState, observation: Observation) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of all restarts: perturb, generate, blur, compare, update.

    Returns:
      The next state, and per restart ``[R]`` the ``loss`` before the update, the standard deviation ``image_std`` of the
      image in the blurry image's frame and the kernel's largest pixel ``kernel_peak``.
    """
    config = program.config
    latents = _perturbed(program, state)
    estimate, pull_back = jax.vjp(
        lambda params: generate(program, params, latents, observation), unflatten(program, state.params)
    )
    loss, cotangent = schedules.loss_and_gradient(
        config.loss_intervals, state.step, estimate, observation.blurry, observation.total_variation_weight
    )
    (gradients,) = pull_back(cotangent)

    rates = {"image": config.image_learning_rate, "kernel": config.kernel_learning_rate}
    alternating = config.update == "alternating" and not program.kernel_known
    tx, params, opt_state = program.tx(), {}, {}
    for name, gradient in gradients.items():
        rate = schedules.learning_rate(rates[name], config)(state.step)
        direction, moments = tx.update(_flatten(gradient), state.opt_state[name])
        updated = state.params[name] - rate * direction
        if alternating:
            its_turn = state.step % len(_TURNS) == _TURNS.index(name)
            old = (state.params[name], state.opt_state[name])
            updated, moments = jax.tree.map(functools.partial(jnp.where, its_turn), (updated, moments), old)
        params[name], opt_state[name] = updated, moments

    cropped = blur.crop_to_blurry(estimate.image, program.kernel_shape)
    metrics = {
        "loss": loss,
        "image_std": jnp.std(cropped, axis=(-2, -1)),
        "kernel_peak": jnp.max(estimate.kernel, axis=(-2, -1)),
    }
    return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state), metrics


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
def run_chunk(
    program: Program, state: TrainState, observation: Observation, num_steps: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Runs ``num_steps`` (at most ``chunk_size``) steps.

    ``num_steps`` is an argument and not part of the program: the last, shorter chunk needs no compilation of its own.

    Returns:
      The state, and :func:`train_step`'s metrics as ``[chunk_size, R]``, of which ``num_steps`` rows are filled.
    """
    rows = (program.config.chunk_size, *state.keys.shape)
    empty = {name: jnp.zeros(rows, jnp.float32) for name in METRICS}

    def body(index: jax.Array, carry: tuple[TrainState, dict[str, jax.Array]]) -> tuple[TrainState, dict[str, jax.Array]]:
        state, record = carry
        state, metrics = train_step(program, state, observation)
        return state, jax.tree.map(lambda rows, row: rows.at[index].set(row), record, metrics)

    return lax.fori_loop(0, num_steps, body, (state, empty))


@functools.partial(jax.jit, static_argnames="program")
def render(program: Program, state: TrainState, observation: Observation) -> Estimate:
    """The estimates ``[R, …]`` from the unperturbed latents."""
    return generate(program, unflatten(program, state.params), state.latents, observation)
