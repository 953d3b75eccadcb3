"""The methods by name: each preset is data, a :class:`~jaxdeblur.config.Config`, with a note on where it comes from.

A preset is made from its parent by changing fields, so what tells the two apart is what :func:`differences` lists. Every preset
with a deep prior also exists as ``NAME_small``: narrower and shorter, for two CPU cores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

from jaxdeblur.config import (
    Config,
    FitConfig,
    InitialiserConfig,
    KernelLogitsConfig,
    KernelMlpConfig,
    LossInterval,
    LossTerm,
    Schedule,
    SkipNetConfig,
    StoppingConfig,
    TeacherConfig,
    UNetConfig,
    constant,
)

_SELFDEBLUR_PAPER = "Ren et al., Neural blind deconvolution using deep priors, CVPR 2020"
_MC_PAPER = "Li, Nan & Ji, Un-supervised learning for blind image deconvolution via Monte-Carlo sampling, Inverse Problems 2021"
_STAGED_PAPER = "Choi & Lee, staged losses for SelfDeblur (JSTS)"
_WEAK_PAPER = "Chi, Weakly-supervising the deep priors for blind deconvolution (report)"
_GPU = "a GPU; an hour or more on two CPU cores"
_CPU = "two CPU cores"


@dataclasses.dataclass(frozen=True)
class About:
    """Where a preset comes from.

    Attributes:
      paper: authors and title, or ``ours``.
      figure: published PSNR/SSIM and on what, if there is any.
      hardware: what it needs.
      parent: name of the preset it departs from; empty for one that stands for itself.
      summary: what it is, in a line.
    """

    paper: str
    figure: str
    hardware: str
    parent: str
    summary: str


_CONFIGS: dict[str, Config] = {}
_ABOUT: dict[str, About] = {}


def _add(
    name: str, config: Config, summary: str, *, parent: str = "", paper: str = "", figure: str = "", hardware: str = ""
) -> None:
    inherited = _ABOUT.get(parent)
    _CONFIGS[name] = dataclasses.replace(config, name=name)
    _ABOUT[name] = About(
        paper=paper or (inherited.paper if inherited else "ours"),
        figure=figure,
        hardware=hardware or (inherited.hardware if inherited else _CPU),
        parent=parent,
        summary=summary,
    )


def _variant(name: str, parent: str, summary: str, *, figure: str = "", paper: str = "", **fit_fields: Any) -> None:
    """A preset that departs from ``parent`` in fields of its fit."""
    config = _CONFIGS[parent]
    assert config.fit is not None
    changed = dataclasses.replace(config, fit=dataclasses.replace(config.fit, **fit_fields))
    _add(name, changed, summary, parent=parent, figure=figure, paper=paper)


def _intervals(*intervals: tuple[int, dict[LossTerm, float]]) -> tuple[LossInterval, ...]:
    return tuple(LossInterval(start, tuple(terms.items())) for start, terms in intervals)


# The default: classical all the way. The kernel is guessed many times coarse to fine under an L0 prior (Xu, Zheng,
# Jia, CVPR 2013), the guesses are refined and judged by marginal likelihood (Wipf, Zhang, JMLR 2014), and the image is
# restored under a sparse prior (Levin et al., SIGGRAPH 2007). A deep prior is left to the other presets: where it was tried,
# it helped some images and hurt others, for more seconds than all the rest on two CPU cores.
_add("fast", Config(), "classical: L0 guesses, marginal likelihood, learned prior", figure="35.69/.962 on Levin im1-im3 (ours)")

# The same with several kernels refined up to the full size, and there with other softnesses and thinnesses, then a narrow deep
# prior fitted from the likeliest on. Of the two kernels the likelier one makes the final image.
_add(
    "deep",
    Config(
        initialiser=InitialiserConfig(num_refined=4, num_fine=4, vary_iterations=30),
        fit=FitConfig(
            image_generator=SkipNetConfig(channels=16, non_local=False),
            kernel_generator=KernelLogitsConfig(),
            num_iterations=400,
            loss_intervals=_intervals((0, {"mse": 1.0}), (130, {"one_minus_ssim": 1.0})),
            decay_steps=(240, 320),
            kernel_learning_rate=1e-2,
        ),
    ),
    "fast with more candidates, the likeliest refined by a narrow deep prior; the likelier kernel counts",
    parent="fast",
)

# SelfDeblur, https://arxiv.org/abs/1908.02197; settings of its public code for grey images.
#   python -m jaxdeblur.main --image=photo.png --preset=selfdeblur --kernel_size=31
_add(
    "selfdeblur",
    Config(
        initialiser=None,
        fit=FitConfig(loss_intervals=_intervals((0, {"mse": 1.0}), (1000, {"one_minus_ssim": 1.0}))),
        final="generator",
    ),
    "SelfDeblur, settings of its public code for grey images",
    paper=_SELFDEBLUR_PAPER,
    figure="33.07/.931 on Levin",
    hardware=_GPU,
)
_variant(
    "selfdeblur_lai",
    "selfdeblur",
    "its schedule for Lai's set: MSE for 500 steps only",
    figure="20.97/.752 on Lai",
    loss_intervals=_intervals((0, {"mse": 1.0}), (500, {"one_minus_ssim": 1.0})),
)
_variant(
    "selfdeblur_colour",
    "selfdeblur",
    "its schedule for colour photographs: luma is restored, chroma kept",
    num_iterations=2500,
    loss_intervals=_intervals((0, {"mse": 1.0}), (500, {"one_minus_ssim": 1.0})),
    decay_steps=(1600, 1900, 2200),
)
# The paper's own loss, eq. (9): the public code has no TV and changes to SSIM.
_variant(
    "selfdeblur_paper",
    "selfdeblur",
    "the paper's loss: MSE + λ TV, λ = 0.1 σ",
    figure="33.07/.931 on Levin",
    loss_intervals=_intervals((0, {"mse": 1.0, "noise_tied_tv": 0.1})),
)
_variant(
    "selfdeblur_alternating",
    "selfdeblur",
    "image and kernel updated in turn",
    figure="30.53/.875 on Levin",
    update="alternating",
)
_variant(
    "selfdeblur_k_minus",
    "selfdeblur",
    "kernel generator without hidden layer",
    figure="28.37/.840 on Levin",
    kernel_generator=KernelMlpConfig(hidden_sizes=()),
)
_variant(
    "selfdeblur_k_plus",
    "selfdeblur",
    "kernel generator with one more hidden layer",
    figure="30.92/.889 on Levin",
    kernel_generator=KernelMlpConfig(hidden_sizes=(1000, 1000)),
)
# Gandelsman et al., CVPR 2019, as compared with in SelfDeblur's table 2. Kernels are too small for five scales.
_variant(
    "double_dip",
    "selfdeblur",
    "a skip net for the kernel too",
    figure="21.51/.526 on Levin",
    kernel_generator=SkipNetConfig(num_scales=3, non_local=False),
)
_variant(
    "selfdeblur_nonblind",
    "selfdeblur",
    "the kernel is given, only the image is sought",
    kernel_generator=None,
    num_iterations=1000,
    loss_intervals=_intervals((0, {"one_minus_ssim": 1.0})),
    decay_steps=(700, 800, 900),
)

# Monte-Carlo sampling. Noise on the image latent is 0.01 for small kernels (Levin), 0.05 for large ones (Lai, Köhler).
#   python -m jaxdeblur.main --image=photo.png --preset=mc --kernel_size=31 --num_posterior_samples=10
_DROPOUT: Schedule = ((0, 0.3), (1500, 0.001))
_LARGE_NOISE: Schedule = ((0, 0.05), (3500, 0.001))
_add(
    "mc",
    Config(
        initialiser=None,
        fit=FitConfig(
            image_generator=UNetConfig(),
            kernel_generator=UNetConfig(num_levels=4, channels=64),
            loss_intervals=_intervals((0, {"mse": 1.0, "kernel_energy": 1e-4})),
            dropout_rate=_DROPOUT,
            input_noise_std=((0, 0.01), (3500, 0.001)),
            decay_steps=(3000,),
            update="sequential",
        ),
        final="generator",
    ),
    "Monte-Carlo sampling of noise and dropout, for small kernels",
    paper=_MC_PAPER,
    figure="34.71/.948 on Levin",
    hardware=_GPU,
)
# A mean square alone sharpens the image slowly: SelfDeblur's schedule of losses, all else Monte-Carlo's.
_variant(
    "mc_ssim",
    "mc",
    "the same with 1 - SSIM from step 1000 on",
    paper="ours",
    loss_intervals=_intervals((0, {"mse": 1.0, "kernel_energy": 1e-4}), (1000, {"one_minus_ssim": 1.0})),
)
_variant("mc_large", "mc", "for large kernels: more noise", figure="24.55/.800 on Lai", input_noise_std=_LARGE_NOISE)
_variant(
    "mc_deterministic",
    "mc_large",
    "neither dropout nor noise",
    figure="21.07/.630 on Lai",
    dropout_rate=constant(0.0),
    input_noise_std=constant(0.0),
)
# Figure 8. S5's noise and the step of S6 are garbled in our copy of the text: the smallest and the usual ones are taken.
for _name, _summary, _figure, _dropout, _noise in (
    ("mc_s1", "schedule S1: dropout 0.5, no noise", "", constant(0.5), constant(0.0)),
    ("mc_s2", "schedule S2: dropout 0.001, no noise", "", constant(0.001), constant(0.0)),
    ("mc_s3", "schedule S3: decreasing dropout, no noise", "23.07/.726 on Lai", _DROPOUT, constant(0.0)),
    ("mc_s4", "schedule S4: noise 0.05, no dropout", "", constant(0.0), constant(0.05)),
    ("mc_s5", "schedule S5: noise 0.001, no dropout", "", constant(0.0), constant(0.001)),
    ("mc_s6", "schedule S6: decreasing noise, no dropout", "23.56/.766 on Lai", constant(0.0), _LARGE_NOISE),
):
    _variant(_name, "mc_large", _summary, figure=_figure, dropout_rate=_dropout, input_noise_std=_noise)
_KERNEL_SAMPLING: dict[str, Any] = {
    "kernel_dropout_rate": ((0, 0.1), (1500, 0.001)),
    "kernel_input_noise_std": _LARGE_NOISE,
}
_variant(
    "mc_random_kernel",
    "mc_large",
    "only the kernel generator is randomised",
    dropout_rate=constant(0.0),
    input_noise_std=constant(0.0),
    **_KERNEL_SAMPLING,
)
_variant("mc_random_both", "mc_large", "both generators are randomised", **_KERNEL_SAMPLING)
_variant(
    "selfdeblur_mc",
    "mc",
    "Monte-Carlo sampling with SelfDeblur's networks",
    figure="33.63/.936 on Levin",
    image_generator=SkipNetConfig(),
    kernel_generator=KernelMlpConfig(),
)
_variant(
    "selfdeblur_mc_large",
    "selfdeblur_mc",
    "the same for large kernels",
    figure="23.92/.770 on Lai",
    input_noise_std=_LARGE_NOISE,
)

# Staged losses on SelfDeblur's networks. The weights of the two priors and the second boundary are missing from our copy of
# the text; they were chosen on reduced runs, see experiments/README.md.
_variant(
    "staged",
    "selfdeblur",
    "three intervals: MAE; MAE with priors; MAE + (1 - SSIM)",
    paper=_STAGED_PAPER,
    figure="33.65/.930 on Levin",
    loss_intervals=_intervals(
        (0, {"mae": 1.0}),
        (1000, {"mae": 1.0, "total_variation": 1e-3, "kernel_energy": 1e-3}),
        (2000, {"mae": 1.0, "one_minus_ssim": 1.0}),
    ),
)
# The rows of its table 1: a mean error for 1000 steps, then one loss to the end.
_MAE: dict[LossTerm, float] = {"mae": 1.0}
_MSE: dict[LossTerm, float] = {"mse": 1.0}
_SSIM: dict[LossTerm, float] = {"one_minus_ssim": 1.0}
_variant("staged_mse", "staged", "MSE throughout", figure="31.95/.907 on Levin", loss_intervals=_intervals((0, _MSE)))
_variant("staged_mae", "staged", "MAE throughout", figure="32.33/.914 on Levin", loss_intervals=_intervals((0, _MAE)))
_variant(
    "staged_ssim",
    "staged",
    "MAE, then 1 - SSIM",
    figure="32.77/.915 on Levin",
    loss_intervals=_intervals((0, _MAE), (1000, _SSIM)),
)
_variant(
    "staged_mae_ssim",
    "staged",
    "MAE, then MAE + (1 - SSIM)",
    figure="32.85/.915 on Levin",
    loss_intervals=_intervals((0, _MAE), (1000, _MAE | _SSIM)),
)


# Weak supervision by a pre-trained network. Which distance the report used is not said; the absolute error is taken.
#   python -m jaxdeblur.main --image=photo.png --preset=weak_dmphn --teacher_weights=FOLDER --kernel_size=31
def _weak(alpha: float, beta: float = 0.0) -> tuple[LossInterval, ...]:
    asked: dict[LossTerm, float] = {}
    if alpha:
        asked["weak_mae"] = alpha
    if beta:
        asked["teacher_agreement"] = beta
    return _intervals((0, _MSE | asked), (1500, _SSIM | asked))


_variant("weak_none", "selfdeblur", "without a teacher (α = 0)", paper=_WEAK_PAPER, loss_intervals=_weak(0.0))
_DMPHN_FIGURES = ("25.20/.771", "26.11/.791", "26.92/.803", "31.07/.879", "33.89/.935")
_DWDN_FIGURES = ("25.56/.730", "26.65/.753", "28.98/.812", "31.55/.881", "33.41/.924")
for _network, _initialiser, _figures in (
    (TeacherConfig("dmphn"), None, _DMPHN_FIGURES),
    (TeacherConfig("dwdn"), InitialiserConfig(), _DWDN_FIGURES),
):
    _alone, *_ablations, _best = (f"{figure} on Levin" for figure in _figures)
    _teacher = _network.name
    _named: dict[str, Any] = {"initialiser": _initialiser, "teacher": _network}
    _add(
        _teacher,
        Config(**_named, final="teacher"),
        f"the pre-trained {_teacher.upper()} alone, no prior",
        paper=_WEAK_PAPER,
        figure=_alone,
        hardware=_CPU,
    )
    _base = _CONFIGS["weak_none"]
    assert _base.fit is not None
    _add(
        f"weak_{_teacher}",
        dataclasses.replace(_base, **_named, fit=dataclasses.replace(_base.fit, loss_intervals=_weak(1e-3))),
        f"weak supervision by {_teacher.upper()}, α = 0.001",
        parent="weak_none",
        figure=_best,
    )
    for _suffix, _alpha, _figure in zip(("a1", "a01", "a001"), (1.0, 0.1, 0.01), _ablations, strict=True):
        _variant(
            f"weak_{_teacher}_{_suffix}", f"weak_{_teacher}", f"α = {_alpha:g}", figure=_figure, loss_intervals=_weak(_alpha)
        )
_variant(
    "weak_dwdn_beta",
    "weak_dwdn",
    "with the teacher's agreement too, β = 0.001",
    figure="33.19/.911 on Levin",
    loss_intervals=_weak(1e-3, 1e-3),
)
for _patience, _figure in ((5, "32.63/.919"), (10, "33.24/.935"), (30, "33.29/.936"), (50, "32.78/.921")):
    _variant(
        f"weak_dmphn_w{_patience}",
        "weak_dmphn",
        f"stopped after {_patience} steps without a smaller error, from step 1500 on",
        figure=f"{_figure} on Levin",
        stopping=StoppingConfig(patience=_patience),
    )

# Steps of 5000, channels and kernel's learning rate of small variants. 1 - SSIM sharpens the image in few steps; a mean error
# alone takes many, which have to be narrower. The kernel's generator has to come as far in fewer steps.
_SMALL_WITH_SSIM = (600, 32, 5e-4)
_SMALL_WITHOUT = (4000, 16, 1e-3)


def small(config: Config) -> Config:
    """``config`` narrow and short enough for two CPU cores: fewer channels, no non-local blocks, schedules shrunk to match.

    Args:
      config: with a deep prior.
    """
    fit = config.fit
    assert fit is not None
    ends_with_ssim = any(name == "one_minus_ssim" for name, _ in fit.loss_intervals[-1].terms)
    steps, channels, kernel_rate = _SMALL_WITH_SSIM if ends_with_ssim else _SMALL_WITHOUT
    fit = fit.stretched(round(fit.num_iterations * steps / 5000))
    narrow = dataclasses.replace(fit.image_generator, channels=channels)
    if isinstance(narrow, SkipNetConfig):
        narrow = dataclasses.replace(narrow, non_local=False)
    fit = dataclasses.replace(fit, image_generator=narrow, kernel_learning_rate=kernel_rate)
    return dataclasses.replace(config, fit=fit)


for _name, _config in list(_CONFIGS.items()):
    if _config.fit is not None and _name != "deep":
        _add(f"{_name}_small", small(_config), f"{_name}, narrow and short", parent=_name, hardware="two CPU cores, minutes")

PRESETS = MappingProxyType(_CONFIGS)
ABOUT = MappingProxyType(_ABOUT)


def differences(config: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """The fields in which two configurations differ, apart from their names: dotted path → (value in each).

    Where two configurations have different kinds of a part (another network, say), that part counts as one field.
    """
    return {path: pair for path, pair in _differences(config, other, "") if path != "name"}


def _differences(one: Any, other: Any, path: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if dataclasses.is_dataclass(one) and type(one) is type(other):
        for field in dataclasses.fields(one):
            yield from _differences(getattr(one, field.name), getattr(other, field.name), f"{path}.{field.name}".lstrip("."))
    elif one != other:
        yield path, (one, other)
