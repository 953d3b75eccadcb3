"""A page over the results of a folder: before, after and kernel of each, its warnings, and the way to its report."""

from __future__ import annotations

import functools
import html
import io
import json
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any

from PIL import Image

from jaxdeblur.errors import InputError
from jaxdeblur.imaging.selection import find_reports
from jaxdeblur.imaging.staging import staged
from jaxdeblur.imaging.untrusted import decoding
from jaxdeblur.jobs.html_report import data_uri, write_page
from jaxdeblur.jobs.saved_run import read_report
from jaxdeblur.version import __version__

NAME = "index.html"
_MARK = 'name="generator" content="jaxdeblur'
_THUMBNAIL_SIDE = 640
_SECONDS_BETWEEN = 10.0


class FolderIndex:
    """Keeps the pages of some folders up to date while results appear in them, at most every few seconds.

    Args:
      folders: whose ``index.html`` it is.
      log: told, once, of a folder whose page cannot be written.
      clock: in seconds.
    """

    def __init__(
        self, folders: Iterable[pathlib.Path], log: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folders = list(dict.fromkeys(folders))
        self._log = log
        self._clock = clock
        self._written = clock()

    def update(self) -> None:
        """Writes the pages if that is some time ago."""
        if self._clock() - self._written >= _SECONDS_BETWEEN:
            self.write()

    def write(self) -> None:
        """Writes the pages of the folders that hold results."""
        for folder in list(self._folders):
            try:
                write_index(folder)
            except (OSError, InputError) as error:
                self._folders.remove(folder)
                self._log(f"{folder}: note: no {NAME} was written ({error})")
        self._written = self._clock()


def write_index(folder: pathlib.Path) -> None:
    """Writes ``index.html`` of all results in ``folder``, sorted by name; none if there are no results.

    Raises:
      InputError: a file of that name is there that is none of ours.
      OSError: it cannot be written.
    """
    reports = find_reports(folder)
    if not reports:
        return
    path = folder / NAME
    if path.exists() and _MARK not in path.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise InputError(f"{path} is not ours and stays as it is")
    entries = [_entry(report, report.stat().st_mtime_ns) for report in reports]
    warned = sum("<li>" in entry for entry in entries)
    count = f"{len(entries)} result{'s' * (len(entries) != 1)}"
    texts = {
        "version": __version__,
        "title": folder.resolve().name or str(folder),
        "summary": f"{count}, {warned} with warnings. Before, after and kernel of each; its name leads to its report.",
    }
    with staged([path], replace=True) as (temporary,):
        write_page(temporary, "index.html", texts, {"entries": "".join(entries)})


@functools.lru_cache(maxsize=4096)
def _entry(report: pathlib.Path, _: int) -> str:
    """What the page says of one result. Cached by the time of its report: a long run writes the page often."""
    stem = report.name.rpartition("_report.")[0]
    page = report.with_suffix(".html")
    target = html.escape(_address((page if page.exists() else report).name))
    try:
        account = json.loads(read_report(report))
        name = html.escape(str(account["input"]["file"]))
        facts = html.escape(f"{_facts(account)}")
        warnings = "".join(f"<li>{html.escape(str(line))}</li>" for line in account["warnings"])
    except (InputError, ValueError, LookupError, TypeError) as error:
        name, facts, warnings = html.escape(stem), "", f"<li>{html.escape(str(error))}</li>"
    strip = _strip(report.with_name(f"{stem}_preview.png"))
    picture = f'<a href="{target}"><img src="{strip}" alt="Before, after and kernel of {name}"></a>' if strip else ""
    listed = f"<ul>{warnings}</ul>" if warnings else ""
    return f'<article><h2><a href="{target}">{name}</a></h2>{picture}<p class="soft">{facts}</p>{listed}</article>\n'


def _facts(account: dict[str, Any]) -> str:
    size = f"{account['input']['width']}×{account['input']['height']} pixels"
    return f"{size} · kernel support {account['kernel_size']} pixels · final image: {account['chosen']}"


def _strip(preview: pathlib.Path) -> str:
    """The preview, reduced, as a data address; empty if there is none that can be read."""
    try:
        with decoding(preview, "a preview", damaged="cannot be shown", remedy="run it again"), Image.open(preview) as image:
            small = image.convert("RGB")
            small.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    except InputError:
        return ""
    content = io.BytesIO()
    small.save(content, format="JPEG", quality=80)
    return data_uri(content.getvalue(), "jpeg")


def _address(name: str) -> str:
    """A file name as a relative address; names may hold anything, such as ``#`` or a colon."""
    from urllib.parse import quote

    return "./" + quote(name.encode("utf-8", "surrogateescape"))
