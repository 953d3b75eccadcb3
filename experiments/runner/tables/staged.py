"""Choi and Lee: blind image deblurring based on deep image priors, with losses that change from interval to interval."""

from experiments.runner.tables.entry import Entry, Row

_PAPER = "Choi & Lee"
_OURS = Row("jaxdeblur fast (ours, classical)", preset="fast")

TABLES = (
    Entry(
        name="staged_table1",
        title="Staged losses: the fidelity term after the first 1000 steps, Levin's set",
        paper=f"{_PAPER}, Table 1",
        datasets=("levin",),
        rows=(
            Row("MSE", "31.954/.907", preset="staged_mse"),
            Row("MAE", "32.326/.914", preset="staged_mae"),
            Row("1 − SSIM", "32.772/.915", preset="staged_ssim"),
            Row("MAE + (1 − SSIM)", "32.848/.915", preset="staged_mae_ssim"),
        ),
    ),
    Entry(
        name="staged_table2",
        title="Staged losses: priors in the second interval, Levin's set",
        paper=f"{_PAPER}, Table 2",
        datasets=("levin",),
        rows=(
            Row("two intervals, no priors", "32.848/.915", preset="staged_mae_ssim"),
            Row("three intervals, priors in the second", "33.651/.930", preset="staged"),
        ),
        note="The table's own rows are not in the text. Its two ends are known from Tables 1 and 3 and stand here; weights of "
        "the priors in between are not published anywhere else.",
    ),
    Entry(
        name="staged_table3",
        title="Staged losses against others, Levin's set",
        paper=f"{_PAPER}, Table 3",
        datasets=("levin",),
        rows=(
            Row("Cho et al.", "30.566/.897"),
            Row("Pan et al.", "32.691/.928"),
            Row("Levin et al.", "31.089/.915"),
            Row("Sun et al.", "32.991/.933"),
            Row("Zuo et al.", "32.662/.933"),
            Row("Krishnan et al.", "29.888/.867"),
            Row("SelfDeblur", "33.068/.931", preset="selfdeblur"),
            Row("three intervals", "33.651/.930", preset="staged"),
            _OURS,
        ),
    ),
    Entry(
        name="staged_table4",
        title="Staged losses against others, Lai's set",
        paper=f"{_PAPER}, Table 4",
        datasets=("lai",),
        rows=(
            Row("Cho et al.", "17.905/.556"),
            Row("Pan et al.", "21.588/.746"),
            Row("Xu et al.", "20.753/.734"),
            Row("Perrone et al.", "19.806/.699"),
            Row("Michaeli et al.", "19.398/.591"),
            Row("SelfDeblur", "21.138/.763", preset="selfdeblur_lai"),
            Row("three intervals", "21.792/.742", preset="staged"),
            _OURS,
        ),
        note="The figures of others' methods differ from SelfDeblur's Table 4 for the same set; printed as they stand.",
    ),
)
