"""Ren, Zhang, Wang, Hu, Zuo: "Neural blind deconvolution using deep priors", CVPR 2020, https://arxiv.org/abs/1908.02197.

A Δ after a name is the paper's mark of a kernel handed to a non-blind method.
"""

from experiments.runner.tables.entry import AVERAGE, LAI_CATEGORIES, LAI_FINAL, Entry, Row

_PAPER = "Ren et al., CVPR 2020"
_OURS = Row("jaxdeblur fast (ours, classical)", preset="fast")

TABLES = (
    Entry(
        name="selfdeblur_table1",
        title="SelfDeblur: alternating against joint optimisation, Levin's set",
        paper=f"{_PAPER}, Table 1",
        datasets=("levin",),
        rows=(
            Row("SelfDeblur-A (alternating)", "30.53/.8748", preset="selfdeblur_alternating"),
            Row("SelfDeblur-J (joint)", "33.07/.9313", preset="selfdeblur"),
        ),
    ),
    Entry(
        name="selfdeblur_table2",
        title="SelfDeblur: the kernel's generator, Levin's set",
        paper=f"{_PAPER}, Table 2",
        datasets=("levin",),
        rows=(
            Row("SelfDeblur", "33.07/.9313", preset="selfdeblur"),
            Row("SelfDeblur k- (no hidden layer)", "28.37/.8396", preset="selfdeblur_k_minus"),
            Row("SelfDeblur k+ (one more hidden layer)", "30.92/.8889", preset="selfdeblur_k_plus"),
            Row("Double-DIP (a skip net for the kernel)", "21.51/.5256", preset="double_dip"),
        ),
    ),
    Entry(
        name="selfdeblur_table3",
        title="SelfDeblur against others, Levin's set",
        paper=f"{_PAPER}, Table 3",
        datasets=("levin",),
        metrics=("psnr", "ssim", "error_ratio", "seconds"),
        rows=(
            Row("known kernel Δ", "34.53/.9492/1.0000/-", preset="fast", known_kernel=True, final="sparse"),
            Row("Krishnan et al. Δ", "29.88/.8666/2.4523/8.9400"),
            Row("Cho & Lee Δ", "30.57/.8966/1.7113/1.3951"),
            Row("Levin et al. Δ", "30.80/.9092/1.7724/78.263"),
            Row("Xu & Jia Δ", "31.67/.9163/1.4898/1.1840"),
            Row("Sun et al. Δ", "32.99/.9330/1.2847/191.03"),
            Row("Zuo et al. Δ", "32.66/.9332/1.2500/10.998"),
            Row("Pan-DCP Δ", "32.69/.9284/1.2555/295.23"),
            Row("SRN", "23.43/.7117/6.0864/-"),
            Row("SelfDeblur Δ", "33.32/.9438/1.2509/-", preset="selfdeblur", final="sparse"),
            Row("SelfDeblur", "33.07/.9313/1.1968/224.01", preset="selfdeblur"),
            Row("SelfDeblur, loss as printed", "33.07/.9313/1.1968/224.01", preset="selfdeblur_paper"),
            _OURS,
        ),
        note="The settings of the paper's public code and the loss that the paper prints differ, so each has its row. "
        "Published seconds: a Titan V for SelfDeblur and SRN, a 3.3 GHz CPU for the others, kernel only; ours, all of a run. "
        "Error ratios are of spectral norms, as in the script behind the published ones; images.csv has those of norms too.",
    ),
    Entry(
        name="selfdeblur_table4",
        title="SelfDeblur against others, Lai's set by category",
        paper=f"{_PAPER}, Table 4",
        datasets=("lai",),
        group="category",
        groups=(*LAI_CATEGORIES, AVERAGE),
        rows=(
            Row("Cho & Lee Δ", "16.35/.3890 20.14/.5198 19.90/.5560 14.05/.4927 14.87/.4429 17.06/.4801"),
            Row("Xu & Jia Δ", "19.23/.6540 23.03/.7542 25.32/.8517 14.79/.5632 18.56/.7171 20.18/.7080"),
            Row("Xu et al. Δ", "17.99/.5986 21.58/.6788 24.40/.8133 14.53/.5383 17.64/.6677 19.23/.6593"),
            Row("Michaeli et al. Δ", "17.43/.4189 20.70/.5116 23.35/.6999 14.14/.4914 16.23/.4686 18.37/.5181"),
            Row("Perrone et al. Δ", "17.41/.5507 21.04/.6764 22.77/.7347 14.24/.5107 16.94/.5927 18.48/.6130"),
            Row("Pan-L0 Δ", "16.92/.5316 20.92/.6622 23.36/.7822 14.62/.5451 16.87/.6030 18.54/.6248"),
            Row("Pan-DCP Δ", "18.59/.5942 22.60/.6984 24.03/.7719 16.52/.6322 17.42/.6193 19.89/.6656"),
            Row(
                "SelfDeblur Δ",
                "20.08/.7338 22.50/.7183 27.41/.8784 16.58/.6165 19.06/.7126 21.13/.7319",
                preset="selfdeblur_lai",
                final=LAI_FINAL,
            ),
            Row(
                "SelfDeblur",
                "20.35/.7543 22.05/.7092 25.94/.8834 16.35/.6364 20.16/.7785 20.97/.7524",
                preset="selfdeblur_lai",
            ),
            Row("known kernel Δ (ours)", preset="fast", known_kernel=True, final=LAI_FINAL),
            _OURS,
        ),
    ),
    Entry(
        name="selfdeblur_figure3",
        title="SelfDeblur: kernel error and PSNR over the steps, and what the generators show meanwhile",
        paper=f"{_PAPER}, Figure 3",
        datasets=("levin",),
        images=("im1_kernel4_img",),
        figure="curves",
        rows=(Row("SelfDeblur", "?/?", preset="selfdeblur"),),
        note="The text names neither the image nor the steps shown, and the curves' values are not in it; both are our choice.",
    ),
)
