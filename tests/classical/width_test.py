import dataclasses

import numpy as np
import pytest

from jaxdeblur.classical.width import widened, width_std
from jaxdeblur.config import InitialiserConfig
from jaxdeblur.errors import InputError

CONFIG = InitialiserConfig(kernel_width_stds=(0.4, 0.6))


def line(length, side=61):
    """``[side, side]``: a horizontal line in the middle."""
    kernel = np.zeros((side, side), np.float32)
    start = (side - length) // 2
    kernel[side // 2, start : start + length] = 1.0 / length
    return kernel


@pytest.mark.parametrize(("noise_std", "expected"), [(0.0, 0.4), (0.002, 0.4), (0.006, 0.5), (0.01, 0.6), (0.02, 0.6)])
def test_the_width_grows_with_the_noise(noise_std, expected):
    assert width_std(CONFIG, noise_std=noise_std) == pytest.approx(expected)


def test_a_gaussian_of_that_width_is_added_to_the_variance():
    kernel = widened(line(15), CONFIG, noise_std=0.01)
    across = kernel.sum(1)
    places = np.arange(61) - 30
    assert kernel.dtype == np.float32
    assert kernel.sum() == pytest.approx(1.0, abs=1e-6)
    assert kernel.min() >= 0.0
    assert across @ places == pytest.approx(0.0, abs=1e-6)
    # Sampled at whole pixels it is a little narrower.
    assert across @ places**2 == pytest.approx(0.6**2, rel=0.05)


def test_what_would_leave_the_support_is_lost():
    kernel = widened(np.full((3, 3), 1 / 9, np.float32), CONFIG, noise_std=0.0)
    assert kernel.shape == (3, 3)
    assert kernel.sum() == pytest.approx(1.0, abs=1e-6)
    assert kernel[1, 1] > kernel[0, 0]


def test_widths_of_zero_leave_it_as_it_is():
    kernel, config = line(15), InitialiserConfig(kernel_width_stds=(0.0, 0.0))
    np.testing.assert_allclose(widened(kernel, config, noise_std=0.01), kernel, rtol=1e-6)


@pytest.mark.parametrize("widths", [(0.5, 0.4), (-0.1, 0.4)])
def test_widths_in_the_wrong_order_are_refused(widths):
    with pytest.raises(InputError, match="kernel_width_stds"):
        dataclasses.replace(CONFIG, kernel_width_stds=widths)
