import numpy as np
import pytest

from experiments.fast_finish import compare
from experiments.files import as_jpeg
from tests.scenes import scene


@pytest.mark.slow
def test_both_ways_are_compared_with_the_truth():
    known = scene(colour=True)
    found = compare(known.blurry, known.sharp, known.kernel)
    assert min(found.usual, found.fast) > 25.0
    assert abs(found.usual - found.fast) < 1.0
    assert 0.0 < found.mean < found.largest < 0.5
    assert min(found.usual_seconds, found.fast_seconds) > 0.0


def test_a_jpeg_is_as_lossy_as_asked_for():
    levels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    fine, coarse = (np.abs(as_jpeg(levels, quality).astype(int) - levels).mean() for quality in (95, 20))
    assert 0.0 < fine < coarse
