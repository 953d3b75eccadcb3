"""Which files a command line means, and where the results go."""

import pathlib

import pytest

from jaxdeblur.errors import InputError
from jaxdeblur.imaging.selection import Outputs, assign_outputs, find_images, prepare_folder, remove_if_empty


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("a.png", "b.jpg", "notes.txt", ".hidden.png", "c,d.png", "sub/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(pattern, log=lambda _: None):
    return [str(path) for path in find_images(pattern, log)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.png", ["a.png"]),
        ("a.png,b.jpg", ["a.png", "b.jpg"]),
        ("a.png, b.jpg", ["a.png", "b.jpg"]),
        ("b.jpg,a.png,./a.png", ["b.jpg", "a.png"]),
        ("c,d.png", ["c,d.png"]),
        ("*.png", ["a.png", "c,d.png"]),
        ("**/*.png", ["a.png", "c,d.png", "sub/e.png"]),
        ("*.jpg,sub", ["b.jpg", "sub/e.png"]),
        ("missing.png,a.png", ["missing.png", "a.png"]),
        (".", ["a.png", "b.jpg", "c,d.png"]),
    ],
)
def test_patterns(folder, pattern, expected):
    assert names(pattern) == expected


def test_a_name_with_brackets_is_itself_before_it_is_a_glob(folder):
    (folder / "f[1].png").touch()
    assert names("f[1].png") == ["f[1].png"]


def test_a_folder_passes_over_what_is_no_image_and_its_own_results(folder):
    outputs = Outputs(folder, "a")
    for path in outputs.all(".png", fitted=True, posterior=True):
        path.touch()
    (folder / "street_preview.png").touch()  # no report beside it: an image like any other
    lines = []
    assert names(".", lines.append) == ["a.png", "b.jpg", "c,d.png", "street_preview.png"]
    assert any("results of earlier runs" in line for line in lines)
    assert any("not images" in line for line in lines)


@pytest.mark.parametrize("pattern", ["*.bmp", "empty", ",", " "])
def test_nothing_matched(folder, pattern):
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match="--image"):
        names(pattern)


def test_results_go_beside_the_image_or_where_told():
    beside, there = pathlib.Path("x/a.png"), pathlib.Path("y/b.jpg")
    assert assign_outputs([beside, there], None) == [
        Outputs(pathlib.Path("x/deblurred"), "a"),
        Outputs(pathlib.Path("y/deblurred"), "b"),
    ]
    assert assign_outputs([beside, there], "out") == [Outputs(pathlib.Path("out"), "a"), Outputs(pathlib.Path("out"), "b")]


def test_images_of_one_name_keep_their_format_in_the_results_names():
    found = assign_outputs([pathlib.Path("a.jpg"), pathlib.Path("A.png"), pathlib.Path("b.png")], None)
    assert [outputs.stem for outputs in found] == ["a_jpg", "A_png", "b"]


def test_of_images_that_cannot_be_told_apart_only_the_first_gets_outputs():
    first, second = assign_outputs([pathlib.Path("x/a.jpg"), pathlib.Path("y/a.jpg")], "out")
    assert isinstance(first, Outputs)
    assert isinstance(second, InputError)
    assert "y/a.jpg" in str(second)


def test_folders_are_made_and_taken_away_again(tmp_path):
    made = prepare_folder(tmp_path / "one" / "two")
    assert (tmp_path / "one" / "two").is_dir()
    remove_if_empty(made)
    assert not (tmp_path / "one").exists()
    assert tmp_path.exists()
    kept = prepare_folder(tmp_path / "three")
    (tmp_path / "three" / "file").touch()
    remove_if_empty(kept)
    assert (tmp_path / "three" / "file").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        prepare_folder(tmp_path / "file" / "below")
