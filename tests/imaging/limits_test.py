"""What a file may ask for: its header is checked before memory is taken, and only files are opened."""

import io
import os
import pickle
import struct
import time

import numpy as np
import pytest
import tifffile
from PIL import Image

from jaxdeblur.errors import InputError
from jaxdeblur.imaging.kernel_files import read_kernel
from jaxdeblur.imaging.reading import read_image
from jaxdeblur.jobs.saved_run import read_saved_run
from jaxdeblur.main import main
from jaxdeblur.networks.teachers import weights

SAMPLES = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)


def refusal(read, path, **how):
    began = time.process_time()
    with pytest.raises(InputError) as caught:
        read(path, **how)
    assert time.process_time() - began < 3
    message = str(caught.value)
    assert message.isprintable()
    return message


def save(path):
    if path.suffix == ".npy":
        np.save(path, np.ones((41, 51)))
    elif path.name.startswith("deep"):
        tifffile.imwrite(path, SAMPLES.astype(np.uint16), photometric="rgb", compression="zlib")
    else:
        Image.fromarray(SAMPLES).save(path)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tif", "deep.tif", "k.npy"])
def test_the_limit_holds_for_every_format_and_can_be_raised(tmp_path, name):
    path = save(tmp_path / name)
    read = read_kernel if name.endswith(".npy") else read_image
    read(path, max_megapixels=0.0021)
    message = refusal(read, path, max_megapixels=0.0019)
    assert "0.0019 megapixels" in message
    assert "--max_megapixels" in message


def test_pillows_own_limit_follows_ours_and_comes_back(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    assert read_image(path).size == (50, 40)
    assert Image.MAX_IMAGE_PIXELS == 500
    assert "megapixels" in refusal(read_image, path, max_megapixels=0.0005)
    assert Image.MAX_IMAGE_PIXELS == 500


def promise(path, width, height):
    """Has a file's header promise another size; returns it."""
    data = bytearray(save(path).read_bytes())
    if path.suffix == ".png":
        data[16:24] = struct.pack(">II", width, height)
        # Pillow checks the header's checksum.
        import zlib

        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif path.suffix == ".bmp":
        data[18:26] = struct.pack("<ii", width, height)
    elif path.suffix == ".jpg":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height % 65536, width % 65536)
    else:
        with tifffile.TiffFile(io.BytesIO(bytes(data))) as tiff:
            for tag, value in (("ImageWidth", width), ("ImageLength", height)):
                entry = tiff.pages.first.tags[tag]
                data[entry.offset + 2 : entry.offset + 12] = struct.pack("<HII", 4, 1, value)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif", "deep.tif"])
@pytest.mark.parametrize("side", [14_000, 65_500, 2_000_000])
def test_headers_that_promise_the_moon(tmp_path, name, side):
    message = refusal(read_image, promise(tmp_path / name, side, side))
    assert "megapixels" in message or "promises" in message or "cut short" in message
    assert "MemoryError" not in message
    assert "allocate" not in message


def test_a_kernels_header_that_promises_terabytes(tmp_path):
    path = tmp_path / "k.npy"
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000001, 1000001), }"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n" + bytes(800))
    assert "promises" in refusal(read_kernel, path)
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", 20) + b"{'descr': '<f8', '(\n" + bytes(800))
    refusal(read_kernel, path)  # numpy.load raises tokenize.TokenError


def test_kernels_that_cannot_be_added_up(tmp_path):
    np.save(tmp_path / "k.npy", np.full((3, 3), 1e308))
    assert "too large" in refusal(read_kernel, tmp_path / "k.npy")


def test_a_pickle_cannot_ask_for_memory(tmp_path):
    path = tmp_path / "c.pkl"
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    # The empty state dict is to be remembered as number 2 billion.
    path.write_bytes(head + b"\x80\x02}r" + struct.pack("<I", 2_000_000_000) + b"." + pickle.dumps([], 2))
    assert "damaged" in refusal(weights.read_checkpoint, path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
@pytest.mark.parametrize("read", [read_image, read_kernel, read_saved_run, weights.read_checkpoint])
def test_only_regular_files_are_opened(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.npy")  # reading it would wait for ever
    assert "no regular file" in refusal(read, tmp_path / "pipe.npy")
    assert "is a folder" in refusal(read, tmp_path)
    assert "no such file" in refusal(read, tmp_path / "none.npy")


def test_reports_that_nest_without_end(tmp_path):
    path = tmp_path / "a_report.json"
    path.write_text('{"config":' + "[" * 100_000)
    assert "a_report.json" in refusal(read_saved_run, path)


def test_the_command_line_takes_the_limit(tmp_path, capsys):
    path = save(tmp_path / "a.png")
    assert main(["jaxdeblur", f"--image={path}", "--max_megapixels=0.001"]) == 1
    assert "more than 0.001 megapixels" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
