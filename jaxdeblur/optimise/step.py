"""The one optimisation step, for all restarts and samples at once, and the compiled chunk of steps."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import flatten_util, lax

from jaxdeblur.config import FitConfig, ImageGeneratorConfig, KernelGeneratorConfig, StoppingConfig, Update
from jaxdeblur.networks import registry
from jaxdeblur.networks.registry import Params
from jaxdeblur.operators import blur, filter_flow
from jaxdeblur.optimise import schedules
from jaxdeblur.optimise import stopping as early
from jaxdeblur.optimise.losses import Estimate, Observation
from jaxdeblur.optimise.state import TrainState

# In alternating updates the sets take turns in this order.
_TURNS = ("image", "kernel")
# What is recorded at every step, for every restart.
METRICS = ("loss", "error", "image_std", "kernel_peak")


@dataclasses.dataclass(frozen=True)
class Program:
    """What the compiled step depends on, apart from arrays and from the names of loss terms; hashable.

    Attributes:
      image_generator: network of the image.
      kernel_generator: network of the kernel; None if the kernel is known.
      blurry_shape: ``(H, W)``.
      kernel_shape: ``(h, w)``.
      num_samples: S.
      update: which parameters are updated when.
      stopping: when to end early, or None.
      chunk_size: the most steps of one call.
    """

    image_generator: ImageGeneratorConfig
    kernel_generator: KernelGeneratorConfig | None
    blurry_shape: tuple[int, int]
    kernel_shape: tuple[int, int]
    num_samples: int
    update: Update
    stopping: StoppingConfig | None
    chunk_size: int

    @classmethod
    def of(
        cls, config: FitConfig, blurry_shape: tuple[int, int], kernel_shape: tuple[int, int], *, kernel_known: bool
    ) -> Program:
        """The program of a fit of ``config``."""
        return cls(
            image_generator=config.image_generator,
            kernel_generator=None if kernel_known else config.kernel_generator,
            blurry_shape=blurry_shape,
            kernel_shape=kernel_shape,
            num_samples=config.num_samples,
            update="joint" if kernel_known else config.update,
            stopping=config.stopping,
            chunk_size=config.chunk_size,
        )

    def generators(self) -> dict[str, registry.Generator]:
        """The generators to be trained, by name."""
        shape = blur.latent_shape(self.blurry_shape, self.kernel_shape)
        found = {"image": registry.image_generator(self.image_generator, shape)}
        if self.kernel_generator is not None:
            found["kernel"] = registry.kernel_generator(self.kernel_generator, self.kernel_shape)
        return found

    def tx(self) -> optax.GradientTransformation:
        """Adam's direction, without a learning rate.

        The rate is a function of the fit's step and not of the optimiser's own count, which stands still while
        alternating updates freeze a set.

        Source: Kingma & Ba, "Adam: a method for stochastic optimization", ICLR 2015, https://arxiv.org/abs/1412.6980.
        """
        return optax.scale_by_adam()


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
    stopping = None
    if program.stopping is not None:
        shape = blur.latent_shape(program.blurry_shape, program.kernel_shape)
        stopping = early.initial(program.stopping, params, shape)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state={name: program.tx().init(own) for name, own in params.items()},
        latents=latents,
        keys=step_keys,
        stopping=stopping,
    )


def unflatten(program: Program, params: dict[str, jax.Array]) -> dict[str, Params]:
    """Parameter vectors ``[R, P]`` of some generators as the networks' parameters, leaves with a leading axis R."""
    trees, generators = {}, program.generators()
    for name, flat in params.items():
        generator = generators[name]
        key, latent = jax.random.key(0), jax.ShapeDtypeStruct(generator.latent_shape, jnp.float32)
        shapes = jax.eval_shape(generator.module.init, key, latent)["params"]
        leaves, treedef = jax.tree.flatten(shapes)
        ends = np.cumsum([leaf.size for leaf in leaves])
        cut = [flat[:, end - leaf.size : end].reshape(len(flat), *leaf.shape) for end, leaf in zip(ends, leaves, strict=True)]
        trees[name] = jax.tree.unflatten(treedef, cut)
    return trees


def _flatten(tree: Params) -> jax.Array:
    """Inverse of :func:`unflatten` for one network."""
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)], axis=1)


def sample(
    program: Program,
    name: str,
    params: Params,
    latents: jax.Array,
    keys: jax.Array,
    plan: schedules.Plan,
    step: jax.Array,
) -> jax.Array:
    """What a generator makes of its latent under the noise and dropout of ``step``.

    Args:
      program: says which generators.
      name: of the generator.
      params: its parameters, leaves with a leading axis R.
      latents: ``[R, …]``.
      keys: ``[R, S]``, one per sample; each generator takes its own part of it.
      plan: the schedules.
      step: 0-based scalar.

    Returns:
      ``[R, S, …]``, or ``[R, 1, …]`` if nothing about this generator is random.
    """
    noise, dropout = plan.input_noise_std.get(name), plan.dropout_rate.get(name)
    if noise is None and dropout is None:
        return _evaluate(program, name, params, latents)
    generator = program.generators()[name]
    rate = None if dropout is None else dropout.at(step)

    def one(params: Params, latent: jax.Array, key: jax.Array) -> jax.Array:
        noise_key, dropout_key = jax.random.split(jax.random.fold_in(key, _TURNS.index(name)))
        if noise is not None:
            latent = latent + noise.at(step) * jax.random.normal(noise_key, latent.shape)
        return generator.apply(params, latent, dropout_rate=rate, dropout_key=dropout_key)

    return jnp.asarray(jax.vmap(jax.vmap(one, (None, None, 0)))(params, latents, keys))


def _evaluate(program: Program, name: str, params: Params, latents: jax.Array) -> jax.Array:
    """What a generator makes of its latent as it is: ``[R, 1, …]``."""
    return jnp.asarray(jax.vmap(program.generators()[name].apply)(params, latents)[:, None])


def blurred(images: jax.Array, kernels: jax.Array) -> Estimate:
    """The forward model, for images ``[R, S, …]`` and kernels ``[R, S or 1, …]``: ``[h, w]``, or ``[R', C', h, w]``."""
    kernels = jnp.broadcast_to(kernels, (*images.shape[:2], *kernels.shape[2:]))
    of_one = blur.blur_valid if kernels.ndim == 4 else jax.vmap(jax.vmap(filter_flow.blur_varying))
    return Estimate(image=images, kernel=kernels, reblurred=of_one(images, kernels))


def _known_kernels(observation: Observation) -> jax.Array:
    assert observation.kernel is not None
    return observation.kernel[:, None]


def sample_keys(keys: jax.Array, step: jax.Array, samples: jax.Array) -> jax.Array:
    """``[R, S]`` keys, each a function of a restart's key, the step and the sample's number alone."""
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(step_keys, samples)


def train_step(
    program: Program, state: TrainState, observation: Observation, plan: schedules.Plan
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of all restarts: sample, blur, compare, update.

    Args:
      program: what is compiled.
      state: of R restarts.
      observation: what each of them is fitted to, with leading axis R: restarts of one image, or of several alike in shape.
      plan: the schedules.

    Returns:
      The next state, and per restart ``[R]`` the ``loss`` before the update, the mean squared ``error`` of the re-blurred
      image, the standard deviation ``image_std`` of the image in the blurry image's frame and the kernel's largest pixel
      ``kernel_peak``.
    """
    keys = sample_keys(state.keys, state.step, jnp.arange(program.num_samples))
    params = unflatten(program, state.params)

    def drawn(name: str, own: Params) -> jax.Array:
        return sample(program, name, own, state.latents[name], keys, plan, state.step)

    def objective(images: jax.Array, kernels: jax.Array) -> tuple[Estimate, jax.Array, jax.Array, jax.Array]:
        estimate, pull_back = jax.vjp(blurred, images, kernels)
        loss, cotangent = schedules.loss_and_gradient(plan, state.step, estimate, observation)
        return estimate, loss, *pull_back(cotangent)

    new_params, new_opt_state = {}, {}

    def update(name: str, gradient: Params) -> None:
        new_params[name], new_opt_state[name] = _updated(program, state, plan, name, gradient)

    images, pull_back_images = jax.vjp(functools.partial(drawn, "image"), params["image"])
    if program.kernel_generator is None:
        estimate, loss, to_images, _ = objective(images, _known_kernels(observation))
    else:
        kernels, pull_back_kernels = jax.vjp(functools.partial(drawn, "kernel"), params["kernel"])
        estimate, loss, to_images, to_kernels = objective(images, kernels)
        update("kernel", *pull_back_kernels(to_kernels))
        if program.update == "sequential":
            kernels = drawn("kernel", unflatten(program, {"kernel": new_params["kernel"]})["kernel"])
            _, _, to_images, _ = objective(images, kernels)
    update("image", *pull_back_images(to_images))

    cropped = blur.crop_to_blurry(estimate.image, program.kernel_shape)
    metrics = {
        "loss": loss,
        "error": jnp.mean(jnp.square(estimate.reblurred - observation.blurry[:, None]), axis=(1, 2, 3)),
        "image_std": jnp.mean(jnp.std(cropped, axis=(-2, -1)), axis=1),
        "kernel_peak": jnp.max(estimate.kernel, axis=tuple(range(1, estimate.kernel.ndim))),
    }
    new = dataclasses.replace(state, step=state.step + 1, params=new_params, opt_state=new_opt_state)
    if program.stopping is not None and state.stopping is not None:
        new = _considered(program.stopping, state, new, estimate, metrics["error"])
    return new, metrics


def _considered(config: StoppingConfig, state: TrainState, new: TrainState, estimate: Estimate, error: jax.Array) -> TrainState:
    """The state after a step, with restarts that have ended left as they were."""
    assert state.stopping is not None
    value, stopping = early.criterion(config, state.stopping, estimate.image[:, 0], error, state.step)
    ended = state.stopping.stopped

    def unless_ended(fresh: jax.Array, old: jax.Array) -> jax.Array:
        # Counts of the optimiser are scalars that all restarts share, and no matter to those that have ended.
        return fresh if fresh.ndim == 0 else jnp.where(ended.reshape(-1, *[1] * (fresh.ndim - 1)), old, fresh)

    return dataclasses.replace(
        new,
        params=jax.tree.map(unless_ended, new.params, state.params),
        opt_state=jax.tree.map(unless_ended, new.opt_state, state.opt_state),
        stopping=early.advance(config, stopping, value, state.params, state.step),
    )


def _updated(
    program: Program, state: TrainState, plan: schedules.Plan, name: str, gradient: Params
) -> tuple[jax.Array, optax.OptState]:
    """One generator's parameters ``[R, P]`` and optimiser's state after a step, or as they were if it is not its turn."""
    rate = plan.learning_rates[name].at(state.step)
    old = (state.params[name], state.opt_state[name])
    direction, moments = program.tx().update(_flatten(gradient), state.opt_state[name])
    new = (state.params[name] - rate * direction, moments)
    if program.update == "alternating":
        its_turn = state.step % len(_TURNS) == _TURNS.index(name)
        new = jax.tree.map(functools.partial(jnp.where, its_turn), new, old)
    return new


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
def run_chunk(
    program: Program, state: TrainState, observation: Observation, plan: schedules.Plan, num_steps: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Runs ``num_steps`` (at most ``chunk_size``) steps, or fewer if every restart ends before.

    ``num_steps`` is an argument and not part of the program: the last, shorter chunk needs no compilation of its own.

    Returns:
      The state, and :func:`train_step`'s metrics as ``[chunk_size, R]``, of which one row for each step taken is filled.
    """
    rows = (program.chunk_size, *state.keys.shape)
    empty = {name: jnp.zeros(rows, jnp.float32) for name in METRICS}

    first = state.step
    Carry = tuple[TrainState, dict[str, jax.Array]]

    def goes_on(carry: Carry) -> jax.Array:
        state, _ = carry
        more = state.step - first < num_steps
        return more if state.stopping is None else more & ~jnp.all(state.stopping.stopped)

    def body(carry: Carry) -> Carry:
        state, record = carry
        index = state.step - first
        state, metrics = train_step(program, state, observation, plan)
        return state, jax.tree.map(lambda rows, row: rows.at[index].set(row), record, metrics)

    return lax.while_loop(goes_on, body, (state, empty))


@functools.partial(jax.jit, static_argnames="program")
def render(program: Program, state: TrainState, observation: Observation) -> Estimate:
    """The estimates ``[R, …]`` from the latents themselves: no noise, no dropout."""
    params = unflatten(program, state.params)
    images = _evaluate(program, "image", params["image"], state.latents["image"])
    if program.kernel_generator is None:
        kernels = _known_kernels(observation)
    else:
        kernels = _evaluate(program, "kernel", params["kernel"], state.latents["kernel"])
    return jax.tree.map(lambda field: field[:, 0], blurred(images, kernels))


@functools.partial(jax.jit, static_argnames="program")
def posterior(program: Program, state: TrainState, plan: schedules.Plan, num_samples: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation over samples of the image, under the noise and dropout of the last step.

    Welford's recurrence, so that one sample at a time is in memory. Source of the idea: Li, Nan & Ji, figure 3.

    Args:
      program: says which generators.
      state: after at least one step.
      plan: the schedules.
      num_samples: scalar, at least 2.

    Returns:
      Both ``[R, H+h-1, W+w-1]``.
    """
    params, latents = unflatten(program, state.params)["image"], state.latents["image"]

    def body(index: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        mean, squares = carry
        # The number of the step to come: no step that was taken has had these keys.
        keys = sample_keys(state.keys, state.step, index[None])
        image = sample(program, "image", params, latents, keys, plan, state.step - 1)[:, 0]
        new_mean = mean + (image - mean) / (index + 1)
        return new_mean, squares + (image - mean) * (image - new_mean)

    empty = jnp.zeros((len(state.keys), *blur.latent_shape(program.blurry_shape, program.kernel_shape)))
    mean, squares = lax.fori_loop(0, num_samples, body, (empty, empty))
    return mean, jnp.sqrt(squares / (num_samples - 1))
