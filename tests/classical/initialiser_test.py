import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxdeblur.classical import descent, initialiser, kernel_l0, variational
from jaxdeblur.evaluation.metrics import kernel_similarity
from jaxdeblur.operators.kernels import kernel_centre, pad_kernel
from tests.scenes import NOISE_STD, QUICK, scene


@pytest.fixture(scope="module")
def estimate():
    return initialiser.estimate_kernel(scene().blurry, QUICK, kernel_size=11, noise_std=NOISE_STD)


def test_a_motion_kernel_is_found(estimate):
    assert estimate.kernel.shape == (11, 11)
    assert estimate.kernel.min() >= 0.0
    assert estimate.kernel.sum() == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(kernel_centre(jnp.asarray(estimate.kernel)), [5, 5], atol=0.5 + 1e-3)
    assert kernel_similarity(estimate.kernel, scene().kernel) > 0.95
    assert not estimate.touches_border


@pytest.mark.parametrize("guess_side", [300, 100])
def test_likely_kernels_are_patient_guesses_at_full_size(guess_side, monkeypatch):
    config = dataclasses.replace(
        QUICK, patient_weights=(4e-3, 8e-3), patient_iterations=10, guess_iterations=20, num_finalists=1, guess_side=guess_side
    )
    settings = []
    original = initialiser._guess_calls
    monkeypatch.setattr(initialiser, "_guess_calls", lambda *given: settings.append(given[3]) or original(*given))
    kernels = initialiser.likely_kernels(scene().blurry, config, kernel_size=11, noise_std=NOISE_STD)
    assert {setting[3] for one in settings for setting in one} == {config.patient_iterations}
    assert [kernel.shape for kernel in kernels] == [(11, 11)]
    assert kernels[0].min() >= 0.0
    assert kernels[0].sum() == pytest.approx(1.0, abs=1e-5)
    assert kernel_similarity(kernels[0], scene().kernel) > 0.8


def test_likely_kernels_without_patient_guesses_are_the_usual_ones():
    config = dataclasses.replace(QUICK, patient_weights=(), num_finalists=2)
    kernels = initialiser.likely_kernels(scene().blurry, config, kernel_size=11, noise_std=NOISE_STD)
    assert 1 <= len(kernels) <= 2
    assert kernel_similarity(kernels[0], scene().kernel) > 0.8


def test_every_distinct_guess_is_judged(estimate):
    assert 1 <= len(estimate.guess_scores) <= len(QUICK.gradient_weights) * len(QUICK.support_shares)
    assert np.isfinite(estimate.guess_scores).all()


def test_kernels_that_are_the_same_are_kept_once():
    path = scene().kernel
    nearly = path + 1e-3 * np.eye(9, dtype=np.float32)
    other = np.rot90(path)
    broken = np.full((9, 9), np.nan, np.float32)
    kernels = [jnp.asarray(kernel) for kernel in (path, nearly, 2.0 * path, other, broken)]
    assert initialiser._distinct(kernels, range(5)) == [0, 3, 4]
    assert initialiser._distinct(kernels, [3, 1, 0]) == [3, 1]


def test_patient_guesses_have_the_whole_support_and_their_own_ridge_and_iterations(monkeypatch):
    """One for each weight, after those of every support."""
    given = []

    def spy(**call):
        given.append(call)
        return call["kernel"]

    monkeypatch.setattr(initialiser.kernel_l0, "estimate_level", spy)
    monkeypatch.setattr(initialiser, "run_side_by_side", lambda program, calls: [program(**call) for call in calls])
    config = dataclasses.replace(QUICK, patient_weights=(6e-2, 3e-2), patient_ridge=20.0, patient_iterations=9)
    levels = initialiser.kernel_l0.pyramid((96, 96), 11)[:2]
    assert [len(guesses) for guesses in initialiser._guess(scene().blurry, config, levels, None)] == [4 + 2] * 2
    for index, level in enumerate(levels):
        patient = given[index * 6 + 4 : index * 6 + 6]
        assert [(call["ridge"], call["iterations"]) for call in patient] == [(20.0, 9)] * 2
        decay = 1.1 ** (index * QUICK.level_iterations)
        assert [call["weight"] for call in patient] == pytest.approx([weight / decay for weight in (6e-2, 3e-2)])
        assert all(call["support"].sum() == level.kernel_size**2 for call in patient)


def test_guesses_that_agree_go_on_as_one_from_a_level_of_some_size_on(monkeypatch):
    config = dataclasses.replace(QUICK, gradient_weights=(4e-3, 4e-3, 4e-2), support_shares=(1.0,), patient_weights=())
    levels = initialiser.kernel_l0.pyramid(scene().blurry.shape, 11)[-3:]

    def counts():
        return [len(guesses) for guesses in initialiser._guess(scene().blurry, config, levels, None)]

    assert counts() == [3, 3, 3]
    monkeypatch.setattr(initialiser, "_AGREEING_SIDE", min(levels[1].shape))
    assert counts() == [3, 3, 2]


def test_the_likeliest_guesses_are_refined_and_the_likeliest_of_those_is_kept(monkeypatch):
    told = iter([3.0, float("nan"), 2.0, 0.0, 0.0, 0.0])
    judged = iter([5.0, 0.0])
    monkeypatch.setattr(initialiser, "run_side_by_side", lambda program, calls: [program(**call) for call in calls])
    monkeypatch.setattr(initialiser, "compile_side_by_side", lambda calls: None)
    given, found = [], []
    refine = variational.refine_kernel

    def spy(**call):
        given.append(call["kernel"])
        found.append(refine(**call)[0])
        return found[-1], next(told)

    monkeypatch.setattr(initialiser.variational, "refine_kernel", spy)
    monkeypatch.setattr(initialiser.variational, "negative_log_evidence", lambda **_: next(judged))
    monkeypatch.setattr(initialiser, "_SAME", 2.0)  # no two kernels are
    config = dataclasses.replace(QUICK, gradient_weights=(4e-3, 8e-3, 1.6e-2), support_shares=(1.0,), num_finalists=2)
    result = initialiser.estimate_kernel(scene().blurry, config, kernel_size=11, noise_std=NOISE_STD)
    assert len(given) == 6  # three guesses, two finalists, the last one
    np.testing.assert_array_equal(given[3], found[2])
    np.testing.assert_array_equal(given[4], found[0])
    np.testing.assert_array_equal(given[5], initialiser._clean(found[4]))
    # Cleaned before softness and thinness would be varied, and after.
    np.testing.assert_array_equal(result.kernel, initialiser._clean(initialiser._clean(found[5])))


def spied_refinements(monkeypatch, evidences):
    """The kernels that refinements start from and end in, as they come; kernels are judged by ``evidences`` in turn."""
    found, refine = [], initialiser.variational.refine_kernel

    def spy(**call):
        found.append((call["kernel"], refine(**call)[0]))
        return found[-1][1], float(len(found))

    monkeypatch.setattr(initialiser, "run_side_by_side", lambda program, calls: [program(**call) for call in calls])
    monkeypatch.setattr(initialiser, "compile_side_by_side", lambda calls: None)
    monkeypatch.setattr(initialiser.variational, "negative_log_evidence", lambda **_: next(evidences))
    monkeypatch.setattr(initialiser.variational, "refine_kernel", spy)
    monkeypatch.setattr(initialiser, "_SAME", 2.0)  # no two kernels are
    return found


@pytest.mark.parametrize("num_fine", [1, 2])
@pytest.mark.parametrize(("last", "chosen"), [((0.0, 1.0), 0), ((1.0, 0.8), 1), ((1.0, 0.95), 0)])
def test_finalists_are_refined_and_another_may_come_to_lead(num_fine, last, chosen, monkeypatch):
    """The first is ahead to begin with, and stays so if the other's lead is small: there, or when both have been varied."""
    found = spied_refinements(monkeypatch, iter([0.0, 1.0, *last, 0.0] if num_fine == 1 else [0.0, 1.0, *last]))
    config = dataclasses.replace(
        QUICK,
        num_refined=2,
        num_fine=num_fine,
        smallest_lead=0.1,
        vary_iterations=20,
        thinnesses=(),
        support_shares=(1.0,),
        judging_thinness=0.0,
    )
    result = initialiser.estimate_kernel(scene().blurry, config, kernel_size=11, noise_std=NOISE_STD)
    # Two guesses, two finalists, these two refined, and one or both of them varied.
    finalists, refined, varied = found[2:4], found[4:6], found[6:]
    assert len(varied) == num_fine
    for (_, finalist), (start, _) in zip(finalists, refined, strict=True):
        np.testing.assert_array_equal(start, initialiser._clean(finalist))
    for (_, kernel), (end, _) in zip(refined if num_fine == 2 else [refined[chosen]], varied, strict=True):
        np.testing.assert_array_equal(end, initialiser._clean(kernel))
    best = varied[chosen if num_fine == 2 else 0][1]
    np.testing.assert_array_equal(result.kernel, initialiser._clean(initialiser._clean(best)))


@pytest.mark.parametrize(("last", "chosen"), [((0.0, 1.0), 0), ((1.0, 0.8), 1)])
def test_finalists_that_are_not_varied_are_compared_all_the_same(last, chosen, monkeypatch):
    found = spied_refinements(monkeypatch, iter([0.0, 1.0, *last]))
    config = dataclasses.replace(
        QUICK, num_refined=2, num_fine=2, smallest_lead=0.1, vary_iterations=0, support_shares=(1.0,), judging_thinness=0.0
    )
    result = initialiser.estimate_kernel(scene().blurry, config, kernel_size=11, noise_std=NOISE_STD)
    np.testing.assert_array_equal(result.kernel, initialiser._clean(initialiser._clean(found[4 + chosen][1])))


@pytest.mark.parametrize("lowest", range(4))
def test_the_kernel_is_refined_with_each_softness_then_with_each_thinness(lowest, monkeypatch):
    """Scores choose the softness that thinnesses are tried with, and the kernel in the end."""
    evidences, given = iter(0.0 if number == lowest else 1.0 + number for number in range(4)), []
    refine = initialiser.variational.refine_kernel

    def spy(**call):
        given.append(call)
        return refine(**call)

    monkeypatch.setattr(initialiser.variational, "negative_log_evidence", lambda **_: next(evidences))
    monkeypatch.setattr(initialiser, "run_side_by_side", lambda program, calls: [program(**call) for call in calls])
    monkeypatch.setattr(initialiser, "compile_side_by_side", lambda calls: None)
    monkeypatch.setattr(initialiser.variational, "refine_kernel", spy)
    config = dataclasses.replace(
        QUICK, softness_stds=(0.4, 1.0), thinnesses=(0.0, 1e-2), vary_iterations=3, judging_thinness=1e-6, num_finalists=1
    )
    found = initialiser.estimate_kernel(scene().blurry, config, kernel_size=11, noise_std=NOISE_STD)
    softness = "classical, softness 1" if lowest == 1 else "classical, softness 0.4"
    names = ["classical, softness 0.4", "classical, softness 1", f"{softness}, thinness 0", f"{softness}, thinness 0.01"]
    assert set(found.kernels) == set(found.scores) == set(names)
    assert next(iter(found.kernels)) == names[lowest]
    np.testing.assert_array_equal(found.kernel, found.kernels[names[lowest]])
    varied = given[-4:]
    assert [call["image_softness_std"] for call in varied] == [0.4, 1.0, *[1.0 if lowest == 1 else 0.4] * 2]
    assert [call["thinness"] for call in varied] == [config.thinness, config.thinness, 0.0, 1e-2]
    assert all(call["first_noise_variance"] == call["noise_variance"] for call in varied)
    np.testing.assert_array_equal(initialiser._clean(varied[2]["kernel"]), found.kernels[softness])


# Of a crop of 64 pixels a side, or of the whole image where the kernel is more than a twelfth of that.
@pytest.mark.parametrize(
    ("last_is_better", "kernels", "half"), [(True, 8, (32, 64)), (False, 8, (32, 64)), (True, 12, (48, 96))]
)
def test_the_best_kernel_descends_its_score_in_the_end(last_is_better, kernels, half, monkeypatch):
    given = []

    def descended(images, measured, kernel, support, **options):
        given.append((images, kernel, support, options))
        return np.asarray(scene_kernel())

    def judged(*_, kernel, **__):
        return float(last_is_better == (not np.array_equal(kernel, initialiser._clean(scene_kernel()))))

    monkeypatch.setattr(initialiser, "_DESCENT_KERNELS", kernels)
    monkeypatch.setattr(initialiser.descent, "descend", descended)
    monkeypatch.setattr(initialiser.variational, "negative_log_evidence", judged)
    monkeypatch.setattr(initialiser, "run_side_by_side", lambda program, calls: [program(**call) for call in calls])
    monkeypatch.setattr(initialiser, "compile_side_by_side", lambda calls: None)
    config = dataclasses.replace(
        QUICK,
        num_finalists=1,
        descents=7,
        descent_softness_std=0.6,
        descent_thinness=1e-6,
        descent_side=64,
    )
    found = initialiser.estimate_kernel(scene().blurry, config, kernel_size=11, noise_std=NOISE_STD)
    assert list(found.kernels) == ["classical", "classical, descended"][:: -1 if last_is_better else 1]
    assert found.scores[next(iter(found.kernels))] == pytest.approx(0.0, abs=1e-4)
    np.testing.assert_array_equal(found.kernels["classical, descended"], initialiser._clean(scene_kernel()))
    (images, kernel, support, options), *others = given
    assert not others
    assert [image.shape for image in images] == [half] * 2
    # From a kernel without gaps.
    assert (np.asarray(kernel) > 0).sum() > (found.kernels["classical"] > 0).sum()
    assert np.asarray(support).shape == (11, 11)
    assert options["steps"] == 7
    assert options["thinness"] == 1e-6
    assert options["image_softness_std"] == 0.6
    assert options["noise_variance"] == pytest.approx(NOISE_STD**2)


def scene_kernel():
    return pad_kernel(jnp.asarray(scene().kernel), (11, 11))


def test_the_same_image_gives_the_same_bytes(estimate):
    again = initialiser.estimate_kernel(scene().blurry, QUICK, kernel_size=11, noise_std=NOISE_STD)
    assert again.kernel.tobytes() == estimate.kernel.tobytes()
    assert again.guess_scores == estimate.guess_scores


def test_progress_counts_the_levels_and_goes_on_while_the_kernel_descends():
    seen = []
    config = dataclasses.replace(QUICK, descents=4)
    initialiser.estimate_kernel(scene().blurry, config, kernel_size=11, progress=lambda done, total: seen.append((done, total)))
    steps, totals = zip(*seen, strict=True)
    levels = len(kernel_l0.pyramid(scene().blurry.shape, 11))
    assert steps[: levels + 1] == tuple(range(levels + 1))
    assert list(steps) == sorted(steps)
    assert len(set(steps)) >= levels + 4
    assert set(totals) == {steps[-1]}
    assert steps.count(steps[-1]) == 1


@pytest.fixture(scope="module")
def roomy():
    """A kernel of 7 pixels on a support of 15."""
    known, config = scene(kernel_size=7), dataclasses.replace(QUICK, support_shares=(1.0,))
    return known, initialiser.estimate_kernel(known.blurry, config, kernel_size=15, noise_std=NOISE_STD)


def test_a_size_that_was_given_is_kept_and_needless_room_stays_empty(roomy):
    known, found = roomy
    assert found.kernel.shape == (15, 15)
    assert kernel_similarity(found.kernel, known.kernel) > 0.95
    i, j = np.indices(found.kernel.shape) - 7
    assert found.kernel[np.maximum(abs(i), abs(j)) > 5].sum() == 0.0
    assert not found.touches_border


def test_an_unknown_size_is_drawn_in_to_what_the_kernel_needs(roomy, monkeypatch):
    known, fixed = roomy
    monkeypatch.setattr(initialiser, "first_kernel_size", lambda _: 15)
    config = dataclasses.replace(QUICK, support_shares=(1.0,))
    found = initialiser.estimate_kernel(known.blurry, config, noise_std=NOISE_STD)
    side = found.kernel.shape[0]
    assert 7 <= side < 15
    assert side % 2 == 1
    np.testing.assert_allclose(pad_kernel(jnp.asarray(found.kernel), (15, 15)), fixed.kernel, atol=1e-7)


def test_an_unknown_size_grows_until_the_kernel_fits(monkeypatch):
    sizes = []
    kernel = np.zeros((41, 41), np.float32)
    kernel[20, 8:33] = 1 / 25
    whole = True

    def estimate(blurry, config, size, start, noise_std, measured, progress):
        sizes.append(size)
        cut = kernel[20 - size // 2 : 21 + size // 2, 20 - size // 2 : 21 + size // 2]
        return initialiser.KernelEstimate({"classical": cut / cut.sum()}, {}, (), whole)

    monkeypatch.setattr(initialiser, "_estimate", estimate)
    monkeypatch.setattr(initialiser, "first_kernel_size", lambda _: 11)
    found = initialiser.estimate_kernel(np.zeros((96, 160), np.float32), QUICK)
    assert sizes == sorted(set(sizes))
    assert sizes[0] < 25 < sizes[-1]
    assert all(size % 2 for size in sizes)
    assert found.kernel.shape == (sizes[-1], sizes[-1])
    assert not found.touches_border

    # No further than a third of the image, and the caller is told.
    found = initialiser.estimate_kernel(np.zeros((60, 160), np.float32), QUICK)
    assert sizes[-1] <= 20
    assert found.touches_border

    # A size that was given is not changed.
    assert initialiser.estimate_kernel(np.zeros((96, 160), np.float32), QUICK, kernel_size=13).kernel.shape == (13, 13)

    # A kernel that needed only a part of its support has room enough, however close to that part's border it comes.
    whole = False
    sizes.clear()
    assert not initialiser.estimate_kernel(np.zeros((96, 160), np.float32), QUICK).touches_border
    assert len(sizes) == 1


def test_the_first_size_is_odd_and_leaves_room_on_any_image():
    sizes = [initialiser.first_kernel_size((side, 2 * side)) for side in range(32, 3000, 7)]
    assert all(size % 2 == 1 for size in sizes)
    assert all(size <= side / 3 + 1 for size, side in zip(sizes, range(32, 3000, 7), strict=True))
    assert sizes == sorted(sizes)
    assert initialiser.first_kernel_size((255, 255)) >= 27  # the largest of Levin's kernels


def test_the_crop_goes_where_the_edges_are():
    image = np.full((120, 200), 0.5, np.float32)
    image[70:110, 130:190] += 0.2 * (np.indices((40, 60)).sum(0) // 5 % 2)
    rows, columns = initialiser.informative_crop(image, 64)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (64, 64)
    assert rows.start <= 70
    assert rows.stop >= 110
    assert columns.start >= 120
    # Saturated highlights have strong edges that say nothing.
    image[5:60, 5:60] = 1.0 * (np.indices((55, 55)).sum(0) // 5 % 2)
    assert initialiser.informative_crop(image, 64) == (rows, columns)
    assert initialiser.informative_crop(image, 500) == (slice(0, 120), slice(0, 200))


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("guess_side", [64, 300])
def test_every_program_is_compiled_before_the_first_call(guess_side, clipped, monkeypatch):
    """And none that is not called: on a coarse level and finer ones, or on one level alone."""

    def types(program, call):
        return program.__name__, tuple((name, getattr(value, "shape", type(value))) for name, value in sorted(call.items()))

    compiled, called = set(), set()

    def answers(program, calls):
        called.update(types(program, call) for call in calls)
        if program is variational.negative_log_evidence:
            return [float(number) for number in range(len(calls))]
        if program is variational.evidence_and_slope:
            return [(1.0, jnp.zeros_like(call["kernel"])) for call in calls]
        # Kernels that are not the same.
        kernels = [jnp.zeros_like(call["kernel"]).at[2, 1 + number].set(1.0) for number, call in enumerate(calls)]
        return kernels if program is kernel_l0.estimate_level else [(kernel, 0.0) for kernel in kernels]

    monkeypatch.setattr(initialiser, "compile_side_by_side", lambda calls: compiled.update(types(*one) for one in calls))
    monkeypatch.setattr(initialiser, "run_side_by_side", answers)
    monkeypatch.setattr(descent, "run_side_by_side", answers)
    config = dataclasses.replace(
        QUICK, guess_side=guess_side, guess_window_side=64, refine_side=80, vary_iterations=3, descents=2, descent_side=70
    )
    measured = np.ones_like(scene().blurry) if clipped else None
    initialiser.estimate_kernel(scene().blurry, config, kernel_size=11, noise_std=NOISE_STD, measured=measured)
    assert compiled == called
    compiled.clear()
    called.clear()
    start = scene().kernel
    initialiser.estimate_kernel(scene().blurry, config, kernel_size=11, start=start, noise_std=NOISE_STD, measured=measured)
    assert compiled == called
    compiled.clear()
    called.clear()
    initialiser.lead_of_guesses(scene().blurry, scene().kernel, config, noise_std=NOISE_STD, measured=measured)
    assert compiled == called


@pytest.mark.slow
def test_guesses_lead_a_wrong_kernel_and_not_the_right_one(monkeypatch):
    monkeypatch.setattr(initialiser, "first_kernel_size", lambda _: 11)
    known, done = scene(), []
    none = np.pad(np.ones((1, 1), np.float32), known.kernel.shape[0] // 2)

    def lead(kernel, measured):
        return initialiser.lead_of_guesses(
            known.blurry, kernel, QUICK, noise_std=NOISE_STD, measured=measured, progress=lambda *step: done.append(step)
        )

    for measured in (None, np.ones_like(known.blurry)):
        assert lead(none, measured) > 0.1
        assert lead(known.kernel, measured) < 0.02
    assert done[0][0] == 0
    assert all(step < total for step, total in done)


@pytest.mark.slow
def test_a_kernel_to_start_from_takes_the_place_of_guesses(monkeypatch):
    monkeypatch.setattr(initialiser, "_guess", None)
    monkeypatch.setattr(initialiser, "first_kernel_size", lambda _: 11)
    known = scene()
    rough = scipy.ndimage.gaussian_filter(np.pad(known.kernel, 1), 0.8)
    found = initialiser.estimate_kernel(known.blurry, QUICK, start=rough / rough.sum(), noise_std=NOISE_STD)
    assert kernel_similarity(found.kernel, known.kernel) > kernel_similarity(rough, known.kernel) + 0.05
    assert found.guess_scores == ()


def test_a_kernel_to_start_from_has_room(monkeypatch):
    given = []

    def estimate(blurry, config, size, start, noise_std, measured, progress):
        given.append((size, start.shape))
        return initialiser.KernelEstimate({"classical": start}, {}, (), False)

    monkeypatch.setattr(initialiser, "_estimate", estimate)
    monkeypatch.setattr(initialiser, "first_kernel_size", lambda _: 11)
    start = np.asarray(pad_kernel(jnp.asarray(scene().kernel), (27, 27)))
    initialiser.estimate_kernel(scene().blurry, QUICK, start=start)
    initialiser.estimate_kernel(scene().blurry, QUICK, start=scene().kernel)
    assert given == [(27, (27, 27)), (11, scene().kernel.shape)]


@pytest.mark.slow
def test_no_program_is_compiled_that_would_do_nothing(monkeypatch):
    """Where only the support's size is sought there is nothing to refine."""
    size_only = dataclasses.replace(
        QUICK, support_shares=(1.0,), guess_iterations=0, finalist_iterations=0, refine_iterations=0, fine_iterations=0
    )
    monkeypatch.setattr(initialiser, "first_kernel_size", lambda _: 11)
    monkeypatch.setattr(variational, "refine_kernel", None)
    found = initialiser.estimate_kernel(scene().blurry, size_only, noise_std=NOISE_STD)
    assert found.kernel.sum() == pytest.approx(1.0, abs=1e-5)
    assert len(found.guess_scores) == len(QUICK.gradient_weights)
