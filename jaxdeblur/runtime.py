"""The process's surroundings: where compiled programs are kept, and huge memory pages on Linux CPUs.

Nothing here happens on import: commands call it first thing.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import sys
import time
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

CACHE_VARIABLE = "JAXDEBLUR_CACHE_DIR"
HUGE_PAGES_VARIABLE = "JAXDEBLUR_HUGE_PAGES"
OFF = "off"
_RELAUNCHED_VARIABLE = "JAXDEBLUR_RELAUNCHED"
# Ask for transparent huge pages, keep large blocks on the heap instead of mapping each anew, and keep freed memory: XLA's
# temporaries are otherwise faulted in page by page at every call.
_TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8000000000"
_OLDEST_GLIBC = (2, 35)
# The largest fit's programs take a tenth of what is usually allowed.
_MOST_MAPPINGS_TAKEN = 0.4
_ZLIB = 0x78  # first byte of a compressed stream
_LOG = logging.getLogger(__name__)


def default_cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """The per-user folder where the platform wants caches."""
    if sys.platform == "win32":
        base = Path(environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "jaxdeblur"


def _machine() -> str:
    """Short digest of what compiled programs depend on: a home folder may be shared by different processors."""
    features = platform.machine() + platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        features += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        pass
    return hashlib.sha256(features.encode()).hexdigest()[:12]


def set_up_cache(folder: str | Path | None = None, *, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Keeps compiled programs between runs. Call it before anything is compiled.

    Args:
      folder: where; None for ``$JAXDEBLUR_CACHE_DIR`` or, without it, the folder that JAX has been given
        (``$JAX_COMPILATION_CACHE_DIR``) or else the user's cache folder; ``off`` for no cache.
      environ: the environment.

    Returns:
      The folder in use, or None if there is no cache (switched off, or the folder cannot be written).
    """
    import jax  # not above: a process that starts itself anew need not wait for it

    already = jax.config.values.get("jax_compilation_cache_dir")
    chosen = folder or environ.get(CACHE_VARIABLE)
    if not chosen and already:
        return Path(already)
    chosen = chosen or default_cache_dir(environ)
    if str(chosen).lower() == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    path = programs_folder(Path(chosen).expanduser())
    try:
        path.mkdir(parents=True, exist_ok=True)
        usable = os.access(path, os.W_OK)
    except OSError:
        usable = False
    if not usable:
        _LOG.warning("compiled programs are not kept: %s cannot be written (set %s)", path, CACHE_VARIABLE)
        return None
    remove_cut_entries(path)
    # A full disk, or an entry that another process is writing: the program is compiled, and that is all there is to it.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path


def programs_folder(base: Path) -> Path:
    """Where in a cache folder the programs of this version of JAX and this processor are kept."""
    return base / f"jax-{importlib.metadata.version('jax')}-{_machine()}"


def remove_cut_entries(folder: Path) -> None:
    """Removes what a killed process or a full disk has cut short from a folder of compiled programs.

    JAX does not write its entries in one go, complains of a cut one in every run, and never replaces it.

    Args:
      folder: of one version of JAX. A file in it says when it was last looked through; only newer entries are read.
    """
    mark, began = folder / "checked", time.time()
    try:
        since = mark.stat().st_mtime - 2.0  # file systems round times
    except OSError:
        since = 0.0
    with contextlib.suppress(OSError):
        for entry in folder.glob("*-cache"):
            if entry.stat().st_mtime >= since and _is_cut(entry.read_bytes()):
                entry.unlink()
        mark.touch()
        os.utime(mark, (began, began))


def _is_cut(entry: bytes) -> bool:
    if entry and entry[0] != _ZLIB:
        return False  # another compression; JAX notices by itself
    reader = zlib.decompressobj()
    try:
        reader.decompress(entry)
    except zlib.error:
        return True
    return not reader.eof


def clear_compiled_executables() -> bool:
    """Clears the compiled executables if they take much of what a Linux process may map; returns whether it did.

    Each executable of the CPU backend takes hundreds of mappings or more, and at 65530, unless the system says otherwise, the
    next compilation ends the process. Commands call this between images: images of new shapes compile new executables. What
    is needed again comes from the cache on disk.
    """
    try:
        limit = int(Path("/proc/sys/vm/max_map_count").read_text(encoding="ascii"))
        with Path("/proc/self/maps").open("rb") as maps:
            taken = sum(1 for _ in maps)
    except (OSError, ValueError):  # another system
        return False
    if taken < _MOST_MAPPINGS_TAKEN * limit:
        return False
    import jax

    jax.clear_caches()
    gc.collect()
    _LOG.debug("cleared the compiled executables: they took %d of %d mappings", taken, limit)
    return True


def _may_use_accelerator(environ: Mapping[str, str]) -> bool:
    wanted = environ.get("JAX_PLATFORMS", "")
    if wanted:
        return wanted != "cpu"
    plugins = bool(importlib.metadata.entry_points(group="jax_plugins"))
    return plugins or any(importlib.util.find_spec(name) is not None for name in ("jax_plugins", "libtpu"))


def huge_pages_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str] | None:
    """The environment in which this process would run faster, or None if there is nothing to gain.

    None if: not Linux with glibc ≥ 2.35, huge pages forbidden by the system, an accelerator may be used, the process has
    been relaunched already, its allocator has been tuned by the user, or ``JAXDEBLUR_HUGE_PAGES=0``.
    """
    if not sys.platform.startswith("linux") or environ.get(HUGE_PAGES_VARIABLE) == "0" or _RELAUNCHED_VARIABLE in environ:
        return None
    if "glibc.malloc" in environ.get("GLIBC_TUNABLES", ""):
        return None
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_GLIBC:
        return None
    try:
        if "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii"):
            return None
    except OSError:
        return None
    if _may_use_accelerator(environ):
        return None
    tunables = ":".join(filter(None, [environ.get("GLIBC_TUNABLES"), _TUNABLES]))
    return {**environ, "GLIBC_TUNABLES": tunables, _RELAUNCHED_VARIABLE: "1"}


def relaunch_with_huge_pages(argv: Sequence[str] | None = None) -> None:
    """On Linux CPUs, starts this process over, once, with huge memory pages; returns if there is nothing to gain.

    Args:
      argv: the interpreter's whole command line, default this process's own.
    """
    environment = huge_pages_environment()
    if environment is None:
        return
    command = list(sys.orig_argv if argv is None else argv)
    _LOG.info("starting again with huge memory pages (%s=0 switches this off)", HUGE_PAGES_VARIABLE)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *command[1:]], environment)
