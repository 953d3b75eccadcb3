"""Single-image blind deblurring with untrained deep priors, in JAX."""

from jaxdeblur.version import __version__

__all__ = ["__version__"]
