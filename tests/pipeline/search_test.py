"""Further attempts at a kernel: which are made, what becomes of them, and what ends the search."""

import dataclasses
import math
import time

import jax
import numpy as np
import pytest

from jaxdeblur import InputError, deblur
from jaxdeblur.classical.initialiser import KernelEstimate
from jaxdeblur.config import Config, FitConfig, KernelLogitsConfig, LossInterval, SkipNetConfig
from jaxdeblur.errors import Terminated
from jaxdeblur.pipeline import search as search_module
from jaxdeblur.pipeline import stages
from jaxdeblur.pipeline.search import ATTEMPTS, Attempt, search
from jaxdeblur.presets import PRESETS
from tests.scenes import QUICK, scene

KEY = jax.random.key(0)
NOT_CLIPPED = 0.9 * scene().blurry  # where a wrong kernel is found, it is not sought again without bright pixels
CLASSICAL = Config(initialiser=QUICK, kernel_size=11)


def kernel(seed):
    """``[11, 11]``, as different from those of other seeds as kernels are."""
    values = np.random.default_rng(seed).random((11, 11)).astype(np.float32) ** 8
    return values / values.sum()


class FakeCase:
    """What :func:`search` sees of a case; kernels are as good as ``scores`` says."""

    def __init__(self, **kernels):
        self.kernels, self.scores, self.measured = kernels, {}, None
        self.scene = dataclasses.make_dataclass("Scene", ["grey", "window", "initialiser", "kernel_noise_std"])(
            np.zeros((8, 8)), (slice(None), slice(None)), QUICK, 0.0
        )


@pytest.fixture
def scores(monkeypatch):
    """Of each name, to be filled in by the test: lower is better."""
    known = {}
    monkeypatch.setattr(
        search_module,
        "judge",
        lambda blurry, kernels, config, *, noise_std: {name: known[name.rpartition(" ")[2]] for name in kernels},
    )
    return known


def attempts_that_find(*found):
    """An ``attempt_at`` that finds these, one after the other."""
    remaining = iter(found)
    return lambda case, attempt, progress: next(remaining)


class TestSearch:
    def test_the_best_kernel_comes_first_and_two_of_each_attempt_are_kept(self, scores):
        case = FakeCase(a=kernel(0))
        scores |= {"a": 2.0, "b": 1.0, "c": 3.0, "d": 0.0, "e": 0.5}
        finds = attempts_that_find({"b": kernel(1), "c": kernel(2), "d": kernel(3)}, {"e": kernel(4)})
        found = search(case, finds, content=lambda: True, most=2)
        assert (found.attempts, found.cut) == (2, False)
        assert list(case.kernels) == ["attempt 3: e", "attempt 2: b", "a", "attempt 2: c"]
        assert case.scores["a"] == 2.0

    @pytest.mark.parametrize(("content", "attempts"), [(True, 2), (False, len(ATTEMPTS))])
    def test_it_ends_when_two_attempts_agree_on_the_best(self, scores, content, attempts):
        case = FakeCase(a=kernel(0))
        scores |= {"a": 2.0, "b": 1.0}
        shifted = np.roll(kernel(1), 1, axis=0)
        finds = attempts_that_find({"b": kernel(1)}, {"b": shifted}, *({"b": kernel(seed)} for seed in range(5, 9)))
        found = search(case, finds, content=lambda: content, most=None)
        assert found.attempts == attempts

    def test_agreement_on_what_is_not_the_best_does_not_count(self, scores):
        case = FakeCase(a=kernel(0))
        scores |= {"a": 1.0, "b": 2.0}
        finds = attempts_that_find(*[{"b": kernel(1)}] * len(ATTEMPTS))
        assert search(case, finds, content=lambda: True, most=None).attempts == len(ATTEMPTS)

    def test_what_begins_with_the_best_kernel_does_not_agree_with_it(self, scores, monkeypatch):
        monkeypatch.setattr(search_module, "ATTEMPTS", (Attempt(fit=PRESETS["deep"].fit), Attempt(support_share=0.5)))
        case = FakeCase(a=kernel(0))
        scores |= {"a": 1.0, "b": 2.0}
        finds = attempts_that_find({"b": kernel(0)}, {"b": kernel(0)})
        assert search(case, finds, content=lambda: True, most=None).attempts == 2

    def test_a_number_of_attempts_is_made_whatever_comes_of_them(self, scores):
        case = FakeCase(a=kernel(0))
        scores |= {"a": 1.0, "b": 2.0}
        finds = attempts_that_find({"b": kernel(0)}, {}, {"b": kernel(0)})
        assert search(case, finds, content=lambda: True, most=3).attempts == 3

    def test_no_attempt_begins_after_the_time(self, scores):
        case = FakeCase(a=kernel(0))
        found = search(case, attempts_that_find(), content=lambda: True, most=None, until=time.monotonic() - 1.0)
        assert (found.attempts, list(case.kernels)) == (0, ["a"])

    def test_no_attempt_begins_that_would_not_end_in_time(self, scores):
        def slow(case, attempt, progress):
            time.sleep(0.2)
            return {"b": kernel(1)}

        case = FakeCase(a=kernel(0))
        scores |= {"a": 1.0, "b": 2.0}
        assert search(case, slow, content=lambda: True, most=None, until=time.monotonic() + 0.3).attempts == 1

    def test_time_that_is_over_ends_an_attempt(self, scores):
        def long_one(case, attempt, progress):
            for step in range(100):
                time.sleep(0.01)
                progress("kernel", step, 100, {})
            raise AssertionError

        case = FakeCase(a=kernel(0))
        found = search(case, long_one, content=lambda: True, most=None, until=time.monotonic() + 0.05)
        assert (found.attempts, found.cut, list(case.kernels)) == (0, False, ["a"])

    def test_progress_says_which_attempt_it_is(self, scores):
        def attempt_at(case, attempt, progress):
            progress("kernel", 1, 2, {"loss": 3.0})
            return {"b": kernel(1)}

        calls = []
        scores |= {"a": 1.0, "b": 2.0}
        search(FakeCase(a=kernel(0)), attempt_at, content=lambda: True, most=1, progress=lambda *call: calls.append(call))
        assert calls == [("attempt 2: kernel", 1, 2, {"loss": 3.0})]

    @pytest.mark.parametrize("stop", [KeyboardInterrupt, Terminated])
    def test_ctrl_c_ends_the_search_and_sigterm_everything(self, scores, stop):
        def attempt_at(case, attempt, progress):
            if len(case.kernels) == 1:
                return {"b": kernel(1)}
            raise stop

        case = FakeCase(a=kernel(0))
        scores |= {"a": 2.0, "b": 1.0}
        if stop is Terminated:
            with pytest.raises(Terminated):
                search(case, attempt_at, content=lambda: True, most=None)
        else:
            found = search(case, attempt_at, content=lambda: True, most=None)
            assert (found.attempts, found.cut) == (1, True)
            assert list(case.kernels) == ["attempt 2: b", "a"]


@pytest.fixture
def estimates(monkeypatch):
    """Stands in for the classical estimate: the first one finds a wrong kernel, the second the true one; tells of its calls."""
    calls = []

    def estimate_kernel(blurry, config, *, kernel_size, first_size, **_):
        calls.append((kernel_size, first_size))
        side = kernel_size or 11
        true = np.pad(scene().kernel, (side - 9) // 2)
        wrong = np.eye(side, dtype=np.float32)[::-1] / side
        named = {"classical": wrong if len(calls) == 1 else true}
        return KernelEstimate(named, {"classical": math.nan}, (), False)

    monkeypatch.setattr(stages, "estimate_kernel", estimate_kernel)
    monkeypatch.setattr(search_module, "ATTEMPTS", (Attempt(support_share=0.8), Attempt(support_share=1.42)))
    return calls


class TestDeblur:
    @pytest.mark.slow
    def test_the_better_kernel_makes_the_image(self, estimates):
        result = deblur(NOT_CLIPPED, dataclasses.replace(CLASSICAL, kernel_size=None), key=KEY, time_budget=600.0)
        assert estimates == [(None, None), (None, 25), (None, 45)]
        assert result.more_attempts == 2
        assert result.chosen.startswith("attempt 2: classical kernel")
        assert [candidate.name for candidate in result.candidates if candidate.chosen] == ["attempt 2: classical"]
        assert not any("search" in warning for warning in result.warnings)

    def test_a_size_that_was_given_is_kept(self, estimates):
        result = deblur(NOT_CLIPPED, dataclasses.replace(CLASSICAL, more_attempts=2), key=KEY)
        assert estimates == [(11, None), (9, None)]
        assert result.kernel.shape == (11, 11)
        assert result.more_attempts == 2

    def test_as_many_attempts_as_there_were_give_the_same_bytes(self, estimates):
        config = dataclasses.replace(CLASSICAL, kernel_size=None)
        first = deblur(NOT_CLIPPED, config, key=KEY, time_budget=600.0)
        estimates.clear()
        again = deblur(NOT_CLIPPED, dataclasses.replace(config, more_attempts=first.more_attempts), key=KEY)
        np.testing.assert_array_equal(again.restored, first.restored)
        np.testing.assert_array_equal(again.kernel, first.kernel)

    def test_ctrl_c_takes_the_best_so_far(self, estimates):
        def impatient(phase, *_):
            if phase.startswith("attempt 3"):
                raise KeyboardInterrupt

        def attempt(case, attempt, progress, original=stages._attempt):
            progress("kernel", 0, 1, {})
            return original(case, attempt, progress)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stages, "_attempt", attempt)
            config = dataclasses.replace(CLASSICAL, kernel_size=None)
            result = deblur(NOT_CLIPPED, config, key=KEY, time_budget=600.0, progress=impatient)
        assert result.more_attempts == 1
        assert result.chosen.startswith("attempt 2: classical kernel")
        assert any("search" in warning for warning in result.warnings)

    def test_what_does_not_search_is_refused(self):
        with pytest.raises(InputError, match="no further attempts"):
            deblur(scene().blurry, PRESETS["selfdeblur_small"], key=KEY, time_budget=60.0)
        with pytest.raises(InputError, match="time budget"):
            deblur(scene().blurry, CLASSICAL, key=KEY, time_budget=math.nan)
        with pytest.raises(InputError, match="further attempts"):
            dataclasses.replace(PRESETS["selfdeblur_small"], more_attempts=1)
        with pytest.raises(InputError, match="negative"):
            dataclasses.replace(CLASSICAL, more_attempts=-1)


@pytest.mark.slow
def test_a_real_search_with_a_deep_prior(monkeypatch):
    fit = FitConfig(
        image_generator=SkipNetConfig(num_scales=1, channels=4, skip_channels=2, latent_channels=2, non_local=False),
        kernel_generator=KernelLogitsConfig(),
        num_iterations=4,
        loss_intervals=(LossInterval(0, (("mse", 1.0),)),),
        chunk_size=2,
    )
    monkeypatch.setattr(search_module, "ATTEMPTS", (Attempt(support_share=0.8), Attempt(fit=fit)))
    result = deblur(scene().blurry, dataclasses.replace(CLASSICAL, more_attempts=2), key=KEY)
    assert {"classical", "attempt 2: classical", "attempt 3: deep prior"} == {one.name for one in result.candidates}
    assert all(np.isfinite(one.score) for one in result.candidates)
    again = deblur(scene().blurry, dataclasses.replace(CLASSICAL, more_attempts=2), key=KEY)
    np.testing.assert_array_equal(again.restored, result.restored)
