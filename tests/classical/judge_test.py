import math

import numpy as np
import pytest

from jaxdeblur.classical.judge import descent_softness_std, judge, ranked, score
from jaxdeblur.config import InitialiserConfig
from tests.scenes import scene


def test_score_adds_the_prior_to_the_evidence():
    assert score(-3.0, np.full((3, 3), 1 / 9), 0.5) == pytest.approx(-3.0 + 0.5 * 3.0)
    assert score(math.nan, np.full((3, 3), 1 / 9), 0.5) == math.inf


def test_of_kernels_that_explain_alike_the_thinner_one_is_chosen():
    kernel = np.pad(scene().kernel, 4)
    faint = np.full_like(kernel, 2e-4)
    mass = {"thin": kernel, "with spurious mass": (kernel + faint) / (kernel + faint).sum()}
    scores = {
        thinness: judge(scene().blurry, mass, InitialiserConfig(descent_thinness=thinness), noise_std=0.01)
        for thinness in (0.0, 0.05)
    }
    gaps = {thinness: found["with spurious mass"] - found["thin"] for thinness, found in scores.items()}
    penalties = {name: np.sqrt(kernel).sum() for name, kernel in mass.items()}
    assert gaps[0.05] - gaps[0.0] == pytest.approx(0.05 * (penalties["with spurious mass"] - penalties["thin"]), rel=1e-2)


def test_a_single_kernel_is_not_judged():
    assert math.isnan(judge(scene().blurry, {"only": scene().kernel}, InitialiserConfig(), noise_std=0.01)["only"])


@pytest.mark.parametrize(("noise_std", "expected"), [(0.0, 0.6), (0.002, 0.6), (0.006, 0.5), (0.01, 0.4), (0.1, 0.4)])
def test_the_softness_falls_with_the_noise(noise_std, expected):
    config = InitialiserConfig(descent_softness_std=0.6, noisy_descent_softness_std=0.4)
    assert descent_softness_std(config, noise_std=noise_std) == pytest.approx(expected)


@pytest.mark.parametrize(("lead", "first"), [(0.005, "a, descended"), (0.015, "b")])
def test_kernels_lead_one_that_has_descended_by_something_or_not_at_all(lead, first):
    scores = {"unknown": math.nan, "a": -2.9, "a, descended": -3.0, "b": -3.0 - lead}
    order = ranked(scores, InitialiserConfig(smallest_lead=0.01))
    assert order[0] == first
    assert order[2:] == ["a", "unknown"]
