"""What a newcomer reads and types agrees with what is there."""

import pathlib
import re
import tomllib

import pytest

from jaxdeblur.main import define_flags

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_gives_the_test_command_that_ci_runs(readme):
    """`.ci/run` takes the first line that names pytest, splits it at its last `&&`, and runs both parts, the tests twice."""
    line = next(line for line in readme.splitlines() if "-m pytest" in line)
    assert re.fullmatch(r"[\s$]*python3 -m venv .* && \.venv/bin/python -m pytest[^&]*", line)
    assert " -m slow" not in line
    assert "$tests -m slow" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_slow_tests_are_left_out_by_default():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    assert "-m 'not slow'" in options["addopts"]
    assert any(marker.startswith("slow:") for marker in options["markers"])


def test_the_readme_names_every_flag(readme):
    own = set(define_flags()) - {"help", "flagfile", "undefok"}
    missing = [name for name in sorted(own) if f"--{name}" not in readme]
    assert missing == []


def test_files_that_commands_in_the_readme_name_are_there(readme):
    named = set(re.findall(r"experiments/[\w/]+\.\w+", readme))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_no_package_registry_is_written_down():
    for name in ("pyproject.toml", "requirements.txt", ".ci/run", "README.md", "BUILD.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"index.url|find-links|trusted-host", text), name


def test_the_console_script_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"jaxdeblur": "jaxdeblur.main:run"}
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
