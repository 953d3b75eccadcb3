"""Shared by all tests: compiled programs are cached for the length of one test run, for all of its processes."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

import pytest

_CACHE = "JAX_COMPILATION_CACHE_DIR"
# Small programs too: another module, or the other process, needs many of them again.
_KEEP_ALL = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
_LIGHT = "JAX_DISABLE_MOST_OPTIMIZATIONS"


def pytest_configure(config: pytest.Config) -> None:
    # xdist's workers inherit the environment, so only the first process gets here with the variable unset.
    if _CACHE not in os.environ:
        os.environ[_CACHE] = tempfile.mkdtemp(prefix="jaxdeblur-tests-")
        os.environ.update(_KEEP_ALL)
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(_CACHE), ignore_errors=True))


@pytest.fixture(autouse=True, scope="module")
def _clear_executables() -> Iterator[None]:
    """Programs of one module are of no use to the next, and each takes memory and mappings, which are few."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


def _light_compilation() -> Iterator[None]:
    """For networks, whose programs take longer to compile here than to run: XLA optimises less.

    JAX's own variable, where it is set, decides instead: ``.ci/run`` has the slow tests compiled as users' programs are.
    """
    if _LIGHT in os.environ:
        yield
        return
    import jax

    jax.config.update(_LIGHT.lower(), True)
    yield
    jax.config.update(_LIGHT.lower(), False)


light_compilation = pytest.fixture(_light_compilation, scope="module", name="light_compilation")
light_compilation_here = pytest.fixture(_light_compilation, name="light_compilation_here")
