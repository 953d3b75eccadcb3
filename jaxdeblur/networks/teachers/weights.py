"""Weights of teachers: read from PyTorch checkpoints without PyTorch, checked, and kept in a file of our own.

    python -m jaxdeblur.networks.teachers.weights --teacher=dmphn --from=FOLDER --to=dmphn.msgpack

A checkpoint is a pickle, and a pickle can name any function for its reader to call. The reader here knows the handful of
names that tensors are stored by, stands in for them with descriptions of its own, and refuses a file at the first other
name, before anything is called. Both layouts are read: the zip archives of PyTorch 1.6 and later, and the row of pickles with
raw numbers behind them that came before (the published checkpoints of DMPHN).

Our own file is flax's msgpack, as checkpoints of fits are: no further dependency, and it can hold nothing but arrays,
numbers and text.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import math
import os
import pathlib
import pickle
import pickletools
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.serialization
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from jaxdeblur.errors import InputError
from jaxdeblur.imaging.staging import staged
from jaxdeblur.imaging.untrusted import decoding
from jaxdeblur.networks.teachers import dmphn, dwdn

TEACHERS = ("dmphn", "dwdn")
FLAG = "--teacher_weights"

_DMPHN_PARTS = tuple(f"{kind}_lv{level}" for kind in ("encoder", "decoder") for level in (1, 2, 3, 4))
_SUFFIXES = (".pkl", ".pt", ".pth")
_WANTED = {
    "dmphn": (
        "the authors' published checkpoints of DMPHN(1-2-4-8), eight files encoder_lv1.pkl … decoder_lv4.pkl (Zhang et al., "
        '"Deep stacked hierarchical multi-patch network for image deblurring", CVPR 2019), in one folder'
    ),
    "dwdn": (
        "a set trained by experiments/train_dwdn.py (dwdn.msgpack), or a one-channel checkpoint of the authors' (Dong et al., "
        '"Deep Wiener deconvolution", NeurIPS 2020)'
    ),
}

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
# Larger files are refused unread; the published weights have 29 MB.
_MOST_BYTES = 1_000_000_000
# More than this many names are counted, not listed.
_NAMES_LISTED = 3


def load_teacher(name: str, path: str | os.PathLike[str] | None) -> dict[str, Any]:
    """The parameters of a teacher, every name and shape checked.

    Args:
      name: one of :data:`TEACHERS`.
      path: a file made by this module or by training; a folder with the eight checkpoints of DMPHN; a checkpoint of DWDN.

    Returns:
      A tree of float32 arrays, for ``restore`` of the teacher's module.

    Raises:
      InputError: there are no weights, or they cannot be used; one line that says what to get and where to put it, or what is
        wrong with the file. Nothing in a file is ever executed.
    """
    if name not in TEACHERS:
        raise InputError(f"unknown teacher {name!r}: choose from {', '.join(TEACHERS)}")
    if path is None:
        raise InputError(
            f"teacher {name} needs weights, which do not come with jaxdeblur: get {_WANTED[name]}; {_advice(name)}"
        )
    place = pathlib.Path(path).expanduser()
    if not place.exists():
        raise InputError(f"{FLAG}={place}: there is nothing of that name; for {name} get {_WANTED[name]}")
    if place.is_dir():
        found = _from_folder(name, place)
    elif _first_bytes(place)[:1] == b"\x80" or _first_bytes(place) == b"PK\x03\x04":
        found = _converted(name, read_checkpoint(place), place)
    else:
        found = _from_own_file(name, place)
    # A folder's files have each been decoded under that guard.
    with contextlib.nullcontext() if place.is_dir() else _decoding(place, "damaged", "get it again"):
        _check(name, found, place)
    tree = flax.traverse_util.unflatten_dict(found, sep="/")
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def save_teacher(path: str | os.PathLike[str], name: str, params: Mapping[str, Any]) -> None:
    """Writes parameters to a file of our own, all of it or nothing.

    Args:
      path: of the file.
      name: one of :data:`TEACHERS`.
      params: of that teacher.

    Raises:
      InputError: the file cannot be written.
    """
    place = pathlib.Path(path).expanduser()
    plain = jax.tree.map(np.asarray, flax.serialization.to_state_dict(params))
    try:
        with staged([place]) as (partial,):
            partial.write_bytes(flax.serialization.msgpack_serialize({"teacher": name, "params": plain}))
    except OSError as error:
        raise InputError(f"{place} cannot be written ({error.strerror}): give another place") from None


def read_checkpoint(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch checkpoint by name, without PyTorch and without executing anything in it.

    A checkpoint that holds its state dict under a name of its own (``state_dict``, ``model`` or ``params``) is read too, and
    ``module.`` in front of all names is left out.

    Args:
      path: of the file, in either layout.

    Raises:
      InputError: it is damaged, holds no tensors, or names anything but tensors.
    """
    with _decoding(path, "damaged or no PyTorch checkpoint", "get it again"):
        raw = path.read_bytes()
        try:
            content, storages = _read_zip(raw) if raw.startswith(b"PK") else _read_legacy(raw)
        except _RefusedError as error:
            raise InputError(
                f"{path} asks for {error} to be called, which no checkpoint of tensors does: refused, nothing was executed; "
                "get the weights from a source that you trust"
            ) from None
        tensors = {name: value for name, value in _state_dict(content).items() if isinstance(value, _Tensor)}
        # Many tensors could share one storage, and each is copied.
        if sum(tensor.num_bytes for tensor in tensors.values()) > len(raw):
            raise ValueError("its tensors are larger than the file")
        arrays = {name: tensor.resolve(storages) for name, tensor in tensors.items()}
    if not arrays:
        raise InputError(f"{path} holds no named tensors: give a checkpoint that was saved as a state dict")
    prefixed = all(name.startswith("module.") for name in arrays)
    return {name.removeprefix("module.") if prefixed else name: array for name, array in arrays.items()}


class _RefusedError(Exception):
    """A pickle names something that is no part of a tensor."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Tensor:
    """Where a tensor's numbers lie: ``numel`` of them in storage ``key``; sizes and strides in numbers, not bytes."""

    key: str
    dtype: str
    numel: int
    offset: int = 0
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    @property
    def num_bytes(self) -> int:
        """What the tensor takes by itself."""
        return math.prod(self.shape) * _DTYPES[self.dtype].itemsize

    def resolve(self, read: Callable[[str, int], bytes]) -> np.ndarray:
        """The array, from a reader of storages that takes key and number of bytes.

        Raises:
          ValueError: it would reach beyond its storage.
        """
        dtype = _DTYPES[self.dtype]
        last = self.offset + sum((side - 1) * stride for side, stride in zip(self.shape, self.strides, strict=True))
        within = self.offset >= 0 and min((0, *self.strides)) >= 0 and min((1, *self.shape)) > 0 and last < self.numel
        # Strides of zero could blow a few numbers up to any size.
        if not within or math.prod(self.shape) > self.numel:
            raise ValueError("a tensor reaches beyond its storage")
        flat = np.frombuffer(read(self.key, self.numel * dtype.itemsize), dtype)
        steps = [stride * dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, steps).copy()


class _Rebuild:
    """Stands in for the functions that make a tensor from a storage; without attributes that a pickle could set."""

    __slots__ = ()

    def __call__(self, storage: _Tensor, offset: int, shape: Sequence[int], strides: Sequence[int], *_: object) -> _Tensor:
        return dataclasses.replace(storage, offset=int(offset), shape=tuple(map(int, shape)), strides=tuple(map(int, strides)))


class _RebuildParameter:
    """Stands in for the function that makes a parameter of a tensor."""

    __slots__ = ()

    def __call__(self, tensor: _Tensor, *_: object) -> _Tensor:
        return tensor


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _Rebuild(),
    ("torch._utils", "_rebuild_tensor_v2"): _Rebuild(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    # Types of storages become their names: text cannot be called or changed.
    **{(module, name): name for module in ("torch", "torch.cuda") for name in _DTYPES},
}


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, text and descriptions of tensors; refuses everything else before it is looked up.

    Attributes:
      widths: bytes per number in each storage that came up.
    """

    def __init__(self, file: io.BytesIO) -> None:
        _require_modest(file)
        super().__init__(file, encoding="utf-8")
        self.widths: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What stands in for a global."""
        if (module, name) not in _KNOWN:
            raise _RefusedError(f"{module}.{name}")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Tensor:
        """The storage that ``("storage", type, key, device, numel[, view])`` means."""
        kind, dtype, key, _, numel, *view = pid
        if kind != "storage" or dtype not in _DTYPES or view not in ([], [None]):
            raise ValueError("not a plain storage")
        self.widths[str(key)] = _DTYPES[dtype].itemsize
        return _Tensor(str(key), dtype, int(numel))


def _unpickle(file: io.BytesIO) -> Any:
    return _TensorUnpickler(file).load()


def _require_modest(file: io.BytesIO) -> None:
    """Refuses a pickle that would have its reader take memory without bound, before it is read.

    The reader keeps what is to be used again in a list, and makes it as long as the pickle says. Pickles number what they
    keep from 0, so no number exceeds their length.

    Raises:
      ValueError: such a number is larger than the file, or the pickle is damaged.
    """
    begin = file.tell()
    for operation, argument, _ in pickletools.genops(file):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= len(file.getbuffer()):
            raise ValueError("a memo beyond the end")
    file.seek(begin)


def _read_zip(raw: bytes) -> tuple[Any, Callable[[str, int], bytes]]:
    """Content and storages of a zip checkpoint: ``NAME/data.pkl`` and ``NAME/data/KEY``."""
    archive = zipfile.ZipFile(io.BytesIO(raw))
    entries = {entry.filename: entry for entry in archive.infolist()}
    (pickled,) = (name for name in entries if re.fullmatch(r"[^/]+/data\.pkl", name))
    top = pickled.removesuffix("data.pkl")
    if f"{top}byteorder" in entries and archive.read(f"{top}byteorder") != b"little":
        raise ValueError("big-endian numbers")

    if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size > len(raw) for entry in entries.values()):
        raise ValueError("a part is compressed")  # PyTorch stores them as they are; compressed ones could be of any size

    def read(key: str, size: int) -> bytes:
        entry = entries[f"{top}data/{key}"]
        if entry.file_size != size:
            raise ValueError("a storage of another size")
        return archive.read(entry)

    return _unpickle(io.BytesIO(archive.read(pickled))), read


def _read_legacy(raw: bytes) -> tuple[Any, Callable[[str, int], bytes]]:
    """Content and storages of an older checkpoint: five pickles, then each storage as its length and its numbers."""
    file = io.BytesIO(raw)
    if _unpickle(file) != _LEGACY_MAGIC:
        raise ValueError("not a checkpoint")
    _unpickle(file)
    if not _unpickle(file)["little_endian"]:
        raise ValueError("big-endian numbers")
    unpickler = _TensorUnpickler(file)
    content = unpickler.load()
    storages: dict[str, bytes] = {}
    for key in _unpickle(file):
        (numel,) = struct.unpack("<q", file.read(8))
        size = max(numel, 0) * unpickler.widths[str(key)]
        storages[str(key)] = file.read(size)
        if len(storages[str(key)]) != size:
            raise EOFError

    def read(key: str, size: int) -> bytes:
        if len(storages[key]) != size:
            raise ValueError("a storage of another size")
        return storages[key]

    return content, read


def _state_dict(content: Any) -> Mapping[str, Any]:
    """The mapping from names to tensors in what a checkpoint holds."""
    for name in ("state_dict", "model", "params"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise ValueError("no state dict")
    return {str(name): value for name, value in content.items()}


def _from_folder(name: str, folder: pathlib.Path) -> dict[str, np.ndarray]:
    if name != "dmphn":
        raise InputError(f"{FLAG}={folder} is a folder: for {name} give a file, {_WANTED[name]}")
    files = {part: next((p for s in _SUFFIXES if (p := folder / f"{part}{s}").is_file()), None) for part in _DMPHN_PARTS}
    missing = [f"{part}.pkl" for part, path in files.items() if path is None]
    if missing:
        raise InputError(f"{folder}: {', '.join(missing)} missing; put {_WANTED[name]}")
    found: dict[str, np.ndarray] = {}
    for part, path in files.items():
        assert path is not None
        tensors = {f"{part}.{key}": array for key, array in read_checkpoint(path).items()}
        found |= _converted(name, tensors, path)
    return found


def _converted(name: str, tensors: Mapping[str, np.ndarray], path: pathlib.Path) -> dict[str, np.ndarray]:
    """Tensors under the names and in the axes of our parameters; names that mean nothing to us are kept."""
    rename = _dmphn_name if name == "dmphn" else _dwdn_names(tensors)
    result: dict[str, np.ndarray] = {}
    for key, array in tensors.items():
        layer, kind = rename(key.rpartition(".")[0]), key.rpartition(".")[2]
        if kind == "weight" and array.ndim == 4:
            # Transposed convolutions are stored [inputs, outputs, ...], the others [outputs, inputs, ...].
            axes = (2, 3, 0, 1) if _is_transposed(name, layer) else (2, 3, 1, 0)
            array = array.transpose(axes)
        target = f"{layer}/{'kernel' if kind == 'weight' else kind}"
        if target in result:
            raise InputError(f"{path}: two tensors are called {key}: get it again")
        result[target] = array
    return result


def _is_transposed(name: str, layer: str) -> bool:
    return layer.endswith(("layer16", "layer20")) if name == "dmphn" else layer.endswith("/up")


def _dmphn_name(layer: str) -> str:
    """``encoder_lv1.layer2.0`` → ``encoder_lv1/layer2_0``."""
    part, _, rest = layer.partition(".")
    return f"{part}/{rest.replace('.', '_')}"


def _dwdn_names(tensors: Mapping[str, np.ndarray]) -> Callable[[str], str]:
    """From the published network's names (``encoder_first.1.body.2``) to ours (``encoder1/block0_second``)."""
    stages = {"FeatureBlock": "features", "inBlock1": "in1", "inBlock2": "in2", "outBlock": "out"}
    stages |= {f"{kind}_{word}": f"{kind}{n}" for kind in ("encoder", "decoder") for n, word in ((1, "first"), (2, "second"))}
    pattern = re.compile(r"(\w+)\.(\d+)\.body\.(\d+)")
    last: dict[str, int] = {}
    for key in tensors:
        if match := pattern.match(key):
            last[match[1]] = max(last.get(match[1], 0), int(match[2]))

    def rename(layer: str) -> str:
        match = pattern.fullmatch(layer)
        if layer == "outBlock2.0.body.0":
            return "image"
        if match is None or match[1] not in stages:
            return layer
        stage, index, place = stages[match[1]], int(match[2]), int(match[3])
        has_entry = stage.startswith(("features", "in", "encoder"))
        if has_entry and index == 0:
            return f"{stage}/entry"
        if stage.startswith("decoder") and index == last[match[1]]:
            return f"{stage}/up"
        return f"{stage}/block{index - has_entry}_{'first' if place == 0 else 'second'}"

    return rename


def _from_own_file(name: str, path: pathlib.Path) -> dict[str, np.ndarray]:
    with _decoding(path, "damaged or holds no weights of a teacher", "make it again"):
        content = flax.serialization.msgpack_restore(path.read_bytes())
        teacher, params = content["teacher"], content["params"]
        if teacher not in TEACHERS:
            raise ValueError("of no known teacher")
        found = flax.traverse_util.flatten_dict(params, sep="/")
        found = {key: np.asarray(leaf, np.float32) for key, leaf in found.items()}
    if teacher != name:
        raise InputError(f"{path} holds weights of {teacher}, not of {name}: give those, or --teacher={teacher}")
    return found


def _expected(name: str, found: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    key, image = jax.random.key(0), jnp.zeros((16, 16))
    if name == "dmphn":
        shapes = jax.eval_shape(dmphn.Dmphn().init, key, jnp.zeros((16, 8, 3)))
    else:
        config = dwdn.config_of(flax.traverse_util.unflatten_dict(dict(found), sep="/"))
        shapes = jax.eval_shape(dwdn.Dwdn(config).init, key, image, jnp.zeros((3, 3)))
    return {layer: leaf.shape for layer, leaf in flax.traverse_util.flatten_dict(shapes["params"], sep="/").items()}


def _check(name: str, found: Mapping[str, np.ndarray], path: pathlib.Path) -> None:
    """Raises InputError unless names and shapes are the teacher's, and all numbers finite."""
    try:
        expected = _expected(name, found)
    except InputError:
        raise InputError(f"{path} does not fit {name}: its tensors are called {_listed(sorted(found))}") from None
    missing, over = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    misshaped = [
        f"{key} ({_by(found[key].shape)} instead of {_by(shape)})"
        for key, shape in expected.items()
        if key in found and found[key].shape != shape
    ]
    faults = [
        f"{what}: {_listed(names)}"
        for what, names in (("missing", missing), ("left over", over), ("shaped otherwise", misshaped))
        if names
    ]
    if faults:
        raise InputError(f"{path} does not fit {name}; {'; '.join(faults)}")
    if not all(np.isfinite(array.astype(np.float32)).all() for array in found.values()):
        raise InputError(f"{path} holds numbers that are not finite: get it again")


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_LISTED
    return ", ".join(names[:_NAMES_LISTED]) + (f" and {more} more" if more > 0 else "")


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a single number"


def _advice(name: str) -> str:
    return f"then give {FLAG}={'FOLDER' if name == 'dmphn' else 'FILE'}"


def _first_bytes(path: pathlib.Path) -> bytes:
    with _decoding(path, "cannot be read", "get it again"), path.open("rb") as file:
        return file.read(4)


def _decoding(path: pathlib.Path, damaged: str, remedy: str) -> contextlib.AbstractContextManager[int]:
    return decoding(path, "a teacher's weights", damaged=damaged, remedy=remedy, most_bytes=_MOST_BYTES)


def main(argv: Sequence[str]) -> int:
    """Converts a teacher's weights; the exit status is 1, with one line that says why, if they cannot be used."""
    values = flags.FlagValues()
    flags.DEFINE_enum("teacher", None, TEACHERS, "Whose weights.", flag_values=values)
    flags.DEFINE_string("from", None, "Folder or file of the checkpoints.", flag_values=values)
    flags.DEFINE_string("to", None, "File to write.", flag_values=values)
    try:
        rest = values(list(argv))[1:]
        given = values.flag_values_dict()
        if rest or None in (given["teacher"], given["from"], given["to"]):
            raise InputError(
                "usage: python -m jaxdeblur.networks.teachers.weights --teacher=dmphn --from=FOLDER --to=dmphn.msgpack"
            )
        params = load_teacher(given["teacher"], given["from"])
        save_teacher(given["to"], given["teacher"], params)
    except (InputError, flags.Error) as error:
        print(error, file=sys.stderr)
        return 1
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{given['to']}: {count:,} parameters of {given['teacher']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
