"""The accelerator pack: what is planned, gone on with, cut off and told. The measuring itself is the slow test's."""

import contextlib
import dataclasses
import importlib
import io
import json
import subprocess
import sys
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import steppers
from experiments.accelerator import __main__ as command
from experiments.accelerator import device, images, plan, report, sizes, speed, worker
from experiments.runner.store import Store
from jaxdeblur.errors import InputError
from jaxdeblur.presets import PRESETS

CARD = {"backend": "gpu", "kind": "NVIDIA H100 80GB HBM3", "count": 1, "memory_mb": 80000, "jax": "0.11.2"}
PARTS = [
    plan.Part("first", "The first", "made_up", (plan.Item("a", 30), plan.Item("b", 30))),
    plan.Part("second", "The second", "made_up", (plan.Item("c", 30), plan.Item("d", 500)), "torch"),
]


@pytest.fixture
def measured(monkeypatch):
    """Replaces measuring: what was measured, in order; ``faults`` says what an item does instead of giving a figure."""
    made = types.SimpleNamespace(items=[], faults={}, card=dict(CARD), processes=[])

    def measure(part, item, context):
        made.items.append(f"{part}/{item}")
        if (fault := made.faults.get(item)) is not None:
            raise fault
        return plan.Found({"psnr": 30.0}, {"restored": np.full((4, 4), 0.5)})

    @contextlib.contextmanager
    def process(pack, part, items, seconds):
        told = []
        if part.name == "probe":
            yield iter([{"what": "probe", **made.card}])
            return
        made.processes.append((part.name, tuple(items)))
        context = plan.Context(pack.folder, None, None, pack.values.dry_run, None, lambda: seconds)
        with monkeypatch.context() as patch:
            patch.setattr(worker, "tell", lambda what, **fields: told.append({"what": what, **fields}))
            patch.setattr(worker, "as_on_accelerators", lambda: None)
            try:
                worker.work(part, items, context, Store(pack.folder / "results"), "source")
            except KeyboardInterrupt:  # stands for a process that is killed
                pass
            except SystemExit:  # stands for one whose time is over
                told.append({"what": "cut"})
        yield iter(told)

    monkeypatch.setitem(sys.modules, "experiments.accelerator.made_up", types.SimpleNamespace(measure=measure))
    for name in ("draw", "draw_images"):  # these have tests of their own
        monkeypatch.setattr(report, name, lambda *_: None)
    monkeypatch.setattr(command.Pack, "_process", process)
    monkeypatch.setattr(plan, "parts", lambda data_dir=None, toy=False: PARTS)
    return made


def run(tmp_path, *arguments):
    return command.main(["accelerator", f"--output_dir={tmp_path / 'out'}", *arguments])


def results(tmp_path):
    return json.loads((tmp_path / "out/results.json").read_text())


def test_the_plan_is_short_enough_and_names_what_there_is(tmp_path):
    for folder in (None, tmp_path):
        for name in ("levin", "lai"):
            if folder:
                (folder / name).mkdir()
        parts = plan.parts(folder)
        names = [f"{part.name}/{item.name}" for part, item in plan.named(parts)]
        assert len(set(names)) == len(names)
        assert [part.name for part in parts][:4] == ["numerics", "steps", "steps_torch", "fits"]
        for part, item in plan.named(parts):
            assert 0 < item.seconds < part.most_seconds <= plan.MOST_SECONDS < 600, item
            assert set(part.toys) <= {one.name for one in part.items}
            importlib.import_module(f"experiments.accelerator.{part.module}")
    assert f"fits/{plan.FITTED[0]}_17px" in names
    assert "classical/fast_im1_kernel1_img" in names
    assert {*plan.DEEP_PRIORS, *plan.FITTED, *plan.WEAK, *plan.CLASSICAL} <= set(PRESETS)
    # A preset of that name joins by itself.
    assert ("deep" in plan.CLASSICAL) == ("deep" in PRESETS)
    assert [part.name for part in plan.parts(toy=True)] == [part.name for part in parts]


def test_the_list_needs_no_device(capsys):
    assert command.main(["accelerator", "--list", "--part=steps,fits"]) == 0
    told = capsys.readouterr().out
    assert "Steps at 255×255 (4 items" in told
    assert "weak_dmphn" in told
    assert "restarts" not in told


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "--output_dir is missing"),
        (["--output_dir=x", "--part=fits,nothing"], "no such part; choose from numerics, steps"),
        (["--output_dir=x", "--data_dir=nowhere"], "no such folder"),
        (["--output_dir=x", "--data_dir=."], "neither levin nor lai"),
        (["--output_dir=x", "--image_dir=nowhere"], "no such folder"),
        (["--output_dir=x", "--budget_minutes=0"], "budget_minutes"),
        (["--output_dir=x", "--batch_size=0"], "batch_size"),
        (["--output_dir=x", "--no_such_flag"], "no_such_flag"),
        (["--output_dir=x", "word"], "unexpected argument 'word'"),
    ],
)
def test_wrong_commands_are_answered_in_one_line(arguments, line, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert command.main(["accelerator", *arguments]) == 1
    told = capsys.readouterr()
    assert line in told.err
    assert "Traceback" not in told.err
    assert not list(tmp_path.iterdir())


def test_a_machine_without_a_gpu_is_refused(measured, tmp_path, capsys):
    measured.card = {**CARD, "backend": "cpu", "kind": "cpu"}
    assert run(tmp_path) == 1
    assert "jax sees no GPU here" in capsys.readouterr().err
    assert not measured.items
    assert run(tmp_path, "--allow_cpu") == 0
    assert len(measured.items) == 4


def test_results_are_kept_and_the_same_command_goes_on(measured, tmp_path, capsys):
    measured.faults["b"] = InputError("give another one")
    assert run(tmp_path) == 1
    assert measured.items == ["first/a", "first/b", "second/c", "second/d"]
    assert "  first/b: failed: give another one" in capsys.readouterr().out
    found = results(tmp_path)
    assert sorted(found["items"]) == ["first/a", "second/c", "second/d"]
    assert found["about"] == {**CARD, "dry_run": False}
    assert found["without"] == {"first/b": "failed: give another one"}
    assert "| first/b | failed: give another one |" in (tmp_path / "out/report.md").read_text()

    measured.items.clear()
    assert run(tmp_path) == 1
    assert measured.items == ["first/b"]
    measured.faults.clear()
    assert run(tmp_path) == 0
    assert results(tmp_path)["without"] == {}
    assert "everything has been measured" in (tmp_path / "out/report.md").read_text()
    measured.items.clear()
    assert run(tmp_path) == 0
    assert measured.items == []
    assert run(tmp_path, "--again", "--part=second") == 0
    assert measured.items == ["second/c", "second/d"]


def test_a_process_that_dies_takes_its_item_alone(measured, tmp_path):
    measured.faults["a"] = KeyboardInterrupt()
    assert run(tmp_path) == 1
    assert measured.processes == [("first", ("a", "b")), ("first", ("b",)), ("second", ("c", "d"))]
    assert sorted(results(tmp_path)["items"]) == ["first/b", "second/c", "second/d"]
    assert "its process ended" in results(tmp_path)["without"]["first/a"]
    # What failed before goes last.
    measured.faults.clear()
    (tmp_path / "out/results/second/d/result.json").unlink()
    (tmp_path / "out/results.json").unlink()
    measured.items.clear()
    assert run(tmp_path) == 0
    assert measured.items == ["second/d", "first/a"]


def test_an_item_that_is_cut_off_goes_on_next_time(measured, tmp_path):
    measured.faults["a"] = SystemExit()
    assert run(tmp_path) == 2
    assert "cut off" in results(tmp_path)["without"]["first/a"]
    assert "first/b" in results(tmp_path)["items"]
    measured.faults.clear()
    assert run(tmp_path) == 0


def test_what_does_not_fit_into_the_budget_is_said(measured, tmp_path, capsys):
    assert run(tmp_path, "--budget_minutes=5") == 2
    assert measured.items == ["first/a", "first/b", "second/c"]
    assert results(tmp_path)["without"]["second/d"].startswith("not begun: ")
    assert "500 s" in results(tmp_path)["without"]["second/d"]
    measured.items.clear()
    assert run(tmp_path, "--budget_minutes=0.5") == 2
    assert measured.items == []
    assert run(tmp_path, "--budget_minutes=10") == 0
    assert measured.items == ["second/d"]


def test_a_dry_run_does_parts_side_by_side_and_each_after_what_it_needs(measured, tmp_path, monkeypatch):
    first, second = PARTS
    made = [dataclasses.replace(first, name="needs", after="needed"), first, second, dataclasses.replace(first, name="needed")]
    monkeypatch.setattr(plan, "parts", lambda data_dir=None, toy=False: made)
    both, order = threading.Barrier(2), []

    def turn(pack, part, held_back):
        order.append(("begin", part.name))
        if part.name in ("needed", "first"):  # each waits for the other
            both.wait(timeout=30)
        order.append(("end", part.name))
        return False

    monkeypatch.setattr(command.Pack, "_turn", turn)
    assert run(tmp_path, "--dry_run") == 2  # nothing was measured
    assert sorted(order) == sorted((what, part.name) for part in made for what in ("begin", "end") for _ in range(2))
    assert order.index(("end", "needed")) < order.index(("begin", "needs"))
    assert set(order[:2]) == {("begin", "needed"), ("begin", "first")}  # in either order: each has a thread

    def interrupted(pack, part, held_back):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.Pack, "_turn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--dry_run")
    assert (tmp_path / "out/report.md").exists()


def test_the_results_file_alone_is_enough_to_go_on(measured, tmp_path):
    assert run(tmp_path, "--part=first") == 0
    (tmp_path / "elsewhere/out").mkdir(parents=True)
    (tmp_path / "out/results.json").rename(tmp_path / "elsewhere/out/results.json")
    measured.items.clear()
    assert run(tmp_path / "elsewhere") == 0
    assert measured.items == ["second/c", "second/d"]
    assert len(results(tmp_path / "elsewhere")["items"]) == 4


@pytest.mark.parametrize("content", ["", "{}", '{"about": {}, "items": 3}', '{"about": {}, "items": {"a/b": 1}}'])
def test_a_damaged_results_file_is_a_one_line_error(content, measured, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/results.json").write_text(content)
    assert run(tmp_path) == 1
    assert "is damaged: delete it" in capsys.readouterr().err


def test_results_of_two_devices_or_kinds_of_run_are_never_mixed(measured, tmp_path, capsys):
    assert run(tmp_path) == 0
    assert run(tmp_path, "--dry_run") == 1
    assert "give another --output_dir" in capsys.readouterr().err
    measured.card = {**CARD, "kind": "NVIDIA H200"}
    assert run(tmp_path) == 1
    assert "NVIDIA H100 80GB HBM3, here NVIDIA H200" in capsys.readouterr().err


def test_the_telling_of_a_process_ends_with_its_time():
    text = f"print('noise'); print('{worker.MARK}' + '{{\"what\": \"begin\"}}', flush=True); import time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    log = io.StringIO()
    began = time.monotonic()
    try:
        lines = command._told(process, log, began + 30)
        assert next(lines) == {"what": "begin"}
        assert list(command._told(process, log, time.monotonic() + 0.2)) == [{"what": "cut"}]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert log.getvalue() == "noise\n"
    assert time.monotonic() - began < 30


def test_a_worker_ends_with_its_parent():
    text = "from experiments.accelerator import worker as w; w.end_with_parent(); print(0, flush=True); w.time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "0\n"
    process.stdin.close()
    assert process.wait(timeout=20) == 1
    process.stdout.close()


def test_each_place_has_its_environment(monkeypatch):
    for name in ("JAX_PLATFORMS", "JAX_DISABLE_MOST_OPTIMIZATIONS"):
        monkeypatch.delenv(name, raising=False)
    of = {
        place: command.environment(dataclasses.replace(PARTS[0], place=place), toy=False)
        for place in ("accelerator", "cpu", "torch")
    }
    assert "JAX_PLATFORMS" not in of["accelerator"]
    assert of["cpu"]["JAX_PLATFORMS"] == of["torch"]["JAX_PLATFORMS"] == "cpu"
    by_module = {part.module: command.environment(part, toy=True) for part in plan.parts()}
    assert {found["JAX_PLATFORMS"] for found in by_module.values()} == {"cpu"}
    light = {module for module, found in by_module.items() if "JAX_DISABLE_MOST_OPTIMIZATIONS" in found}
    assert light == {"numerics", "speed", "training"}


def test_errors_are_one_short_line():
    line = worker.one_line(RuntimeError("RESOURCE_EXHAUSTED: Out of memory\n  buffers:\n" + 4000 * "x"))
    assert line.startswith("RuntimeError: RESOURCE_EXHAUSTED: Out of memory buffers: xxx")
    assert len(line) <= 300
    assert worker.one_line(InputError("give more")) == "give more"


@pytest.mark.parametrize(
    ("kind", "bytes_per_s"),
    [
        ("NVIDIA H100 80GB HBM3", 3.35e12),
        ("NVIDIA H100 PCIe", 2.0e12),
        ("NVIDIA H200", 4.8e12),
        ("NVIDIA A100-SXM4-40GB", 1.555e12),
        ("NVIDIA A100-SXM4-80GB", 2.039e12),
        ("NVIDIA L40S", 0.864e12),
        ("NVIDIA L4", 0.3e12),
        ("Tesla T4", 0.32e12),
        ("NVIDIA GeForce RTX 4090", 1.008e12),
        ("cpu", None),
    ],
)
def test_cards_are_known_by_the_drivers_names(kind, bytes_per_s):
    found = device.peaks(kind)
    assert (found and found.bytes_per_s) == bytes_per_s


def test_the_roofline_is_the_slower_of_the_two():
    assert device.shortest_ms({"flops": 2e12, "bytes": 1e9}, 1e12, 100e12) == pytest.approx(20.0)
    assert device.shortest_ms({"flops": 1e9, "bytes": 3e9}, 1e12, 100e12) == pytest.approx(3.0)
    assert device.shortest_ms({"flops": None, "bytes": 3e9}, 1e12, 100e12) is None


def test_a_loops_body_counts_once():
    def looped(matrix, times):
        return jax.lax.fori_loop(0, times, lambda _, x: x @ x, matrix)

    once = speed.cost(jax.jit(jnp.matmul).lower(jnp.ones((64, 64)), jnp.ones((64, 64))).compile())
    many = speed.cost(jax.jit(looped).lower(jnp.ones((64, 64)), 10).compile())
    assert once["flops"] == pytest.approx(2 * 64**3, rel=0.01)
    assert many["flops"] == pytest.approx(once["flops"], rel=0.01)
    assert many["bytes"] < 4 * once["bytes"]
    assert many["planned_mb"] > 2 * 64**2 * 4 / 1e6


@pytest.mark.slow
def test_a_chunks_cost_is_that_of_one_step(light_compilation):
    fit = sizes.preset("selfdeblur", toy=True).fit
    costs = [speed.cost(steppers.jax_stepper(fit, (36, 36), 5, steps, cache_dir=None).compiled) for steps in (2, 6)]
    assert costs[0]["flops"] > 1e5
    # All but the records of each step.
    assert costs[1]["flops"] == pytest.approx(costs[0]["flops"], rel=0.01)
    assert costs[1]["bytes"] == pytest.approx(costs[0]["bytes"], rel=0.01)
    assert costs[0]["planned_mb"] > 0.01


def test_images_are_made_where_there_is_no_set(tmp_path):
    context = plan.Context(tmp_path, None, None, True, None, lambda: 1.0)
    group = images.to_fit(context, 17)
    assert len({example.name for example in group}) == len(group) == 2
    for example, again in zip(group, images.to_fit(context, 17), strict=True):
        blurry, sharp = example.load()
        assert blurry.shape == sharp.shape == (64, 64)
        assert example.load_kernel().shape == (7, 7)
        assert np.abs(blurry - sharp).mean() > 0.005
        np.testing.assert_array_equal(blurry, again.load()[0])
    assert images.one(context, "sample").load_kernel().shape == (21, 21)
    assert images.one(context, "made2_27px").kernel_size == 9
    with pytest.raises(InputError, match="--image_dir"):
        images.to_train(context, 100_000)


FIT = {"name": "im1", "seed": 0, "input_psnr": 24.0, "psnr": 33.5, "ssim": 0.93, "two_stage_psnr": 34.5, "seconds": 20.0}
FITTED = {"images": [FIT, FIT], "psnr": 33.5, "two_stage_psnr": 34.5, "seconds": 24.0, "seconds_per_image": 12.0}
FITTED |= {"first_s": 31.0, "steps": 5000, "together": 2, "kernel_size": 17, "peak_mb": None, "resumed": False}
STEP = {"step_ms": 4.0, "compile_s": 20.0, "peak_mb": None, "planned_mb": 900.0, "flops": 150e9, "bytes": 4e9}
SHEET = {"bytes_per_s": 3.35e12, "float32": 67e12, "tensorfloat32": 494e12, "bfloat16": None}
ITEMS = {
    "numerics/card": {"kind": "NVIDIA H100", "sheet": SHEET, "measured": {**SHEET, "bytes_per_s": 2e12, "bfloat16": 7e14}},
    "numerics/operators": {"errors": {"highest": {"blur": 1e-7}, "default": {"blur": 2e-4}}, "ok": True},
    "numerics/generators": {"errors": {"skip": {"highest": {"output": 1e-3}}}, "ok": False},
    "steps/selfdeblur": STEP,
    "steps_torch/selfdeblur": {"step_ms": 8.0, "compile_s": 0.0, "peak_mb": 1000.0},
    "steps_torch/selfdeblur_compiled": {"step_ms": 5.0, "compile_s": 40.0, "peak_mb": 800.0},
    "fits/selfdeblur_17px": FITTED,
    "restarts/selfdeblur_x1": {**FITTED, "num_restarts": 1},
    "restarts/selfdeblur_x8": {**FITTED, "num_restarts": 8, "seconds": 48.0},
    "classical/fast_sample": {"input_psnr": 25.0, "psnr": 30.0, "seconds": 2.0, "first_s": 9.0, "same_twice": True},
    "classical_cpu/fast_sample": {"input_psnr": 25.0, "psnr": 30.5, "seconds": 9.0, "first_s": 20.0, "same_twice": True},
    "training/compare": {
        "input_psnr": 22.0,
        "sparse_psnr": 31.0,
        "dwdn_psnr": 31.5,
        "cases": 6,
        "by_noise": [{"noise_std": 0.01, "cases": 6, "input_psnr": 22.0, "sparse_psnr": 31.0, "dwdn_psnr": 31.5}],
    },
}


def test_claims_are_judged_by_what_was_measured():
    found = {claim.text: claim for claim in report.claims(report.Results(CARD, ITEMS, {}))}
    assert found["numerics: checks in full float32 that fail"].value == 1
    assert found["5000 steps of selfdeblur at 255×255, once compiled"].holds is False
    assert found["eight restarts beside one, in time"].value == 2.0
    assert found["eight restarts beside one, in time"].holds is True
    assert found["our step of selfdeblur beside PyTorch's"].value == 0.5
    assert found["our step of mc beside PyTorch's"].holds is None
    assert found["largest difference to the processor's result"].value == pytest.approx(0.5)
    assert found["largest difference to the processor's result"].holds is False
    assert found["sparse prior ahead of the trained DWDN"].holds is True
    assert all(claim.value is None for claim in report.claims(report.Results(CARD, {}, {})))


def test_the_report_tells_figures_and_gaps(tmp_path):
    without = {"steps/mc": "failed: RESOURCE_EXHAUSTED: a | b"}
    found = report.Results({**CARD, "dry_run": False}, ITEMS, without)
    text = report.markdown(found, plan.parts())
    assert "# The accelerator pack: NVIDIA H100 80GB HBM3" in text
    assert "dry run" not in text
    assert "more than one state" not in text
    assert "more than one state" in report.markdown(
        dataclasses.replace(found, sources=("0.2.0 (a)", "0.2.0 (b)")), plan.parts()
    )
    # 4 GB at 3.35 TB/s take longer than 150 GFLOP at 494 TFLOP/s; at the measured 2 TB/s half of the step's time.
    assert "| selfdeblur | 4.00 | 8.00 | 5.00 | 1.19 | 2.00 | 50 | 20.0 | 40.0 | – | 1000 | 800 | 900 | 150.0 | 4.00 |" in text
    assert "| selfdeblur_17px | im1 | 2 | 24.00 | 33.50, 33.50 | 33.50 | 34.50 | 12.0 | 24.0 | 31.0 | – |" in text
    assert "| steps/mc | failed: RESOURCE_EXHAUSTED: a \\| b |" in text
    assert "| weak/weak_none | not asked for |" in text
    assert "| fast_sample | 25.00 | 30.00 | 30.50 | 2.00 | 9.00 | 9.00 | 20.00 | -0.50 | yes |" in text
    report.draw(found, tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as figure:
        assert min(figure.size) > 400
    assert "| our step of selfdeblur beside PyTorch's | 0.50 × | 0.7 × | yes |" in text
    # Toys say nothing of a card.
    toy = report.markdown(report.Results({**CARD, "dry_run": True}, ITEMS, {}), plan.parts())
    assert "| our step of selfdeblur beside PyTorch's | 0.50 × | 0.7 × | not judged |" in toy
    empty = report.Results({"dry_run": True}, {}, {})
    assert "no figure here means anything" in report.markdown(empty, plan.parts())
    report.draw(empty, tmp_path / "empty.png")


def test_what_was_restored_is_shown(tmp_path):
    store = Store(tmp_path)
    store.save("fits/a", {}, {"x_restored": np.full((8, 8), 0.5), "x_kernel": np.eye(3)})
    records = {"fits/a": store.load("fits/a"), "fits/adopted": {"arrays": ["x_restored"]}, "steps/a": {}}
    report.draw_images(store, records, tmp_path / "images.png")
    with Image.open(tmp_path / "images.png") as figure:
        assert min(figure.size) > 200
    report.draw_images(store, {}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_bfloat16_is_rounded_to_inside_and_nowhere_else():
    from experiments.accelerator import numerics
    from jaxdeblur.networks import layers

    image, matrix = np.full((1, 1), 1.001, np.float32), np.ones((1, 1), np.float32)
    usual = layers.channel_product
    with numerics.precision("bfloat16"):
        assert float(layers.conv1x1(image, matrix)[0, 0]) == 1.0
    assert layers.channel_product is usual
    with numerics.precision("highest"):
        assert float(layers.conv1x1(image, matrix)[0, 0]) == pytest.approx(1.001, abs=1e-6)


@pytest.mark.slow(minutes=5)
def test_a_dry_run_goes_through_everything(tmp_path):
    pytest.importorskip("torch", reason="half of the pack is a comparison with it")
    arguments = [
        sys.executable,
        "-m",
        "experiments.accelerator",
        f"--output_dir={tmp_path}",
        "--dry_run",
        "--budget_minutes=30",
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    log = (tmp_path / "log.txt").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log[-3000:]
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found["items"]) == {f"{part.name}/{item.name}" for part, item in plan.named(plan.parts(toy=True))}
    text = (tmp_path / "report.md").read_text()
    assert "Not measured" not in text
    assert "everything has been measured" in text
    assert found["items"]["numerics/gradients"]["figures"]["ok"]
    assert found["items"]["numerics/generators"]["figures"]["ok"]
    for name in ("report.png", "images.png", "dwdn.msgpack"):
        assert (tmp_path / name).stat().st_size > 1000
    assert not list((tmp_path / "work").glob("*.checkpoint*"))
