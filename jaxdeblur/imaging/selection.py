"""Which files a command line means, and what their results are called."""

from __future__ import annotations

import dataclasses
import glob
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable
from typing import Literal

from jaxdeblur.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".webp", ".bmp")
_RESULT_ENDINGS = ("_deblurred", "_kernel", "_preview", "_trace", "_posterior_mean", "_uncertainty")
_REPORT_ENDINGS = ("_report.json", "_report.html")


ReportKinds = Literal["both", "html", "json"]


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Where the results of one image go.

    Attributes:
      folder: the output folder.
      stem: what every name begins with.
    """

    folder: pathlib.Path
    stem: str

    def deblurred(self, suffix: str) -> pathlib.Path:
        """The sharp image, ``suffix`` being its format's ending."""
        return self.folder / f"{self.stem}_deblurred{suffix}"

    @property
    def kernel_image(self) -> pathlib.Path:
        return self.folder / f"{self.stem}_kernel.png"

    @property
    def kernel_array(self) -> pathlib.Path:
        return self.folder / f"{self.stem}_kernel.npy"

    @property
    def report(self) -> pathlib.Path:
        return self.folder / f"{self.stem}_report.json"

    @property
    def html_report(self) -> pathlib.Path:
        return self.folder / f"{self.stem}_report.html"

    @property
    def preview(self) -> pathlib.Path:
        return self.folder / f"{self.stem}_preview.png"

    @property
    def posterior_mean(self) -> pathlib.Path:
        return self.folder / f"{self.stem}_posterior_mean.png"

    @property
    def trace(self) -> pathlib.Path:
        return self.folder / f"{self.stem}_trace.png"

    @property
    def uncertainty(self) -> pathlib.Path:
        return self.folder / f"{self.stem}_uncertainty.png"

    def all(self, suffix: str, *, fitted: bool, posterior: bool, reports: ReportKinds = "both") -> list[pathlib.Path]:
        """Every file of a run, the report last, so that a report says that the rest is there.

        Args:
          suffix: of the sharp image.
          fitted: whether a deep prior was fitted, whose curve is drawn.
          posterior: whether the posterior's two images are among them.
          reports: which of the two there are.
        """
        always = [self.deblurred(suffix), self.kernel_image, self.kernel_array, self.preview]
        curve = [self.trace] if fitted else []
        samples = [self.posterior_mean, self.uncertainty] if posterior else []
        accounts = {"html": [self.html_report], "json": [self.report], "both": [self.html_report, self.report]}
        return [*always, *curve, *samples, *accounts[reports]]


def find_images(pattern: str, log: Callable[[str], None]) -> list[pathlib.Path]:
    """The files that ``pattern`` means: a file, a folder, a glob (``**`` included), or several of these by comma.

    A folder stands for its images, less the results of earlier runs; it is not searched deeper. A plain name that does
    not exist is kept, so that it fails by itself while the others go on.

    Args:
      pattern: what the user gave.
      log: told, in a line each, what was passed over.

    Raises:
      InputError: a folder or a glob holds no image, or nothing is named at all.
    """
    names = [pattern] if os.path.exists(pattern) else [name.strip() for name in pattern.split(",")]
    found: dict[pathlib.Path, pathlib.Path] = {}
    for name in filter(None, names):
        path = pathlib.Path(name).expanduser()
        if path.is_dir():
            matches = _images_in(path, log)
            if not matches:
                raise InputError(f"--image={name}: the folder holds no image to deblur ({', '.join(IMAGE_SUFFIXES)})")
        elif not path.exists() and glob.has_magic(name):
            matches = sorted(pathlib.Path(match) for match in glob.glob(str(path), recursive=True))
            matches = [match for match in matches if match.is_file() and not _is_result(match)]
            if not matches:
                raise InputError(f"--image={name}: no image matches; check the pattern, and quote it against the shell")
        else:
            matches = [path]
        for match in matches:
            found.setdefault(match.resolve(), match)
    if not found:
        raise InputError("--image names nothing; give a file, a folder or a glob")
    return list(found.values())


def assign_outputs(images: Iterable[pathlib.Path], output_dir: str | None) -> list[Outputs | InputError]:
    """Where each image's results go: ``output_dir``, or a folder ``deblurred`` beside the image.

    Images of one name and different formats (``a.jpg`` and ``a.png``) keep the format in their results' names
    (``a_jpg_deblurred.png``). Where that does not tell them apart, all but the first get an error.

    Returns:
      For each image its outputs, or the reason why it has none.
    """
    images = list(images)
    folders = [pathlib.Path(output_dir).expanduser() if output_dir else image.parent / "deblurred" for image in images]
    names = [image.stem for image in images]
    # Compared without case: a file system may not tell A from a.
    claims = [(folder.resolve(), name.casefold()) for folder, name in zip(folders, names, strict=True)]
    taken: dict[tuple[pathlib.Path, str], pathlib.Path] = {}
    assigned: list[Outputs | InputError] = []
    for image, folder, name, claim in zip(images, folders, names, claims, strict=True):
        stem = f"{name}_{image.suffix[1:].lower()}" if claims.count(claim) > 1 and image.suffix else name
        holder = taken.setdefault((claim[0], stem.casefold()), image)
        if holder is image:
            assigned.append(Outputs(folder, stem))
        else:
            assigned.append(
                InputError(f"{image}: its results would overwrite those of {holder}; run it with another --output_dir")
            )
    return assigned


def find_reports(folder: pathlib.Path) -> list[pathlib.Path]:
    """One report of each result in ``folder``, sorted by name: the JSON, or the page where there is no JSON."""
    found: dict[str, pathlib.Path] = {}
    for ending in _REPORT_ENDINGS:
        for path in folder.glob(f"*{ending}"):
            found.setdefault(path.name.removesuffix(ending), path)
    return [found[stem] for stem in sorted(found, key=lambda stem: (stem.casefold(), stem))]


def prepare_folder(folder: pathlib.Path) -> list[pathlib.Path]:
    """Makes ``folder`` and tries whether it can be written to.

    Returns:
      The folders that had to be made, deepest first, for :func:`remove_if_empty`.

    Raises:
      InputError: it cannot be made or written to.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        remove_if_empty(missing)
        raise InputError(f"{folder}: cannot write to this folder ({error.strerror}); give another --output_dir") from None
    return missing


def remove_if_empty(folders: Iterable[pathlib.Path]) -> None:
    """Removes those of ``folders`` that exist and hold nothing."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            continue


def _images_in(folder: pathlib.Path, log: Callable[[str], None]) -> list[pathlib.Path]:
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from None
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    results = [path for path in images if _is_result(path)]
    for count, what in ((len(files) - len(images), "not images"), (len(results), "results of earlier runs")):
        if count:
            log(f"{folder}: passing over {count} {'file' if count == 1 else 'files'}: {what}")
    return [path for path in images if path not in results]


def _is_result(path: pathlib.Path) -> bool:
    """Whether a report of ours lies beside ``path`` that says that it is one of our results."""
    return any(
        path.stem.endswith(ending) and path.with_name(f"{path.stem.removesuffix(ending)}{report}").exists()
        for ending in _RESULT_ENDINGS
        for report in _REPORT_ENDINGS
    )
