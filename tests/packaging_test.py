"""What a newcomer reads and types agrees with what is there."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

from jaxdeblur.main import define_flags
from jaxdeblur.presets import PRESETS
from jaxdeblur.version import __version__

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
        assert not re.search(r"index.url|find-links[= ]*https?:|trusted-host", text), name


def test_the_console_script_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"jaxdeblur": "jaxdeblur.main:run"}
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_changes_of_this_version_are_told_and_it_can_be_cited():
    assert re.search(rf"^## {re.escape(__version__)}$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {__version__}\n" in citation
    for author in ("Ren", "Yuesong", "Choi", "Zhixiang"):
        assert author in citation


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("jaxdeblur --smoo", ["--smoothness="]),
        ("jaxdeblur --preset=selfdeblur_pa", ["selfdeblur_paper", "selfdeblur_paper_small"]),
    ],
)
def test_the_shell_completes_flags_and_presets(readme, line, wanted):
    function = readme[readme.index("_jaxdeblur() {") : readme.index("complete -o filenames")]
    assert "selfdeblur_paper_small" in PRESETS
    script = f"""jaxdeblur() {{ {sys.executable} -m jaxdeblur.main "$@"; }}
{function}
COMP_LINE='{line}'; COMP_POINT={len(line)}; _jaxdeblur 2> /dev/null; echo "${{COMPREPLY[*]}}" """
    found = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == wanted


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_what_is_built_installs_and_runs_from_elsewhere(tmp_path, kind):
    pytest.importorskip("build", reason="needs build (the extra 'dev')")
    source = tmp_path / "source"
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    files = names.stdout.split("\n") if names.returncode == 0 else [str(path.relative_to(ROOT)) for path in ROOT.rglob("*")]
    for name in files:
        if name and (ROOT / name).is_file() and not name.startswith((".venv", "tests")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "build", f"--{kind}", "--outdir", tmp_path / "dist", source], check=True)
    (built,) = (tmp_path / "dist").iterdir()
    with zipfile.ZipFile(built) if kind == "wheel" else tarfile.open(built) as archive:
        inside = archive.namelist() if kind == "wheel" else archive.getnames()
    for ending in (
        "learned_prior.npz",
        "kernel_correction.npz",
        "static/index.html",
        "static/page.js",
        "static/page.css",
        "sample.png",
        "templates/report.html",
    ):
        assert any(name.endswith(ending) for name in inside), ending
    place = tmp_path / "installed"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", place, built], check=True)
    environment = {**os.environ, "PYTHONPATH": str(place)}

    def run(*command):
        return subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout

    code = "import jaxdeblur; from jaxdeblur.classical.learned import load_weights; load_weights(); print(jaxdeblur.__file__)"
    assert run("-c", code).startswith(str(place))
    assert run("-m", "jaxdeblur.main", "--version").strip() == __version__
    sample = place / "jaxdeblur" / "app" / "static" / "sample.png"
    kernel = ROOT / "experiments" / "sample" / "kernel.png"
    run("-m", "jaxdeblur.main", str(sample), f"--kernel={kernel}", "--output_dir=out")
    assert (tmp_path / "out" / "sample_report.html").exists()
    assert "--max_upload_mb" in run("-m", "jaxdeblur.app", "--help")
