"""Settings of the classical methods: the kernel's initial estimate, and the non-blind step from a kernel to an image."""

from __future__ import annotations

import dataclasses

from jaxdeblur.config.checks import require

# Beyond these factors an image is noise, or flat.
SMOOTHNESS_RANGE = (0.01, 100.0)


@dataclasses.dataclass(frozen=True)
class InitialiserConfig:
    """The classical kernel estimate: L0-gradient pyramid for several guesses, variational refinement, choice by evidence.

    See :mod:`jaxdeblur.classical.kernel_l0` and :mod:`jaxdeblur.classical.variational` for the equations.

    Attributes:
      gradient_weights: weights of the L0 prior; every pair of a weight and a support makes a guess.
      support_shares: sides of the supports that guesses are confined to, as shares of the kernel's.
      kernel_ridge: weight of ``‖k‖²`` in the L0 pyramid's kernel step.
      level_iterations: alternations of image and kernel per level of the pyramid.
      patient_weights: weights of the L0 prior of further guesses, on the whole support: many alternations, tied down by much
        weight of ``‖k‖²``, find the long kernels that the others miss.
      patient_ridge: that weight.
      patient_iterations: alternations per level of these guesses; they start each level with the weight of the others.
      guess_iterations: variational iterations given to every guess before it is judged.
      num_finalists: distinct guesses that remain after that, at most.
      finalist_iterations: variational iterations given to each of them before they are compared.
      num_refined: distinct finalists, the likeliest, that are refined there.
      num_fine: of these, how many are then refined up to the full size; compared there again if they vary or descend.
      smallest_lead: by how much another finalist must come to lead the one that was the likeliest at first, in
        :func:`jaxdeblur.classical.judge.score`, to be taken in its place; in the end, any other kernel the
        one that has descended.
      refine_iterations: variational iterations given to each of the refined ones.
      fine_iterations: variational iterations given at each finer level.
      noise_variance: of the gradients in the variational model, in squared [0, 1] units, where its annealing ends: the image's
        own or, for images with less noise, this.
      first_noise_variance: where the annealing begins for those; for others in proportion.
      smallest_noise_std: noise of at least this standard deviation, in [0, 1] units, is assumed where kernels are estimated and
        compared, in the place of what the model leaves out of a photograph.
      doubting_noise_std: and of this where an estimate comes to hardly any blur, which is then made again.
      softness_stds: standard deviations in pixels of the sharp image's own softness, the Gaussian that even a sharp
        photograph's edges carry: the first is taken until the kernel has its full size, then, with ``vary_iterations``, it is
        refined on with each, and :func:`jaxdeblur.classical.judge.score` chooses.
      judging_softness_std: the softness with which kernels are judged on the way.
      thinness: weight of Σ√k, a prior that says that camera shake leaves a thin trace, beside the negative log evidence per
        pixel while kernels are refined; see :func:`jaxdeblur.classical.variational.thinness_penalty`.
      judging_thinness: the same where kernels are judged on the way.
      thinnesses: weights tried in its place after the softnesses, from the best of their kernels.
      vary_iterations: variational iterations given to the kernel of full size with each softness and with each thinness; 0
        for no such variants.
      descents: steps by which the best of these then descends its score itself, see :mod:`jaxdeblur.classical.descent`.
      descent_softness_std: the softness with which it does, and with which all kernels are compared from then on, if there is
        little noise in the image.
      noisy_descent_softness_std: the same if there is much.
      descent_thinness: the weight of Σ√k there.
      descent_side: there an informative crop of at most this many pixels a side is looked at; for kernels of more than an
        eighth of that, all that is refined.
      correction_share: how far the kernel that an image is restored with is led on the way to what a learned step says, see
        :mod:`jaxdeblur.classical.correction`; 0 for not at all, 1 for all of it.
      correction_trusted_side: so far where at least this many pixels a side are looked at. Of smaller images the step knows
        less, and the share is smaller in proportion.
      correction_side: an informative crop of at most this many pixels a side is looked at.
      kernel_width_stds: least and largest standard deviation in pixels of the Gaussian by which a kernel that is not corrected
        is widened before an image is restored with it, see :mod:`jaxdeblur.classical.width`; zeros for none.
      guess_side: guesses are told apart on a level of the pyramid of at most about this many pixels a side.
      guess_window_side: there, on an informative crop of at most so many pixels a side.
      refine_side: on finer levels the kernel is refined on an informative crop of at most this many pixels a side.
      image_side: of larger images, only an informative crop of this many pixels a side is looked at.
    """

    gradient_weights: tuple[float, ...] = (2e-3, 4e-3, 8e-3, 1.6e-2)
    support_shares: tuple[float, ...] = (1.0, 0.6, 0.35, 0.25)
    kernel_ridge: float = 2.0
    level_iterations: int = 5
    patient_weights: tuple[float, ...] = (4e-3, 8e-3, 1.6e-2, 3e-2, 6e-2, 0.12)
    patient_ridge: float = 20.0
    patient_iterations: int = 40
    guess_iterations: int = 20
    num_finalists: int = 4
    finalist_iterations: int = 60
    num_refined: int = 2
    num_fine: int = 1
    smallest_lead: float = 0.01
    refine_iterations: int = 100
    fine_iterations: int = 25
    noise_variance: float = 1e-6
    first_noise_variance: float = 3e-6
    smallest_noise_std: float = 0.0
    doubting_noise_std: float = 0.015
    softness_stds: tuple[float, ...] = (0.7, 0.4, 1.0)
    judging_softness_std: float = 0.45
    thinness: float = 1e-3
    judging_thinness: float = 1e-3
    thinnesses: tuple[float, ...] = (0.0, 3e-3)
    vary_iterations: int = 0
    descents: int = 15
    descent_softness_std: float = 0.55
    noisy_descent_softness_std: float = 0.4
    descent_thinness: float = 0.01
    descent_side: int = 384
    correction_share: float = 1.0
    correction_trusted_side: int = 400
    correction_side: int = 512
    kernel_width_stds: tuple[float, float] = (0.0, 0.5)
    guess_side: int = 300
    guess_window_side: int = 192
    refine_side: int = 512
    image_side: int = 1280

    def __post_init__(self) -> None:
        weights = (*self.gradient_weights, *self.patient_weights)
        require(len(weights) > 0, "initialiser: give at least one gradient weight or patient weight")
        require(min(weights) > 0, "initialiser: gradient weights must be positive")
        require(
            len(self.support_shares) > 0 and min(self.support_shares) > 0 and max(self.support_shares) <= 1,
            "initialiser: support_shares must lie in (0, 1]",
        )
        require(min(self.kernel_ridge, self.patient_ridge) >= 0, "initialiser: ridges must not be negative")
        require(
            min(self.thinness, self.judging_thinness, self.descent_thinness) >= 0, "initialiser: thinness must not be negative"
        )
        require(self.smallest_lead >= 0, "initialiser: smallest_lead must not be negative")
        require(self.num_finalists >= 1, "initialiser: num_finalists must be 1 or more")
        require(min(self.num_refined, self.num_fine) >= 1, "initialiser: num_refined and num_fine must be 1 or more")
        require(
            min(self.level_iterations, self.patient_iterations) >= 1,
            "initialiser: level_iterations and patient_iterations must be 1 or more",
        )
        require(
            0 < self.noise_variance <= self.first_noise_variance,
            "initialiser: noise_variance must be positive and at most first_noise_variance",
        )
        noises = (self.smallest_noise_std, self.doubting_noise_std)
        require(min(noises) >= 0 and max(noises) < 1, "initialiser: smallest_noise_std, doubting_noise_std must be in [0, 1)")
        least, most = self.kernel_width_stds
        require(0 <= least <= most, "initialiser: kernel_width_stds must be two numbers, 0 <= least <= most")
        require(self.descents >= 0, "initialiser: descents must not be negative")
        require(0 <= self.correction_share <= 1, "initialiser: correction_share must lie in [0, 1]")
        require(self.correction_trusted_side >= 1, "initialiser: correction_trusted_side must be 1 or more")
        sides = (self.guess_side, self.refine_side, self.descent_side, self.correction_side, self.image_side)
        require(min(sides) >= 64, "initialiser: sides must be 64 pixels or more")


@dataclasses.dataclass(frozen=True)
class NonblindConfig:
    """The non-blind step from a kernel to the final image.

    Attributes:
      sparse_weight: weight of the prior of ``sparse`` for a noise-free photograph of 8 bits; it grows with the noise, see
        :func:`jaxdeblur.classical.sparse.weight_for_noise`.
      kernel_std: how far the blurry image that a kernel predicts is taken to be off for the kernel's own faults, in [0, 1]
        units: 0 for one that is exact; see :func:`jaxdeblur.classical.learned.learned`.
      varying_kernel_std: the same where kernels vary over the image, which are known less well.
      tile_side: images larger than this are restored in overlapping tiles, which bounds the memory.
      smoothness: factor on the prior's weight: above 1 smoother, below 1 crisper and noisier.
      amount: share of the restored image in the final one, in [0, 1]; the rest is the blurry one.
    """

    sparse_weight: float = 1e-4
    kernel_std: float = 0.003
    varying_kernel_std: float = 0.006
    tile_side: int = 1280
    smoothness: float = 1.0
    amount: float = 1.0

    def __post_init__(self) -> None:
        least, most = SMOOTHNESS_RANGE
        require(least <= self.smoothness <= most, f"smoothness must be in [{least:g}, {most:g}], got {self.smoothness:g}")
        require(0 <= self.amount <= 1, f"amount must be in [0, 1], got {self.amount:g}")
        require(self.sparse_weight > 0, "nonblind: sparse_weight must be positive")
        require(min(self.kernel_std, self.varying_kernel_std) >= 0, "nonblind: kernel_std must not be negative")
        require(self.tile_side >= 256, "nonblind: tile_side must be 256 or more")
