import math

import numpy as np
import pytest

from jaxdeblur.classical.judge import judge, score
from jaxdeblur.config import InitialiserConfig
from tests.scenes import scene


def test_score_adds_the_prior_to_the_evidence():
    config = InitialiserConfig(judging_thinness=0.5)
    assert score(-3.0, np.full((3, 3), 1 / 9), config) == pytest.approx(-3.0 + 0.5 * 3.0)
    assert score(math.nan, np.full((3, 3), 1 / 9), config) == math.inf


def test_of_kernels_that_explain_alike_the_thinner_one_is_chosen():
    kernel = np.pad(scene().kernel, 4)
    faint = np.full_like(kernel, 2e-4)
    mass = {"thin": kernel, "with spurious mass": (kernel + faint) / (kernel + faint).sum()}
    scores = {
        thinness: judge(scene().blurry, mass, InitialiserConfig(judging_thinness=thinness), noise_std=0.01)
        for thinness in (0.0, 0.05)
    }
    gaps = {thinness: found["with spurious mass"] - found["thin"] for thinness, found in scores.items()}
    penalties = {name: np.sqrt(kernel).sum() for name, kernel in mass.items()}
    assert gaps[0.05] - gaps[0.0] == pytest.approx(0.05 * (penalties["with spurious mass"] - penalties["thin"]), rel=1e-2)


def test_a_single_kernel_is_not_judged():
    assert math.isnan(judge(scene().blurry, {"only": scene().kernel}, InitialiserConfig(), noise_std=0.01)["only"])
