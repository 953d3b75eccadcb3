"""What the command lines of the experiments share."""

import importlib

import pytest

from experiments import command_line

COMMANDS = (
    "accelerator.__main__",
    "benchmark",
    "blind_table",
    "fast_finish",
    "full_fit",
    "generalisation.__main__",
    "make_sample",
    "make_synthetic",
    "scaling",
    "train_dwdn",
    "train_correction",
    "train_prior",
    "varying_table",
)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_tells_what_it_does_and_its_flags(name, capsys):
    module = importlib.import_module(f"experiments.{name}")
    assert module.main([name, "--help"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith(module.__doc__.splitlines()[0])
    assert "--" in told.out.removeprefix(module.__doc__)
    assert told.err == ""


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("argument", ["word", "--no_such_flag"])
def test_what_cannot_be_parsed_is_told_in_one_line(name, argument, capsys):
    module = importlib.import_module(f"experiments.{name}")
    assert module.main([name, argument]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert argument.lstrip("-") in told.err
    assert "Traceback" not in told.err


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("benchmark", ["--preset=fast"], "choose another --preset"),
        ("benchmark", ["--profile", "--compare=torch"], "leave --compare out"),
        ("blind_table", [], "--data_dir is missing"),
        ("blind_table", ["--data_dir=nowhere"], "no image of the levin set"),
        ("fast_finish", [], "--images is missing"),
        ("fast_finish", ["--images=nowhere.png"], "nowhere.png"),
        ("train_dwdn", [], "--data_dir is missing"),
        ("train_dwdn", ["--data_dir=nowhere"], "nowhere: no such"),
        ("train_dwdn", ["--data_dir=nowhere", "--widths=wide"], "take whole numbers"),
        ("train_correction", [], "--data_dir is missing"),
        ("train_correction", ["--data_dir=nowhere"], "nowhere: no such"),
        ("train_prior", [], "--data_dir is missing"),
        ("train_prior", ["--data_dir=nowhere"], "nowhere: no such"),
        ("train_prior", ["--data_dir=nowhere", "--kernel_size=12"], "give an odd number"),
        ("varying_table", [], "--data_dir is missing"),
        ("varying_table", ["--data_dir=nowhere"], "no such folder"),
    ],
)
def test_what_is_missing_is_told_in_one_line(name, arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert importlib.import_module(f"experiments.{name}").main([name, *arguments]) == 1
    told = capsys.readouterr()
    assert words in told.err
    assert told.err.count("\n") == 1


def test_the_exit_status_and_an_interruption_are_a_process_s(capsys, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["name", "--flag"])
    with pytest.raises(SystemExit, match=r"^2$"):
        command_line.start(lambda argv: len(argv))
    with pytest.raises(SystemExit, match=r"^130$"):
        command_line.start(interrupted, interrupted="stopped, all is kept")
    assert capsys.readouterr().err == "stopped, all is kept\n"
