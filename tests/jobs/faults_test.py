"""What goes wrong around a run: disks, folders, files, signals and workers. One line each, and the other images go on."""

import dataclasses
import json
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from jaxdeblur import pipeline
from jaxdeblur.jobs import images
from jaxdeblur.jobs.cluster import Outcome
from jaxdeblur.jobs.saved_run import read_report, read_saved_run
from jaxdeblur.main import main

RESULTS = {"_deblurred.png", "_kernel.npy", "_kernel.png", "_preview.png", "_report.html", "_report.json"}


def save(path, side=48, seed=0):
    levels = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
    Image.fromarray(levels).save(path)
    return path


def result_like(pixels):
    fields = {field.name: None for field in dataclasses.fields(pipeline.Result) if field.default is dataclasses.MISSING}
    known = {"restored": pixels, "kernel": np.ones((31, 31), np.float32) / 961, "candidates": (), "history": {}}
    return pipeline.Result(**{**fields, **known, "seconds": {}, "warnings": ()})


def results_in(folder):
    """Results by image, each of them whole, and the names of all that is something else."""
    whole, others = {}, []
    for path in folder.iterdir():
        if path.name == "index.html":  # over the others; of a run of several images
            continue
        stem, _, ending = path.name.rpartition("_")
        if f"_{ending}" not in RESULTS:
            others.append(path.name)
            continue
        whole.setdefault(stem, set()).add(f"_{ending}")
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".npy":
            assert np.load(path).shape
        else:
            json.loads(read_report(path))
    return whole, others


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.fixture
def stub(monkeypatch):
    """Stands in for the pipeline: gives the input back; what is put into its list is done at the image of that number."""
    events = {}
    count = 0

    def run_tasks(tasks):
        nonlocal count
        count += 1
        events.get(count, lambda: None)()
        return [(result_like(task.pixels), 0.0) for task in tasks]

    monkeypatch.setattr(images, "run_tasks", run_tasks)
    return events


@pytest.fixture
def cli(capsys):
    def call(*arguments):
        status = main(["jaxdeblur", *arguments])
        captured = capsys.readouterr()
        return status, captured.out.splitlines(), captured.err.splitlines()

    return call


class TestDisks:
    def test_a_full_disk(self, workplace, stub, cli):
        save(workplace / "b.png", 300)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
        try:
            status, lines, errors = cli("--image=*.png", "--output_dir=out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert status == 1
        assert len(errors) == 1
        assert "cannot write the results (File too large)" in errors[0]
        assert "2 of 3" in lines[-1]
        whole, others = results_in(workplace / "out")
        assert whole == {"a": RESULTS, "c": RESULTS}
        assert others == []

    @pytest.mark.parametrize("fault", ["full", "read-only"])
    def test_a_disk_that_fails_in_mid_run(self, workplace, stub, cli, fault):
        (workplace / "out").mkdir()
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=400k", "none", "out"], capture_output=True, check=False
        ).returncode:
            pytest.skip("this user may not mount a file system")

        def fail():
            if fault == "full":
                with pytest.raises(OSError, match="No space"), open("out/filler", "wb") as file:
                    file.write(bytes(1_000_000))
            else:
                subprocess.run(["mount", "-o", "remount,ro", "out"], check=True)

        stub[2] = fail
        try:
            status, lines, errors = cli("--image=*.png", "--output_dir=out")
            whole, others = results_in(workplace / "out")
        finally:
            subprocess.run(["umount", "out"], check=True)
        assert status == 1
        assert len(errors) == 2
        reason = {"full": "No space left on device", "read-only": "Read-only file system"}[fault]
        assert all("cannot write" in error and reason in error for error in errors)
        assert "1 of 3" in lines[-1]
        assert whole == {"a": RESULTS}
        assert set(others) <= {"filler"}

    def test_an_image_that_vanishes(self, workplace, stub, cli):
        stub[1] = (workplace / "b.png").unlink
        status, lines, errors = cli("--image=*.png", "--output_dir=out")
        assert status == 1
        assert errors == ["jaxdeblur: b.png: no such file; check the path of what should be an image"]
        assert "2 of 3" in lines[-1]

    def test_a_folder_that_vanishes(self, workplace, stub, cli):
        def vanish():
            for path in (workplace / "out").iterdir():
                path.unlink()
            (workplace / "out").rmdir()

        stub[2] = vanish
        status, lines, errors = cli("--image=*.png", "--output_dir=out")
        assert status == 1
        assert len(errors) == 1
        assert "2 of 3" in lines[-1]
        assert results_in(workplace / "out") == ({"c": RESULTS}, [])

    def test_names_that_are_no_text(self, workplace, stub, cli):
        try:
            os.rename(b"a.png", b"\xff\x1b[2J.png")
        except OSError:
            pytest.skip("the file system takes no such names")
        status, lines, errors = cli("--image=.", "--output_dir=out")
        assert (status, errors) == (0, [])
        assert all(line.isprintable() for line in lines)
        (report,) = [path for path in (workplace / "out").glob("*_report.json") if not path.name.isascii()]
        assert read_saved_run(report).image.exists()


class TestSignals:
    def test_sigterm_is_an_interrupt(self, workplace, stub, cli):
        before = signal.getsignal(signal.SIGTERM)
        stub[2] = lambda: signal.raise_signal(signal.SIGTERM)
        status, _, errors = cli("--image=*.png", "--output_dir=out")
        assert status == 143
        assert len(errors) == 1
        assert "interrupted" in errors[0]
        assert results_in(workplace / "out") == ({"a": RESULTS}, [])
        assert signal.getsignal(signal.SIGTERM) == before

    def test_it_is_not_lost_in_a_finaliser(self, workplace, stub, cli):
        class Finalised:
            def __del__(self):
                signal.raise_signal(signal.SIGTERM)

        def wait():
            Finalised()
            time.sleep(30)

        stub[2] = wait
        status, _, errors = cli("--image=*.png", "--output_dir=out")
        assert status == 143
        assert len(errors) == 1
        assert "interrupted" in errors[0]
        assert results_in(workplace / "out") == ({"a": RESULTS}, [])

    def test_what_it_left_half_made_is_finalised_in_silence(self, workplace, stub, cli, monkeypatch):
        class HalfMade:
            def __init__(self):
                signal.raise_signal(signal.SIGTERM)
                self.file = None

            def __del__(self):
                self.file.close()

        stub[2] = HalfMade
        heard = []
        monkeypatch.setattr(sys, "unraisablehook", heard.append)
        assert cli("--image=*.png", "--output_dir=out")[0] == 143
        assert not heard
        assert sys.unraisablehook == heard.append

    def test_what_killed_workers_were_writing_is_removed(self, workplace, stub, cli):
        def as_a_worker_dies():
            place = workplace / "out" / ".0.jaxdeblur-part"
            place.mkdir()
            (place / "lock").touch()
            (place / "00-b.png").touch()
            signal.raise_signal(signal.SIGTERM)

        stub[2] = as_a_worker_dies
        assert cli("--image=*.png", "--output_dir=out")[0] == 143
        assert results_in(workplace / "out") == ({"a": RESULTS}, [])

    def test_while_results_are_written(self, workplace, stub, cli, monkeypatch):
        monkeypatch.setattr(images, "write_report", lambda *_: signal.raise_signal(signal.SIGTERM))
        assert cli("--image=a.png")[0] == 143
        assert results_in(workplace / "deblurred") == ({}, []) if (workplace / "deblurred").exists() else True


def fail_deeply(items):
    raise RuntimeError(f"no luck with {items}")


class TestDebug:
    @pytest.mark.parametrize("debug", [False, True])
    def test_it_is_shown(self, workplace, cli, monkeypatch, debug):
        def map_batches(function, batches, **how):
            for index, _ in enumerate(batches):
                yield Outcome(index, None, ("RuntimeError: no luck",), failed=True, trace="Traceback: in fail_deeply")

        monkeypatch.setattr(images, "map_batches", map_batches)
        arguments = ["--image=a.png", "--workers=2", "--output_dir=out"]
        if debug:
            with pytest.raises(Exception, match="RuntimeError: no luck") as caught:
                cli(*arguments, "--debug")
            assert "in fail_deeply" in str(caught.value.__cause__)
        else:
            assert cli(*arguments)[2] == ["jaxdeblur: a.png: failed, RuntimeError: no luck (--debug shows where)"]

    def test_of_a_batch(self, workplace, cli, monkeypatch):
        monkeypatch.setattr(images, "run_tasks", fail_deeply)
        arguments = ["--image=a.png,b.png", "--preset=mc_small", "--batch_size=2", "--kernel_size=5"]
        with pytest.raises(Exception, match="no luck") as caught:
            cli(*arguments, "--debug")
        assert "in fail_deeply" in str(caught.value.__cause__)
        status, lines, errors = cli(*arguments)
        assert (status, len(errors)) == (1, 2)
        assert "0 of 2" in lines[-1]

    def test_what_nobody_expected_before_the_first_image(self, workplace, cli, monkeypatch):
        def fail(*_):
            raise RuntimeError("out of luck")

        monkeypatch.setattr("jaxdeblur.main.assign_outputs", fail)
        assert cli("--image=a.png")[::2] == (1, ["jaxdeblur: failed, RuntimeError: out of luck (--debug shows where)"])
        with pytest.raises(RuntimeError):
            cli("--image=a.png", "--debug")


class TestMemory:
    def test_it_is_told_in_one_line(self, workplace, cli, monkeypatch):
        def map_batches(function, batches, **how):
            died = ("its worker died (killed by SIGKILL, as the system does when memory runs out)",)
            for index, batch in enumerate(batches):
                if index:
                    yield Outcome(index, None, died * 2, failed=True, starved=True)
                else:
                    yield Outcome(index, (result_like(batch[0].pixels), 0.0), died, failed=False)

        monkeypatch.setattr(images, "map_batches", map_batches)
        status, lines, errors = cli("--image=a.png,b.png", "--workers=2", "--output_dir=out")
        assert status == 1
        assert errors == [
            "jaxdeblur: b.png: failed, its worker died (killed by SIGKILL, as the system does when memory runs out)"
        ]
        assert sum("a.png: note: tried again" in line and "SIGKILL" in line for line in lines) == 1


def command(*arguments):
    root = pathlib.Path(__file__).parents[2]
    # Without huge pages: the process that is killed shall be the one that works.
    flags = [*arguments, "--huge_pages=off", f"--cache_dir={os.environ['JAX_COMPILATION_CACHE_DIR']}"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    program = [sys.executable, "-m", "jaxdeblur.main", *flags]
    return subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
class TestRealRuns:
    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "in").mkdir()
        for number in range(12):
            save(tmp_path / "in" / f"{number}.png", seed=number)
        kernel = np.ones((3, 3))
        np.save(tmp_path / "k.npy", kernel)
        return tmp_path

    def expect(self, folder, *arguments):
        """The bytes of a run that nobody disturbed, and how long it took."""
        began = time.monotonic()
        with command("--image=in", "--kernel=k.npy", *arguments) as process:
            assert process.wait() == 0, process.stderr.read()
        return time.monotonic() - began

    def test_kill_9_at_random_moments(self, folder):
        self.expect(folder, "--output_dir=warm")  # compiles
        seconds = self.expect(folder, "--output_dir=reference")
        chance = random.Random(0)
        out = folder / "out"
        left = []
        for moment in range(20):
            for path in out.glob("[!.]*"):  # results; what killed runs have left behind stays
                path.unlink()
            with command("--image=in", "--kernel=k.npy", "--output_dir=out", "--overwrite") as process:
                if moment % 2:  # while it writes the results of its first, second or third image: those moments are short
                    seen, images_to_come, until = set(out.glob(".*")), chance.randint(1, 3), time.monotonic() + 10 * seconds
                    while process.poll() is None and images_to_come and time.monotonic() < until:
                        now = set(out.glob(".*"))
                        images_to_come -= bool(now - seen)
                        seen |= now
                    time.sleep(chance.random() * 0.05)
                else:
                    time.sleep(chance.random() * seconds)
                process.kill()
                assert process.wait() in (0, -signal.SIGKILL)
            whole, others = results_in(out) if out.exists() else ({}, [])
            assert all(name.startswith(".") and name.endswith(("-part", "-done")) for name in others)
            if not any(name.endswith("-done") for name in others):
                assert all(found == RESULTS for found in whole.values())
            left.append((len(whole), len(others)))
        print("whole results and folders left behind after each kill:", left)
        self.expect(folder, "--output_dir=out", "--overwrite")
        whole, others = results_in(out)
        assert whole == {str(number): RESULTS for number in range(12)}
        assert others == []
        for path in out.iterdir():
            if path.suffix not in (".json", ".html"):  # reports, which tell the seconds
                assert path.read_bytes() == (folder / "reference" / path.name).read_bytes()

    def test_sigterm(self, folder):
        self.expect(folder, "--output_dir=warm")
        for ways in ([], ["--workers=2"]):
            out = folder / f"out{len(ways)}"
            with command("--image=in", "--kernel=k.npy", f"--output_dir={out.name}", *ways) as process:
                while process.poll() is None and not list(out.glob("*.json")):
                    time.sleep(0.01)
                process.terminate()
                errors = process.stderr.read()
                assert process.wait() == 143, errors
            assert "interrupted" in errors
            assert "Traceback" not in errors
            whole, others = results_in(out)
            assert others == []
            assert all(found == RESULTS for found in whole.values())

    def test_two_runs_over_one_folder(self, folder):
        self.expect(folder, "--output_dir=reference")
        second = folder / "second.npy"
        np.save(second, np.diag([0.2, 0.6, 0.2]))
        both = [
            command("--image=in", f"--kernel={kernel}", "--output_dir=out", "--overwrite", f"--seed={seed}")
            for seed, kernel in enumerate(("k.npy", "second.npy"))
        ]
        for process in both:
            with process:
                assert process.wait() == 0, process.stderr.read()
        whole, others = results_in(folder / "out")
        assert whole == {str(number): RESULTS for number in range(12)}
        assert others == []
        for report in (folder / "out").glob("*_report.json"):  # each set is of one run
            of_first = json.loads(report.read_text())["seed"] == 0
            kernel = np.load(str(report).replace("_report.json", "_kernel.npy"))
            np.testing.assert_allclose(kernel, np.ones((3, 3)) / 9 if of_first else np.diag([0.2, 0.6, 0.2]), atol=1e-6)
