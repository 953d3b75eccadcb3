"""The tutorial runs from its first cell to its last, from nothing but itself and the sample."""

import pathlib
import shutil

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# A fifth of the preset's guesses.
FEWER = """
import dataclasses
fast = jaxdeblur.PRESETS["fast"]
fewer = dataclasses.replace(fast, initialiser=dataclasses.replace(fast.initialiser, support_shares=(0.6,), patient_weights=()))
"""
LIGHTLY = "import jax; jax.config.update('jax_disable_most_optimizations', {})"
nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel (the extra 'dev')")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel (the extra 'dev')")


def read():
    return nbformat.read(ROOT / "experiments" / "tutorial.ipynb", as_version=4)


def test_it_is_kept_without_outputs_and_has_an_equation_beside_each_step():
    cells = read().cells
    assert all(not cell.outputs for cell in cells if cell.cell_type == "code")
    steps = [cell.source for cell in cells if cell.cell_type == "markdown" and cell.source.startswith("## ")]
    assert len(steps) >= 6
    assert all("$" in step or "table" in step for step in steps)


@pytest.mark.slow(minutes=3)
def test_it_runs(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "experiments" / "sample", tmp_path / "sample")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = read()
    fits = [cell for cell in notebook.cells if "num_iterations=200" in cell.source]
    assert len(fits) == 2
    for cell in fits:  # the same code in fewer steps, which take longer to compile than to run
        source = cell.source.replace("num_iterations=200", "num_iterations=20")
        cell.source = "\n".join([LIGHTLY.format(True), source, LIGHTLY.format(False)])
    (estimate,) = (cell for cell in notebook.cells if 'deblur(blurry, jaxdeblur.PRESETS["fast"]' in cell.source)
    estimate.source = FEWER + estimate.source.replace('jaxdeblur.PRESETS["fast"]', "fewer")
    nbclient.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (table,) = [output.data["text/markdown"] for output in notebook.cells[-2].outputs]
    psnr = {row.split("|")[1].strip(): float(row.split("|")[2]) for row in table.splitlines()[2:]}
    assert len(psnr) == 8
    assert psnr["`fast`"] > psnr["the photograph as it is"] + 3
    pictures = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 7
    assert (tmp_path / "deblurred" / "tutorial_deblurred.png").exists()
