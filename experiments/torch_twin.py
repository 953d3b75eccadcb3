"""A small PyTorch version of SelfDeblur's networks, loss and step, for parity tests and timings.

Written from the paper (Ren et al., CVPR 2020, https://arxiv.org/abs/1908.02197) as its users would run it: library
convolutions, batch normalisation in training mode, ``Upsample``, one Adam with two learning rates. Modules carry the names of
:mod:`jaxdeblur.networks`' parameters, so that weights map one to one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from jaxdeblur.config import KernelMlpConfig, SkipNetConfig
from jaxdeblur.networks.skip import FIRST_NON_LOCAL_SCALE

_SSIM_WINDOW, _SSIM_SIGMA, _C1, _C2 = 11, 1.5, 0.01**2, 0.03**2


def _conv(inputs: int, outputs: int, size: int = 1, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, padding_mode="reflect" if size > 1 else "zeros")


class NonLocalBlock(nn.Module):
    """Dot-product attention with pooled keys and values, added to its input."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (_conv(channels, inner) for _ in range(3))
        self.project, self.project_norm = _conv(inner, channels), nn.BatchNorm2d(channels)
        nn.init.zeros_(self.project_norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[1, C, H, W]`` → the same shape."""
        query = self.query(x).flatten(2).transpose(1, 2)
        key = F.max_pool2d(self.key(x), 2).flatten(2)
        value = F.max_pool2d(self.value(x), 2).flatten(2).transpose(1, 2)
        attended = (query @ key / key.shape[-1]) @ value
        return x + self.project_norm(self.project(attended.transpose(1, 2).unflatten(2, x.shape[2:])))


class SkipNet(nn.Module):
    """Latent ``[1, C, H, W]`` → image ``[1, 1, H, W]``."""

    def __init__(self, config: SkipNetConfig) -> None:
        super().__init__()
        self.config = config
        channels, skip = config.channels, config.skip_channels
        parts: dict[str, nn.Module] = {}
        inputs = config.latent_channels
        for scale in range(config.num_scales):
            for name, into, out, size, stride in (
                ("skip", inputs, skip, 1, 1),
                ("down", inputs, channels, 3, 2),
                ("deep", channels, channels, 3, 1),
                ("up", channels + skip, channels, 3, 1),
                ("mix", channels, channels, 1, 1),
            ):
                parts[f"scale{scale}_{name}_conv"] = _conv(into, out, size, stride)
                parts[f"scale{scale}_{name}_norm"] = nn.BatchNorm2d(out)
            parts[f"scale{scale}_join_norm"] = nn.BatchNorm2d(channels + skip)
            if config.non_local and scale >= FIRST_NON_LOCAL_SCALE:
                parts[f"scale{scale}_non_local"] = NonLocalBlock(channels, config.non_local_channels)
            inputs = channels
        parts["out_conv"] = _conv(channels, 1)
        self.parts = nn.ModuleDict(parts)

    def _block(self, name: str, x: torch.Tensor) -> torch.Tensor:
        x = self.parts[f"{name}_norm"](self.parts[f"{name}_conv"](x))
        return F.leaky_relu(x, self.config.negative_slope)

    def _scale(self, x: torch.Tensor, scale: int) -> torch.Tensor:
        prefix = f"scale{scale}"
        skip, deeper = self._block(f"{prefix}_skip", x), self._block(f"{prefix}_down", x)
        if f"{prefix}_non_local" in self.parts:
            deeper = self.parts[f"{prefix}_non_local"](deeper)
        deeper = self._block(f"{prefix}_deep", deeper)
        if scale + 1 < self.config.num_scales:
            deeper = self._scale(deeper, scale + 1)
        deeper = F.interpolate(deeper, scale_factor=2, mode="bilinear", align_corners=False)
        deeper = deeper[:, :, : skip.shape[2], : skip.shape[3]]
        joined = self.parts[f"{prefix}_join_norm"](torch.cat([skip, deeper], 1))
        return self._block(f"{prefix}_mix", self._block(f"{prefix}_up", joined))

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """``[1, latent_channels, H, W]`` → ``[1, 1, H, W]``."""
        return torch.sigmoid(self.parts["out_conv"](self._scale(latent, 0)))


class KernelMlp(nn.Module):
    """Latent ``[latent_size]`` → kernel ``[h, w]``."""

    def __init__(self, config: KernelMlpConfig, kernel_shape: tuple[int, int]) -> None:
        super().__init__()
        self.kernel_shape = kernel_shape
        sizes = (config.latent_size, *config.hidden_sizes, kernel_shape[0] * kernel_shape[1])
        names = [*(f"hidden{index}" for index in range(len(config.hidden_sizes))), "out"]
        self.parts = nn.ModuleDict(
            {name: nn.Linear(into, out) for name, into, out in zip(names, sizes[:-1], sizes[1:], strict=True)}
        )

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """``[latent_size]`` → ``[h, w]``."""
        *hidden, out = self.parts.values()
        for layer in hidden:
            latent = F.relu6(layer(latent))
        return F.softmax(out(latent), dim=0).view(self.kernel_shape)


def to_flax(module: nn.Module, *, gradients: bool = False) -> dict[str, Any]:
    """The parameters of one of the above, or their gradients, under their names and in their axes in our networks."""
    tree: dict[str, Any] = {}
    for path, owner in module.named_modules():
        own: dict[str, np.ndarray] = {}
        for name, parameter in owner.named_parameters(recurse=False):
            source = parameter.grad if gradients else parameter
            if source is None:
                raise ValueError(f"{path}.{name} has no gradient")
            value = source.detach().numpy()
            if name == "weight":
                if isinstance(owner, nn.BatchNorm2d):
                    name = "scale"
                else:
                    name, value = "kernel", value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0)
                    if value.shape[:2] == (1, 1):
                        value = value[0, 0]
            own[name] = value.copy()
        if own:
            branch = tree
            for part in path.removeprefix("parts.").split("."):
                branch = branch.setdefault(part, {})
            branch.update(own)
    return tree


def one_minus_ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """One minus the mean SSIM of ``[1, 1, H, W]`` images, zero padded."""
    offsets = torch.arange(_SSIM_WINDOW, dtype=torch.float32) - _SSIM_WINDOW // 2
    taps = torch.exp(-(offsets**2) / (2 * _SSIM_SIGMA**2))
    window = torch.outer(taps, taps) / taps.sum() ** 2

    def mean(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, window[None, None], padding=_SSIM_WINDOW // 2)

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b, cov = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    ssim = (2 * mean_a * mean_b + _C1) * (2 * cov + _C2) / ((mean_a**2 + mean_b**2 + _C1) * (var_a + var_b + _C2))
    return 1 - ssim.mean()


class Fit:
    """SelfDeblur's loop on one image: joint Adam, perturbed latent, one loss.

    Args:
      blurry: ``[H, W]``.
      image_config: of the image generator.
      kernel_config: of the kernel generator.
      kernel_shape: ``(h, w)``.
      loss: ``mse`` or ``one_minus_ssim``.
      learning_rates: for image and kernel.
      input_noise_std: of the latent's perturbation.
    """

    def __init__(
        self,
        blurry: np.ndarray,
        image_config: SkipNetConfig,
        kernel_config: KernelMlpConfig,
        kernel_shape: tuple[int, int],
        *,
        loss: str = "one_minus_ssim",
        learning_rates: tuple[float, float] = (1e-2, 1e-4),
        input_noise_std: float = 0.001,
    ) -> None:
        self.blurry = torch.from_numpy(np.asarray(blurry, np.float32))[None, None]
        shape = [side + kernel - 1 for side, kernel in zip(blurry.shape, kernel_shape, strict=True)]
        self.image_net, self.kernel_net = SkipNet(image_config), KernelMlp(kernel_config, kernel_shape)
        self.image_latent = image_config.latent_scale * torch.rand(1, image_config.latent_channels, *shape)
        self.kernel_latent = kernel_config.latent_scale * torch.rand(kernel_config.latent_size)
        self.loss, self.input_noise_std = loss, input_noise_std
        groups = zip((self.image_net, self.kernel_net), learning_rates, strict=True)
        self.adam = torch.optim.Adam([{"params": net.parameters(), "lr": rate} for net, rate in groups])

    def step(self) -> float:
        """One step; returns the loss before it."""
        self.adam.zero_grad()
        image = self.image_net(self.image_latent + self.input_noise_std * torch.randn_like(self.image_latent))
        kernel = self.kernel_net(self.kernel_latent)
        reblurred = F.conv2d(image, kernel.flip(0, 1)[None, None])
        loss = one_minus_ssim(reblurred, self.blurry) if self.loss == "one_minus_ssim" else F.mse_loss(reblurred, self.blurry)
        loss.backward()
        self.adam.step()
        return float(loss.detach())
