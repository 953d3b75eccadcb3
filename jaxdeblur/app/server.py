"""The page's server: what the browser asks for, and what strangers are refused.

It decodes no image itself. Files of visitors lie in folders whose names are ours; a visitor's file name is shown and given
back, and never part of a path.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import hmac
import importlib.resources
import json
import pathlib
import re
import secrets
import shutil
import tempfile
import threading
import urllib.parse
import zipfile
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxdeblur.app.job_queue import Job, JobQueue
from jaxdeblur.app.processes import Worker, WorkerFailed
from jaxdeblur.app.sessions import Photo, Run, Session, Sessions, uploading
from jaxdeblur.errors import InputError
from jaxdeblur.imaging.input_checks import Region
from jaxdeblur.imaging.reading import READABLE
from jaxdeblur.presets import ABOUT, PRESETS
from jaxdeblur.version import __version__

COOKIE = "jaxdeblur_session"
_HEADER, _HEADER_VALUE = "x-requested-with", "jaxdeblur"
_STEM = "photo"
_KERNEL_BYTES = 20_000_000
_JSON_BYTES = 1_000_000
_UPLOAD_SECONDS = 900.0
_LIGHT_SECONDS = 120.0
_LONGEST_NAME = 100
_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".webp", ".bmp")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Its script is within it; in a sandbox it has no part in the page's origin.
_REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; sandbox allow-scripts; "
    "frame-ancestors 'none'"
)
_SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".tif": "image/tiff", ".webp": "image/webp", ".bmp": "image/bmp"}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What visitors may ask for.

    Attributes:
      max_megapixels: the largest photograph, in millions of pixels.
      max_upload_mb: the largest file, in megabytes.
      session_minutes: after which the files of a visitor who is silent are removed.
      num_jobs: computations at a time.
    """

    max_megapixels: float = 50.0
    max_upload_mb: float = 200.0
    session_minutes: float = 60.0
    num_jobs: int = 1


class Refused(Exception):
    """A request that is answered with an HTTP status and one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def make_app(
    limits: Limits = Limits(), *, host: str = "127.0.0.1", password: str | None = None, cache_dir: str | None = None
) -> Starlette:
    """The page as an ASGI application.

    Args:
      limits: on what visitors ask for.
      host: on which it listens; on another than this machine's own, a password keeps strangers out.
      password: that the browser asks visitors for, with any user name; None for none.
      cache_dir: folder of compiled programs, ``off``, or None for the default.

    Raises:
      InputError: other machines could use it without a password.
    """
    if host not in _LOOPBACK and not password:
        raise InputError(f"--host={host} lets other machines in; give --password too, or leave --host out")
    page = _Page(limits, cache_dir)
    routes = [
        Route("/", page.index),
        Mount("/static", StaticFiles(packages=[("jaxdeblur.app", "static")])),
        Route("/api/session", page.session),
        Route("/api/session", page.forget, methods=["DELETE"]),
        Route("/api/photos", page.upload, methods=["POST"]),
        Route("/api/sample", page.sample, methods=["POST"]),
        Route("/api/photos/{photo}/{view}.jpg", page.view),
        Route("/api/photos/{photo}/runs", page.run, methods=["POST"]),
        Route("/api/photos/{photo}/kernels", page.kernel, methods=["POST"]),
        Route("/api/photos/{photo}/runs/{run}/preview", page.preview, methods=["POST"]),
        Route("/api/photos/{photo}/runs/{run}/{file}", page.file),
        Route("/api/jobs/{job}", page.job),
        Route("/api/jobs/{job}", page.cancel, methods=["DELETE"]),
        Route("/api/jobs/{job}/enough", page.enough, methods=["POST"]),
        Route("/api/jobs/{job}/snapshot.jpg", page.snapshot),
    ]
    handlers: dict[Any, Any] = {Refused: _refused, InputError: _input_error, WorkerFailed: _worker_failed}
    guard = Middleware(_Guard, hosts=_LOOPBACK if host in _LOOPBACK else None, password=password)
    return Starlette(routes=routes, middleware=[guard], exception_handlers=handlers, lifespan=page.lifespan)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse({"error": str(error)}, error.status)


async def _input_error(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 422)


async def _worker_failed(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"This did not work: {error}"}, 500)


class _Guard:
    """Refuses what comes from elsewhere: other host names (DNS rebinding), other origins, no password."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...] | None, password: str | None) -> None:
        self._app = app
        self._hosts = hosts
        self._password = password

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        refusal = await self._refusal(request)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = {name.decode().lower(): value for name, value in message["headers"]}
                added = _SECURITY | {"content-security-policy": _POLICY}
                message["headers"] = [
                    *message["headers"],
                    *((name.encode(), value.encode()) for name, value in added.items() if name not in headers),
                ]
            await send(message)

        if refusal is None:
            await self._app(scope, receive, send_with_headers)
        else:
            await refusal(scope, receive, send_with_headers)

    async def _refusal(self, request: Request) -> Response | None:
        named = request.headers.get("host", "")
        host = urllib.parse.urlsplit(f"//{named}").hostname or "" if _is_host(named) else ""
        if self._hosts is not None and host not in self._hosts:
            return PlainTextResponse("This page answers to its own address only.\n", 421)
        if self._password is not None and not _knows(request.headers.get("authorization", ""), self._password):
            await asyncio.sleep(0.5)  # so that guessing takes long
            asks = {"www-authenticate": 'Basic realm="jaxdeblur", charset="UTF-8"'}
            return PlainTextResponse("Give the password that the page was started with.\n", 401, asks)
        if request.method not in ("GET", "HEAD"):
            origin = request.headers.get("origin")
            foreign = origin is not None and urllib.parse.urlsplit(origin).netloc != named
            # A page from elsewhere cannot send this header without being asked first, and is then refused.
            if foreign or request.headers.get(_HEADER) != _HEADER_VALUE:
                return JSONResponse({"error": "this request does not come from the page itself; load it again"}, 403)
        return None


def _is_host(named: str) -> bool:
    return re.fullmatch(r"[\w.-]+(:\d+)?|\[[0-9a-fA-F:.]+\](:\d+)?", named) is not None


def _knows(header: str, password: str) -> bool:
    kind, _, token = header.partition(" ")
    try:
        given = base64.b64decode(token, validate=True).partition(b":")[2]
    except ValueError:
        return False
    return kind.lower() == "basic" and hmac.compare_digest(given, password.encode())


class _Page:
    """The answers."""

    def __init__(self, limits: Limits, cache_dir: str | None) -> None:
        self._limits = limits
        self._sessions = Sessions(limits.session_minutes)
        self._light = Worker(cache_dir)  # for what is answered at once, while another computes
        self._workers = [Worker(cache_dir, patient=True) for _ in range(limits.num_jobs)]
        self._queue = JobQueue(self._workers)

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Begins and ends: workers start at once, so that the first photograph need not wait for them."""
        for worker in (self._light, *self._workers):
            worker.start()
        caretaker = asyncio.create_task(self._take_care())
        try:
            yield
        finally:
            caretaker.cancel()
            self._queue.close()
            self._light.close()
            self._sessions.close()

    async def _take_care(self) -> None:
        while True:
            await asyncio.sleep(min(30.0, 10.0 * self._limits.session_minutes))
            await run_in_threadpool(self._sessions.forget_silent)

    # What there is.

    def index(self, request: Request) -> Response:
        """The page itself."""
        content = importlib.resources.files("jaxdeblur.app").joinpath("static", "index.html").read_bytes()
        response = Response(content, media_type="text/html")
        if self._sessions.of(request.cookies.get(COOKIE)) is None:
            session = self._sessions.begin()
            secure = request.url.scheme == "https"
            response.set_cookie(COOKIE, session.token, httponly=True, samesite="strict", path="/", secure=secure)
        return response

    def session(self, request: Request) -> Response:
        """All that the page needs when it is loaded, in mid-run too."""
        session = self._known(request)
        photo = next(reversed(session.photos.values()), None) if session.photos else None
        presets = [
            {"name": name, "summary": about.summary, "paper": about.paper, "hardware": about.hardware}
            for name, about in ABOUT.items()
            if PRESETS[name].teacher is None and not PRESETS[name].needs_kernel
        ]
        job = session.job
        return JSONResponse(
            {
                "version": __version__,
                "limits": {"megapixels": self._limits.max_megapixels, "upload_mb": self._limits.max_upload_mb},
                "session_minutes": self._limits.session_minutes,
                "presets": presets,
                "photo": photo and self._account(photo),
                "job": job and job.account(self._queue.place(job)),
            }
        )

    def forget(self, request: Request) -> Response:
        """Removes all that the visitor has uploaded and computed."""
        session = self._known(request)
        if session.job is not None:
            self._queue.cancel(session.job)
        self._sessions.end(session)
        response = JSONResponse({})
        response.delete_cookie(COOKIE)
        return response

    def view(self, request: Request) -> Response:
        """The photograph as it was, for the browser."""
        photo = self._photo(request)
        name = _one_of(request.path_params["view"], "before", "before_screen")
        return FileResponse(photo.folder / f"{name}.jpg", media_type="image/jpeg")

    def file(self, request: Request) -> Response:
        """A result: to be looked at, or to be kept under the visitor's own name."""
        photo, run = self._photo_and_run(request)
        kind, stem, folder = request.path_params["file"], pathlib.PurePath(photo.name).stem, run.folder
        if kind in ("after.jpg", "after_screen.jpg"):
            return FileResponse(folder / kind, media_type="image/jpeg")
        if kind == "report":
            policy = {"content-security-policy": _REPORT_POLICY}
            return FileResponse(folder / f"{_STEM}_report.html", media_type="text/html", headers=policy)
        suffix = run.account["suffix"]
        own = folder / f"{_STEM}_deblurred.jpg"
        downloads = {
            "image": own if own.exists() else folder / f"{_STEM}_deblurred{suffix}",
            "lossless": folder / f"{_STEM}_deblurred{suffix}",
            "png": folder / (f"{_STEM}_deblurred.png" if suffix == ".png" else f"{_STEM}_for_browsers.png"),
            "kernel.npy": folder / f"{_STEM}_kernel.npy",
            "kernel.png": folder / f"{_STEM}_kernel.png",
            "report.html": folder / f"{_STEM}_report.html",
            "all.zip": folder / "all.zip",
        }
        path = downloads.get(kind)
        if kind == "all.zip" and not downloads["all.zip"].exists():
            _pack(downloads["all.zip"], photo, folder, stem)
        if path is None or not path.exists():
            raise Refused(404, "there is no such file; load the page again")
        name = (
            f"{stem}_deblurred.zip"
            if kind == "all.zip"
            else path.name.replace(_STEM, stem, 1).replace("_for_browsers", "_deblurred")
        )
        return FileResponse(path, filename=name, media_type=_TYPES.get(path.suffix, "application/octet-stream"))

    # What visitors give.

    async def upload(self, request: Request) -> Response:
        """Takes a photograph: the body is the file."""
        session = self._known(request)
        name = _clean(urllib.parse.unquote(request.query_params.get("name", "")))
        suffix = pathlib.PurePath(name).suffix.lower()
        if suffix not in _SUFFIXES:
            raise Refused(415, f"{name}: not a kind of file that can be read; give a {READABLE} file")
        with uploading(session) as free:
            if not free:
                raise Refused(409, "another photograph of yours is being uploaded; wait for it")
            photo = self._sessions.new_photo(session, name, suffix)
            try:
                await self._receive(request, photo.path, self._limits.max_upload_mb * 1e6)
                await self._look_at(session, photo)
            except BaseException:
                self._sessions.drop_photo(session, photo)
                raise
        return JSONResponse(self._account(photo))

    async def sample(self, request: Request) -> Response:
        """Takes the sample for the visitor's photograph."""
        session = self._known(request)
        photo = self._sessions.new_photo(session, "sample.png", ".png")
        photo.path.write_bytes(importlib.resources.files("jaxdeblur.app").joinpath("static", "sample.png").read_bytes())
        await self._look_at(session, photo)
        return JSONResponse(self._account(photo))

    async def kernel(self, request: Request) -> Response:
        """Takes a kernel: the body is an NPY or PNG file."""
        photo = self._photo(request)
        name = _clean(urllib.parse.unquote(request.query_params.get("name", "")))
        suffix = pathlib.PurePath(name).suffix.lower()
        if suffix not in (".npy", *_SUFFIXES):
            raise Refused(415, f"{name}: a kernel is an NPY array or an image; give one of them")
        identity = secrets.token_urlsafe(12)
        with tempfile.TemporaryDirectory(dir=photo.folder) as folder:
            path = pathlib.Path(folder) / f"kernel{suffix}"
            await self._receive(request, path, _KERNEL_BYTES)
            kept = photo.folder / f"kernel-{len(photo.kernels)}.npy"
            found = await self._lightly("read_kernel", name, path, out=str(kept), max_megapixels=4.0)
        photo.kernels[identity] = kept
        return JSONResponse({"id": identity} | found)

    async def _receive(self, request: Request, path: pathlib.Path, most: float) -> None:
        """Writes a request's body to a file, and stops where it is too large: what it says of its length is not trusted."""
        message = f"the file has more than {most / 1e6:.0f} MB, the most that is taken; give a smaller one"
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > most:
            raise Refused(413, message)
        taken = 0
        try:
            async with asyncio.timeout(_UPLOAD_SECONDS):
                with path.open("wb") as file:
                    async for chunk in request.stream():
                        taken += len(chunk)
                        if taken > most:
                            raise Refused(413, message)
                        file.write(chunk)
        except TimeoutError:
            raise Refused(408, "the upload took too long; try again") from None
        except ClientDisconnect:
            raise Refused(400, "the upload was cut off; try again") from None
        except OSError as error:
            raise Refused(507, f"the file cannot be kept ({error.strerror}); try a smaller one") from None

    async def _look_at(self, session: Session, photo: Photo) -> None:
        limit = self._limits.max_megapixels
        folder = str(photo.folder)
        photo.account = await self._lightly("inspect", photo.name, photo.path, folder=folder, max_megapixels=limit)
        self._sessions.keep_photo(session, photo)

    async def _lightly(self, task: str, name: str, path: pathlib.Path, **arguments: Any) -> Any:
        """Something that is answered at once. Messages name the file as its owner does."""
        call = {"path": str(path)} | arguments
        try:
            return await run_in_threadpool(self._light.call, task, call, seconds=_LIGHT_SECONDS)
        except InputError as error:
            raise InputError(str(error).replace(str(path), name)) from None

    # What is computed.

    async def run(self, request: Request) -> Response:
        """Begins a computation; one that the visitor has begun before ends."""
        session, photo = self._known(request), self._photo(request)
        asked = await _json(request)
        arguments = self._arguments(photo, asked)
        arguments["folder"] = str(folder := pathlib.Path(tempfile.mkdtemp(dir=photo.folder)))

        def finished(value: dict[str, Any]) -> dict[str, Any]:
            run = Run(secrets.token_urlsafe(12), folder, asked, value)
            self._sessions.keep_run(photo, run)
            first = {"data": str(folder / "preview.npz"), "smoothness": 1.0, "amount": 1.0, "kernel": None, "erased": []}
            self._ahead("preview", first)
            return _run_account(run)

        def dropped() -> None:
            shutil.rmtree(folder, ignore_errors=True)

        job = Job(session.token, arguments, finished, dropped)
        before, session.job = session.job, job
        if before is not None and not before.ended:
            self._queue.cancel(before)
        try:
            self._queue.add(job)
        except InputError:
            dropped()
            session.job = None
            raise
        self._ahead("prepare_preview", {name: photo.account[name] for name in ("width", "height")})
        return JSONResponse(job.account(self._queue.place(job)), 202)

    def _arguments(self, photo: Photo, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What the task ``restore`` is called with, of what a visitor asks for, all of which is checked."""
        changes = {
            "smoothness": _number(asked, "smoothness"),
            "amount": _number(asked, "amount"),
            "num_restarts": _whole(asked, "num_restarts", 1, 16),
            "final": "saturated" if asked.get("saturated") is True else None,
        }
        preset = asked.get("preset", "fast")
        if not isinstance(preset, str) or preset not in PRESETS:
            raise InputError("unknown preset; load the page again")
        if changes["num_restarts"] == 1:
            changes["num_restarts"] = None  # also of presets that fit nothing
        return {
            "path": str(photo.path),
            "name": photo.name,
            "preset": preset,
            "changes": {name: value for name, value in changes.items() if value is not None},
            "kernel_size": _whole(asked, "kernel_size", 3, 501),
            "region": _region(asked.get("region")),
            "kernel": self._kernel_path(photo, asked.get("kernel")),
            "erased": _places(asked.get("erased")),
            "last_step_only": asked.get("last_step_only") is True,
            "minutes": _whole(asked, "minutes", 1, 60),
            "seed": _whole(asked, "seed", 0, 2**31 - 1) or 0,
            "max_megapixels": self._limits.max_megapixels,
        }

    def _kernel_path(self, photo: Photo, identity: object) -> str | None:
        """The file of a kernel: one that was loaded, or that of a run."""
        if identity is None:
            return None
        if isinstance(identity, str) and identity in photo.kernels:
            return str(photo.kernels[identity])
        if isinstance(identity, str) and identity in photo.runs:
            return str(photo.runs[identity].folder / f"{_STEM}_kernel.npy")
        raise Refused(404, "this kernel is no longer there; load the page again")

    def _ahead(self, task: str, arguments: dict[str, Any]) -> None:
        """Does, in a thread, what a first preview would have to wait for: compiles its program, reads its files."""

        def work() -> None:
            with contextlib.suppress(InputError, WorkerFailed):
                self._light.call(task, arguments, seconds=_LIGHT_SECONDS)

        threading.Thread(target=work, daemon=True).start()

    def job(self, request: Request) -> Response:
        """How far a computation is."""
        job = self._job(request)
        return JSONResponse(job.account(self._queue.place(job)))

    def cancel(self, request: Request) -> Response:
        """Ends a computation."""
        job = self._job(request)
        self._queue.cancel(job)
        return JSONResponse(job.account(0))

    def enough(self, request: Request) -> Response:
        """Ends a search; the best so far is the result."""
        job = self._job(request)
        job.enough.set()
        return JSONResponse(job.account(self._queue.place(job)))

    def snapshot(self, request: Request) -> Response:
        """The picture of a deep prior as it forms."""
        snapshot = self._job(request).snapshot
        if snapshot is None:
            raise Refused(404, "there is no picture yet")
        return Response(snapshot, media_type="image/jpeg")

    async def preview(self, request: Request) -> Response:
        """The result for other settings, at the size of the screen."""
        photo, run = self._photo_and_run(request)
        asked = await _json(request)
        arguments = {
            "data": str(run.folder / "preview.npz"),
            "smoothness": _number(asked, "smoothness", 1.0),
            "amount": _number(asked, "amount", 1.0),
            "kernel": self._kernel_path(photo, asked.get("kernel")),
            "erased": _places(asked.get("erased")),
        }
        content = await run_in_threadpool(self._light.call, "preview", arguments, seconds=_LIGHT_SECONDS)
        return Response(content, media_type="image/jpeg")

    # Who and what is meant. Everything is looked up; nothing that a visitor sends becomes a path.

    def _known(self, request: Request) -> Session:
        session = self._sessions.of(request.cookies.get(COOKIE))
        if session is None:
            raise Refused(401, "this page has been silent for too long, and its photographs were removed; load it again")
        return session

    def _photo(self, request: Request) -> Photo:
        photo = self._known(request).photos.get(request.path_params["photo"])
        if photo is None:
            raise Refused(404, "this photograph is no longer there; load it again")
        return photo

    def _photo_and_run(self, request: Request) -> tuple[Photo, Run]:
        photo = self._photo(request)
        run = photo.runs.get(request.path_params["run"])
        if run is None:
            raise Refused(404, "this result is no longer there; press Deblur again")
        return photo, run

    def _job(self, request: Request) -> Job:
        job = self._known(request).job
        if job is None or job.identity != request.path_params["job"]:
            raise Refused(404, "this computation is no longer there")
        return job

    def _account(self, photo: Photo) -> dict[str, Any]:
        runs = [_run_account(run) for run in photo.runs.values()]
        return {"id": photo.identity, "name": photo.name, "runs": runs} | photo.account


def _run_account(run: Run) -> dict[str, Any]:
    return {"id": run.identity, "settings": run.settings} | run.account


def _pack(path: pathlib.Path, photo: Photo, folder: pathlib.Path, stem: str) -> None:
    """All of a run in one file, and the photograph beside it, so that the report can repeat it."""
    temporary = path.with_suffix(f".{secrets.token_hex(4)}")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:  # images are compressed already
        archive.write(photo.path, photo.name)
        for file in sorted(folder.glob(f"{_STEM}_*")):
            archive.write(file, file.name.replace(_STEM, stem, 1))
    temporary.replace(path)


def _clean(name: str) -> str:
    """A visitor's file name as it may be shown and given back: no folders, no control characters, not too long."""
    last = re.split(r"[/\\]", name)[-1]
    plain = "".join(letter for letter in last if letter.isprintable() and letter not in '<>:"|?*').strip(". ")
    path = pathlib.PurePath(plain or "photo")
    return path.stem[:_LONGEST_NAME] + path.suffix[:10]


async def _json(request: Request) -> dict[str, Any]:
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > _JSON_BYTES:
            raise Refused(413, "the request is too long; load the page again")
    try:
        value = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Refused(400, "the request cannot be understood; load the page again")
    return value


def _number(asked: Mapping[str, Any], name: str, default: float | None = None) -> Any:
    value = asked.get(name, default)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InputError(f"{name.replace('_', ' ')} must be a number")
    return value


def _whole(asked: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = asked.get(name)
    if value is None:
        return None
    if type(value) is not int or not least <= value <= most:
        raise InputError(f"{name.replace('_', ' ')} must be a whole number from {least} to {most}")
    return value


def _region(value: object) -> Region | None:
    if value is None:
        return None
    if not (isinstance(value, list) and len(value) == 4 and all(type(number) is int for number in value)):
        raise InputError("a region is four whole numbers: x, y, width, height")
    x, y, width, height = value
    return x, y, width, height


def _places(value: object) -> list[int]:
    if value is None:
        return []
    if not (isinstance(value, list) and all(type(number) is int for number in value)):
        raise InputError("what is to be erased must be a list of whole numbers")
    return value


def _one_of(value: str, *known: str) -> str:
    if value not in known:
        raise Refused(404, "there is no such file")
    return value
