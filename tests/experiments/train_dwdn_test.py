"""Training of DWDN: an interrupted run equals an unbroken one, and what it writes is a teacher."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.ndimage

from experiments import train_dwdn
from jaxdeblur.errors import InputError
from jaxdeblur.networks.teachers import dwdn
from jaxdeblur.networks.teachers.weights import load_teacher

pytestmark = pytest.mark.usefixtures("light_compilation")

# That of the command below too, whose programs are then compiled already.
CONFIG = train_dwdn.TrainConfig(
    dwdn.DwdnConfig(features=2, widths=(3, 4), num_residual_blocks=1),
    num_steps=4,
    batch_size=2,
    crop=32,
    kernel_sizes=(5, 7),
    learning_rate=1e-3,
    validate_every=2,
    seed=0,
)


@pytest.fixture(scope="module")
def image():
    noise = np.random.default_rng(0).random((70, 80))
    return np.clip(scipy.ndimage.gaussian_filter(noise, 1.5) * 3 - 1, 0, 1).astype(np.float32)


@pytest.mark.slow
def test_a_run_that_was_interrupted_equals_an_unbroken_one(image, tmp_path):
    cases = train_dwdn.held_out_cases({"held_out": image}, CONFIG.kernel_sizes, 0)
    states = []
    for name, stops in (("unbroken", (None,)), ("interrupted", (2, None))):
        folder = tmp_path / name
        folder.mkdir()
        for stop in stops:
            state = train_dwdn.train(CONFIG, [image], cases, folder, last_step=stop)
        states.append(state)
    assert int(states[1].step) == CONFIG.num_steps
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert (tmp_path / "unbroken/curve.csv").read_text() == (tmp_path / "interrupted/curve.csv").read_text()
    fresh = train_dwdn.make_step(CONFIG)[0](jax.random.key(CONFIG.seed))
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (fresh.params, states[0].params)), strict=True))

    teacher = load_teacher("dwdn", tmp_path / "unbroken/dwdn.msgpack")
    jax.tree.map(np.testing.assert_array_equal, teacher, states[0].best_params)

    wider = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, features=3))
    with pytest.raises(InputError, match="another --output_dir"):
        train_dwdn.train(wider, [image], cases, tmp_path / "unbroken")
    (tmp_path / "unbroken/checkpoint.msgpack").write_bytes(b"damaged")
    with pytest.raises(InputError, match="another --output_dir"):
        train_dwdn.train(CONFIG, [image], cases, tmp_path / "unbroken")


def test_examples_depend_on_seed_and_step_alone(image):
    kernels = train_dwdn.kernel_bank(CONFIG.kernel_sizes, 0, count=8)
    np.testing.assert_allclose(kernels.sum((1, 2)), 1, atol=1e-5)
    first = train_dwdn.draw_batch([image], kernels, CONFIG, 3)
    assert [part.shape for part in first] == [(2, 38, 38), (2, 7, 7), (2, 32, 32)]
    for same, other in zip(first, train_dwdn.draw_batch([image], kernels, CONFIG, 3), strict=True):
        np.testing.assert_array_equal(same, other)
    assert np.any(first[0] != train_dwdn.draw_batch([image], kernels, CONFIG, 4)[0])


def test_held_out_cases_are_blurred_versions_of_their_image(image):
    cases = train_dwdn.held_out_cases({"held_out": image}, (5, 7), 0)
    assert len({case.noise_std for case in cases}) == len(cases) == 3
    for case in cases:
        assert case.blurry.shape == case.sharp.shape
        assert 10 < train_dwdn.case_psnr(case, case.blurry) < 60
        assert train_dwdn.case_psnr(case, case.sharp) == float("inf")


def test_images_that_are_too_small_are_a_one_line_error(tmp_path):
    import imageio.v3 as iio

    iio.imwrite(tmp_path / "small.png", np.zeros((40, 40), np.uint8))
    with pytest.raises(InputError, match="at least 64 pixels"):
        train_dwdn.read_images(str(tmp_path), 64)
    assert list(train_dwdn.read_images(str(tmp_path), 32)) == ["small.png"]


@pytest.mark.slow
def test_the_command_from_a_folder_of_images_to_a_teacher(image, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="draws the curve (extra 'eval')")
    import imageio.v3 as iio

    monkeypatch.setenv("JAXDEBLUR_HUGE_PAGES", "0")
    (tmp_path / "images").mkdir()
    for number, turned in enumerate((image, image.T, image[::-1])):
        iio.imwrite(tmp_path / "images" / f"{number}.png", np.rint(turned * 255).astype(np.uint8))
    flags = [f"--data_dir={tmp_path / 'images'}", f"--output_dir={tmp_path / 'out'}", "--features=2", "--widths=3,4"]
    flags += ["--num_blocks=1", "--num_steps=4", "--validate_every=2", "--batch_size=2", "--crop=32", "--kernel_sizes=5,7"]
    assert train_dwdn.main(["train_dwdn", *flags]) == 0

    told = capsys.readouterr().out
    assert "training on 2 images, held out: 0.png" in told
    assert "sparse" in told.splitlines()[-5]
    assert told.splitlines()[-1].split()[:2] == ["all", "3"]
    assert load_teacher("dwdn", tmp_path / "out/dwdn.msgpack")
    assert len((tmp_path / "out/curve.csv").read_text().splitlines()) == 3
    curve = iio.imread(tmp_path / "out/curve.png")
    assert min(curve.shape[:2]) > 300
    assert len(np.unique(curve.reshape(-1, curve.shape[-1]), axis=0)) > 50
