"""What the page's workers do, in this process; and that a process of their own can be stopped."""

import io
import os
import signal
import threading
import time

import jax
import numpy as np
import pytest
from PIL import Image

from jaxdeblur.app import tasks
from jaxdeblur.app.processes import Cancelled, Worker, WorkerFailed
from jaxdeblur.config import Config
from jaxdeblur.errors import InputError
from tests.scenes import QUICK, scene


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def call(place):
    """Restores a photograph, of a shape of which other tests have compiled programs, with quick settings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "PRESETS", {"quick": Config(initialiser=QUICK, kernel_size=11)})
        exif = Image.Exif()
        exif[272] = "Camera 1"
        Image.fromarray(np.rint(255 * scene().blurry).astype(np.uint8)).save(place / "photo.jpg", quality=95, exif=exif)
        told = []

        def restore(folder, **changed):
            (place / folder).mkdir()
            usual = {
                "path": str(place / "photo.jpg"),
                "folder": str(place / folder),
                "name": "My holiday.jpg",
                "preset": "quick",
                "changes": {},
                "kernel_size": None,
                "region": None,
                "kernel": None,
                "erased": [],
                "last_step_only": False,
                "max_megapixels": 1.0,
            }
            return tasks.restore(tell, **(usual | changed))

        def tell(*one):
            told.append(one)
            return restore.hurried

        restore.told, restore.hurried = told, False
        yield restore


@pytest.fixture(scope="module")
def first(call):
    return call("first")


def pixels(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("L"), np.float32) / 255


def test_a_photograph_is_restored_and_written(place, call, first):
    assert {kind for kind, _ in call.told} == {"progress"}
    assert {value[0] for _, value in call.told} == {"kernel", "final image", "saving"}
    assert (first["kernel"]["width"], first["chosen"]) == (11, "classical kernel, learned")
    assert sum(first["kernel"]["values"]) == pytest.approx(1.0, abs=1e-5)
    with Image.open(place / "first" / "photo_deblurred.jpg") as image:
        assert (image.format, image.size, image.getexif()[272]) == ("JPEG", (96, 96), "Camera 1")
    report = (place / "first" / "photo_report.html").read_text()
    assert "My holiday.jpg" in report
    assert "--config=My holiday_report.html" in report
    assert str(place) not in report


def test_a_preview_at_the_old_settings_is_the_result_and_others_change_it(place, first):
    data = str(place / "first" / "preview.npz")

    def preview(smoothness=1.0, amount=1.0, kernel=None, erased=()):
        arguments = {"data": data, "smoothness": smoothness, "amount": amount, "kernel": kernel, "erased": list(erased)}
        return pixels(tasks.preview(lambda *_: None, **arguments))

    after = pixels((place / "first" / "after.jpg").read_bytes())
    assert np.abs(preview() - after).mean() < 0.01
    assert np.abs(np.diff(preview(smoothness=30.0))).sum() < 0.97 * np.abs(np.diff(after)).sum()
    assert np.abs(preview(amount=0.0) - scene().blurry).mean() < 0.01
    assert np.abs(preview(erased=range(60)) - after).mean() > 0.01


def test_the_first_preview_compiles_nothing(place, first):
    """Its programs were compiled when the computation began, before there was a kernel."""
    compiled, under_way = [], [True]

    def count(event, _, **about):
        if under_way and event.endswith("backend_compile_duration"):
            compiled.append(about)

    jax.monitoring.register_event_duration_secs_listener(count)
    jax.clear_caches()
    tasks._SCENES.clear()
    tasks.prepare_preview(lambda *_: None, width=96, height=96)
    assert compiled
    compiled.clear()
    for smoothness in (1.0, 2.0):
        data = str(place / "first" / "preview.npz")
        tasks.preview(lambda *_: None, data=data, smoothness=smoothness, amount=1.0, kernel=None, erased=[])
    under_way.clear()
    assert compiled == []


def test_where_only_the_amount_changes_nothing_is_restored_again(place, call, first, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("restored again")

    kernel = str(place / "first" / "photo_kernel.npy")
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "deblur", refuse)
        call("half", kernel=kernel, last_step_only=True, changes={"amount": 0.5})
        with pytest.raises(AssertionError, match="restored again"):
            call("other", kernel=kernel, last_step_only=True, changes={"smoothness": 2.0})
    half, whole = (pixels((place / name / "after.jpg").read_bytes()) for name in ("half", "first"))
    assert np.abs(half - 0.5 * (whole + scene().blurry)).mean() < 0.01


def test_mass_is_taken_off_a_kernel(place, call, first):
    kernel = str(place / "first" / "photo_kernel.npy")
    erased = [index for index, value in enumerate(first["kernel"]["values"]) if value > 0][:3]
    found = call("painted", kernel=kernel, erased=erased, last_step_only=True)["kernel"]["values"]
    assert [found[index] for index in erased] == [0.0] * 3
    assert sum(found) == pytest.approx(1.0, abs=1e-5)
    for wrong, words in ((range(121), "nothing is left"), ([121], "outside"), ([-1], "outside")):
        with pytest.raises(InputError, match=words):
            call(f"wrong{len(list(wrong))}{next(iter(wrong))}", kernel=kernel, erased=list(wrong), last_step_only=True)


@pytest.mark.slow
def test_a_search_ends_when_the_visitor_has_had_enough(place, call, first, monkeypatch):
    monkeypatch.setattr(call, "hurried", True)
    call.told.clear()
    found = call("searched", minutes=10)
    searching = [value for kind, value in call.told if kind == "progress" and value[0].startswith("attempt 2")]
    assert len(searching) == 1
    assert found["kernel"] == first["kernel"]
    assert any("search" in item["text"] for item in found["advice"])


@pytest.mark.slow
class TestProcess:
    @pytest.fixture
    def worker(self):
        worker = Worker()
        yield worker
        worker.close()

    def test_a_search_in_a_process_ends_when_that_is_asked(self, worker, place, call):
        (place / "enough").mkdir()
        enough, phases = threading.Event(), []

        def tell(kind, value):
            phases.append(value[0])
            if value[0].startswith("attempt"):
                enough.set()

        arguments = {
            "path": str(place / "photo.jpg"),
            "folder": str(place / "enough"),
            "name": "photo.jpg",
            "preset": "fast",
            "changes": {},
            "kernel_size": 11,
            "region": None,
            "kernel": None,
            "erased": [],
            "last_step_only": False,
            "max_megapixels": 1.0,
            "minutes": 30,
        }
        found = worker.call("restore", arguments, tell=tell, enough=enough)
        assert any("search" in item["text"] for item in found["advice"])
        assert not any(phase.startswith("attempt 3") for phase in phases)
        assert worker.call("warm_up", {}) is None

    def test_failures_are_told_and_it_goes_on(self, worker, tmp_path):
        with pytest.raises(WorkerFailed, match="KeyError"):
            worker.call("no such task", {})
        with pytest.raises(InputError, match="no such file"):
            worker.call("inspect", {"path": str(tmp_path / "x.png"), "folder": str(tmp_path), "max_megapixels": 1.0})
        assert worker.call("warm_up", {}) is None

    def test_one_that_is_killed_is_replaced(self, worker):
        assert worker.call("warm_up", {}) is None
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(WorkerFailed, match="memory"):
            worker.call("warm_up", {})
        assert worker.call("warm_up", {}) is None

    def test_cancelling_ends_it_within_two_seconds_whatever_it_does(self, worker, place, call):
        large = place / "large.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 900), dtype=np.uint8)).save(large)
        worker.call("warm_up", {})
        (place / "cancelled").mkdir()
        cancelled, told = threading.Event(), []
        arguments = {
            "path": str(large),
            "folder": str(place / "cancelled"),
            "name": "large.png",
            "preset": "fast",
            "changes": {},
            "kernel_size": None,
            "region": None,
            "kernel": None,
            "erased": [],
            "last_step_only": False,
            "max_megapixels": 1.0,
        }

        def cancel():
            while not told:
                time.sleep(0.01)
            time.sleep(1.0)  # in the middle of a program
            began.append(time.monotonic())
            cancelled.set()

        began = []
        thread = threading.Thread(target=cancel)
        thread.start()
        with pytest.raises(Cancelled):
            worker.call("restore", arguments, tell=lambda *one: told.append(one), cancelled=cancelled)
        assert time.monotonic() - began[0] < 2.0
        thread.join()
        assert worker.call("warm_up", {}) is None
