"""Shared by all tests: compiled programs are cached for the length of one test run, for all of its processes."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

import pytest

_CACHE = "JAX_COMPILATION_CACHE_DIR"


def pytest_configure(config: pytest.Config) -> None:
    # xdist's workers inherit the environment, so only the first process gets here with the variable unset.
    if _CACHE not in os.environ:
        os.environ[_CACHE] = tempfile.mkdtemp(prefix="jaxdeblur-tests-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(_CACHE), ignore_errors=True))


@pytest.fixture(autouse=True, scope="module")
def _clear_executables() -> Iterator[None]:
    """Programs of one module are of no use to the next, and each takes memory and mappings, which are few."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
