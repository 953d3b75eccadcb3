"""A deep prior's step ready to be timed: ours, and its PyTorch twin's. No command: experiments that measure speed share it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxdeblur.config import TEACHER_TERMS, FitConfig

_SEED = 0


@dataclasses.dataclass(frozen=True)
class Stepper:
    """What is timed.

    Attributes:
      turn: does the steps of a turn, and waits for them.
      compile_s: seconds that it took to get ready.
      compiled: our compiled program, which can tell what it takes; None for PyTorch.
    """

    turn: Callable[[], Any]
    compile_s: float
    compiled: Any = None


def last_loss(config: FitConfig, steps: int) -> FitConfig:
    """The fit with the loss that it ends with, which is the one most of its steps use, in chunks of so many steps."""
    last = dataclasses.replace(config.loss_intervals[-1], start=0)
    return dataclasses.replace(config, loss_intervals=(last,), chunk_size=steps)


def random_image(shape: tuple[int, int]) -> np.ndarray:
    """``[H, W]`` in [0, 1]: what a step costs does not depend on what it is fitted to."""
    return np.random.default_rng(_SEED).random(shape, np.float32)


def _surrogate(config: FitConfig, shape: tuple[int, int]) -> np.ndarray | None:
    """Stands in for a pre-trained network's restoration, which is made once, before the steps."""
    return random_image(shape) if any(name in TEACHER_TERMS for name, _ in config.loss_intervals[-1].terms) else None


def jax_stepper(
    config: FitConfig, shape: tuple[int, int], kernel_size: int, steps: int, *, num_restarts: int = 1, cache_dir: str | None
) -> Stepper:
    """Ours.

    Args:
      config: of the fit.
      shape: ``(H, W)`` of the blurry image.
      kernel_size: side of the kernel.
      steps: of a turn.
      num_restarts: in one program.
      cache_dir: of compiled programs; ``off`` to have compiling timed.
    """
    import jax

    from jaxdeblur import runtime
    from jaxdeblur.optimise.losses import Observation
    from jaxdeblur.optimise.schedules import plan
    from jaxdeblur.optimise.step import Program, initial_state, run_chunk

    runtime.set_up_cache(cache_dir)
    config = last_loss(config, steps)
    program = Program.of(config, shape, (kernel_size, kernel_size), kernel_known=False)
    schedules, surrogate = plan(config), _surrogate(config, shape)
    scene = Observation(
        jax.numpy.asarray(random_image(shape)), surrogate=None if surrogate is None else jax.numpy.asarray(surrogate)
    )
    observation = Observation.stack([scene] * num_restarts)
    start = time.perf_counter()
    keys = jax.random.split(jax.random.key(_SEED), num_restarts)
    state = jax.block_until_ready(initial_state(program, keys))
    compiled = run_chunk.lower(program, state, observation, schedules, steps).compile()
    seconds = time.perf_counter() - start

    def turn() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(compiled(state, observation, schedules, steps))

    return Stepper(turn, seconds, compiled)


def torch_stepper(
    config: FitConfig,
    shape: tuple[int, int],
    kernel_size: int,
    steps: int,
    *,
    num_restarts: int = 1,
    device: str = "cpu",
    backend: str | None = None,
) -> Stepper:
    """PyTorch's; restarts one after the other, as it has no other way.

    Args:
      config: of the fit.
      shape: ``(H, W)`` of the blurry image.
      kernel_size: side of the kernel.
      steps: of a turn.
      num_restarts: fits that each step advances.
      device: where it runs.
      backend: of ``torch.compile``; None for the network as it is.

    Raises:
      ValueError: there is no PyTorch side for this fit.
    """
    import torch

    from experiments.torch_twin import Fit

    torch.manual_seed(_SEED)
    start = time.perf_counter()
    fits = [
        Fit(
            random_image(shape),
            config,
            (kernel_size, kernel_size),
            surrogate=_surrogate(config, shape),
            device=device,
            backend=backend,
        )
        for _ in range(num_restarts)
    ]

    def turn() -> None:
        for _ in range(steps):
            for fit in fits:
                loss = fit.step()
        float(loss)  # waits for the device

    if backend is not None:
        turn()  # compiles
    return Stepper(turn, time.perf_counter() - start if backend else 0.0)
