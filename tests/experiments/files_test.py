import pytest

from experiments.files import save_figure, write_text, written_whole


def test_what_fails_half_way_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "folder" / "table.md"
    write_text(path, "before")
    with pytest.raises(UnicodeEncodeError), written_whole(path) as new, new.open("w", encoding="ascii") as file:
        file.write("half of it, \N{LATIN SMALL LETTER E WITH ACUTE}")
    assert path.read_text() == "before"
    assert list(path.parent.iterdir()) == [path]


def test_a_written_file_takes_the_place_of_the_earlier_one(tmp_path):
    path = tmp_path / "weights.npz"
    for text in ("first", "second"):
        with written_whole(path) as new:
            assert new.suffix == path.suffix  # NumPy and matplotlib go by it
            new.write_text(text)
    assert path.read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    figures = pytest.importorskip("matplotlib.figure")
    for name in ("a.png", "b.png"):
        figure = figures.Figure()
        figure.subplots().plot([1, 3, 2])
        save_figure(figure, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
