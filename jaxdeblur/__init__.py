"""Single-image blind deblurring with untrained deep priors, in JAX.

import jax, jaxdeblur
result = jaxdeblur.deblur(image, key=jax.random.key(0))
result.restored, result.kernel
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jaxdeblur.version import __version__

if TYPE_CHECKING:
    from jaxdeblur.config import Config
    from jaxdeblur.errors import InputError
    from jaxdeblur.pipeline import Candidate, Photo, Result, deblur, deblur_batch, refinish
    from jaxdeblur.presets import PRESETS

__all__ = [
    "PRESETS",
    "Candidate",
    "Config",
    "InputError",
    "Photo",
    "Result",
    "__version__",
    "deblur",
    "deblur_batch",
    "refinish",
]

_HOMES = {
    "Candidate": "jaxdeblur.pipeline",
    "Config": "jaxdeblur.config",
    "InputError": "jaxdeblur.errors",
    "PRESETS": "jaxdeblur.presets",
    "Photo": "jaxdeblur.pipeline",
    "Result": "jaxdeblur.pipeline",
    "deblur": "jaxdeblur.pipeline",
    "deblur_batch": "jaxdeblur.pipeline",
    "refinish": "jaxdeblur.pipeline",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that a mistyped flag is answered without waiting for jax.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
