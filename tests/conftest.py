"""Shared by all tests: compiled programs are kept in pytest's own cache, for all processes and for the next run."""

import os
import shutil
import sys
from collections.abc import Iterator

import pytest

from jaxdeblur import runtime

_CACHE = "JAX_COMPILATION_CACHE_DIR"
# Small programs too: another module, or the other process, needs many of them again.
_KEEP_ALL = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
# Programs of code that has changed since are never looked up again, nor removed one by one.
_LARGEST_CACHE = 500e6  # bytes; a whole run, slow tests included, leaves about a third of that
_LIGHT = "JAX_DISABLE_MOST_OPTIMIZATIONS"


def pytest_configure(config: pytest.Config) -> None:
    # xdist's workers inherit the environment, so only the first process gets here with the variable unset.
    if _CACHE not in os.environ:
        folder = runtime.programs_folder(config.cache.mkdir("compiled-programs"))
        if sum(entry.stat().st_size for entry in folder.glob("*")) > _LARGEST_CACHE:
            shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        runtime.remove_cut_entries(folder)
        os.environ[_CACHE] = str(folder)
        os.environ.update(_KEEP_ALL)
        config.add_cleanup(lambda: os.environ.pop(_CACHE))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first: one that begins last is waited for by all other processes."""

    def minutes(item: pytest.Item) -> float:
        return max((mark.kwargs.get("minutes", 0) for mark in item.iter_markers("slow")), default=0)

    items.sort(key=lambda item: -minutes(item))


@pytest.fixture(autouse=True, scope="module")
def _clear_executables() -> Iterator[None]:
    """Programs of one module are of no use to the next, and each takes memory and mappings, which are few."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


def _light_compilation() -> Iterator[None]:
    """For networks, whose programs take longer to compile here than to run: XLA optimises less.

    JAX's own variable, where it is set, decides instead: with ``JAX_DISABLE_MOST_OPTIMIZATIONS=0`` all is compiled as users'
    programs are.
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
