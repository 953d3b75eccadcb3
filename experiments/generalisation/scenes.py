"""The scenes: where their sharp images come from, and how they are degraded.

``split.json`` fixes everything: for each scene its split, category, source, licence, downscaling and crop, and the parameters
of each degradation. All blurry images of a scene show the same crop.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import io
import json
import pathlib
from collections.abc import Iterator, Sequence

import imageio.v3 as iio
import numpy as np
import scipy.ndimage
from PIL import Image

from experiments.files import write_text
from experiments.generalisation.rendered_text import render_page
from experiments.make_synthetic import degrade
from jaxdeblur.errors import InputError
from jaxdeblur.imaging.colour import luma
from jaxdeblur.imaging.kernel_files import write_kernel_array
from jaxdeblur.operators.trajectories import motion_kernel

SPLITS = ("tune", "check")
CATEGORIES = ("soft", "dark", "portrait", "foliage", "brick", "text", "night", "jpeg", "noise")
INDEX = "index.json"
_SPLIT_FILE = pathlib.Path(__file__).with_name("split.json")
# By what name a Python package is imported.
_MODULES = {"scikit-image": "skimage", "scikit-learn": "sklearn", "matplotlib": "matplotlib"}
_DATA_SETS = ("levin", "lai")
_RENDERED = "rendered"


@dataclasses.dataclass(frozen=True)
class Degradation:
    """The parameters of one blurry image of a scene.

    Attributes:
      size: odd side of the kernel's support.
      seed: of the kernel and of the noise.
      persistence: see :func:`~jaxdeblur.operators.trajectories.motion_kernel`.
      softness_std: standard deviation in pixels of a Gaussian that the ground truth itself is blurred with.
      noise_std: standard deviation of the white Gaussian noise, in [0, 1] units.
      quick: whether the case belongs to the quick subset.
    """

    size: int
    seed: int
    persistence: float
    softness_std: float
    noise_std: float
    quick: bool = False


@dataclasses.dataclass(frozen=True)
class Scene:
    """A sharp image and its degradations.

    Attributes:
      name: unique.
      split: one of :data:`SPLITS`.
      category: one of :data:`CATEGORIES`.
      package: that ships the source; ``rendered`` for rendered text, ``levin`` or ``lai`` for a benchmark set.
      file: the source's path inside the package (relative to site-packages for Python packages); the style of rendered text.
      sha256: the first 16 digits of the file's digest; None for rendered text.
      licence: of the source, and its author.
      scale: factor by which the source is downscaled.
      crop: (top, left, height, width) in the downscaled source, margins for the valid-support blur included.
      degradations: one per blurry image.
      gamma: exponent applied to the source's values; above 1 shadows get darker, as at night.
      exposure: factor applied to the source's values before the blur.
      jpeg: quality at which the blurry image is compressed, or None.
    """

    name: str
    split: str
    category: str
    package: str
    file: str
    sha256: str | None
    licence: str
    scale: float
    crop: tuple[int, int, int, int]
    degradations: tuple[Degradation, ...]
    gamma: float = 1.0
    exposure: float = 1.0
    jpeg: int | None = None

    @property
    def margin(self) -> int:
        """Pixels cut off each side, the same for all degradations: half the largest kernel."""
        return max(degradation.size for degradation in self.degradations) // 2

    @property
    def shape(self) -> tuple[int, int]:
        """``(H, W)`` of the images."""
        return self.crop[2] - 2 * self.margin, self.crop[3] - 2 * self.margin


def read_split(path: pathlib.Path = _SPLIT_FILE) -> list[Scene]:
    """The scenes of a split file."""
    scenes = []
    for entry in json.loads(path.read_text(encoding="utf-8"))["scenes"]:
        degradations = tuple(Degradation(**fields) for fields in entry.pop("degradations"))
        scenes.append(Scene(**{**entry, "crop": tuple(entry["crop"])}, degradations=degradations))
    return scenes


def find_source(scene: Scene, image_dir: pathlib.Path | None, data_dir: pathlib.Path | None) -> pathlib.Path | None:
    """The file of a scene's source, or None if there is none.

    Args:
      scene: the scene.
      image_dir: folder with one subfolder per unpacked package, named after it.
      data_dir: folder with the benchmark sets ``levin`` and ``lai``.
    """
    places = []
    if scene.package in _DATA_SETS:
        places += [data_dir / scene.file] if data_dir else []
    else:
        places += [image_dir / scene.package / scene.file] if image_dir else []
        module = importlib.util.find_spec(_MODULES[scene.package]) if scene.package in _MODULES else None
        if module is not None and module.origin is not None:
            places.append(pathlib.Path(module.origin).parent.parent / scene.file)
    return next((place for place in places if place.is_file()), None)


def read_sharp(scene: Scene, path: pathlib.Path | None) -> np.ndarray:
    """The downscaled luma of a scene's source, ``[H, W]`` float32 in [0, 1], not cropped yet.

    Raises:
      InputError: the file is not the one that ``split.json`` was made with.
    """
    if scene.package == _RENDERED:
        grey = render_page(scene.file)
    else:
        assert path is not None
        content = path.read_bytes()
        if not hashlib.sha256(content).hexdigest().startswith(scene.sha256 or ""):
            raise InputError(
                f"{path}: not the file that scene {scene.name!r} was made from; install another version of {scene.package}"
            )
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.float32) / 255
        grey = luma(pixels)
    size = tuple(round(side / scene.scale) for side in grey.shape[::-1])
    # Area averaging: no ringing, and what was blurred by lens and demosaicing becomes sharp to the pixel.
    grey = np.asarray(Image.fromarray(grey.astype(np.float32)).resize((size[0], size[1]), Image.Resampling.BOX))
    top, left, height, width = scene.crop
    if top + height > grey.shape[0] or left + width > grey.shape[1]:
        raise InputError(f"{scene.name}: {grey.shape[1]}×{grey.shape[0]} pixels do not contain the crop {scene.crop}")
    return np.clip(grey, 0.0, 1.0) ** scene.gamma


def make_case(scene: Scene, degradation: Degradation, grey: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Applies a degradation.

    Args:
      scene: the scene.
      degradation: one of its degradations.
      grey: the result of :func:`read_sharp`.

    Returns:
      The blurry image and the ground truth, ``[H, W]`` uint8, and the kernel, ``[size, size]`` float32.
    """
    # Before the crop, so that the border is not affected.
    soft = scipy.ndimage.gaussian_filter(grey, degradation.softness_std) if degradation.softness_std else grey
    top, left, height, width = scene.crop
    generator = np.random.default_rng(degradation.seed)
    kernel = motion_kernel(generator, size=degradation.size, persistence=degradation.persistence)
    blurry, sharp = degrade(
        soft[top : top + height, left : left + width],
        kernel,
        margin=scene.margin,
        noise_std=degradation.noise_std,
        exposure=scene.exposure,
        generator=generator,
    )
    if scene.jpeg is not None:
        file = io.BytesIO()
        Image.fromarray(blurry).save(file, "JPEG", quality=scene.jpeg)
        blurry = np.asarray(Image.open(file))
    return blurry, sharp, kernel


def make_set(
    output_dir: pathlib.Path, scenes: Sequence[Scene], image_dir: pathlib.Path | None, data_dir: pathlib.Path | None
) -> Iterator[str]:
    """Writes the images of all scenes whose source is available.

    Args:
      output_dir: where to; existing files are replaced.
      scenes: which.
      image_dir: as for :func:`find_source`.
      data_dir: as for :func:`find_source`.

    Yields:
      Lines for the user: what has been made and what is missing.

    Raises:
      InputError: a source differs from the one that the scene was defined with.
    """
    index: list[dict[str, object]] = []
    missing: dict[str, list[str]] = {}
    for scene in scenes:
        path = find_source(scene, image_dir, data_dir)
        if path is None and scene.package != _RENDERED:
            missing.setdefault(scene.package, []).append(scene.name)
            continue
        grey = read_sharp(scene, path)
        folder = output_dir / scene.split
        folder.mkdir(parents=True, exist_ok=True)
        for degradation in scene.degradations:
            name = f"{scene.name}_{degradation.size}px"
            blurry, sharp, kernel = make_case(scene, degradation, grey)
            for kind, pixels in (("blurry", blurry), ("sharp", sharp)):
                iio.imwrite(folder / f"{name}_{kind}.png", pixels, plugin="pillow")
            write_kernel_array(folder / f"{name}_kernel.npy", kernel)
            index.append(
                {
                    "name": name,
                    "scene": scene.name,
                    "split": scene.split,
                    "category": scene.category,
                    "quick": degradation.quick,
                    "shape": list(blurry.shape),
                    "kernel_size": degradation.size,
                    "variation": {
                        "soft": degradation.softness_std,
                        "noise": degradation.noise_std,
                        "gamma": scene.gamma,
                        "exposure": scene.exposure,
                        "jpeg": scene.jpeg,
                        "clipped": round(float(np.mean(blurry == 255)), 4),
                    },
                    "licence": scene.licence,
                }
            )
        size = f"{scene.shape[1]}×{scene.shape[0]}"
        yield f"{scene.split} {scene.category} {scene.name}: {len(scene.degradations)} images of {size}"
    # Written last: a folder without it is incomplete.
    write_text(output_dir / INDEX, json.dumps({"cases": index, "missing": missing}, indent=1, ensure_ascii=False) + "\n")
    for package, names in missing.items():
        yield f"missing: {', '.join(names)}: {_remedy(package)}"
    yield f"{output_dir}: {len(index)} images of {len({case['scene'] for case in index})} scenes"


def _remedy(package: str) -> str:
    if package in _DATA_SETS:
        return f"no benchmark set {package!r} under --data_dir"
    if package in _MODULES:
        return f"pip install {package}"
    return f"apt-get download {package}; dpkg -x {package}_*.deb IMAGES/{package}; then --image_dir=IMAGES"
