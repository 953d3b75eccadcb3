"""Made-up camera shake."""

import numpy as np
import pytest

from jaxdeblur.operators.trajectories import motion_kernel


@pytest.mark.parametrize("size", [3, 5, 21, 55])
def test_kernels_are_kernels_that_fill_their_support_up_to_the_margin(size):
    kernel = motion_kernel(4, size=size)
    assert kernel.shape == (size, size)
    assert kernel.dtype == np.float32
    assert kernel.min() >= 0
    np.testing.assert_allclose(kernel.sum(), 1, atol=1e-6)
    reach = [np.flatnonzero(kernel.sum(axis) > 0) for axis in (0, 1)]
    assert max(int(indices[-1] - indices[0]) for indices in reach) >= size - 3


def test_a_seed_gives_one_kernel_and_seeds_differ():
    first = motion_kernel(4, size=21)
    np.testing.assert_array_equal(first, motion_kernel(np.random.default_rng(4), size=21))
    assert np.abs(first - motion_kernel(5, size=21)).max() > 0.01


def test_a_generator_goes_on_from_where_the_kernel_left_it():
    generator = np.random.default_rng(4)
    first, second = (motion_kernel(generator, size=21) for _ in range(2))
    assert np.abs(first - second).max() > 0.01


@pytest.mark.parametrize("size", [1, 20])
def test_even_and_tiny_supports_are_refused(size):
    with pytest.raises(AssertionError):
        motion_kernel(0, size=size)
