"""How the classical programs are compiled: so that the same call gives the same bytes."""

from __future__ import annotations

import functools

import jax

# With several threads XLA:CPU splits the rows of an FFT among them or not, depending on which of its own threads happens to
# reach it, and rows then round differently: conjugate gradients make visible differences of that. One thread costs nothing
# here, measured, and leaves the other cores to another program beside it.
reproducible_jit = functools.partial(jax.jit, compiler_options={"xla_cpu_multi_thread_eigen": False})
