"""Staged files under kill -9 and under several processes. The processes are forked by a script that does not know jax."""

import errno
import itertools
import pathlib
import subprocess
import sys
import textwrap

import pytest

from jaxdeblur.imaging import staging
from jaxdeblur.imaging.staging import staged, tidy

PRELUDE = """
    import os, pathlib, random, sys, time
    from jaxdeblur.imaging import staging

    folder = pathlib.Path(sys.argv[1])
    NAMES = ("a.png", "b.npy", "c.json")
    PATHS = [folder / name for name in NAMES]

    def write(author, size=200_000):
        with staging.staged(PATHS) as temporaries:
            for temporary in temporaries:
                with temporary.open("wb") as file:
                    for _ in range(4):
                        file.write(author.encode() * (size // 4))

    def authors():
        return [path.read_bytes() if path.exists() else None for path in PATHS]

    def names():
        return sorted(path.name for path in folder.iterdir())
"""


def run(script, folder):
    command = [sys.executable, "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(script), str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""


def test_killed_at_every_step(tmp_path):
    """A process is killed before each of its calls to the file system in turn; afterwards all is old or all is new."""
    run(
        """
        def dies_at(limit):
            count = 0
            def counted(event, arguments):
                nonlocal count
                if event.split(".")[0] in ("os", "open", "pathlib", "tempfile", "fcntl") and str(folder) in repr(arguments):
                    count += 1
                    if count == limit:
                        os._exit(9)
            return counted

        write("0", 40)
        old, new = authors(), [b"1" * 40] * 3
        outcomes = set()
        for limit in range(1, 200):
            child = os.fork()
            if not child:
                sys.addaudithook(dies_at(limit))
                write("1", 40)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            found = authors()
            assert all(content in (old[0], new[0]) for content in found), (limit, found)
            staging.tidy(folder)
            assert names() == list(NAMES), (limit, names())
            assert authors() in (old, new), (limit, authors())
            outcomes.add(authors() == new)
            if status == 0:
                break
            write("0", 40)
        assert limit > 15, limit
        assert outcomes == {False, True}
        """,
        tmp_path,
    )


def test_interrupted_at_every_call(tmp_path):
    """Ctrl-C where Python looks for signals, at the start of a function and after one of C: all is old or all is new."""
    paths = [tmp_path / "a.png", tmp_path / "b.json"]

    def write(text, limit=0):
        count = 0

        def interrupt(_, event, __):
            nonlocal count
            count += event != "return"
            if count == limit:
                raise KeyboardInterrupt

        sys.setprofile(interrupt if limit else None)
        try:
            with staged(paths) as temporaries:
                for temporary in temporaries:
                    temporary.write_text(text)
        finally:
            sys.setprofile(None)

    outcomes = set()
    for limit in itertools.count(1):
        write("old")
        try:
            write("new", limit)
        except KeyboardInterrupt:
            whole = False
        else:
            whole = True
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.json"], limit
        found = {path.read_text() for path in paths}
        assert found in ({"old"}, {"new"}), limit
        outcomes |= found
        if whole:
            break
    assert limit > 100, limit
    assert outcomes == {"old", "new"}


def test_processes_side_by_side(tmp_path):
    """Several processes write the same files and tidy up all the time: nobody loses a file, and no two sets are mixed."""
    run(
        """
        children = []
        for author in "1234":
            child = os.fork()
            if not child:
                for _ in range(40):
                    staging.tidy(folder)
                    write(author, 4000)
                os._exit(0)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
        staging.tidy(folder)
        assert names() == list(NAMES)
        assert len(set(authors())) == 1
        assert len(authors()[0]) == 4000
        """,
        tmp_path,
    )


def test_a_set_that_was_in_the_way_and_is_gone_at_once(tmp_path, monkeypatch):
    """The folder that kept ours from its place is moved out by its own process before we look for it."""
    rename = pathlib.Path.rename
    refused = []

    def refuse_once(self, target):
        if not refused:
            refused.append(target)
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", refuse_once)
    with staged([tmp_path / "a.png"]) as temporaries:
        temporaries[0].write_text("mine")
    assert refused
    assert (tmp_path / "a.png").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_refusal_that_no_other_process_is_the_cause_of(tmp_path, monkeypatch):
    def refuse(self, target):
        raise PermissionError(errno.EACCES, "Permission denied")

    def write():
        with staged([tmp_path / "a.png"]) as temporaries:
            temporaries[0].write_text("mine")

    monkeypatch.setattr(pathlib.Path, "rename", refuse)
    with pytest.raises(PermissionError):
        write()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_made_again_is_not_taken_for_dead(tmp_path, monkeypatch):
    """Of two processes that tidy up, the second opens the old lock, which the first removes, and locks it too late."""
    flock = staging.fcntl.flock
    place = tmp_path / ".0.jaxdeblur-part"
    place.mkdir()
    (place / "lock").touch()

    def made_again(lock, operation):
        (place / "lock").rename(tmp_path / "old")  # still open, as a removed one would be
        (place / "lock").touch()
        (place / "00-a.png").write_text("mine")
        return flock(lock, operation)

    monkeypatch.setattr(staging.fcntl, "flock", made_again)
    tidy(tmp_path)
    assert (place / "00-a.png").read_text() == "mine"
    monkeypatch.undo()
    tidy(tmp_path)  # nobody holds the new one either
    assert not place.exists()


def test_the_living_are_not_disturbed_and_the_killed_are_cleared_away(tmp_path):
    run(
        """
        import signal
        def wait_for(count):
            until = time.monotonic() + 20
            while len(list(folder.glob(".*/00-*"))) < count and time.monotonic() < until:
                time.sleep(0.01)
        children = []
        for _ in range(2):
            child = os.fork()
            if not child:
                with staging.staged(PATHS) as temporaries:
                    temporaries[0].write_bytes(b"half")
                    time.sleep(60)
            children.append(child)
        wait_for(2)
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)
        staging.tidy(folder)
        assert len(names()) == 1
        staging.tidy(folder)
        assert len(list(folder.glob(".*/00-*"))) == 1
        os.kill(children[1], signal.SIGKILL)
        os.waitpid(children[1], 0)
        staging.tidy(folder)
        assert names() == []
        """,
        tmp_path,
    )


def test_files_that_came_meanwhile_are_kept_unless_they_may_be_replaced(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.json"]

    def write(replace):
        with staged(paths, replace=replace) as temporaries:
            for temporary in temporaries:
                temporary.write_text("mine")
            paths[1].write_text("another's")

    with pytest.raises(FileExistsError):
        write(replace=False)
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]
    write(replace=True)
    assert [path.read_text() for path in paths] == ["mine", "mine"]


def test_a_folder_in_the_way_is_found_before_anything_is_moved(tmp_path):
    (tmp_path / "b.json").mkdir()

    def write():
        with staged([tmp_path / "a.png", tmp_path / "b.json"]) as temporaries:
            for temporary in temporaries:
                temporary.write_text("mine")

    with pytest.raises(IsADirectoryError):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_folders_of_others_are_left_alone(tmp_path):
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "lock").touch()
    tidy(tmp_path)
    assert (tmp_path / ".cache" / "lock").exists()
    tidy(tmp_path / "none")
