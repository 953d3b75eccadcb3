"""Small PyTorch versions of the teachers, for parity tests.

Written from the papers, with the names of their published checkpoints: DMPHN's hierarchy patch by patch, DWDN channel by
channel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from jaxdeblur.networks.teachers.dwdn import DwdnConfig


def _residual(channels: int, size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, size, padding=size // 2),
        nn.ReLU(),
        nn.Conv2d(channels, channels, size, padding=size // 2),
    )


class Encoder(nn.Module):
    """``[1, 3, H, W]`` → ``[1, 128, H/4, W/4]``."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2, self.layer3 = nn.Conv2d(3, 32, 3, padding=1), _residual(32, 3), _residual(32, 3)
        self.layer5, self.layer6, self.layer7 = nn.Conv2d(32, 64, 3, 2, 1), _residual(64, 3), _residual(64, 3)
        self.layer9, self.layer10, self.layer11 = nn.Conv2d(64, 128, 3, 2, 1), _residual(128, 3), _residual(128, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer1(x)
        x = x + self.layer2(x)
        x = x + self.layer3(x)
        x = self.layer5(x)
        x = x + self.layer6(x)
        x = x + self.layer7(x)
        x = self.layer9(x)
        x = x + self.layer10(x)
        return x + self.layer11(x)


class Decoder(nn.Module):
    """``[1, 128, H/4, W/4]`` → ``[1, 3, H, W]``."""

    def __init__(self) -> None:
        super().__init__()
        self.layer13, self.layer14 = _residual(128, 3), _residual(128, 3)
        self.layer16 = nn.ConvTranspose2d(128, 64, 4, 2, 1)
        self.layer17, self.layer18 = _residual(64, 3), _residual(64, 3)
        self.layer20 = nn.ConvTranspose2d(64, 32, 4, 2, 1)
        self.layer21, self.layer22 = _residual(32, 3), _residual(32, 3)
        self.layer24 = nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.layer13(x)
        x = x + self.layer14(x)
        x = self.layer16(x)
        x = x + self.layer17(x)
        x = x + self.layer18(x)
        x = self.layer20(x)
        x = x + self.layer21(x)
        x = x + self.layer22(x)
        return self.layer24(x)


class Dmphn(nn.Module):
    """``[1, 3, H, W]`` in [0, 1] → the same, H and W multiples of 16 and 8."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleList([Encoder() for _ in range(4)])
        self.decoders = nn.ModuleList([Decoder() for _ in range(4)])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image - 0.5
        top, bottom = x.chunk(2, 2)
        quarters = [quarter for half in (top, bottom) for quarter in half.chunk(2, 3)]
        # Quarter q is made of two eighths, one upon the other.
        joined4 = [torch.cat([self.encoders[3](eighth) for eighth in quarter.chunk(2, 2)], 2) for quarter in quarters]
        joined3, joined2 = [], []
        for half in (0, 1):
            left, right = 2 * half, 2 * half + 1
            features = [self.encoders[2](quarters[q] + self.decoders[3](joined4[q])) for q in (left, right)]
            joined3.append(torch.cat(features, 3) + torch.cat([joined4[left], joined4[right]], 3))
        for index, half in enumerate((top, bottom)):
            joined2.append(self.encoders[1](half + self.decoders[2](joined3[index])))
        whole2 = torch.cat(joined2, 2) + torch.cat(joined3, 2)
        return self.decoders[0](self.encoders[0](x + self.decoders[1](whole2)) + whole2) + 0.5


class _Unit(nn.Module):
    """Layers under the name ``body``."""

    def __init__(self, *body: nn.Module, residual: bool = False) -> None:
        super().__init__()
        self.body, self.residual = nn.Sequential(*body), residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class Dwdn(nn.Module):
    """Blurry ``[H, W]`` and kernel ``[h, w]`` → ``[H, W]``; three resolutions and two scales."""

    def __init__(self, config: DwdnConfig) -> None:
        super().__init__()
        size, blocks, features = config.filter_size, config.num_residual_blocks, config.features
        wide, wider, widest = config.widths
        self.multiple = config.multiple

        def residuals(channels: int) -> list[nn.Module]:
            return [_Unit(*_residual(channels, size), residual=True) for _ in range(blocks)]

        def entry(into: int, out: int, stride: int = 1) -> nn.Module:
            return _Unit(nn.Conv2d(into, out, size, stride, size // 2), nn.ReLU())

        def up(into: int, out: int) -> nn.Module:
            return _Unit(nn.ConvTranspose2d(into, out, 3, 2, 1, output_padding=1), nn.ReLU())

        self.FeatureBlock = nn.Sequential(entry(1, features), *residuals(features))
        self.inBlock1 = nn.Sequential(entry(features, wide), *residuals(wide))
        self.inBlock2 = nn.Sequential(entry(features + wide, wide), *residuals(wide))
        self.encoder_first = nn.Sequential(entry(wide, wider, 2), *residuals(wider))
        self.encoder_second = nn.Sequential(entry(wider, widest, 2), *residuals(widest))
        self.decoder_second = nn.Sequential(*residuals(widest), up(widest, wider))
        self.decoder_first = nn.Sequential(*residuals(wider), up(wider, wide))
        self.outBlock = nn.Sequential(*residuals(wide))
        self.outBlock2 = nn.Sequential(_Unit(nn.Conv2d(wide, 1, size, padding=size // 2)))

    def forward(self, blurry: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        height, width = blurry.shape
        clear = wiener(self.FeatureBlock(blurry[None, None]), kernel)
        clear = F.pad(clear, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        half = F.interpolate(clear, scale_factor=0.5, mode="bilinear", align_corners=False)
        refined = self._refine(self.inBlock1(half))
        refined = F.interpolate(refined, scale_factor=2, mode="bilinear", align_corners=False)
        refined = self._refine(self.inBlock2(torch.cat([clear, refined], 1)))
        return self.outBlock2(refined)[0, 0, :height, :width]

    def _refine(self, entry: torch.Tensor) -> torch.Tensor:
        first = self.encoder_first(entry)
        deeper = self.decoder_second(self.encoder_second(first))
        return self.outBlock(self.decoder_first(deeper + first) + entry)


def wiener(features: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Wiener deconvolution of every channel of ``[1, C, H, W]``, with the noise that a 3×3 median tells."""
    rows, columns = kernel.shape
    height, width = features.shape[2:]
    padded = F.pad(features, (columns, columns, rows, rows), mode="replicate")
    placed = torch.zeros(padded.shape[2:], dtype=padded.dtype)
    for row in range(rows):
        for column in range(columns):
            placed[(row - rows // 2) % placed.shape[0], (column - columns // 2) % placed.shape[1]] = kernel[row, column]
    spectrum = torch.fft.fft2(placed)
    clear = []
    for channel in padded[0]:
        ratio = noise_to_signal(channel)
        restored = torch.fft.ifft2(torch.fft.fft2(channel) * spectrum.conj() / (spectrum.abs() ** 2 + ratio)).real
        clear.append(restored[rows : rows + height, columns : columns + width])
    return torch.stack(clear)[None]


def noise_to_signal(channel: torch.Tensor) -> torch.Tensor:
    """``(8/30) · var(median3×3(c) − c) / std(c)`` of ``[H, W]``, borders mirrored."""
    mirrored = F.pad(channel[None, None], (1, 1, 1, 1), mode="reflect")
    median = mirrored.unfold(2, 3, 1).unfold(3, 3, 1).flatten(-2).median(-1).values[0, 0]
    return 8 / 30 * (median - channel).var() / channel.std()
