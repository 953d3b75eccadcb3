"""A small PyTorch version of the deep priors' networks, losses and steps, for parity tests and timings.

Written from the papers (SelfDeblur: Ren et al., CVPR 2020, https://arxiv.org/abs/1908.02197; Monte-Carlo sampling: Li, Nan &
Ji, Inverse Problems 2021) as their users would run it: library convolutions, batch normalisation in training mode,
``Upsample``, Adam with a learning rate for each network. Modules carry the names of :mod:`jaxdeblur.networks`' parameters, so
that weights map one to one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from jaxdeblur.config import FitConfig, KernelMlpConfig, SkipNetConfig, UNetConfig
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


class UNet(nn.Module):
    """Latent ``[1, C, H, W]`` → image ``[1, 1, H, W]``, or a kernel of that shape whose pixels sum to one.

    Args:
      config: widths and depth.
      activation: ``sigmoid`` for an image; ``softmax`` for a kernel, which starts flat.
    """

    def __init__(self, config: UNetConfig, activation: Literal["sigmoid", "softmax"] = "sigmoid") -> None:
        super().__init__()
        self.config, self.activation = config, activation
        self.dropout_rate = 0.0
        parts: dict[str, nn.Module] = {}
        for level in range(config.num_levels):
            inputs = config.channels if level else config.latent_channels
            parts[f"encode{level}_conv"] = _conv(inputs, config.channels, 3, 2 if level else 1)
            parts[f"encode{level}_norm"] = nn.BatchNorm2d(config.channels)
            if level < config.num_levels - 1:
                parts[f"decode{level}_conv"] = _conv(2 * config.channels, config.channels, 3)
                parts[f"decode{level}_norm"] = nn.BatchNorm2d(config.channels)
        out = _conv(config.channels, 1)
        if activation == "softmax":
            nn.init.zeros_(out.weight)
            out.bias = nn.Parameter(torch.zeros(1))
        parts["out_conv"] = out
        self.parts = nn.ModuleDict(parts)

    def _block(self, name: str, x: torch.Tensor) -> torch.Tensor:
        x = self.parts[f"{name}_norm"](self.parts[f"{name}_conv"](x))
        return F.leaky_relu(x, self.config.negative_slope)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """``[1, latent_channels, H, W]`` → ``[1, 1, H, W]``."""
        levels = [self._block("encode0", latent)]
        for level in range(1, self.config.num_levels):
            levels.append(self._block(f"encode{level}", levels[-1]))
        x = levels.pop()
        for level in reversed(range(self.config.num_levels - 1)):
            joined = levels.pop()
            x = F.dropout(x, self.dropout_rate) if self.dropout_rate else x
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = self._block(f"decode{level}", torch.cat([joined, x[:, :, : joined.shape[2], : joined.shape[3]]], 1))
        x = self.parts["out_conv"](x)
        return torch.sigmoid(x) if self.activation == "sigmoid" else F.softmax(x.flatten(), dim=0).view(x.shape)


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
            value = source.detach().cpu().numpy()
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


def ssim_window(like: torch.Tensor) -> torch.Tensor:
    """The Gaussian window ``[1, 1, 11, 11]`` of :func:`one_minus_ssim`, of the type and on the device of ``like``."""
    offsets = torch.arange(_SSIM_WINDOW, dtype=like.dtype, device=like.device) - _SSIM_WINDOW // 2
    taps = torch.exp(-(offsets**2) / (2 * _SSIM_SIGMA**2))
    return torch.outer(taps, taps)[None, None] / taps.sum() ** 2


def one_minus_ssim(a: torch.Tensor, b: torch.Tensor, window: torch.Tensor | None = None) -> torch.Tensor:
    """One minus the mean SSIM of ``[1, 1, H, W]`` images, zero padded; ``window`` is :func:`ssim_window`'s, if at hand."""
    taps = ssim_window(a) if window is None else window

    def mean(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, taps, padding=_SSIM_WINDOW // 2)

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b, cov = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    ssim = (2 * mean_a * mean_b + _C1) * (2 * cov + _C2) / ((mean_a**2 + mean_b**2 + _C1) * (var_a + var_b + _C2))
    return 1 - ssim.mean()


# Loss terms: functions of the image, the kernel, the re-blurred image, the blurry one, the surrogate and SSIM's window.
_TERMS: dict[str, Callable[..., torch.Tensor]] = {
    "mse": lambda image, kernel, reblurred, blurry, surrogate, window: F.mse_loss(reblurred, blurry),
    "mae": lambda image, kernel, reblurred, blurry, surrogate, window: F.l1_loss(reblurred, blurry),
    "one_minus_ssim": lambda image, kernel, reblurred, blurry, surrogate, window: one_minus_ssim(reblurred, blurry, window),
    "kernel_energy": lambda image, kernel, reblurred, blurry, surrogate, window: kernel.square().sum(),
    "weak_mae": lambda image, kernel, reblurred, blurry, surrogate, window: F.l1_loss(_cropped(image, kernel), surrogate),
}


def _cropped(image: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    rows, columns = (side // 2 for side in kernel.shape[-2:])
    return image[:, :, rows : image.shape[2] - rows, columns : image.shape[3] - columns]


class Fit:
    """A deep prior's loop on one image: Adam, perturbed latent and dropout, the loss of the last interval.

    Noise, dropout and learning rates are those of the last step; what a step costs does not depend on them.

    Args:
      blurry: ``[H, W]``.
      config: networks, loss and update (``joint`` or ``sequential``), one sample a step.
      kernel_shape: ``(h, w)``.
      surrogate: ``[H, W]`` for the weak terms, a pre-trained network's restoration.
      device: where it runs.
      backend: of ``torch.compile`` for networks and loss, such as ``inductor``; None to run them as they are.

    Raises:
      ValueError: there is no PyTorch side for a network, a loss term or the update.
    """

    def __init__(
        self,
        blurry: np.ndarray,
        config: FitConfig,
        kernel_shape: tuple[int, int],
        *,
        surrogate: np.ndarray | None = None,
        device: str = "cpu",
        backend: str | None = None,
    ) -> None:
        self.terms = config.loss_intervals[-1].terms
        if missing := [name for name, _ in self.terms if name not in _TERMS]:
            raise ValueError(f"no PyTorch side for the loss {missing[0]}")
        if config.num_samples != 1 or config.update == "alternating" or config.randomises_kernel:
            raise ValueError("no PyTorch side for several samples, alternating updates or a randomised kernel")
        self.sequential = config.update == "sequential"
        self.blurry, self.surrogate = (
            None if image is None else torch.from_numpy(np.asarray(image, np.float32)).to(device)[None, None]
            for image in (blurry, surrogate)
        )
        shape = [side + kernel - 1 for side, kernel in zip(blurry.shape, kernel_shape, strict=True)]
        image, kernel = config.image_generator, config.kernel_generator
        if not isinstance(kernel, KernelMlpConfig | UNetConfig):
            raise ValueError(f"no PyTorch side for the kernel generator {kernel}")
        self.image_net = _image_net(config).to(device)
        self.kernel_net = _kernel_net(kernel, kernel_shape).to(device)
        self.image_latent = image.latent_scale * torch.rand(1, image.latent_channels, *shape, device=device)
        size = (kernel.latent_size,) if isinstance(kernel, KernelMlpConfig) else (1, kernel.latent_channels, *kernel_shape)
        self.kernel_latent = kernel.latent_scale * torch.rand(*size, device=device)
        self.kernel_shape = kernel_shape
        self.input_noise_std = config.input_noise_std[-1][1]
        self.window = ssim_window(self.image_latent)
        compiled = torch.compile(backend=backend) if backend else lambda function: function
        self._image, self._kernel, self._loss = compiled(self.image_net), compiled(self.kernel_net), compiled(self._objective)
        nets = ((self.image_net, config.image_learning_rate), (self.kernel_net, config.kernel_learning_rate))
        self.image_adam, self.kernel_adam = (torch.optim.Adam(net.parameters(), lr=rate) for net, rate in nets)

    def _objective(self, image: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        reblurred = F.conv2d(image, kernel.flip(-2, -1)[None, None])
        values = [
            weight * _TERMS[name](image, kernel, reblurred, self.blurry, self.surrogate, self.window)
            for name, weight in self.terms
        ]
        return torch.stack(values).sum()

    def step(self) -> torch.Tensor:
        """One step; returns the loss before it, which is not waited for."""
        self.image_adam.zero_grad()
        self.kernel_adam.zero_grad()
        image = self._image(self.image_latent + self.input_noise_std * torch.randn_like(self.image_latent))
        kernel = self._kernel(self.kernel_latent).view(self.kernel_shape)
        loss: torch.Tensor
        if self.sequential:
            loss = self._loss(image.detach(), kernel)
            loss.backward()
            self.kernel_adam.step()
            with torch.no_grad():
                kernel = self._kernel(self.kernel_latent).view(self.kernel_shape)
            self._loss(image, kernel).backward()
        else:
            loss = self._loss(image, kernel)
            loss.backward()
            self.kernel_adam.step()
        self.image_adam.step()
        return loss.detach()


def _image_net(config: FitConfig) -> nn.Module:
    if isinstance(config.image_generator, SkipNetConfig):
        return SkipNet(config.image_generator)
    net = UNet(config.image_generator)
    net.dropout_rate = config.dropout_rate[-1][1]
    return net


def _kernel_net(config: KernelMlpConfig | UNetConfig, kernel_shape: tuple[int, int]) -> nn.Module:
    return KernelMlp(config, kernel_shape) if isinstance(config, KernelMlpConfig) else UNet(config, "softmax")
