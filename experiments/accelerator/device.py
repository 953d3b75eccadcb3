"""The device: what it is, what it could do by its data sheet, and what it does in plain products and passes over memory."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Peaks:
    """A card by its data sheet, dense products.

    Attributes:
      bytes_per_s: of its memory.
      float32: FLOP/s in full single precision.
      tensorfloat32: FLOP/s of matrix products in TF32; those in float32 on cards without.
      bfloat16: FLOP/s of matrix products in bfloat16, or None on cards without.
    """

    bytes_per_s: float
    float32: float
    tensorfloat32: float
    bfloat16: float | None


# By a part of the name that the driver gives; the longest that fits counts. NVIDIA's data sheets, without sparsity.
CARDS: dict[str, Peaks] = {
    "H200": Peaks(4.8e12, 67e12, 494e12, 989e12),
    "H100": Peaks(3.35e12, 67e12, 494e12, 989e12),
    "H100 PCIe": Peaks(2.0e12, 51e12, 378e12, 756e12),
    "H100 NVL": Peaks(3.9e12, 60e12, 418e12, 835e12),
    "A100-SXM4-40GB": Peaks(1.555e12, 19.5e12, 156e12, 312e12),
    "A100-PCIE-40GB": Peaks(1.555e12, 19.5e12, 156e12, 312e12),
    "A100 80GB PCIe": Peaks(1.935e12, 19.5e12, 156e12, 312e12),
    "A100": Peaks(2.039e12, 19.5e12, 156e12, 312e12),
    "A10": Peaks(0.6e12, 31.2e12, 62.5e12, 125e12),
    "L40S": Peaks(0.864e12, 91.6e12, 183e12, 362e12),
    "L4": Peaks(0.3e12, 30.3e12, 60e12, 121e12),
    "V100": Peaks(0.9e12, 15.7e12, 15.7e12, None),
    "T4": Peaks(0.32e12, 8.1e12, 8.1e12, None),
    "RTX 4090": Peaks(1.008e12, 82.6e12, 82.6e12, 165e12),
    "RTX 3090": Peaks(0.936e12, 35.6e12, 35.6e12, 71e12),
}


def peaks(kind: str) -> Peaks | None:
    """What the data sheet of a card says, by the driver's name for it; None for one that is not in the table."""
    fitting = [name for name in CARDS if _is(name, kind)]
    return CARDS[max(fitting, key=len)] if fitting else None


def _is(name: str, kind: str) -> bool:
    """Whether the words of ``name`` stand in ``kind`` one after the other: an L40S is no L4."""
    wanted, words = (text.lower().replace("-", " ").split() for text in (name, kind))
    return any(words[start : start + len(wanted)] == wanted for start in range(len(words)))


def describe() -> dict[str, Any]:
    """What this process would compute on."""
    import jax

    device = jax.devices()[0]
    return {
        "backend": jax.default_backend(),
        "kind": device.device_kind,
        "count": jax.device_count(),
        "memory_mb": round((device.memory_stats() or {}).get("bytes_limit", 0) / 1e6),
        "jax": jax.__version__,
    }


def peak_bytes() -> int | None:
    """The most memory that this process has held on its device so far; None where the device does not say."""
    import jax

    found = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return None if found is None else int(found)


def risen_peak_mb(before: int | None) -> float | None:
    """The highest mark in MB if it has risen above ``before``, of :func:`peak_bytes`: only then is it this item's own."""
    after = peak_bytes()
    return after / 1e6 if before is not None and after is not None and after > before else None


def seconds_of(work: Callable[[], Any], *, times: int = 5) -> float:
    """Median seconds of ``work``, which returns arrays that are waited for, after one call that does not count."""
    import jax

    jax.block_until_ready(work())
    found = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(work())
        found.append(time.perf_counter() - start)
    return statistics.median(found)


# What JAX is asked for, and in what type, to have products in a precision.
_PRODUCTS = {"float32": ("highest", "float32"), "tensorfloat32": ("default", "float32"), "bfloat16": ("default", "bfloat16")}


def measured_limits(*, length: int, side: int, repeats: int, precisions: Iterable[str] = tuple(_PRODUCTS)) -> dict[str, float]:
    """Bytes per second of a triad ``a = b + s·c``, and FLOP/s of square matrix products by precision.

    Args:
      length: of the triad's arrays.
      side: of the matrices.
      repeats: products in a row.
      precisions: of the products: ``float32``, ``tensorfloat32``, ``bfloat16``.
    """
    import jax
    import jax.numpy as jnp

    parts = (jnp.ones(length, jnp.float32), jnp.full(length, 2.0, jnp.float32))
    triad = jax.jit(lambda b, c: b + 3.0 * c)
    limits = {"bytes_per_s": 3 * 4 * length / seconds_of(lambda: triad(*parts))}
    # Random numbers: products of equal ones run faster than any real ones.
    first, second = (jax.random.normal(jax.random.key(seed), (side, side)) for seed in (0, 1))

    def flops(left: jax.Array, right: jax.Array, precision: str) -> float:
        @jax.jit
        def products(left: jax.Array, right: jax.Array) -> jax.Array:
            return jax.lax.fori_loop(0, repeats, lambda _, x: jnp.matmul(x, right, precision=precision) / side**0.5, left)

        return 2.0 * side**3 * repeats / seconds_of(lambda: products(left, right), times=3)

    for name in precisions:
        asked, kind = _PRODUCTS[name]
        limits[name] = flops(first.astype(kind), second.astype(kind), asked)
    return limits


def shortest_ms(cost: Mapping[str, float | None], bytes_per_s: float, flops_per_s: float) -> float | None:
    """The roofline: milliseconds of a step that neither waits for memory nor for products; None without a cost."""
    flops, moved = cost.get("flops"), cost.get("bytes")
    if not flops or not moved:
        return None
    return 1e3 * max(flops / flops_per_s, moved / bytes_per_s)
