"""The benchmark sets as they are published: which files they are made of, whether they are all there, and how to read them.

A set lies in one folder, under the names of its published copies. Any subset of its sharp images will do, but an image that is
there must be there with all its blurry versions: a table over a set with a file lost would be silently wrong. Whatever is wrong
with a folder (files missing, misnamed, damaged, of another size) is found before any work starts, and told at once.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from PIL import Image

from jaxdeblur.errors import InputError
from jaxdeblur.imaging.colour import luma
from jaxdeblur.imaging.kernel_files import read_kernel
from jaxdeblur.imaging.reading import read_image
from jaxdeblur.imaging.selection import IMAGE_SUFFIXES


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a set names its files.

    Attributes:
      images: names of the sharp images.
      kernel_sizes: side of each blur kernel, in the order of their numbers from 1; as used for the published tables.
      sharp: path of a sharp image in the folder, with ``{image}``. Of a set with a truth for each point of the camera's
        trajectory, with ``{kernel}`` and, for the number along it, ``{point}`` too.
      blurry: path of a blurry one, with ``{image}`` and ``{kernel}``.
      source: where the set is published.
      kernel: path of a true kernel, with ``{kernel}``; empty for a set without them. They may be absent altogether.
      turned_kernels: numbers of the kernels whose files are rotated by 180° against true convolution.
      size: (height, width) of all images, or None where they differ.
      other_folders: pairs of how a path above begins and how it begins in other copies of the set.
    """

    images: tuple[str, ...]
    kernel_sizes: tuple[int, ...]
    sharp: str
    blurry: str
    source: str
    kernel: str = ""
    turned_kernels: tuple[int, ...] = ()
    size: tuple[int, int] | None = None
    other_folders: tuple[tuple[str, str], ...] = ()


LAYOUTS: dict[str, Layout] = {
    # Levin, Weiss, Durand, Freeman, "Understanding and evaluating blind deconvolution algorithms" (CVPR 2009), as PNGs. That
    # kernels 4 and 8 are stored the other way round was measured: only so do they explain the blurry images.
    "levin": Layout(
        images=("im1", "im2", "im3", "im4"),
        kernel_sizes=(17, 15, 13, 27, 11, 19, 21, 21),
        sharp="gt/{image}.png",
        blurry="{image}_kernel{kernel}_img.png",
        source="https://webee.technion.ac.il/people/anat.levin (MATLAB files) and https://github.com/csdwren/SelfDeblur (PNGs)",
        kernel="gt/kernel{kernel}.png",
        turned_kernels=(1, 2, 3, 5, 6, 7),
        size=(255, 255),
    ),
    # The uniform part of Lai, Huang, Hu, Ahuja, Yang, "A comparative study for single image blind deblurring" (CVPR 2016).
    "lai": Layout(
        images=tuple(
            f"{kind}_{number:02d}" for kind in ("manmade", "natural", "people", "saturated", "text") for number in range(1, 6)
        ),
        kernel_sizes=(31, 51, 55, 75),
        sharp="ground_truth/{image}.png",
        blurry="blurry/{image}_kernel_{kernel:02d}.png",
        source="http://vllab.ucmerced.edu/wlai24/cvpr16_deblur_study",
        kernel="kernels/kernel_{kernel:02d}.png",
        other_folders=(("blurry/", "uniform/"), ("kernels/", "kernel/")),
    ),
    # Köhler, Hirsch, Mohler, Schölkopf, Harmeling, "Recording and playback of camera shake" (ECCV 2012): what its archives
    # unpack to. Its blur is not uniform; the kernel sizes are those that uniform methods are commonly run with, 41 to 141 being
    # the range of what the blur comes close to.
    "kohler": Layout(
        images=("1", "2", "3", "4"),
        kernel_sizes=(51, 51, 51, 51, 51, 51, 51, 141, 141, 141, 141, 51),
        sharp="Image{image}/Kernel{kernel}/GroundTruth{image}_{kernel}_{point}.png",
        blurry="BlurryImages/Blurry{image}_{kernel}.png",
        source="https://webdav.tuebingen.mpg.de/pixel/benchmark4camerashake",
        other_folders=(
            ("BlurryImages/", ""),
            ("Image{image}/Kernel{kernel}/", "GroundTruth/Image{image}/Kernel{kernel}/"),
            ("Image{image}/Kernel{kernel}/", "GroundTruth{image}_{kernel}/"),
            ("Image{image}/Kernel{kernel}/", "GroundTruth/"),
        ),
    ),
}

FOLDER = "folder"
DATASETS: tuple[str, ...] = (*LAYOUTS, FOLDER)

# Each of Köhler's trajectories has 198 to 200 truths; the authors' script leaves out one that their files lack.
_SHORTEST_TRAJECTORY = 198
_LEFT_OUT = {("1", 3, 30)}
_PNG_END = b"IEND\xaeB\x60\x82"


@dataclasses.dataclass(frozen=True)
class Example:
    """One blurry image of a set and what is known about it.

    Attributes:
      name: of the blurry file, without its ending.
      blurry: its path.
      sharp: path of the sharp image, or None where there is none. Where there is one for each point of the camera's
        trajectory, the one in the middle.
      kernel_size: side of the blur kernel as used for the published tables; None where it is not known.
      image: name of the sharp image within the set.
      category: kind of image, of sets that are divided by kinds; otherwise empty.
      kernel_number: which of the set's kernels, from 1; 0 where they have no numbers.
      kernel: file of the true kernel, or None.
      kernel_is_turned: whether that file is rotated by 180° against true convolution.
      trajectory: the sharp images along the camera's trajectory, of sets that have them.
    """

    name: str
    blurry: pathlib.Path
    sharp: pathlib.Path | None
    kernel_size: int | None
    image: str = ""
    category: str = ""
    kernel_number: int = 0
    kernel: pathlib.Path | None = None
    kernel_is_turned: bool = False
    trajectory: tuple[pathlib.Path, ...] = ()

    @property
    def truths(self) -> tuple[pathlib.Path, ...]:
        """All sharp images that a restored one may be compared with: the trajectory's, or the one, or none."""
        return self.trajectory or (() if self.sharp is None else (self.sharp,))

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """The blurry and the sharp image, both ``[H, W]`` in [0, 1].

        Where one is in colour its full-range luma is taken: the blurry images of Lai et al. were published as that, and
        their sharp ones in colour. Alpha is left out.

        Raises:
          InputError: there is no sharp image, a file is damaged, or the two differ in size.
        """
        if self.sharp is None:
            raise InputError(f"{self.blurry}: has no sharp image to compare with; give a folder of truths of the same names")
        blurry, sharp = self.load_blurry(), load_luma(self.sharp)
        if blurry.shape != sharp.shape:
            sizes = " and ".join(_size(image.shape) for image in (blurry, sharp))
            raise InputError(f"{self.blurry} and {self.sharp} differ in size ({sizes}): fetch the set again")
        return blurry, sharp

    def load_blurry(self) -> np.ndarray:
        """The blurry image as :meth:`load` gives it."""
        return load_luma(self.blurry)

    def load_truths(self) -> Iterator[np.ndarray]:
        """Every one of :attr:`truths`, ``[H, W]`` in [0, 1], read as it is asked for."""
        return map(load_luma, self.truths)

    def load_kernel(self) -> np.ndarray | None:
        """The true kernel ``[h, w]`` for true convolution, float32, summing to one; None where it is not known.

        Raises:
          InputError: its file is damaged.
        """
        if self.kernel is None:
            return None
        kernel = read_kernel(self.kernel)
        return np.ascontiguousarray(kernel[::-1, ::-1]) if self.kernel_is_turned else kernel


def load_luma(path: pathlib.Path) -> np.ndarray:
    """The image at ``path`` as ``[H, W]`` float32 in [0, 1]; of a colour image its full-range luma, alpha left out."""
    pixels = read_image(path).pixels
    return luma(pixels) if pixels.ndim == 3 else pixels


def find_examples(dataset: str, data_dir: pathlib.Path, *, truth_dir: pathlib.Path | None = None) -> list[Example]:
    """The blurry images of a set that lie in a folder, in the order of images and kernels, every file of theirs checked.

    Args:
      dataset: one of :data:`DATASETS`. ``folder`` is any folder of blurry images, or one with the subfolders ``blurry``,
        ``sharp`` (truths of the same names) and ``kernels`` (the same names, NPY or an image), the latter two optional.
      data_dir: the folder.
      truth_dir: for ``folder``, where the sharp images of the same names are, instead of ``sharp``.

    Returns:
      At least one example.

    Raises:
      InputError: the set is unknown, none of its images is in the folder, or something is wrong with its files: a first line
        that counts the faults and says where the set is published, and a line for each file.
    """
    if dataset not in DATASETS:
        raise InputError(f"unknown dataset {dataset!r}: choose from {', '.join(sorted(DATASETS))}")
    if truth_dir is not None and dataset != FOLDER:
        raise InputError(f"the {dataset} set has its truths in its own folder: leave out the folder of truths")
    if dataset == FOLDER:
        examples, problems = _scan_folder(data_dir, truth_dir)
        size, source = None, ""
    else:
        layout = LAYOUTS[dataset]
        examples, problems = _scan_layout(layout, data_dir)
        size, source = layout.size, f"; the set is published at {layout.source}"
        if not examples and not problems:
            first = layout.sharp.format(image=layout.images[0], kernel=1, point=1)
            raise InputError(f"{data_dir}: no image of the {dataset} set in it (such as {first}); give its folder{source}")
    problems += _content_problems(examples, size)
    if problems:
        faults = "1 fault" if len(problems) == 1 else f"{len(problems)} faults"
        raise InputError(f"{data_dir}: {faults} in the files of the {dataset} set{source}", *problems)
    return examples


def _scan_layout(layout: Layout, data_dir: pathlib.Path) -> tuple[list[Example], list[str]]:
    """Examples of the images that are there, and a line for each of their files that is not."""
    sharp, blurry = _paths(layout, data_dir, layout.sharp), _paths(layout, data_dir, layout.blurry)
    kernel = _paths(layout, data_dir, layout.kernel)
    numbers = range(1, len(layout.kernel_sizes) + 1)
    along = "{point}" in layout.sharp

    wanted = {blurry(image=image, kernel=number) for image in layout.images for number in numbers}
    if not along:
        wanted |= {sharp(image=image) for image in layout.images}
    kernels = [kernel(kernel=number) for number in numbers] if layout.kernel else []
    find_lookalike = _lookalikes(wanted | set(kernels))
    with_kernels = any(path.is_file() for path in kernels)
    missing = [path for path in kernels if not path.is_file()] if with_kernels else []

    examples, problems = [], []
    for image in layout.images:
        files = [blurry(image=image, kernel=number) for number in numbers] + ([] if along else [sharp(image=image)])
        if not any(path.is_file() or find_lookalike(path, 1.0) for path in files):
            continue
        missing += [path for path in files if not path.is_file()]
        for number, size, path in zip(numbers, layout.kernel_sizes, files, strict=False):
            truths: list[pathlib.Path] = []
            if along:
                truths, faults = _trajectory(sharp, image, number)
                problems += faults
            examples.append(
                Example(
                    name=path.stem,
                    blurry=path,
                    sharp=sharp(image=image) if not along else truths[len(truths) // 2] if truths else None,
                    kernel_size=size,
                    image=image,
                    category=image.partition("_")[0] if "_" in image else "",
                    kernel_number=number,
                    kernel=kernels[number - 1] if with_kernels else None,
                    kernel_is_turned=with_kernels and number in layout.turned_kernels,
                    trajectory=tuple(truths),
                )
            )
    return examples, [_missing(path, find_lookalike(path, 0.8)) for path in missing] + problems


def _paths(layout: Layout, data_dir: pathlib.Path, pattern: str) -> Callable[..., pathlib.Path]:
    """A function from the pattern's fields to a path, in the first of its folders that there is."""
    others = [other + pattern.removeprefix(usual) for usual, other in layout.other_folders if pattern.startswith(usual)]

    def path(**fields: str | int) -> pathlib.Path:
        choices = [data_dir / choice.format(**fields) for choice in (pattern, *others)]
        return next((choice for choice in choices if choice.parent.is_dir()), choices[0])

    return path


def _trajectory(sharp: Callable[..., pathlib.Path], image: str, kernel: int) -> tuple[list[pathlib.Path], list[str]]:
    """The truths of one blurry image in the order of their numbers, and a line for each that is missing."""
    first = sharp(image=image, kernel=kernel, point=1)
    stem = first.stem.removesuffix("1")
    there = {path.stem.removeprefix(stem) for path in first.parent.glob(f"{stem}*{first.suffix}")}
    last = max((int(point) for point in there if point.isdigit()), default=0)
    points = [point for point in range(1, last + 1) if (image, kernel, point) not in _LEFT_OUT]
    paths = {point: sharp(image=image, kernel=kernel, point=point) for point in points}
    if last < _SHORTEST_TRAJECTORY:
        return [], [
            f"{first.parent}: {len(there)} files {stem}*{first.suffix}, {_SHORTEST_TRAJECTORY} or more expected: fetch them"
        ]
    return list(paths.values()), [_missing(path, None) for point, path in paths.items() if str(point) not in there]


def _scan_folder(data_dir: pathlib.Path, truth_dir: pathlib.Path | None) -> tuple[list[Example], list[str]]:
    """Examples of the images in a folder, and a line for each truth that is missing."""
    blurry_dir = data_dir / "blurry" if (data_dir / "blurry").is_dir() else data_dir
    if truth_dir is None and (data_dir / "sharp").is_dir():
        truth_dir = data_dir / "sharp"
    images = _images(blurry_dir)
    if not images:
        raise InputError(f"{blurry_dir}: no image in it ({', '.join(IMAGE_SUFFIXES)}); give a folder that holds some")
    truths = {} if truth_dir is None else {path.stem: path for path in _images(truth_dir)}
    kernels = {path.stem: path for path in _files(data_dir / "kernels", (*IMAGE_SUFFIXES, ".npy"))}

    examples, problems = [], []
    stems = collections.Counter(path.stem for path in images)
    strangers = [path for stem, path in truths.items() if stem not in stems]
    for path in images:
        if truth_dir is not None and path.stem not in truths:
            problems.append(_missing(truth_dir / path.name, _lookalike(path, strangers, 0.8)))
            continue
        if stems[path.stem] > 1:
            problems.append(f"{path}: another image has this name but for its ending; rename one of them")
            continue
        kernel = kernels.get(path.stem)
        side = None if kernel is None else _kernel_side(kernel)
        examples.append(Example(path.stem, path, truths.get(path.stem), side, image=path.stem, kernel=kernel))
    return examples, problems


def _kernel_side(path: pathlib.Path) -> int | None:
    try:
        return max(read_kernel(path).shape)
    except InputError:  # told with the other files' faults
        return None


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; check the path")
    return _files(folder, IMAGE_SUFFIXES)


def _files(folder: pathlib.Path, suffixes: Iterable[str]) -> list[pathlib.Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith("."))


def _missing(path: pathlib.Path, lookalike: pathlib.Path | None) -> str:
    return f"{path}: missing" + (f"; {lookalike.name} looks like it: rename it" if lookalike is not None else "; fetch it")


def _lookalikes(wanted: set[pathlib.Path]) -> Callable[[pathlib.Path, float], pathlib.Path | None]:
    """A function that finds, for a wanted path and a likeness in (0, 1], a file beside it that is no other wanted one."""
    strangers = {
        folder: [path for path in folder.iterdir() if path.is_file() and path not in wanted]
        for folder in {path.parent for path in wanted}
        if folder.is_dir()
    }
    return lambda path, likeness: _lookalike(path, strangers.get(path.parent, []), likeness)


def _lookalike(path: pathlib.Path, strangers: Iterable[pathlib.Path], likeness: float) -> pathlib.Path | None:
    wanted = _plain(path)
    numbers = re.findall(r"\d+", wanted)  # they tell files apart that are otherwise alike
    names = {name: stranger for stranger in strangers if re.findall(r"\d+", name := _plain(stranger)) == numbers}
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=likeness)
    return names[close[0]] if close else None


def _plain(path: pathlib.Path) -> str:
    """A file's name without what people get wrong in names: ending, case, separators, leading zeros."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[\W_]+", "", re.sub(r"(\d)[\W_]+(?=\d)", r"\1x", path.stem.lower())))


def _content_problems(examples: Iterable[Example], size: tuple[int, int] | None) -> list[str]:
    """A line for each file that is damaged or of another size than it should be; files that are missing are passed over.

    Without a ``size`` that holds for all, that of most files of an image is taken for right.
    """
    problems: dict[pathlib.Path, str] = {}
    sizes: dict[pathlib.Path, tuple[int, ...]] = {}
    images: dict[str, dict[pathlib.Path, None]] = {}

    def measure(path: pathlib.Path, read: Callable[[pathlib.Path], tuple[int, ...]]) -> None:
        if path not in sizes and path not in problems and path.is_file():
            try:
                sizes[path] = read(path)
            except InputError as error:
                problems[path] = str(error)

    for example in examples:
        files = images.setdefault(example.image, {})
        measure(example.blurry, _image_size)
        for path in example.truths:
            measure(path, _header_size if example.trajectory else _image_size)
        files.update(dict.fromkeys((example.blurry, *example.truths)))
        if example.kernel is not None and example.kernel not in sizes:
            measure(example.kernel, lambda path: read_kernel(path).shape)
    for files in images.values():
        found = collections.Counter(sizes[path] for path in files if path in sizes)
        expected = size or next((most for most, _ in found.most_common(1)), None)
        for path in files:
            if path in sizes and expected is not None and sizes[path] != expected:
                problems[path] = f"{path}: {_size(sizes[path])} pixels, {_size(expected)} expected; fetch it again"
    return list(problems.values())


def _image_size(path: pathlib.Path) -> tuple[int, ...]:
    return read_image(path).pixels.shape[:2]


def _header_size(path: pathlib.Path) -> tuple[int, ...]:
    """(height, width) of a PNG that goes on to its end, without decoding it: a set may have ten thousand truths."""
    try:
        with path.open("rb") as file, Image.open(file, formats=["PNG"]) as header:
            width, height = header.size
            file.seek(-len(_PNG_END), os.SEEK_END)
            whole = file.read() == _PNG_END
    except OSError:
        raise InputError(f"{path}: damaged, or not a PNG; fetch it again") from None
    if not whole:
        raise InputError(f"{path}: damaged or cut short; fetch it again")
    return height, width


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}×{shape[0]}"
