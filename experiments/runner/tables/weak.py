"""Chi: "Weakly-supervising the deep priors for blind deconvolution", course report, University of Toronto."""

from experiments.runner.tables.entry import LEVIN_IMAGES, LEVIN_KERNELS, Entry, Row

_PAPER = "Chi"
_TEACHERS = "Teachers need their weights (--teacher_weights); rows without them are not run."
_SEARCH = "The report searches the shift within a window of 5 pixels; ours within ±10, as the other tables."
_PER_GROUP = ("SelfDeblur", "selfdeblur"), ("+DMPHN", "weak_dmphn"), ("+DWDN", "weak_dwdn")

TABLES = (
    Entry(
        name="weak_table1",
        title="Weak supervision by DMPHN: the weight α, Levin's set",
        paper=f"{_PAPER}, Table 1",
        datasets=("levin",),
        rows=(
            Row("DMPHN alone", "25.20/.771", preset="dmphn"),
            Row("α = 1", "26.11/.791", preset="weak_dmphn_a1"),
            Row("α = 0.1", "26.92/.803", preset="weak_dmphn_a01"),
            Row("α = 0.01", "31.07/.879", preset="weak_dmphn_a001"),
            Row("α = 0.001", "33.89/.935", preset="weak_dmphn"),
        ),
        note=f"{_TEACHERS} {_SEARCH}",
    ),
    Entry(
        name="weak_table2",
        title="Weak supervision by DWDN: the weight α, Levin's set",
        paper=f"{_PAPER}, Table 2",
        datasets=("levin",),
        rows=(
            Row("DWDN alone", "25.56/.730", preset="dwdn"),
            Row("α = 1", "26.65/.753", preset="weak_dwdn_a1"),
            Row("α = 0.1", "28.98/.812", preset="weak_dwdn_a01"),
            Row("α = 0.01", "31.55/.881", preset="weak_dwdn_a001"),
            Row("α = 0.001", "33.41/.924", preset="weak_dwdn"),
        ),
        note=f"{_TEACHERS} {_SEARCH}",
    ),
    Entry(
        name="weak_table3",
        title="Weak supervision by DWDN: the regression term, Levin's set",
        paper=f"{_PAPER}, Table 3",
        datasets=("levin",),
        rows=(
            Row("β = 0", "33.41/.924", preset="weak_dwdn"),
            Row("β = 0.001", "33.19/.911", preset="weak_dwdn_beta"),
        ),
        note=f"{_TEACHERS} {_SEARCH}",
    ),
    Entry(
        name="weak_table4",
        title="Weak supervision by DMPHN: early stopping, Levin's set",
        paper=f"{_PAPER}, Table 4",
        datasets=("levin",),
        metrics=("psnr", "ssim", "steps"),
        rows=(
            Row("window of 5 steps", "32.63/.919/1510", preset="weak_dmphn_w5"),
            Row("window of 10 steps", "33.24/.935/1520", preset="weak_dmphn_w10"),
            Row("window of 30 steps", "33.29/.936/1573", preset="weak_dmphn_w30"),
            Row("window of 50 steps", "32.78/.921/1691", preset="weak_dmphn_w50"),
        ),
        note=f"{_TEACHERS} {_SEARCH}",
    ),
    Entry(
        name="weak_table5",
        title="Weak supervision against SelfDeblur and the teachers, Levin's set",
        paper=f"{_PAPER}, Table 5",
        datasets=("levin",),
        rows=(
            Row("SelfDeblur", "33.07/.931", preset="selfdeblur"),
            Row("DMPHN alone", "25.19/.771", preset="dmphn"),
            Row("DWDN alone", "25.56/.729", preset="dwdn"),
            Row("+DMPHN", "33.89/.935", preset="weak_dmphn"),
            Row("+DWDN", "33.41/.924", preset="weak_dwdn"),
        ),
        note=f"{_TEACHERS} {_SEARCH}",
    ),
    Entry(
        name="weak_figure4",
        title="Weak supervision: PSNR by kernel, Levin's set",
        paper=f"{_PAPER}, Figure 4",
        datasets=("levin",),
        metrics=("psnr",),
        group="kernel",
        groups=LEVIN_KERNELS,
        figure="bars",
        rows=tuple(Row(label, " ".join("?" * 8), preset=preset) for label, preset in _PER_GROUP),
        note=f"{_TEACHERS} {_SEARCH}",
    ),
    Entry(
        name="weak_figure5",
        title="Weak supervision: PSNR by image, Levin's set",
        paper=f"{_PAPER}, Figure 5",
        datasets=("levin",),
        metrics=("psnr",),
        group="image",
        groups=LEVIN_IMAGES,
        figure="bars",
        rows=tuple(Row(label, " ".join("?" * 4), preset=preset) for label, preset in _PER_GROUP),
        note=f"{_TEACHERS} {_SEARCH}",
    ),
)
