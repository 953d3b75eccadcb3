"""What the device computes against what it should, by the precision of matrix products and convolutions.

The precisions: ``highest`` is full float32; ``default`` is the device's own, TF32 on NVIDIA's cards since Ampere; ``bfloat16``
rounds what the networks' products take to bfloat16 (sums and everything else stay in float32), which JAX has no setting for.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.signal

from experiments import steppers
from experiments.accelerator import device, images, sizes
from experiments.accelerator.plan import PRECISIONS, Context, Found
from jaxdeblur import runtime
from jaxdeblur.config import SkipNetConfig, UNetConfig
from jaxdeblur.errors import InputError
from jaxdeblur.networks import layers, registry
from jaxdeblur.operators import blur
from jaxdeblur.optimise.losses import Observation, one_minus_ssim
from jaxdeblur.optimise.schedules import plan
from jaxdeblur.optimise.step import Program, initial_state, train_step

# In full float32; anything above is a fault and no rounding.
LARGEST_OPERATOR_ERROR = 1e-4
LARGEST_OUTPUT_ERROR = 1e-3
LARGEST_GRADIENT_ERROR = 2e-2
# Adam's first moment after one step is this share of the gradient.
_FIRST_MOMENT_SHARE = 0.1
# Steps that differences are taken over, as shares of the parameters' norm: large ones bend, small ones drown in rounding.
_SHARES = (1e-2, 3e-3, 1e-3, 3e-4)
# Of the triad's arrays, of the matrices, and products in a row: enough to keep a card busy for a second.
_LIMITS: dict[str, Any] = {"length": 1 << 28, "side": 8192, "repeats": 10}
_TOY_LIMITS: dict[str, Any] = {"length": 1_000_000, "side": 256, "repeats": 2}
_GRADIENTS_OF = ("selfdeblur", "mc")


def measure(part: str, item: str, context: Context) -> Found:
    """Does one of the checks."""
    runtime.set_up_cache()
    if item == "card":
        kind = jax.devices()[0].device_kind
        sheet = device.peaks(kind)
        measured = device.measured_limits(**(_TOY_LIMITS if context.toy else _LIMITS))
        return Found({"kind": kind, "sheet": None if sheet is None else dataclasses.asdict(sheet), "measured": measured})
    checks = {"operators": _operators, "generators": _generators, "gradients": _gradients}
    return Found(checks[item](context))


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """What is compiled inside has this precision of products; one of :data:`~experiments.accelerator.plan.PRECISIONS`."""
    jax.clear_caches()  # programs do not know what the layers' functions are replaced by
    try:
        if name == "bfloat16":
            with _in_bfloat16("_library_conv"), _in_bfloat16("channel_product"):
                yield
        else:
            with jax.default_matmul_precision(name):
                yield
    finally:
        jax.clear_caches()


@contextlib.contextmanager
def _in_bfloat16(name: str) -> Iterator[None]:
    """A function of the layers takes its two arrays in bfloat16 meanwhile, and gives float32."""
    usual = getattr(layers, name)

    def rounded(image: jax.Array, weights: jax.Array, *rest: Any) -> jax.Array:
        result: jax.Array = usual(image.astype(jnp.bfloat16), weights.astype(jnp.bfloat16), *rest)
        return result.astype(jnp.float32)

    setattr(layers, name, rounded)
    try:
        yield
    finally:
        setattr(layers, name, usual)


def _relative(found: Any, expected: Any) -> float:
    """``‖a − b‖ / ‖b‖`` over all leaves."""
    a, b = (
        np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]) for tree in (found, expected)
    )
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def _operators(context: Context) -> dict[str, Any]:
    """The blur against direct sums in double precision, its adjoint, and the SSIM loss with its gradient."""
    side, size = sizes.image_side(toy=context.toy), sizes.kernel_size(17, toy=context.toy)
    generator = np.random.default_rng(0)
    image, other = generator.random((2, side + size - 1, side + size - 1), np.float32)
    kernel, seen = generator.random((size, size), np.float32), generator.random((side, side), np.float32)
    kernel /= kernel.sum()
    expected = scipy.signal.convolve2d(image.astype(np.float64), kernel.astype(np.float64), mode="valid")
    rows: dict[str, Any] = {}
    for name in PRECISIONS[:2]:
        with precision(name):
            blurred = jax.jit(blur.blur_valid)(image, kernel)
            back = jax.jit(blur.blur_valid_adjoint)(seen, kernel)
            left, right = (float(np.vdot(np.float64(a), np.float64(b))) for a, b in ((blurred, seen), (image, back)))
            found = {"blur": _relative(blurred, expected), "adjoint": abs(left - right) / abs(right)}
            rows[name] = {**found, **_ssim_errors(np.asarray(blurred), other[:side, :side])}
    ok = all(value <= LARGEST_OPERATOR_ERROR for name, value in rows["highest"].items() if name != "ssim_gradient")
    return {"errors": rows, "ok": ok and rows["highest"]["ssim_gradient"] <= LARGEST_GRADIENT_ERROR}


def _ssim_errors(image: np.ndarray, noise: np.ndarray) -> dict[str, float]:
    """Of the SSIM loss between an image and a slightly noisy one, against PyTorch in double precision on the processor."""
    torch, twin = _torch()
    target = (0.98 * image + 0.02 * noise).astype(np.float32)
    first = torch.from_numpy(image.astype(np.float64))[None, None].requires_grad_()
    expected = twin.one_minus_ssim(first, torch.from_numpy(target.astype(np.float64))[None, None])
    expected.backward()
    value, gradient = jax.jit(jax.value_and_grad(one_minus_ssim))(image, target)
    return {
        "ssim": abs(float(value) - expected.item()),
        "ssim_gradient": _relative(gradient, first.grad.detach().numpy()[0, 0]),
    }


def _torch() -> tuple[Any, Any]:
    try:
        import torch

        from experiments import torch_twin
    except ImportError:
        raise InputError("PyTorch is not installed here: it is what parity is judged against") from None
    return torch, torch_twin


def _generators(context: Context) -> dict[str, Any]:
    """Output and gradient of the image generators, against the twins in double precision on the processor."""
    configs: dict[str, SkipNetConfig | UNetConfig] = {}
    for name, preset in (("skip", "selfdeblur"), ("unet", "mc")):
        fit = sizes.preset(preset, toy=context.toy).fit
        assert fit is not None
        configs[name] = fit.image_generator
    rows = {name: _parity(config, (47, 40) if context.toy else (131, 158)) for name, config in configs.items()}
    exact = [row["highest"] for row in rows.values()]
    ok = all(row["output"] <= LARGEST_OUTPUT_ERROR and row["gradient"] <= LARGEST_GRADIENT_ERROR for row in exact)
    return {"errors": rows, "ok": ok}


def _parity(config: SkipNetConfig | UNetConfig, shape: tuple[int, int]) -> dict[str, dict[str, float]]:
    torch, twins = _torch()
    torch.manual_seed(0)
    twin = twins.SkipNet(config) if isinstance(config, SkipNetConfig) else twins.UNet(config)
    latent, target = torch.rand(1, config.latent_channels, *shape), torch.rand(1, 1, *shape)
    params = jax.tree.map(jnp.asarray, twins.to_flax(twin))
    expected = twin.double()(latent.double())
    torch.nn.functional.mse_loss(expected, target.double()).backward()
    gradients = twins.to_flax(twin, gradients=True)
    generator = registry.image_generator(config, shape)
    ours, goal = jnp.asarray(latent.numpy()[0].transpose(1, 2, 0)), target.numpy()[0, 0]

    def loss_and_image(params: Any) -> tuple[jax.Array, jax.Array]:
        image = generator.apply(params, ours)
        return jnp.mean(jnp.square(image - goal)), image

    rows = {}
    for name in PRECISIONS:
        with precision(name):
            gradient, image = jax.jit(jax.grad(loss_and_image, has_aux=True))(params)
            rows[name] = {
                "output": _relative(image, expected.detach().numpy()[0, 0]),
                "gradient": _relative(gradient, gradients),
            }
    return rows


def _gradients(context: Context) -> dict[str, Any]:
    """The gradients that the compiled step itself follows, against central differences of its loss along them."""
    rows: dict[str, Any] = {}
    for preset in _GRADIENTS_OF[: 1 if context.toy else None]:
        with precision("highest"):  # differences of rounder losses are no reference
            rows[preset] = {"highest": _differences(preset, context)}
    ok = all(error <= LARGEST_GRADIENT_ERROR for row in rows.values() for error in row["highest"].values())
    return {"errors": rows, "ok": ok}


def _differences(preset: str, context: Context) -> dict[str, float]:
    """Relative errors of ``‖g‖`` against ``(L(θ + h g/‖g‖) − L(θ − h g/‖g‖)) / 2h``, by network."""
    fit = sizes.preset(preset, toy=context.toy).fit
    assert fit is not None
    # A sequential update takes the image's gradient at another kernel than that of the loss it tells.
    config = dataclasses.replace(steppers.last_loss(fit, 1), update="joint")
    side, size = (48, 7) if context.toy else (95, 17)
    program = Program.of(config, (side, side), (size, size), kernel_known=False)
    schedules = plan(config)
    scene = Observation.stack([Observation(jnp.asarray(images.boxes(side, 0), jnp.float32))])
    step = jax.jit(train_step, static_argnums=0)
    # Away from the start, where the kernel is flat and half of the gradients are zero.
    state, _ = step(program, initial_state(program, jax.random.split(jax.random.key(0), 1)), scene, schedules)
    state = dataclasses.replace(state, opt_state={name: program.tx().init(own) for name, own in state.params.items()})
    after, _ = step(program, state, scene, schedules)
    errors = {}
    for name, params in state.params.items():

        def loss_at(moved: jax.Array, name: str = name) -> float:
            there = dataclasses.replace(state, params={**state.params, name: moved})
            return float(step(program, there, scene, schedules)[1]["loss"][0])

        gradient = after.opt_state[name].mu / _FIRST_MOMENT_SHARE
        norm = float(jnp.linalg.norm(gradient))
        lengths = [share * float(jnp.linalg.norm(params)) for share in _SHARES]
        errors[name] = min(_error_at(length, norm, params, gradient, loss_at) for length in lengths)
    return errors


def _error_at(
    length: float, norm: float, params: jax.Array, gradient: jax.Array, loss_at: Callable[[jax.Array], float]
) -> float:
    offset = length * gradient / norm
    slope = (loss_at(params + offset) - loss_at(params - offset)) / (2 * length)
    return abs(slope - norm) / norm
