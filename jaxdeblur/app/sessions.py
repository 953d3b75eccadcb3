"""What a visitor has uploaded and computed, and that it goes when they do."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

from jaxdeblur.app.job_queue import Job

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MOST_PHOTOS, MOST_RUNS, MOST_SESSIONS = 3, 4, 200
_PREFIX, _LOCK = "jaxdeblur-app-", "lock"


@dataclasses.dataclass(eq=False)
class Run:
    """A finished computation on a photograph; ``account`` is what the page is told of it."""

    identity: str
    folder: pathlib.Path
    settings: dict[str, Any]
    account: dict[str, Any]


@dataclasses.dataclass(eq=False)
class Photo:
    """An upload; ``name`` is what its owner calls it and is never part of a path here."""

    identity: str
    folder: pathlib.Path
    path: pathlib.Path
    name: str
    account: dict[str, Any] = dataclasses.field(default_factory=dict)
    runs: dict[str, Run] = dataclasses.field(default_factory=dict)
    kernels: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False)
class Session:
    """A visitor.

    Attributes:
      token: the cookie.
      seen: when they were last heard of, in seconds of ``time.monotonic``.
      folder: theirs, or None as long as there is nothing to keep.
      photos: the latest last.
      job: the latest computation.
      uploading: whether an upload is under way; one at a time.
    """

    token: str
    seen: float
    folder: pathlib.Path | None = None
    photos: dict[str, Photo] = dataclasses.field(default_factory=dict)
    job: Job | None = None
    uploading: bool = False


class Sessions:
    """All visitors, and the temporary folder in which their files are. It is removed with :meth:`close`.

    Args:
      minutes: after which those that are not heard of are forgotten.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = 60.0 * minutes
        self._lock = threading.RLock()
        self._sessions: dict[str, Session] = {}
        _remove_dead()
        self._root = pathlib.Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._held = _hold(self._root)

    def of(self, token: str | None) -> Session | None:
        """The session of a cookie, if there is one."""
        with self._lock:
            session = self._sessions.get(token or "")
            if session is not None:
                session.seen = time.monotonic()
            return session

    def begin(self) -> Session:
        """A new session; if there are too many, the one that has been silent longest ends."""
        with self._lock:
            while len(self._sessions) >= MOST_SESSIONS:
                self.end(min(self._sessions.values(), key=lambda session: session.seen))
            session = Session(secrets.token_urlsafe(32), time.monotonic())
            self._sessions[session.token] = session
            return session

    def end(self, session: Session) -> None:
        """Forgets a session: its computation ends and its files go."""
        with self._lock:
            self._sessions.pop(session.token, None)
            if session.job is not None:
                session.job.cancelled.set()
            session.photos.clear()
            if session.folder is not None:
                shutil.rmtree(session.folder, ignore_errors=True)

    def forget_silent(self) -> None:
        """Ends the sessions that have been silent for too long and compute nothing."""
        now = time.monotonic()
        with self._lock:
            for session in list(self._sessions.values()):
                busy = session.job is not None and not session.job.ended
                if now - session.seen > self._seconds * (4 if busy else 1):
                    self.end(session)

    def new_photo(self, session: Session, name: str, suffix: str) -> Photo:
        """Room for an upload; its owner's oldest one goes if there are too many."""
        with self._lock:
            if session.folder is None or not session.folder.exists():
                session.folder = pathlib.Path(tempfile.mkdtemp(dir=self._root))
            identity = secrets.token_urlsafe(12)
            folder = pathlib.Path(tempfile.mkdtemp(dir=session.folder))
            return Photo(identity, folder, folder / f"photo{suffix}", name)

    def keep_photo(self, session: Session, photo: Photo) -> None:
        """Takes an upload that has turned out to be a photograph among the session's."""
        with self._lock:
            session.photos[photo.identity] = photo
            while len(session.photos) > MOST_PHOTOS:
                self.drop_photo(session, next(iter(session.photos.values())))

    def drop_photo(self, session: Session, photo: Photo) -> None:
        """Removes an upload and all that was made of it."""
        session.photos.pop(photo.identity, None)
        shutil.rmtree(photo.folder, ignore_errors=True)

    def keep_run(self, photo: Photo, run: Run) -> None:
        """Takes a finished computation among those of its photograph."""
        with self._lock:
            photo.runs[run.identity] = run
            while len(photo.runs) > MOST_RUNS:
                oldest = photo.runs.pop(next(iter(photo.runs)))
                shutil.rmtree(oldest.folder, ignore_errors=True)

    def close(self) -> None:
        """Forgets everybody and removes the folder."""
        with self._lock:
            for session in list(self._sessions.values()):
                self.end(session)
            shutil.rmtree(self._root, ignore_errors=True)
            self._held.close()


@contextlib.contextmanager
def uploading(session: Session) -> Iterator[bool]:
    """Marks an upload; yields whether it may go ahead, because there is no other of this session."""
    if session.uploading:
        yield False
        return
    session.uploading = True
    try:
        yield True
    finally:
        session.uploading = False


def _hold(folder: pathlib.Path) -> IO[bytes]:
    """Locks a folder for as long as this process lives."""
    lock = (folder / _LOCK).open("wb")
    if fcntl is not None:
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _remove_dead() -> None:
    """Removes the folders of servers that were killed."""
    if fcntl is None:
        return
    for folder in pathlib.Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), (folder / _LOCK).open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
