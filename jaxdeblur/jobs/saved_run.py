"""Reading back what a report says of its run, to run it again."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import pathlib
from typing import Any

import cattrs
from cattrs.strategies import configure_tagged_union

from jaxdeblur.config import Config, ImageGeneratorConfig, KernelGeneratorConfig
from jaxdeblur.errors import InputError
from jaxdeblur.version import __version__

# Fields of the configuration that reports of earlier versions hold under another name: their place, the old and the new name.
_RENAMED = (("initialiser", "camera_blur_std", "image_softness_std"),)


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """What made a result.

    Attributes:
      config: the resolved configuration.
      seed: of the random key.
      image: where it is, as the report says.
      kernel: the kernel's array if it was given and not estimated, else None.
      versions: of this package and of jax, by name.
    """

    config: Config
    seed: int
    image: pathlib.Path
    kernel: pathlib.Path | None
    versions: dict[str, str]


def read_saved_run(path: pathlib.Path) -> SavedRun:
    """Reads a report written by the command line.

    Raises:
      InputError: it cannot be read, or holds no configuration that this version understands.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give a report (NAME_report.json) of an earlier run") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a report ({type(error).__name__}); give NAME_report.json") from None
    try:
        stem = path.name.removesuffix("_report.json")
        return SavedRun(
            config=config_from_json(report["config"]),
            seed=int(report["seed"]),
            image=path.parent / report["input"]["path"],
            kernel=path.with_name(f"{stem}_kernel.npy") if report["known_kernel"] else None,
            versions={"jaxdeblur": report["version"], "jax": report["jax_version"]},
        )
    except (KeyError, TypeError, ValueError) as error:
        detail = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path}: is no report of a run ({detail}); give NAME_report.json") from None


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
    """A configuration's JSON with the names that its fields have today; what is no such JSON stays as it is."""
    for place, old, new in _RENAMED:
        part = value.get(place) if isinstance(value, dict) else None
        if isinstance(part, dict) and old in part and new not in part:
            value = value | {place: {new if name == old else name: entry for name, entry in part.items()}}
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
