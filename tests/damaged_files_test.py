"""Files from strangers: whatever is in them, they are read or refused in one line, in little time and memory.

Sound files of every kind are damaged at random, but the same way in every run: bytes are changed, the end is cut off, numbers
are made huge. A few cases of each kind run by default, the rest with the marker ``slow``.
"""

import functools
import io
import json
import pathlib
import pickle
import random
import re
import resource
import struct
import time
import zipfile

import numpy as np
import pytest
import tifffile
from PIL import Image

from jaxdeblur.errors import InputError
from jaxdeblur.imaging.kernel_files import read_kernel
from jaxdeblur.imaging.reading import read_image
from jaxdeblur.jobs.report import to_json
from jaxdeblur.jobs.saved_run import read_saved_run
from jaxdeblur.networks.teachers import weights
from jaxdeblur.presets import PRESETS

QUICK, ALL = 12, 412
MOST_SECONDS = 3.0
MOST_BYTES = 2_000_000_000
HUGE = [0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFF, 0x7FFF, 100_000, 16_000, 0]


def levels(shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


def by_pillow(name, image, **how):
    buffer = io.BytesIO()
    image.save(buffer, name, **how)
    return buffer.getvalue()


def by_tifffile(samples, **how):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, **how)
    return buffer.getvalue()


def npy(array, version=None):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version)
    return buffer.getvalue()


def some_exif():
    exif = Image.Exif()
    exif[0x010F] = "Lens & Sons"
    exif[0x0112] = 6
    exif[0x8769] = {0x829A: 0.125, 0xA002: 50, 0xA003: 40}
    return exif.tobytes()


def storage(key, numel):
    """A pickled description of a storage, as PyTorch writes it."""
    name = f"X{struct.pack('<I', len(key)).decode()}{key}".encode()
    return (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        + name
        + b"X\x03\x00\x00\x00cpu"
        + pickle.dumps(numel, 2)[2:-1]
        + b"tQ"
    )


def checkpoint_pickle():
    """A state dict of two tensors, with what it repeats numbered as PyTorch's pickles have it."""
    tensors = b""
    for number, (name, numel) in enumerate([("first.weight", 12), ("first.bias", 3)]):
        shape = (numel // 3, 3) if numel > 3 else (3,)
        strides = (3, 1) if numel > 3 else (1,)
        key = b"X" + struct.pack("<I", len(name)) + name.encode() + b"r" + struct.pack("<I", number)
        rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(str(number), numel) + b"K\x00"
        rebuilt += pickle.dumps(shape, 2)[2:-1] + pickle.dumps(strides, 2)[2:-1] + b"\x89}tR"
        tensors += key + rebuilt
    return b"\x80\x02}(" + tensors + b"u."


def legacy_checkpoint():
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    storages = b"".join(struct.pack("<q", n) + np.arange(n, dtype="<f4").tobytes() for n in (12, 3))
    return b"".join(pickle.dumps(part, 2) for part in head) + checkpoint_pickle() + pickle.dumps(["0", "1"], 2) + storages


def zip_checkpoint():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", checkpoint_pickle())
        for number, numel in enumerate((12, 3)):
            archive.writestr(f"archive/data/{number}", np.arange(numel, dtype="<f4").tobytes())
    return buffer.getvalue()


def own_weights():
    import flax.serialization

    params = {"features": {"entry": {"kernel": np.ones((3, 3, 1, 4), np.float32), "bias": np.zeros(4, np.float32)}}}
    return flax.serialization.msgpack_serialize({"teacher": "dwdn", "params": params})


def report(preset):
    content = {
        "config": to_json(PRESETS[preset]),
        "seed": 3,
        "input": {"path": "../photo.png"},
        "known_kernel": True,
        "version": "1.0",
        "jax_version": "0.9",
        "losses": {"fit": [1.0, 0.5, None]},
    }
    return json.dumps(content, indent=2).encode()


def read_weights(path):
    tensors = weights.read_checkpoint(path)
    assert all(isinstance(array, np.ndarray) for array in tensors.values())


def sound_image(path):
    image = read_image(path)
    assert np.isfinite(image.pixels).all()
    assert image.pixels.dtype == np.float32
    assert 0 <= image.pixels.min() <= image.pixels.max() <= 1


def sound_kernel(path):
    kernel = read_kernel(path)
    assert np.isfinite(kernel).all()
    assert kernel.sum() == pytest.approx(1, abs=1e-3)


RGB, GREY = levels((40, 50, 3)), levels((40, 50))
DEEP, FLOAT = levels((40, 50, 3), np.uint16), np.random.default_rng(0).random((40, 50))
BLOB = np.outer(np.hanning(11), np.hanning(9))[1:-1, 1:-1]

# Name of a file: how it is made, and what reads it.
KINDS = {
    "rgb.png": (lambda: by_pillow("PNG", Image.fromarray(RGB), exif=some_exif()), sound_image),
    "palette.png": (lambda: by_pillow("PNG", Image.fromarray(RGB).quantize(16), transparency=3), sound_image),
    "deep.png": (lambda: by_pillow("PNG", Image.fromarray(levels((40, 50), np.uint16))), sound_image),
    "plain.jpg": (lambda: by_pillow("JPEG", Image.fromarray(RGB), exif=some_exif()), sound_image),
    "progressive.jpg": (lambda: by_pillow("JPEG", Image.fromarray(RGB), progressive=True), sound_image),
    "lossy.webp": (lambda: by_pillow("WEBP", Image.fromarray(RGB), exif=some_exif()), sound_image),
    "lossless.webp": (lambda: by_pillow("WEBP", Image.fromarray(np.dstack([RGB, GREY])), lossless=True), sound_image),
    "plain.bmp": (lambda: by_pillow("BMP", Image.fromarray(RGB)), sound_image),
    "palette.bmp": (lambda: by_pillow("BMP", Image.fromarray(GREY)), sound_image),
    "plain.gif": (lambda: by_pillow("GIF", Image.fromarray(GREY)), sound_image),
    "lzw.tif": (lambda: by_pillow("TIFF", Image.fromarray(RGB), compression="tiff_lzw"), sound_image),
    "jpeg.tif": (lambda: by_pillow("TIFF", Image.fromarray(RGB), compression="jpeg"), sound_image),
    "tiles.tif": (lambda: by_tifffile(RGB, photometric="rgb", tile=(16, 16), compression="zlib"), sound_image),
    "deep.tif": (lambda: by_tifffile(DEEP, photometric="rgb", compression="zlib"), sound_image),
    "deep_tiles.tif": (lambda: by_tifffile(DEEP, photometric="rgb", tile=(16, 32)), sound_image),
    "planes.tif": (lambda: by_tifffile(np.moveaxis(DEEP, -1, 0), photometric="rgb", planarconfig="separate"), sound_image),
    "float.tif": (lambda: by_tifffile(FLOAT.astype(np.float32)), sound_image),
    "double.tif": (lambda: by_tifffile(FLOAT, byteorder=">"), sound_image),
    "half_big.tif": (lambda: by_tifffile(FLOAT.astype(np.float16), bigtiff=True), sound_image),
    "double.npy": (lambda: npy(BLOB), sound_kernel),
    "single.npy": (lambda: npy(np.asfortranarray(BLOB.astype(">f4"))), sound_kernel),
    "second.npy": (lambda: npy(BLOB, (2, 0)), sound_kernel),
    "kernel.png": (lambda: by_pillow("PNG", Image.fromarray((BLOB * 255).astype(np.uint8))), sound_kernel),
    "legacy.pkl": (legacy_checkpoint, read_weights),
    "zipped.pt": (zip_checkpoint, read_weights),
    "own.msgpack": (own_weights, functools.partial(weights.load_teacher, "dwdn")),
    "fast_report.json": (lambda: report("fast"), read_saved_run),
    "mc_report.json": (lambda: report("mc"), read_saved_run),
}


def damaged(raw, seed):
    """``raw`` with one to three injuries."""
    chance = random.Random(seed)
    data = bytearray(raw)

    def place():
        """Of a header rather than of pixels: near the beginning, or near the end, where TIFF, ZIP and others have theirs."""
        far = int(chance.random() ** 3 * (len(data) - 1))
        return far if chance.random() < 0.7 else len(data) - 1 - far

    for _ in range(chance.randint(1, 3)):
        injury = chance.choice(["bytes", "bytes", "bit", "cut", "huge", "huge", "digits", "twice"])
        if injury == "bytes":
            for _ in range(chance.randint(1, 6)):
                data[place()] = chance.randrange(256)
        elif injury == "bit":
            data[place()] ^= 1 << chance.randrange(8)
        elif injury == "cut":
            del data[max(place(), 1) :]
        elif injury == "huge":
            number = struct.pack(chance.choice("<>") + "I", chance.choice(HUGE))
            number = number if chance.random() < 0.5 else number.strip(b"\0") or b"\0\0"
            at = place()
            data[at : at + len(number)] = number
        elif injury == "digits" and (found := list(re.finditer(rb"\d+", bytes(data[:4000])))):
            match = chance.choice(found)
            data[match.start() : match.end()] = chance.choice([b"9" * 10, b"9" * 400, b"-1", b"1e999", b"0", b"(" * 300])
        elif injury == "twice":
            at = place()
            data[at:at] = data[at : at + chance.randint(1, 64)]
        if len(data) < 2:
            break
    return bytes(data)


@functools.cache
def sound(name):
    return KINDS[name][0]()


@pytest.fixture
def little_memory():
    """Has the system refuse to give this process much more memory, so that whoever asks for it is found out."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MOST_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def check(path, name, seeds, capfd):
    """Reads a file with each of the injuries that ``seeds`` stand for."""
    for seed in seeds:
        path.write_bytes(damaged(sound(name), f"{name} {seed}"))
        began = time.process_time()
        try:
            KINDS[name][1](path)
        except InputError as error:
            message = str(error)
            assert message.isprintable(), (seed, message)
            assert path.name in message, (seed, message)
            assert "MemoryError" not in message, (seed, message)
            assert "nable to allocate" not in message, (seed, message)
        except Exception as error:
            raise AssertionError(f"{name}, seed {seed}") from error
        assert time.process_time() - began < MOST_SECONDS, seed
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_read_or_refused(tmp_path, name, little_memory, capfd):
    path = tmp_path / name
    path.write_bytes(sound(name))
    if not name.endswith((".gif", ".msgpack")):
        KINDS[name][1](path)  # undamaged, it is sound
    check(path, name, range(QUICK), capfd)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_many_damaged_files_are_read_or_refused(tmp_path, name, little_memory, capfd):
    check(tmp_path / name, name, range(QUICK, ALL), capfd)
