"""The PyTorch side of the benchmarks: its losses are ours, and its steps go down."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import steppers
from experiments.accelerator import sizes
from jaxdeblur.operators import blur
from jaxdeblur.optimise import losses

torch = pytest.importorskip("torch", reason="parity needs torch (the dev extra)")
torch_twin = pytest.importorskip("experiments.torch_twin")

SHAPE, KERNEL_SHAPE = (24, 26), (5, 7)


@pytest.mark.parametrize("name", sorted(torch_twin._TERMS))
def test_loss_terms_are_ours(name):
    generator = np.random.default_rng(0)
    latent = blur.latent_shape(SHAPE, KERNEL_SHAPE)
    image, kernel, blurry, surrogate = (generator.random(shape, np.float32) for shape in (latent, KERNEL_SHAPE, SHAPE, SHAPE))
    kernel /= kernel.sum()
    estimate = losses.Estimate(
        jnp.asarray(image), jnp.asarray(kernel), blur.blur_valid(jnp.asarray(image), jnp.asarray(kernel))
    )
    ours = losses.term(name, estimate, losses.Observation(jnp.asarray(blurry), surrogate=jnp.asarray(surrogate)))

    whole, seen, weak = (torch.from_numpy(array)[None, None] for array in (image, blurry, surrogate))
    reblurred = torch.nn.functional.conv2d(whole, torch.from_numpy(kernel).flip(0, 1)[None, None])
    theirs = torch_twin._TERMS[name](whole, torch.from_numpy(kernel), reblurred, seen, weak, torch_twin.ssim_window(whole))
    assert float(ours) == pytest.approx(float(theirs), rel=1e-4)


@pytest.fixture
def one_thread():
    """Steps of such sizes are faster than the threads that would share them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("preset", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("mc", "staged")), "weak_dmphn"])
def test_steps_go_down(preset):
    torch.manual_seed(0)
    fit = sizes.preset(preset, toy=True).fit
    surrogate = steppers.random_image(SHAPE) if preset.startswith("weak") else None
    twin = torch_twin.Fit(steppers.random_image(SHAPE), fit, KERNEL_SHAPE, surrogate=surrogate)
    assert twin.sequential == (preset == "mc")
    kernel = twin.kernel_net(twin.kernel_latent)
    assert tuple(kernel.shape[-2:]) == KERNEL_SHAPE
    assert kernel.sum().item() == pytest.approx(1.0, abs=1e-5)
    before = [parameter.detach().clone() for net in (twin.image_net, twin.kernel_net) for parameter in net.parameters()]
    values = [float(twin.step()) for _ in range(15)]
    after = [parameter for net in (twin.image_net, twin.kernel_net) for parameter in net.parameters()]
    assert np.mean(values[-3:]) < values[0]
    moved = [bool((a != b).any()) for a, b in zip(after, before, strict=True)]
    assert moved[0]
    assert moved[-1]


def test_what_has_no_twin_is_refused():
    fit = sizes.preset("selfdeblur", toy=True).fit
    blurry = steppers.random_image(SHAPE)
    for changed, line in (
        ({"update": "alternating"}, "alternating"),
        ({"num_samples": 2}, "several samples"),
        ({"loss_intervals": sizes.preset("weak_dwdn_beta", toy=True).fit.loss_intervals}, "teacher_agreement"),
    ):
        with pytest.raises(ValueError, match=line):
            torch_twin.Fit(blurry, dataclasses.replace(fit, **changed), KERNEL_SHAPE)
