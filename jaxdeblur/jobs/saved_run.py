"""Reading back what a report says of its run, to run it again."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import pathlib
from typing import Any

import cattrs
from cattrs.strategies import configure_tagged_union

from jaxdeblur.config import Config, ImageGeneratorConfig, KernelGeneratorConfig
from jaxdeblur.errors import InputError
from jaxdeblur.imaging.untrusted import decoding
from jaxdeblur.jobs.html_report import json_within
from jaxdeblur.version import __version__

LARGEST_SEED = 2**63 - 1  # that jax takes
# Of a report; those of the longest fits have a few megabytes.
_MOST_BYTES = 100_000_000
# Fields of the configuration that reports of earlier versions hold under another name, one value where there are several now:
# their place, the old and the new name.
_RENAMED = (
    ("initialiser", "camera_blur_std", "softness_stds"),
    ("initialiser", "image_softness_std", "softness_stds"),
)
# And those that are there no more.
_DROPPED = (("initialiser", "thinness_weight"),)


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """What made a result.

    Attributes:
      config: the resolved configuration.
      seed: of the random key.
      image: where it is, as the report says.
      kernel: the kernel's array if it was given and not estimated, else None.
      region: ``(x, y, width, height)`` from which the kernel was estimated, or None for the whole image.
      versions: of this package and of jax, by name.
    """

    config: Config
    seed: int
    image: pathlib.Path
    kernel: pathlib.Path | None
    region: tuple[int, int, int, int] | None
    versions: dict[str, str]


def read_saved_run(path: pathlib.Path) -> SavedRun:
    """Reads a report written by the command line.

    Raises:
      InputError: it cannot be read, or holds no configuration that this version understands.
    """
    with _decoding(path):
        report = json.loads(read_report(path))
        stem = path.name.removesuffix(".html").removesuffix(".json").removesuffix("_report")
        return SavedRun(
            config=_config(report["config"]),
            seed=_seed(report["seed"]),
            image=path.parent / report["input"]["path"],
            kernel=path.with_name(f"{stem}_kernel.npy") if report["known_kernel"] else None,
            region=_region(report.get("region")),
            versions={"jaxdeblur": str(report["version"]), "jax": str(report["jax_version"])},
        )


def read_report(path: pathlib.Path) -> str:
    """The JSON of a report, which may be a page that holds it.

    Raises:
      InputError: it cannot be read, or holds none.
    """
    with _decoding(path):
        text = path.read_text(encoding="utf-8")
        return json_within(text) if path.suffix == ".html" else text


def _decoding(path: pathlib.Path) -> contextlib.AbstractContextManager[int]:
    kind, damaged, remedy = "a report of a run", "is no report of a run", "give NAME_report.json or NAME_report.html"
    return decoding(path, kind, damaged=damaged, remedy=remedy, most_bytes=_MOST_BYTES)


def _config(value: Any) -> Config:
    try:
        return config_from_json(value)
    except InputError as error:
        raise ValueError(str(error)) from None  # it names a setting; what the user gave is the report


def _seed(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value <= LARGEST_SEED:
        raise ValueError(f"the seed {value!r} is none")
    return value


def _region(value: Any) -> tuple[int, int, int, int] | None:
    if value is None:  # or a report of a version that knew no regions
        return None
    if not (isinstance(value, list) and len(value) == 4 and all(type(number) is int for number in value)):
        raise ValueError(f"the region {value!r} is none")
    x, y, width, height = value
    return x, y, width, height


def version_notes(saved: SavedRun) -> list[str]:
    """What may keep a repetition from giving the same bytes, a line each."""
    now = {"jaxdeblur": __version__, "jax": importlib.metadata.version("jax")}
    return [
        f"the saved run used {name} {then}, this is {now[name]}: results may differ in their last digits"
        for name, then in saved.versions.items()
        if then != now[name]
    ]


def config_from_json(value: Any) -> Config:
    """The configuration that :func:`jaxdeblur.jobs.report.to_json` has made plain, of this version or an earlier one.

    Raises:
      ValueError: fields are missing, unknown or of the wrong type (one line).
      InputError: their values are out of range.
    """
    converter = cattrs.Converter(forbid_extra_keys=True)
    kernel_networks: Any = KernelGeneratorConfig
    for networks in (ImageGeneratorConfig, kernel_networks):
        configure_tagged_union(networks, converter, tag_name="name", tag_generator=_network_name)
    converter.register_structure_hook(
        kernel_networks | None,
        lambda given, _: None if given is None else converter.structure(given, kernel_networks),
    )
    try:
        return converter.structure(_with_new_names(value), Config)
    except cattrs.BaseValidationError as error:
        raise _root_cause(error) from None


def _with_new_names(value: Any) -> Any:
    """A configuration's JSON with the fields and names of today; what is no such JSON stays as it is."""
    for place, old, new in _RENAMED:
        part = value.get(place) if isinstance(value, dict) else None
        if isinstance(part, dict) and old in part and new not in part:
            value = value | {place: {name: entry for name, entry in part.items() if name != old} | {new: [part[old]]}}
    for place, old in _DROPPED:
        part = value.get(place) if isinstance(value, dict) else None
        if isinstance(part, dict):
            value = value | {place: {name: entry for name, entry in part.items() if name != old}}
    return value


def _network_name(network: Any) -> str:
    """What a network's configuration calls itself."""
    return str(network.name)


def _root_cause(error: BaseException) -> Exception:
    if isinstance(error, InputError):
        return error
    if isinstance(error, cattrs.BaseValidationError) and error.exceptions:
        return _root_cause(error.exceptions[0])
    return ValueError(" ".join(str(error).split()))
