"""Everything that a fit carries from one step to the next, and its checkpoint file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import flax
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdeblur.errors import InputError
from jaxdeblur.imaging.staging import staged
from jaxdeblur.optimise.stopping import Stopping


@flax.struct.dataclass
class TrainState:
    """State of R restarts of one fit.

    Attributes:
      step: steps done, a scalar that all restarts share.
      params: ``{"image": …, "kernel": …}`` (no ``kernel`` when the kernel is known), all parameters of a generator as one
        vector ``[R, P]``: the optimiser's update is then one operation, not one for each of a hundred small arrays.
      opt_state: the optimiser's, same keys as ``params``; moments have a leading axis R, counts do not.
      latents: the generators' fixed inputs, same keys as ``params``, leading axis R.
      keys: ``[R]`` typed random keys, one per restart; step t uses ``fold_in(key, t)``.
      stopping: what decides on an early end; None if nothing does.
    """

    step: jax.Array
    params: dict[str, jax.Array]
    opt_state: dict[str, optax.OptState]
    latents: dict[str, jax.Array]
    keys: jax.Array
    stopping: Stopping | None = None


def save_checkpoint(path: Path, state: TrainState, history: dict[str, np.ndarray], identity: str) -> None:
    """Writes state and history so far; a reader sees either the old file or the new one, never half of one.

    Args:
      path: the file.
      state: to be saved.
      history: what was recorded per step, arrays ``[steps done, R]``.
      identity: of the run (see :func:`load_checkpoint`).
    """
    plain = dataclasses.replace(state, keys=jax.random.key_data(state.keys))
    content = flax.serialization.msgpack_serialize(
        {"identity": identity, "state": flax.serialization.to_state_dict(jax.device_get(plain)), "history": history}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with staged([path]) as (temporary,):
        temporary.write_bytes(content)


def load_checkpoint(path: Path, template: TrainState, identity: str) -> tuple[TrainState, dict[str, np.ndarray]]:
    """Reads what :func:`save_checkpoint` wrote.

    Args:
      path: the file.
      template: a state of the same run, for its structure.
      identity: what the run is; a checkpoint of another run is refused.

    Returns:
      The state and the history so far.

    Raises:
      InputError: the file is damaged or belongs to another run.
    """
    remedy = "delete it to start anew, or name another file"
    try:
        content = flax.serialization.msgpack_restore(path.read_bytes())
        found = content["identity"]
    except Exception as error:
        raise InputError(f"checkpoint {path} cannot be read ({type(error).__name__}): {remedy}") from error
    if found != identity:
        raise InputError(f"checkpoint {path} belongs to a run with another image, seed or settings: {remedy}")
    plain = dataclasses.replace(template, keys=jax.random.key_data(template.keys))
    state = flax.serialization.from_state_dict(plain, content["state"])
    state = jax.tree.map(jnp.asarray, state)
    keys = jax.random.wrap_key_data(state.keys, impl=jax.random.key_impl(template.keys))
    return dataclasses.replace(state, keys=keys), content["history"]
