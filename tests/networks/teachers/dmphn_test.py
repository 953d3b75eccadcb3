"""DMPHN: parity with a PyTorch twin, published weights or random ones; any size, grey and colour; its gradient."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.imaging.colour import luma
from jaxdeblur.imaging.reading import read_image
from jaxdeblur.networks.teachers import dmphn
from jaxdeblur.networks.teachers.weights import load_teacher

SHARED = pathlib.Path(__file__).parents[3] / "../shared"
PUBLISHED = SHARED / "weights/dmphn_1_2_4_8"
TOLERANCE = 1e-4

pytestmark = pytest.mark.usefixtures("light_compilation")


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(dmphn.Dmphn().init, jax.random.key(0), jnp.zeros((16, 8, 3)))
    generator = np.random.default_rng(0)

    def draw(shape):
        # Features neither grow nor fade from level to level.
        return generator.normal(0, 0.8 / np.sqrt(np.prod(shape[:-1])), shape).astype(np.float32)

    return jax.tree.map(lambda leaf: draw(leaf.shape), shapes["params"])


@pytest.fixture(scope="module")
def twins():
    pytest.importorskip("torch", reason="parity needs torch (the dev extra)")
    return pytest.importorskip("tests.networks.teachers.torch_teachers")


def _parts(twin):
    """Encoders and decoders by the names of their checkpoints."""
    return {f"{kind}_lv{n + 1}": part for kind in ("encoder", "decoder") for n, part in enumerate(getattr(twin, f"{kind}s"))}


def _through_twin(twin, image):
    """The twin on ``[H, W, 3]``, extended by reflection and cut."""
    import torch

    height, width = image.shape[:2]
    batch = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    batch = torch.nn.functional.pad(batch, (0, -width % 8, 0, -height % 16), mode="reflect")
    with torch.no_grad():
        return twin(batch)[0, :, :height, :width].numpy().transpose(1, 2, 0)


@pytest.mark.slow
def test_published_weights_agree_with_the_twin_on_a_photograph(twins):
    import torch

    photograph = SHARED / "data/real/toy.png"
    for path in (PUBLISHED, photograph):
        if not path.exists():
            pytest.skip(f"needs {path}")
    twin = twins.Dmphn()
    for name, part in _parts(twin).items():
        part.load_state_dict(torch.load(PUBLISHED / f"{name}.pkl", map_location="cpu", weights_only=True))
    # Large enough for every way that a convolution has, and odd.
    image = read_image(photograph).pixels[200:275, 200:301]
    restored = jax.jit(dmphn.restore)(load_teacher("dmphn", PUBLISHED), image)
    np.testing.assert_allclose(restored, _through_twin(twin, image), atol=TOLERANCE)


@pytest.mark.slow
def test_grey_is_given_as_three_channels_and_comes_back_as_luma(twins, tmp_path):
    import torch

    torch.manual_seed(0)
    twin = twins.Dmphn()
    for name, part in _parts(twin).items():
        torch.save(part.state_dict(), tmp_path / f"{name}.pt")
    image = np.random.default_rng(0).random((33, 26), np.float32)
    expected = luma(_through_twin(twin, np.stack([image] * 3, -1)))
    restored = jax.jit(dmphn.restore)(load_teacher("dmphn", tmp_path), image)
    assert np.std(expected) > 1e-3
    np.testing.assert_allclose(restored, expected, atol=TOLERANCE)


@pytest.mark.slow
def test_mapped_over_restarts_it_equals_single_calls(params):
    images = jax.random.uniform(jax.random.key(1), (2, 16, 11))
    together = jax.jit(jax.vmap(dmphn.restore, (None, 0)))(params, images)
    single = jax.jit(dmphn.restore)
    np.testing.assert_allclose(together, [single(params, image) for image in images], atol=1e-5)


@pytest.mark.slow
def test_gradient_of_the_regression_term_is_that_of_finite_differences(params):
    observed, reblurred, direction = np.random.default_rng(1).random((3, 16, 8))
    # In double precision a step can be so short that it passes no kink of a rectifier.
    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        answer = jax.jit(dmphn.restore)(double, observed)
        regression = jax.jit(jax.value_and_grad(lambda image: jnp.linalg.norm(answer - dmphn.restore(double, image))))
        step = 1e-7
        above, below = (float(regression(reblurred + sign * step * direction)[0]) for sign in (1, -1))
        slope = np.vdot(regression(reblurred)[1], direction)
    assert abs(slope) > 1e-3
    np.testing.assert_allclose(slope, (above - below) / (2 * step), rtol=1e-4)


@pytest.mark.parametrize("shape", [(15, 40), (40, 7), (40, 40, 4), (40,)])
def test_images_that_it_cannot_take_are_refused(params, shape):
    with pytest.raises(AssertionError):
        dmphn.restore(params, jnp.zeros(shape))
