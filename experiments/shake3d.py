"""Blur by a camera that turns: homographies integrated over the exposure, and the kernels that they make.

Whyte, Sivic, Zisserman, Ponce: "Non-uniform deblurring for shaken images", IJCV 2012,
https://doi.org/10.1007/s11263-011-0502-7 (the model).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import scipy.ndimage

from jaxdeblur.operators.trajectories import camera_path, displaced, homographies

# Widest side of a 35 mm frame, to which focal lengths are stated.
_FRAME_WIDTH = 36.0
# Frames along the exposure: their steps must be well below a pixel.
_FRAMES_PER_PIXEL = 4
_GRID_SPACING = 64


@dataclasses.dataclass(frozen=True)
class Shake:
    """A turning camera.

    Attributes:
      extent: of the middle pixel's path, in pixels.
      roll: largest difference between two angles about the optical axis, in degrees.
      focal_length: in millimetres, as of a 35 mm camera.
      seed: of the path.
    """

    extent: float
    roll: float
    focal_length: float
    seed: tuple[int, ...]

    def frames(self, shape: tuple[int, int], *, count: int | None = None) -> np.ndarray:
        """``[n, 3, 3]``: where the pixels ``(column, row, 1)`` of an image of ``shape`` are taken from, at equal times."""
        focal_length = self.focal_length * max(shape) / _FRAME_WIDTH
        generator = np.random.default_rng(self.seed)
        path = camera_path(generator, extent=self.extent, roll=math.radians(self.roll), focal_length=focal_length)
        if count is not None:
            path = path[np.linspace(0, len(path) - 1, count).round().astype(int)]
            path = path - path.mean(0)
        return homographies(path, shape, focal_length)

    def reach(self, shape: tuple[int, int]) -> int:
        """The most that a pixel of an image of ``shape`` is displaced along an axis, rounded up."""
        rows, columns = shape
        corners = np.array([(0, 0), (0, columns - 1), (rows - 1, 0), (rows - 1, columns - 1)], float)
        return math.ceil(np.abs(displaced(corners, self.frames(shape)) - corners).max())

    def blur(self, sharp: np.ndarray) -> np.ndarray:
        """The mean over the exposure of ``sharp [H, W]`` or ``[H, W, 3]``, seen by the turning camera; cubic interpolation.

        What is seen from beyond the border is the border's pixel repeated: cut off as many pixels as :meth:`reach` says.
        """
        shape = (sharp.shape[0], sharp.shape[1])
        count = max(32, _FRAMES_PER_PIXEL * math.ceil(self.extent + math.radians(self.roll) * math.hypot(*shape) / 2) + 1)
        frames = self.frames(shape, count=count)
        channels = np.moveaxis(sharp[..., None] if sharp.ndim == 2 else sharp, -1, 0).astype(np.float64)
        splines = [scipy.ndimage.spline_filter(channel, mode="mirror") for channel in channels]
        grid = np.stack([*np.meshgrid(np.arange(shape[1]), np.arange(shape[0])), np.ones(shape)]).reshape(3, -1)
        total = np.zeros((len(splines), grid.shape[1]))
        for frame in frames:
            column, row, depth = frame @ grid
            for index, spline in enumerate(splines):
                total[index] += scipy.ndimage.map_coordinates(
                    spline, (row / depth, column / depth), prefilter=False, mode="nearest"
                )
        blurry = np.moveaxis(total.reshape(len(splines), *shape) / len(frames), 0, -1)
        return blurry[..., 0] if sharp.ndim == 2 else blurry

    def kernels(self, shape: tuple[int, int], margin: int, grid: tuple[int, int] | None = None) -> np.ndarray:
        """The kernels in the middles of equal parts of the image without its margin.

        Args:
          shape: of the sharp image.
          margin: pixels cut off each side of it.
          grid: rows and columns of parts; by default one for each 64 pixels or so.

        Returns:
          ``[rows, columns, h, h]`` float32, each summing to 1.
        """
        inner = (shape[0] - 2 * margin, shape[1] - 2 * margin)
        rows, columns = grid or tuple(max(1, round(side / _GRID_SPACING)) for side in inner)
        middles = [margin + (np.arange(n) + 0.5) * side / n - 0.5 for n, side in zip((rows, columns), inner, strict=True)]
        points = np.stack(np.meshgrid(*middles, indexing="ij"), axis=-1).reshape(-1, 2)
        # Light that a pixel takes from p − u is moved by u.
        moved = points - displaced(points, self.frames(shape))
        half = self.reach(shape) + 1
        place = moved + half
        whole = np.floor(place).astype(int)
        part = place - whole
        kernels = np.zeros((len(points), 2 * half + 1, 2 * half + 1))
        index = np.broadcast_to(np.arange(len(points)), whole.shape[:2])
        for down in (0, 1):
            for across in (0, 1):
                weight = np.abs(1 - down - part[..., 0]) * np.abs(1 - across - part[..., 1])
                np.add.at(kernels, (index, whole[..., 0] + down, whole[..., 1] + across), weight)
        kernels /= kernels.sum((-2, -1), keepdims=True)
        return kernels.reshape(rows, columns, *kernels.shape[1:]).astype(np.float32)
