"""Where compiled programs go, and when a process starts over."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from jaxdeblur import runtime


def _python(code, **environ):
    ours = ("GLIBC_TUNABLES", "JAXDEBLUR_RELAUNCHED", "JAXDEBLUR_CACHE_DIR", "JAX_COMPILATION_CACHE_DIR")
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    environ = {**clean, "JAX_PLATFORMS": "cpu", **environ}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


MANY = """
import jax, jax.numpy as jnp
from jaxdeblur import runtime

def mappings():
    return sum(1 for _ in open("/proc/self/maps"))

def compile_some(number):
    for size in range(1, number):
        jax.jit(lambda x: jnp.fft.fft(jnp.sort(x) @ jnp.outer(x, x)).real)(jnp.ones(size)).block_until_ready()

compile_some(3)
before = mappings()
compile_some(40)
after = mappings()
assert after > before + 30, (before, after)
assert not runtime.clear_compiled_executables()
runtime._MOST_MAPPINGS_TAKEN = 0.9 * after / int(open("/proc/sys/vm/max_map_count").read())
assert runtime.clear_compiled_executables()
assert mappings() < before + 0.3 * (after - before), (before, after, mappings())
compile_some(3)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not count mappings")
def test_compiled_executables_are_cleared_before_there_are_too_many():
    _python(MANY, JAXDEBLUR_CACHE_DIR="off")


CACHE = """
import jax, sys
from jaxdeblur import runtime
print(runtime.set_up_cache(*sys.argv[1:]))
jax.jit(lambda x: x * 2 + 1)(1.0).block_until_ready()
"""


def test_programs_are_kept_where_the_variable_says(tmp_path):
    folder = Path(_python(CACHE, JAXDEBLUR_CACHE_DIR=str(tmp_path)).strip())
    assert folder.parent == tmp_path
    assert any(folder.iterdir())


@pytest.mark.slow
def test_the_user_cache_is_the_default_and_off_is_off(tmp_path):
    if sys.platform.startswith("linux"):
        folder = Path(_python(CACHE, XDG_CACHE_HOME=str(tmp_path)).strip())
        assert folder.parent == tmp_path / "jaxdeblur"
    assert _python(CACHE, JAXDEBLUR_CACHE_DIR="off").strip() == "None"


@pytest.mark.slow
def test_an_unwritable_cache_is_no_reason_to_fail(tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    assert _python(CACHE, JAXDEBLUR_CACHE_DIR=str(in_the_way)).strip() == "None"


needs_huge_pages = pytest.mark.skipif(
    runtime.huge_pages_environment({"JAX_PLATFORMS": "cpu"}) is None, reason="this system has no huge pages to offer"
)


@needs_huge_pages
@pytest.mark.parametrize(
    "environ",
    [
        {"JAXDEBLUR_HUGE_PAGES": "0"},
        {"JAXDEBLUR_RELAUNCHED": "1"},
        {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"},
        {"JAX_PLATFORMS": "cuda,cpu"},
    ],
)
def test_nothing_to_gain(environ):
    assert runtime.huge_pages_environment({"JAX_PLATFORMS": "cpu", **environ}) is None


@needs_huge_pages
def test_a_process_starts_over_once_with_the_same_arguments():
    code = (
        "import os, sys; from jaxdeblur import runtime; print('started', sys.argv[1:], flush=True);"
        "runtime.relaunch_with_huge_pages(); print('went on', 'hugetlb=1' in os.environ['GLIBC_TUNABLES'])"
    )
    assert _python(code).splitlines() == ["started []", "started []", "went on True"]
    assert _python(code, JAXDEBLUR_HUGE_PAGES="0", GLIBC_TUNABLES="").splitlines() == ["started []", "went on False"]


def test_importing_the_package_changes_nothing():
    code = (
        "import os, jax; before = dict(os.environ);"  # JAX itself sets some
        "import jaxdeblur.runtime, jaxdeblur.optimise.loop; assert dict(os.environ) == before;"
        "print(jax.config.jax_compilation_cache_dir)"
    )
    assert _python(code).strip() == "None"


def test_entries_that_were_cut_short_are_removed_from_the_cache(tmp_path):
    whole = zlib.compress(bytes(range(256)) * 10)
    for name, content in (("whole", whole), ("cut", whole[:-20]), ("empty", b""), ("other", b"\x28\xb5\x2f\xfd?")):
        (tmp_path / f"{name}-cache").write_bytes(content)
    (tmp_path / "notes").write_bytes(b"")
    runtime.remove_cut_entries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checked", "notes", "other-cache", "whole-cache"]
    (tmp_path / "later-cache").write_bytes(whole[:100])
    runtime.remove_cut_entries(tmp_path)
    assert not (tmp_path / "later-cache").exists()
    runtime.remove_cut_entries(tmp_path / "none")
