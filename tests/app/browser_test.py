"""The page in a real browser: Debian's packages chromium and chromium-driver, without a screen."""

import base64
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from PIL import Image

pytest.importorskip("selenium", reason="needs Selenium (the extra 'dev')")
pytest.importorskip("uvicorn", reason="needs uvicorn (the extra 'app')")

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
ROOT = pathlib.Path(__file__).parents[2]
SAMPLE = ROOT / "experiments" / "sample" / "blurry.png"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs a browser: apt-get install chromium chromium-driver"),
]
PATIENCE = 600  # seconds, for a computation on a busy machine
SCREENSHOTS = os.environ.get("JAXDEBLUR_SCREENSHOTS")  # folder that keeps what the tests saw


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A server of its own, whose temporary files are seen to be gone when it has ended."""
    temporary = tmp_path_factory.mktemp("temporary")
    command = [sys.executable, "-m", "jaxdeblur.app", "--noopen", "--port=0", "--max_upload_mb=5"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        yield re.search(r"http://\S+", line)[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    assert list(temporary.iterdir()) == []


class Page:
    def __init__(self, address, downloads, *, width=1280, height=900):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
            options.add_argument(argument)
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.downloads = downloads
        self.resize(width, height)
        self.driver.get(address)

    def __call__(self, identity):
        return self.driver.find_element(By.ID, identity)

    def shown(self, identity):
        return self(identity).is_displayed()

    def resize(self, width, height):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def until(self, condition, seconds=PATIENCE):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} seconds; the page says {self('error').text!r} {self('phase').text!r}")

    def set(self, identity, value, *events):
        """Moves a slider or fills a field as a hand would, with the events of it."""
        script = "arguments[0].value = arguments[1]; for (const e of arguments[2]) arguments[0].dispatchEvent(new Event(e));"
        self.driver.execute_script(script, self(identity), value, list(events))

    def upload(self, path):
        self("file").send_keys(str(path))

    def transfer(self, kind, content, name, media_type):
        """Drops or pastes a file, as the browser tells of it: no driver has a hand that reaches beyond the window."""
        script = """const [kind, content, name, type] = arguments, data = new DataTransfer();
            data.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name, { type }));
            const event = kind === "paste" ? new ClipboardEvent(kind, { clipboardData: data, bubbles: true, cancelable: true })
                : new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
            document.getElementById("title").dispatchEvent(event);
            return event.defaultPrevented"""
        return self.driver.execute_script(script, kind, base64.b64encode(content).decode(), name, media_type)

    def ask(self, path):
        script = "return fetch(arguments[0], {headers: {'X-Requested-With': 'jaxdeblur'}}).then((r) => r.json())"
        return self.driver.execute_script(script, path)

    def keep(self, name):
        if SCREENSHOTS:
            self.driver.save_screenshot(str(pathlib.Path(SCREENSHOTS) / f"{name}.png"))

    def downloaded(self, pattern):
        return self.until(lambda: [path for path in self.downloads.glob(pattern) if path.suffix != ".crdownload"], 30)[0]


@pytest.fixture(scope="module")
def page(address):
    with tempfile.TemporaryDirectory() as folder:
        page = Page(address, pathlib.Path(folder))
        try:
            yield page
            complaints = [entry for entry in page.driver.get_log("browser") if "status of 4" not in entry["message"]]
            assert complaints == []  # of the content policy, or of a script
        finally:
            page.driver.quit()


@pytest.fixture(scope="module")
def holiday(tmp_path_factory):
    """A part of the sample, so that it is quick, as a camera would have stored it."""
    path = tmp_path_factory.mktemp("camera") / "holiday.jpg"
    exif = Image.Exif()
    exif[271], exif[272], exif[306] = "Maker", "Camera 1", "2026:01:02 03:04:05"
    with Image.open(SAMPLE) as image:
        image.crop((60, 0, 220, 128)).save(path, quality=95, exif=exif)
    return path


# Each test asks for the state that it begins with, as the slow tests are shared out one by one: in the order of this file
# the states are there already, and nothing is done twice.


def welcome(page):
    """Goes to where a photograph is chosen."""
    if page.shown("studio"):
        page("another").click()


@pytest.fixture
def loaded(page, holiday):
    """Brings the page to holiday.jpg, ready to run with a small kernel."""
    if "holiday.jpg" not in page("title").text:
        welcome(page)
        page.upload(holiday)
        page.until(lambda: "holiday.jpg" in page("title").text and page.shown("studio"), 60)
    page.until(lambda: page.shown("run"))
    page.set("kernel-size", 15, "change")


@pytest.fixture
def restored(page, loaded):
    """Brings the page to a result of holiday.jpg."""
    if not page.shown("keep"):
        page("run").click()
        page.until(lambda: page.shown("keep") and page.shown("run"))


def test_it_looks_right_before_anything_is_there(page):
    welcome(page)
    for width in (1280, 400):
        page.resize(width, 900)
        time.sleep(0.2)
        page.keep(f"empty-{width}")
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= width
    page.resize(1280, 900)
    page.until(lambda: "megapixels" in page("limits").text, 10)


def test_a_broken_file_is_refused_with_one_line(page, tmp_path):
    welcome(page)
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"\xff\xd8\xff not an image")
    page.upload(path)
    page.until(lambda: page("error").text, 60)
    assert page("error").text.startswith("Broken.jpg") or page("error").text.startswith("broken.jpg")
    assert "\n" not in page("error").text
    large = tmp_path / "large.jpg"
    large.write_bytes(bytes(6_000_000))
    page.upload(large)
    page.until(lambda: "the most that is taken is 5 MB" in page("error").text, 10)


def test_the_sample_is_shown_and_cancel_ends_it_within_two_seconds(page):
    welcome(page)
    page("sample").click()
    page.until(lambda: page.shown("studio"), 60)
    assert "400 × 280" in page("title").text
    assert page("error").text == ""
    page("run").click()
    page.until(lambda: page("phase").text.startswith("Estimating"), 120)
    job = page.ask("/api/session")["job"]["id"]
    began = time.monotonic()
    page("cancel").click()
    page.until(lambda: page.ask(f"/api/jobs/{job}")["state"] == "cancelled", 10)
    assert time.monotonic() - began < 2.0
    assert page.shown("run")


def test_a_file_is_dropped_on_the_page(page, holiday):
    content = holiday.read_bytes()
    # Without these answers the browser would leave the page and show the file.
    assert page.transfer("dragover", content, "dropped.jpg", "image/jpeg")
    assert "dragging" in page.driver.find_element(By.TAG_NAME, "body").get_attribute("class")
    assert page.transfer("drop", content, "dropped.jpg", "image/jpeg")
    assert "dragging" not in page.driver.find_element(By.TAG_NAME, "body").get_attribute("class")
    page.until(lambda: page("title").text == "dropped.jpg · 160 × 128", 60)
    assert page("error").text == ""
    assert page.ask("/api/session")["photo"]["name"] == "dropped.jpg"
    page.transfer("drop", b"some text", "notes.txt", "text/plain")
    page.until(lambda: "not a kind of file that can be read" in page("error").text, 20)
    assert page.ask("/api/session")["photo"]["name"] == "dropped.jpg"


def test_an_image_is_pasted(page):
    with Image.open(SAMPLE) as image, io.BytesIO() as buffer:
        image.crop((0, 0, 96, 80)).save(buffer, format="PNG")
        content = buffer.getvalue()
    page.transfer("paste", b"some text", "notes.txt", "text/plain")  # is none of ours
    page.transfer("paste", content, "", "image/png")  # not every program names what it copies
    page.until(lambda: page("title").text == "pasted.png · 96 × 80", 60)
    assert page("error").text == ""
    assert page.ask("/api/session")["photo"]["width"] == 96


@pytest.mark.usefixtures("loaded")
def test_a_photograph_goes_through_and_comes_back_with_its_exif(page, holiday):
    page("run").click()
    page.until(lambda: page.shown("progress"), 20)
    shares = set()

    def progressed():
        shares.add(page("share").get_attribute("value"))
        return page.shown("keep") and page.shown("run")

    page.until(progressed)
    assert len(shares) > 2
    assert page("error").text == ""
    page("download").click()
    with Image.open(page.downloaded("holiday_deblurred.jpg")) as image, Image.open(holiday) as before:
        assert (image.format, image.size) == ("JPEG", (160, 128))
        assert {image.getexif()[tag] for tag in (271, 272, 306)} == {before.getexif()[tag] for tag in (271, 272, 306)}
    page("download-report").click()
    assert "holiday.jpg" in page.downloaded("holiday_report.html").read_text()
    page("kernel-npy").click()
    page.downloaded("holiday_kernel.npy")
    page("download-all").click()
    page.downloaded("holiday_deblurred.zip")


@pytest.mark.usefixtures("restored")
def test_it_looks_right_with_a_result(page):
    page.driver.find_elements(By.CSS_SELECTOR, "[data-zoom]")[2].click()
    for width, theme in ((1280, "light"), (1280, "dark"), (400, "light")):
        page.resize(width, 1000 if width > 400 else 2400)
        page.driver.execute_script("document.documentElement.dataset.theme = arguments[0]; window.scrollTo(0, 0)", theme)
        time.sleep(0.5)
        page.keep(f"result-{width}-{theme}")
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= width
        loupes = [page(f"loupe-{which}").get_property("width") for which in ("before", "after")]
        assert loupes[0] == loupes[1] > 100
    page.driver.find_elements(By.CSS_SELECTOR, "[data-zoom]")[0].click()
    page.resize(1280, 900)


@pytest.mark.usefixtures("restored")
def test_everything_has_a_name_for_those_who_do_not_see_it(page):
    script = """return [...document.querySelectorAll("img, canvas, button, input, select, a, progress")]
        .filter((e) => e.offsetParent !== null)
        .filter((e) => !(e.alt || e.ariaLabel || e.textContent.trim() || (e.labels && e.labels.length)))
        .map((e) => e.outerHTML)"""
    assert page.driver.execute_script(script) == []


@pytest.mark.usefixtures("restored")
def test_the_divider_moves_by_keyboard(page):
    split = page("split")
    split.send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * 5)
    assert page.driver.execute_script("return document.getElementById('frame').style.getPropertyValue('--at')") == "1%"
    page.set("split", 50, "input")


@pytest.mark.usefixtures("restored")
def test_a_slider_answers_within_a_second_and_the_whole_photograph_follows(page):
    first = page.ask("/api/session")["photo"]["runs"][-1]["id"]
    latencies, seen = [], set()
    for value in (-1, 1, 2, 2.5, 3):
        before = page("after").get_attribute("src")
        page.set("smoothness", value, "input")
        page.until(lambda before=before: page("after").get_attribute("src") != before, 60)
        latencies.append(int(page("after").get_attribute("data-latency")))
        seen.add(page("after").get_attribute("src"))
    print("slider to preview, in milliseconds:", latencies)
    assert len(seen) == 5
    assert page("after-tag").text == "preview"
    assert min(latencies) < 1000  # others may be computing on this machine
    page.set("smoothness", 2, "input", "change")
    page.until(lambda: page("after-tag").text == "after")
    run = page.ask("/api/session")["photo"]["runs"][-1]
    assert run["id"] != first
    assert (run["settings"]["smoothness"], run["settings"]["last_step_only"]) == (4, True)


@pytest.mark.usefixtures("restored")
def test_the_switch_for_saturated_highlights_and_a_preview_of_it(page):
    def last():
        return page.ask("/api/session")["photo"]["runs"][-1]

    def switched(on):
        page("saturated").click()
        page.until(lambda: last()["settings"]["saturated"] is on and page.shown("run"))
        assert last()["chosen"].endswith("saturated") is on
        assert ("method: saturated" in page("facts").text) is on
        assert page("saturated").is_selected() is on
        page.until(lambda: page.driver.execute_script("return document.getElementById('after').complete"), 20)

    switched(True)
    kept = last()["id"]
    shown = page("after").get_attribute("src")
    assert kept in shown
    page.set("smoothness", -1, "input")
    page.until(lambda: page("after").get_attribute("src") != shown, 60)
    assert page("after-tag").text == "preview"
    assert page("after").get_attribute("src").startswith("blob:")
    assert page("saturated").is_selected()
    page.set("smoothness", -1, "change")
    page.until(lambda: last()["id"] != kept and page.shown("run") and page("after-tag").text == "after")
    assert (last()["settings"]["smoothness"], last()["settings"]["saturated"]) == (0.5, True)
    assert last()["chosen"].endswith("saturated")
    switched(False)


@pytest.mark.usefixtures("restored")
def test_specks_of_the_kernel_are_painted_over(page):
    canvas = page("kernel")
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    ActionChains(page.driver).move_to_element_with_offset(canvas, 0, 0).click_and_hold().move_by_offset(
        8, 8
    ).release().perform()
    page.until(lambda: not page.shown("progress") and page.ask("/api/session")["photo"]["runs"][-1]["settings"]["erased"])
    page.until(lambda: page.shown("run"))
    page("kernel-reset")


@pytest.mark.usefixtures("restored")
def test_a_region_is_drawn_and_used(page):
    page("region").click()
    area = page("drawing")
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", area)
    size = area.size
    across, down = int(0.3 * size["width"]), int(0.3 * size["height"])
    chain = ActionChains(page.driver).move_to_element_with_offset(area, -across, -down).click_and_hold()
    chain.move_by_offset(across, down).move_by_offset(across, down).release().perform()
    drawn = [int(page(f"region-{name}").get_attribute("value")) for name in ("x", "y", "width", "height")]
    for value, wanted in zip(drawn, (32, 26, 96, 77), strict=True):
        assert abs(value - wanted) <= 4
    page("run").click()
    page.until(lambda: page.shown("progress"), 20)
    page.until(lambda: page.shown("run"))
    run = page.ask("/api/session")["photo"]["runs"][-1]
    assert run["settings"]["region"] == drawn
    assert run["kernel"]["width"] == 15


@pytest.mark.usefixtures("restored")
def test_two_at_once_and_fifty_reloads(page, address, holiday, tmp_path):
    other = Page(address, tmp_path)
    try:
        page("run").click()
        page.until(lambda: page("phase").text.startswith("Estimating"), 120)
        other.upload(holiday)
        other.until(lambda: other.shown("studio"), 60)
        other.set("kernel-size", 15, "change")
        other("run").click()
        other.until(lambda: "Waiting" in other("phase").text, 20)
        assert "next in the queue" in other("phase").text
        job = page.ask("/api/session")["job"]["id"]
        for _ in range(50):
            page.driver.refresh()
        assert page.ask("/api/session")["job"]["id"] == job
        page.until(lambda: page.shown("keep") and page.shown("run"))
        other.until(lambda: other.shown("keep"))
        own = json.dumps(page.ask("/api/session"))
        assert other.ask("/api/session")["photo"]["id"] not in own
    finally:
        other.driver.quit()
