"""The page's server, without the browser and without long computations: what it gives, and whom it refuses."""

import base64
import io
import pathlib
import re
import struct
import threading
import time
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxdeblur.errors import InputError

pytest.importorskip("starlette", reason="needs Starlette (the extra 'app')")
pytest.importorskip("httpx", reason="needs httpx, with which Starlette's test client works")

from starlette.testclient import TestClient

from jaxdeblur.app import server, sessions, tasks
from jaxdeblur.app.advice import advice
from jaxdeblur.app.processes import Cancelled

ROOT = pathlib.Path(__file__).parents[2]
STATIC = ROOT / "jaxdeblur" / "app" / "static"
HEADERS = {"x-requested-with": "jaxdeblur"}


class Worker:
    """In the place of a process: short tasks are done here, long ones last until they are told to go on."""

    go_on = threading.Event()
    running = threading.Event()
    done: list[tuple[str, dict]] = []  # noqa: RUF012

    def __init__(self, cache_dir=None, *, patient=False):
        self.lock = threading.Lock()

    def start(self):
        pass

    def close(self):
        pass

    def call(self, task, arguments, *, tell=None, cancelled=None, enough=None, seconds=None):
        with self.lock:
            self.done.append((task, arguments))
            if task in ("preview", "prepare_preview"):
                return b"a picture"
            if task != "restore":
                return tasks.TASKS[task](tell, **arguments)
            tell("progress", ("kernel", 1, 4))
            self.running.set()
            if arguments["minutes"] is not None:
                tell("progress", ("attempt 2: kernel", 0, 4))
            while not self.go_on.is_set() and not enough.is_set():
                time.sleep(0.01)
                if cancelled.is_set():
                    raise Cancelled
            kernel = np.ones((3, 3), np.float32) / 9
            folder = pathlib.Path(arguments["folder"])
            image = tasks.read_image(pathlib.Path(arguments["path"]))
            tasks._write_views(folder, "after", image.pixels, b"")
            (folder / f"photo_deblurred{image.suffix}").write_bytes(b"pixels")
            tasks.write_kernel_array(folder / "photo_kernel.npy", kernel)
            (folder / "photo_report.html").write_text("report")
            return {"kernel": tasks._plain(kernel), "suffix": image.suffix, "asked": arguments}


@pytest.fixture
def app(monkeypatch):
    Worker.go_on.clear()
    Worker.running.clear()
    Worker.done.clear()
    monkeypatch.setattr(server, "Worker", Worker)
    roots = []
    usual = sessions.tempfile.mkdtemp
    monkeypatch.setattr(sessions.tempfile, "mkdtemp", lambda *a, **k: roots.append(usual(*a, **k)) or roots[-1])
    app = server.make_app(server.Limits(max_megapixels=1.0, max_upload_mb=0.5))
    app.state.root = pathlib.Path(roots[0])
    return app


def visitor(app, **options):
    client = TestClient(app, base_url="http://127.0.0.1:7860", headers=HEADERS, **options)
    assert client.get("/").status_code == 200
    return client


@pytest.fixture
def client(app):
    with TestClient(app, base_url="http://127.0.0.1:7860", headers=HEADERS) as client:
        client.get("/")
        yield client
    assert not app.state.root.exists()


def photograph(shape=(48, 64, 3), **options):
    content = io.BytesIO()
    levels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(levels).save(content, **({"format": "PNG"} | options))
    return content.getvalue()


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != "lock")


def until(client, job, *states):
    for _ in range(1000):
        found = client.get(f"/api/jobs/{job}").json()
        if found["state"] in states:
            return found
        time.sleep(0.01)
    raise AssertionError(found)


class TestPhotographs:
    def test_one_is_uploaded_deblurred_and_kept_under_its_own_name(self, app, client):
        photo = client.post("/api/photos?name=K%C3%A4fer.png", content=photograph()).json()
        assert (photo["name"], photo["width"], photo["height"], photo["runs"]) == ("Käfer.png", 64, 48, [])
        view = client.get(f"/api/photos/{photo['id']}/before.jpg")
        assert Image.open(io.BytesIO(view.content)).size == (64, 48)
        asked = {"preset": "fast", "smoothness": 2.0, "amount": 0.5, "region": [1, 2, 40, 40], "seed": 3, "num_restarts": 1}
        job = client.post(f"/api/photos/{photo['id']}/runs", json=asked).json()
        running = until(client, job["id"], "running")
        Worker.running.wait(5)
        running = client.get(f"/api/jobs/{job['id']}").json()
        assert (running["phase"], running["share"]) == ("Estimating the blur", 0.25)
        Worker.go_on.set()
        result = until(client, job["id"], "done")["result"]
        assert result["asked"]["changes"] == {"smoothness": 2.0, "amount": 0.5}
        assert (result["asked"]["region"], result["asked"]["seed"]) == ([1, 2, 40, 40], 3)
        # A page that is loaded again finds it.
        state = client.get("/api/session").json()
        assert state["photo"]["runs"][0]["id"] == result["id"]
        assert state["job"]["state"] == "done"
        base = f"/api/photos/{photo['id']}/runs/{result['id']}"
        image = client.get(f"{base}/image")
        assert image.content == b"pixels"
        assert "K%C3%A4fer_deblurred.png" in image.headers["content-disposition"]
        packed = zipfile.ZipFile(io.BytesIO(client.get(f"{base}/all.zip").content))
        assert {"Käfer.png", "Käfer_deblurred.png", "Käfer_report.html"} <= set(packed.namelist())
        assert "sandbox" in client.get(f"{base}/report").headers["content-security-policy"]
        assert client.get(f"{base}/preview.npz").status_code == 404

    def test_a_first_preview_is_prepared_while_the_photograph_is_computed(self, client):
        photo = client.post("/api/photos?name=a.png", content=photograph()).json()
        job = client.post(f"/api/photos/{photo['id']}/runs", json={}).json()
        for task, arguments in (("prepare_preview", {"width": 64, "height": 48}), ("preview", None)):
            for _ in range(500):
                if task in dict(Worker.done):
                    break
                time.sleep(0.01)
            assert [name for name, _ in Worker.done].count(task) == 1
            assert arguments in (None, dict(Worker.done)[task])
            assert (task == "preview") == Worker.go_on.is_set()
            Worker.go_on.set()
        until(client, job["id"], "done")

    def test_the_sample_is_one_request_away(self, client):
        assert client.post("/api/sample").json()["width"] == 400
        assert (STATIC / "sample.png").read_bytes() == (ROOT / "experiments" / "sample" / "blurry.png").read_bytes()

    def test_a_kernel_is_loaded_and_painted_over(self, client):
        photo = client.post("/api/photos?name=a.png", content=photograph()).json()
        content = io.BytesIO()
        np.save(content, np.eye(5))
        kernel = client.post(f"/api/photos/{photo['id']}/kernels?name=k.npy", content=content.getvalue()).json()
        assert kernel["kernel"]["values"][0] == pytest.approx(0.2)
        asked = {"kernel": kernel["id"], "erased": [0, 1], "last_step_only": True}
        job = client.post(f"/api/photos/{photo['id']}/runs", json=asked).json()
        Worker.go_on.set()
        told = until(client, job["id"], "done")["result"]["asked"]
        assert (told["erased"], told["last_step_only"]) == ([0, 1], True)
        np.testing.assert_allclose(np.load(told["kernel"]), np.eye(5) / 5)

    def test_of_many_only_the_last_are_kept(self, app, client):
        for number in range(5):
            client.post(f"/api/photos?name={number}.png", content=photograph())
        assert len([name for name in files_below(app.state.root) if name.endswith("photo.png")]) == sessions.MOST_PHOTOS

    def test_all_that_is_there_is_removed_when_it_is_asked_for(self, app, client):
        client.post("/api/photos?name=a.png", content=photograph())
        assert files_below(app.state.root)
        assert client.delete("/api/session").status_code == 200
        assert files_below(app.state.root) == []
        assert client.get("/api/session").status_code == 401

    def test_who_is_silent_is_forgotten(self, app, client, monkeypatch):
        client.post("/api/photos?name=a.png", content=photograph())
        now = time.monotonic()
        monkeypatch.setattr(sessions.time, "monotonic", lambda: now + 3601)
        page = app.router.routes[0].endpoint.__self__
        page._sessions.forget_silent()
        assert files_below(app.state.root) == []


class TestQueue:
    def test_a_second_visitor_waits_and_sees_their_place(self, app, client):
        other = visitor(app)
        jobs = []
        for one in (client, other):
            photo = one.post("/api/photos?name=a.png", content=photograph()).json()
            jobs.append(one.post(f"/api/photos/{photo['id']}/runs", json={}).json()["id"])
            Worker.running.wait(5)
        assert until(client, jobs[0], "running")["place"] == 0
        waiting = other.get(f"/api/jobs/{jobs[1]}").json()
        assert (waiting["state"], waiting["place"]) == ("waiting", 1)
        Worker.go_on.set()
        until(other, jobs[1], "done")
        # Nobody sees what is another's.
        assert client.get(f"/api/jobs/{jobs[1]}").status_code == 404
        assert client.get(f"/api/photos/{photo['id']}/before.jpg").status_code == 404

    def test_cancelling_makes_room(self, app, client):
        photo = client.post("/api/photos?name=a.png", content=photograph()).json()
        before = files_below(app.state.root)
        first = client.post(f"/api/photos/{photo['id']}/runs", json={}).json()
        assert Worker.running.wait(5)
        began = time.monotonic()
        client.delete(f"/api/jobs/{first['id']}")
        until(client, first["id"], "cancelled")
        assert files_below(app.state.root) == before
        assert time.monotonic() - began < 2
        # A new computation ends the one before.
        second = client.post(f"/api/photos/{photo['id']}/runs", json={}).json()
        third = client.post(f"/api/photos/{photo['id']}/runs", json={}).json()
        Worker.go_on.set()
        until(client, third["id"], "done")
        assert client.get(f"/api/jobs/{second['id']}").status_code == 404

    def test_a_search_can_be_ended_with_what_there_is(self, app, client):
        photo = client.post("/api/photos?name=a.png", content=photograph()).json()
        usual = client.post(f"/api/photos/{photo['id']}/runs", json={}).json()
        assert Worker.running.wait(5)
        assert not until(client, usual["id"], "running")["searching"]
        Worker.go_on.set()
        until(client, usual["id"], "done")
        Worker.go_on.clear()
        Worker.running.clear()
        search = client.post(f"/api/photos/{photo['id']}/runs", json={"minutes": 5}).json()
        assert Worker.running.wait(5)
        for _ in range(100):
            if (account := client.get(f"/api/jobs/{search['id']}").json())["searching"]:
                break
            time.sleep(0.02)
        assert (account["searching"], account["phase"]) == (True, "Attempt 2: kernel")
        assert client.post(f"/api/jobs/{search['id']}/enough").status_code == 200
        assert until(client, search["id"], "done")["result"]
        assert [arguments["minutes"] for task, arguments in Worker.done if task == "restore"] == [None, 5]
        for minutes in (0, 61, 1.5, "5"):
            refused = client.post(f"/api/photos/{photo['id']}/runs", json={"minutes": minutes})
            assert (refused.status_code, "minutes" in refused.json()["error"]) == (422, True)

    def test_reloads_in_mid_run_change_nothing(self, app, client):
        photo = client.post("/api/photos?name=a.png", content=photograph()).json()
        job = client.post(f"/api/photos/{photo['id']}/runs", json={}).json()
        before = files_below(app.state.root)
        for _ in range(50):
            assert client.get("/").status_code == 200
            assert client.get("/api/session").json()["job"]["id"] == job["id"]
        assert files_below(app.state.root) == before
        Worker.go_on.set()
        until(client, job["id"], "done")


class TestRefusals:
    @pytest.mark.parametrize(
        "name",
        ["../../../../etc/passwd.png", "..%2F..%2Fevil.png", "C:%5Cwindows%5Cevil.png", "%00evil.png", ".png/../evil.png"],
    )
    def test_a_name_is_no_path(self, app, client, name):
        photo = client.post(f"/api/photos?name={name}", content=photograph()).json()
        assert re.fullmatch(r"(passwd|evil)\.png", photo["name"])
        assert all(re.fullmatch(r"tmp\w+/tmp\w+/(photo\.png|before\w*\.jpg)", file) for file in files_below(app.state.root))

    @pytest.mark.parametrize("path", ["../../etc/passwd", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "photo.png", "lock"])
    def test_addresses_are_no_paths(self, client, path):
        photo = client.post("/api/photos?name=a.png", content=photograph()).json()
        for address in (f"/api/photos/{path}/before.jpg", f"/api/photos/{photo['id']}/{path}.jpg", f"/static/{path}"):
            assert client.get(address).status_code == 404

    def test_too_large_a_file_is_refused_while_it_is_sent(self, app, client):
        pieces = (b"x" * 1_000_000 for _ in range(50))  # without a length that would tell how many there are
        answer = client.post("/api/photos?name=a.png", content=pieces)
        assert answer.status_code == 413
        assert "give a smaller one" in answer.json()["error"]
        assert files_below(app.state.root) == []
        answer = client.post("/api/photos?name=a.png", content=b"x", headers={"content-length": "2000000000"})
        assert answer.status_code == 413

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("cut.png", photograph()[:3000], "cut.png: damaged"),
            ("words.jpg", b"not an image", "words.jpg: not an image"),
            ("empty.png", b"", "empty.png: the file is empty"),
            ("tiny.png", photograph((20, 20, 3)), "20×20 pixels are too few"),
            ("notes.txt", b"", "notes.txt: not a kind of file"),
        ],
    )
    def test_a_broken_file_gets_one_line_that_calls_it_by_its_name(self, app, client, name, content, words):
        answer = client.post(f"/api/photos?name={name}", content=content)
        assert answer.status_code in (415, 422)
        message = answer.json()["error"]
        assert words in message
        assert "\n" not in message
        assert str(app.state.root) not in message
        assert files_below(app.state.root) == []

    def test_a_decompression_bomb(self, app, client):
        def chunk(kind, data):
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0))
        rows = zlib.compress(bytes(20_000_000), 9)
        bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
        answer = client.post("/api/photos?name=bomb.png", content=bomb)
        assert answer.status_code == 422
        assert files_below(app.state.root) == []

    @pytest.mark.parametrize(
        ("asked", "words"),
        [
            ({"preset": "none"}, "preset"),
            ({"preset": ["fast"]}, "preset"),
            ({"smoothness": "x"}, "smoothness must be a number"),
            ({"kernel_size": 5.5}, "kernel size"),
            ({"num_restarts": 1000}, "num restarts"),
            ({"region": [1, 2, 3]}, "region"),
            ({"region": [1, 2, 3, True]}, "region"),
            ({"erased": ["a"]}, "erased"),
            ({"kernel": "../../x"}, "kernel"),
            ([], "cannot be understood"),
        ],
    )
    def test_settings_that_no_page_of_ours_sends(self, client, asked, words):
        photo = client.post("/api/photos?name=a.png", content=photograph()).json()
        answer = client.post(f"/api/photos/{photo['id']}/runs", json=asked)
        assert answer.status_code in (400, 404, 422)
        assert words in answer.json()["error"]

    def test_pages_from_elsewhere(self, app, client):
        without = {"x-requested-with": ""}
        assert client.post("/api/sample", headers=without).status_code == 403
        assert client.post("/api/sample", headers={"origin": "http://evil.example"}).status_code == 403
        assert client.post("/api/sample", headers={"origin": "http://127.0.0.1:7860"}).status_code == 200
        for host in ("evil.example", "127.0.0.1.evil.example", "evil@127.0.0.1", ""):
            assert client.get("/", headers={"host": host}).status_code == 421
        assert client.get("/", headers={"host": "localhost:7860"}).status_code == 200

    def test_without_a_cookie_there_is_nothing(self, app, client):
        stranger = TestClient(app, base_url="http://127.0.0.1:7860", headers=HEADERS)
        assert stranger.get("/api/session").status_code == 401
        assert stranger.post("/api/photos?name=a.png", content=photograph()).status_code == 401

    def test_other_machines_need_a_password(self, monkeypatch):
        monkeypatch.setattr(server, "Worker", Worker)
        with pytest.raises(InputError, match="--password"):
            server.make_app(host="0.0.0.0")
        app = server.make_app(host="0.0.0.0", password="pässword")
        with TestClient(app, base_url="http://192.168.0.2:7860", headers=HEADERS) as client:
            assert client.get("/").status_code == 401
            for given, status in (("guess", 401), ("pässword", 200)):
                token = base64.b64encode(f"me:{given}".encode()).decode()
                assert client.get("/", headers={"authorization": f"Basic {token}"}).status_code == status
            assert client.get("/", headers={"authorization": "Basic ???"}).status_code == 401

    def test_what_the_browser_may_do(self, client):
        answer = client.get("/")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert {"httponly", "samesite=strict"} <= set(
            client.get("/").headers.get("set-cookie", "").lower().split("; ")
        ) or client.cookies


def test_nothing_of_the_page_comes_from_elsewhere():
    for path in STATIC.glob("*.[hcjs]*"):
        if path.suffix != ".png":
            found = re.findall(r"https?://[^\s\"']+", path.read_text(encoding="utf-8"))
            assert [address for address in found if "www.w3.org" not in address] == [], path


def test_every_warning_of_the_pipeline_that_can_be_mended_has_its_button():
    source = (ROOT / "jaxdeblur" / "pipeline" / "stages.py").read_text(encoding="utf-8")
    for words, action in (
        ("saturated highlights", "saturated"),
        ("border of its", "kernel_size"),
        ("more edges", "region"),
        ("kernel may be wrong", "region"),
    ):
        assert words in source
        assert advice([f"… {words} …"], 21, (400, 300))[0]["action"] == action
    assert advice(["the kernel reaches the border of its 101-pixel support"], 101, (300, 300))[0]["action"] == "region"
    assert advice(["something else"], 21, (400, 300)) == [{"text": "Something else."}]
