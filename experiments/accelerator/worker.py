"""The process that does the items of a part, one after the other, and tells its parent of each in lines of JSON."""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from experiments.accelerator.plan import Context, Found, Part
from experiments.runner.store import Store
from jaxdeblur.errors import InputError
from jaxdeblur.version import __version__

# Lines that are for the parent begin with this; all others are what libraries print.
MARK = "@accelerator "
_LONGEST_ERROR = 300


def tell(what: str, **fields: Any) -> None:
    """Sends the parent a line."""
    print(MARK + json.dumps({"what": what, **fields}), flush=True)


def end_with_parent() -> None:
    """Ends this process when its parent does, whatever ended that: standard input is then at its end."""

    def wait() -> None:
        # Not by sys.stdin, whose lock would be held when the process wants to end.
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def as_on_accelerators() -> None:
    """Has the networks take the way that they take on an accelerator: it is that way which a dry run is to go through."""
    from jaxdeblur.networks import layers

    layers.use_library_convolutions = lambda: True


def one_line(error: BaseException) -> str:
    """An error as one line of text, cut where it is long (XLA's list every buffer)."""
    text = " ".join(str(error).split())
    named = text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
    return named if len(named) <= _LONGEST_ERROR else named[: _LONGEST_ERROR - 1] + "…"


def work(part: Part, names: Sequence[str], context: Context, store: Store, source: str) -> None:
    """Does items by name: each result is stored as soon as it is had, an item that fails leaves its error in one line.

    Args:
      part: theirs.
      names: of the items.
      context: what they are given.
      store: for the results.
      source: digest of the code that measures.
    """
    if context.toy:
        as_on_accelerators()
    expected = {item.name: item.seconds for item in part.items}
    for name in names:
        left = context.seconds_left()
        if not context.toy and expected[name] > left:
            tell("late", item=name, why=f"not begun: it takes about {expected[name]:.0f} s, and {left:.0f} s were left")
            continue
        tell("begin", item=name)
        start = time.perf_counter()
        try:
            found: Found = importlib.import_module(f"experiments.accelerator.{part.module}").measure(part.name, name, context)
        except Exception as error:
            store.save_failure(f"{part.name}/{name}", (one_line(error),))
            tell("failed", item=name, why=one_line(error))
            continue
        record = {"figures": dict(found.figures), "took_s": round(time.perf_counter() - start, 2)}
        store.save(f"{part.name}/{name}", {**record, "version": __version__, "source": source}, dict(found.arrays))
        tell("done", item=name, seconds=record["took_s"])
    tell("end")
