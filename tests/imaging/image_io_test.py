"""What goes through the reader and the writer comes out as it went in, or is refused with a reason."""

import contextlib
import pathlib
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from jaxdeblur.errors import InputError
from jaxdeblur.imaging.reading import read_image
from jaxdeblur.imaging.staging import staged
from jaxdeblur.imaging.writing import write_image

# An ICC profile needs no meaning to be carried, only its signature where Pillow looks for it.
ICC = bytes(36) + b"acsp" + bytes(88)
SHAPES = {"grey": (40, 50), "rgb": (40, 50, 3)}


def random_samples(shape, dtype, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def rewritten(path: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """Reads an image and writes its own pixels back."""
    image = read_image(path)
    target = tmp_path / f"rewritten{image.suffix}"
    write_image(target, image, image.pixels)
    return target


def refusal(path: pathlib.Path) -> str:
    """The message with which an image is refused: one line that names the file."""
    with pytest.raises(InputError) as caught:
        read_image(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


def some_exif(orientation=1) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Lens & Sons"
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.XResolution] = 300.0
    exif[ExifTags.Base.YResolution] = 300.0
    exif[ExifTags.Base.ResolutionUnit] = 2
    exif[ExifTags.IFD.Exif] = {
        int(ExifTags.Base.ExposureTime): TiffImagePlugin.IFDRational(1, 8),
        int(ExifTags.Base.DateTimeOriginal): "2020:02:02 20:20:20",
        int(ExifTags.Base.ExifImageWidth): 50,
        int(ExifTags.Base.ExifImageHeight): 40,
    }
    exif[ExifTags.IFD.GPSInfo] = {1: "N", 2: (48.0, 51.0, 30.0)}
    return exif


class TestRoundTrip:
    @pytest.mark.parametrize("kind", SHAPES)
    @pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".tiff"])
    def test_8_bit(self, tmp_path, kind, suffix):
        samples = random_samples(SHAPES[kind], np.uint8)
        Image.fromarray(samples).save(tmp_path / f"in{suffix}")
        target = rewritten(tmp_path / f"in{suffix}", tmp_path)
        assert target.suffix == suffix
        np.testing.assert_array_equal(np.asarray(Image.open(target)), samples)

    def test_webp_is_written_without_loss(self, tmp_path):
        samples = random_samples((40, 50, 4), np.uint8)
        Image.fromarray(samples).save(tmp_path / "in.webp", lossless=True, exact=True)
        target = rewritten(tmp_path / "in.webp", tmp_path)
        assert target.suffix == ".webp"
        np.testing.assert_array_equal(np.asarray(Image.open(target)), samples)

    @pytest.mark.parametrize("kind", SHAPES)
    def test_jpeg_becomes_png(self, tmp_path, kind):
        Image.fromarray(random_samples(SHAPES[kind], np.uint8)).save(tmp_path / "in.jpg")
        target = rewritten(tmp_path / "in.jpg", tmp_path)
        assert target.suffix == ".png"
        np.testing.assert_array_equal(np.asarray(Image.open(target)), np.asarray(Image.open(tmp_path / "in.jpg")))

    def test_16_bit_grey_png(self, tmp_path):
        samples = random_samples((40, 50), np.uint16)
        Image.fromarray(samples).save(tmp_path / "in.png", icc_profile=ICC)
        target = rewritten(tmp_path / "in.png", tmp_path)
        found = Image.open(target)
        assert found.mode == "I;16"
        assert found.info["icc_profile"] == ICC
        np.testing.assert_array_equal(np.asarray(found), samples)

    @pytest.mark.parametrize("byteorder", ["<", ">"])
    @pytest.mark.parametrize("channels", [(), (2,), (3,), (4,)])
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
    def test_tiff(self, tmp_path, dtype, channels, byteorder):
        shape = (40, 50, *channels)
        if np.dtype(dtype).kind == "u":
            samples = random_samples(shape, dtype)
        else:
            samples = np.random.default_rng(0).random(shape).astype(np.float32).astype(dtype)
        tifffile.imwrite(
            tmp_path / "in.tif",
            samples,
            byteorder=byteorder,
            photometric="rgb" if channels in [(3,), (4,)] else "minisblack",
            extrasamples=["unassalpha"] if channels in [(2,), (4,)] else None,
            planarconfig="contig" if channels else None,
        )
        found = tifffile.imread(rewritten(tmp_path / "in.tif", tmp_path))
        assert found.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(found, samples)

    @pytest.mark.parametrize(("low", "high"), [(0, 255.0), (-3.0, 12.0), (0, 1e-4), (0.2, 0.6)])
    def test_float_range_is_restored(self, tmp_path, low, high):
        samples = np.linspace(low, high, 2000, dtype=np.float32).reshape(40, 50)
        tifffile.imwrite(tmp_path / "in.tif", samples)
        pixels = read_image(tmp_path / "in.tif").pixels
        assert pixels.min() >= 0
        assert pixels.max() <= 1
        assert np.ptp(pixels) > 0.3
        np.testing.assert_allclose(
            tifffile.imread(rewritten(tmp_path / "in.tif", tmp_path)), samples, rtol=1e-5, atol=1e-6 * high
        )

    def test_float_values_in_the_unit_range_are_taken_as_they_are(self, tmp_path):
        samples = np.linspace(0.1, 0.7, 2000, dtype=np.float32).reshape(40, 50)
        tifffile.imwrite(tmp_path / "in.tif", samples)
        np.testing.assert_array_equal(read_image(tmp_path / "in.tif").pixels, samples)

    def test_separate_planes_and_inverted_grey(self, tmp_path):
        samples = random_samples((3, 40, 50), np.uint16)
        tifffile.imwrite(tmp_path / "planes.tif", samples, photometric="rgb", planarconfig="separate")
        np.testing.assert_array_equal(
            tifffile.imread(rewritten(tmp_path / "planes.tif", tmp_path)), np.moveaxis(samples, 0, -1)
        )
        tifffile.imwrite(tmp_path / "negative.tif", samples[0], photometric="miniswhite")
        np.testing.assert_array_equal(tifffile.imread(rewritten(tmp_path / "negative.tif", tmp_path)), 65535 - samples[0])

    def test_premultiplied_alpha_stays_so(self, tmp_path):
        samples = random_samples((40, 50, 4), np.uint16)
        tifffile.imwrite(tmp_path / "in.tif", samples, photometric="rgb", extrasamples=["assocalpha"])
        with tifffile.TiffFile(rewritten(tmp_path / "in.tif", tmp_path)) as tiff:
            assert tiff.pages.first.extrasamples == (1,)

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    def test_alpha(self, tmp_path, mode, suffix):
        samples = random_samples((40, 50, len(mode)), np.uint8)
        Image.fromarray(samples).save(tmp_path / f"in{suffix}")
        assert read_image(tmp_path / f"in{suffix}").pixels.ndim == (3 if mode == "RGBA" else 2)
        np.testing.assert_array_equal(np.asarray(Image.open(rewritten(tmp_path / f"in{suffix}", tmp_path))), samples)

    @pytest.mark.parametrize("transparent", [False, True])
    def test_palette(self, tmp_path, transparent):
        image = Image.fromarray(random_samples((40, 50, 3), np.uint8)).quantize(16)
        image.save(tmp_path / "in.png", **({"transparency": 3} if transparent else {}))
        expected = Image.open(tmp_path / "in.png").convert("RGBA" if transparent else "RGB")
        found = Image.open(rewritten(tmp_path / "in.png", tmp_path))
        assert found.mode == expected.mode
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))

    def test_transparent_colour_of_a_plain_png(self, tmp_path):
        samples = random_samples((40, 50, 3), np.uint8)
        Image.fromarray(samples).save(tmp_path / "in.png", transparency=tuple(int(value) for value in samples[3, 4]))
        found = np.asarray(Image.open(rewritten(tmp_path / "in.png", tmp_path)))
        assert found[3, 4, 3] == 0
        assert found[0, 0, 3] == 255

    def test_black_and_white(self, tmp_path):
        samples = random_samples((40, 50), np.uint8) > 127
        Image.fromarray(samples).save(tmp_path / "in.png")
        np.testing.assert_array_equal(read_image(tmp_path / "in.png").pixels, samples.astype(np.float32))


class TestMetadata:
    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
    def test_exif_and_icc_are_carried_and_orientation_honoured(self, tmp_path, suffix):
        exif = some_exif(orientation=6)
        if suffix != ".tif":
            exif[ExifTags.Base.ImageWidth] = 9999  # describes how the old file stored its pixels
        Image.fromarray(random_samples((40, 50, 3), np.uint8)).save(
            tmp_path / f"in{suffix}", exif=exif.tobytes(), icc_profile=ICC
        )
        upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / f"in{suffix}")))
        found = Image.open(rewritten(tmp_path / f"in{suffix}", tmp_path))
        exif = found.getexif()
        assert found.size == (40, 50)
        assert found.info["icc_profile"] == ICC
        assert exif[ExifTags.Base.Make] == "Lens & Sons"
        assert exif.get(ExifTags.Base.Orientation) == 1
        assert exif.get(ExifTags.Base.ImageWidth) in (None, 40)
        assert float(exif[ExifTags.Base.XResolution]) == 300.0
        camera = exif.get_ifd(ExifTags.IFD.Exif)
        assert float(camera[ExifTags.Base.ExposureTime]) == 0.125
        assert camera[ExifTags.Base.DateTimeOriginal] == "2020:02:02 20:20:20"
        assert camera[ExifTags.Base.ExifImageWidth] == 40
        assert camera[ExifTags.Base.ExifImageHeight] == 50
        assert exif.get_ifd(ExifTags.IFD.GPSInfo)[2] == (48.0, 51.0, 30.0)
        np.testing.assert_array_equal(np.asarray(found), upright)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_every_orientation_at_every_depth(self, tmp_path, orientation, suffix, dtype):
        samples = random_samples((40, 50), dtype)
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        path = tmp_path / f"in{suffix}"
        Image.fromarray(samples).save(path, exif=exif)
        tagged = Image.fromarray(np.rint(samples / np.iinfo(dtype).max * 255).astype(np.uint8))
        tagged.getexif()[ExifTags.Base.Orientation] = orientation
        expected = np.asarray(ImageOps.exif_transpose(tagged)) / 255
        np.testing.assert_allclose(read_image(path).pixels, expected, atol=0.003)

    def test_16_bit_tiff_keeps_exif_and_icc_when_rewritten_twice(self, tmp_path):
        first = tmp_path / "photo.jpg"
        Image.fromarray(random_samples((40, 50, 3), np.uint8)).save(first, exif=some_exif(), icc_profile=ICC)
        image = read_image(first)
        deep = tmp_path / "deep.tif"
        samples = random_samples((40, 50, 3), np.uint16)
        tifffile.imwrite(deep, samples, photometric="rgb", iccprofile=ICC)
        deep_image = read_image(deep)
        for _ in range(2):
            # The EXIF block of the photograph, on the pixels of the deep image.
            write_image(deep, type(image)(**{**vars(deep_image), "exif": image.exif}), deep_image.pixels)
            image = deep_image = read_image(deep)
        exif = Image.Exif()
        exif.load(image.exif)
        assert exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] == "2020:02:02 20:20:20"
        assert exif.get_ifd(ExifTags.IFD.GPSInfo)[1] == "N"
        assert image.icc == ICC
        np.testing.assert_array_equal(tifffile.imread(deep), samples)

    def test_malformed_exif_is_noted_not_fatal(self, tmp_path, monkeypatch):
        path = tmp_path / "in.png"
        Image.fromarray(random_samples((40, 50), np.uint8)).save(path, exif=some_exif())

        def fail(*_):
            raise ValueError("bad\nblock")

        monkeypatch.setattr("jaxdeblur.imaging.metadata.carried_exif", fail)
        image = read_image(path)
        assert image.exif == b""
        assert "not carried over" in image.notes[0]


class TestRefusals:
    def test_missing_and_folder(self, tmp_path):
        assert "no such file" in refusal(tmp_path / "none.png")
        assert "folder" in refusal(tmp_path)

    def test_empty(self, tmp_path):
        (tmp_path / "in.png").touch()
        assert "empty" in refusal(tmp_path / "in.png")

    @pytest.mark.parametrize("name", ["in.png", "in.txt", "in.tif"])
    def test_not_an_image(self, tmp_path, name):
        (tmp_path / name).write_text("These are the words of the prophet.")
        assert "not an image" in refusal(tmp_path / name)

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".bmp"])
    @pytest.mark.parametrize("part", [0.3, 0.9])
    def test_cut_short(self, tmp_path, suffix, part):
        path = tmp_path / f"in{suffix}"
        Image.fromarray(random_samples((80, 90, 3), np.uint8)).save(path)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * part)])
        refusal(path)

    @pytest.mark.parametrize("dtype", [np.uint16, np.float32])
    def test_deep_tiff_cut_short(self, tmp_path, dtype):
        path = tmp_path / "in.tif"
        tifffile.imwrite(path, random_samples((80, 90, 3), np.uint16).astype(dtype), photometric="rgb")
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        refusal(path)

    def test_image_of_no_pixels(self, tmp_path):
        path = tmp_path / "in.png"
        Image.new("L", (40, 40)).save(path)
        data = bytearray(path.read_bytes())
        data[16:24] = bytes(8)  # width and height 0
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        path.write_bytes(data)
        refusal(path)

    @pytest.mark.parametrize("colour_type", [2, 4, 6])
    def test_16_bit_colour_png_is_not_cut_to_8_bits(self, tmp_path, colour_type):
        path = tmp_path / "in.png"
        path.write_bytes(deep_png(random_samples((40, 50, {2: 3, 4: 2, 6: 4}[colour_type]), np.uint16), colour_type))
        assert "16-bit TIFF" in refusal(path)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_nan_in_a_float_tiff(self, tmp_path, value):
        samples = np.full((40, 50), 0.5, np.float32)
        samples[3, 4] = value
        tifffile.imwrite(tmp_path / "in.tif", samples)
        assert "1 samples are NaN or infinite" in refusal(tmp_path / "in.tif")

    @pytest.mark.parametrize("dtype", [np.int16, np.uint32, np.complex64])
    def test_other_sample_types(self, tmp_path, dtype):
        tifffile.imwrite(tmp_path / "in.tif", np.ones((40, 50), dtype))
        refusal(tmp_path / "in.tif")

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_several_pages(self, tmp_path, dtype):
        tifffile.imwrite(tmp_path / "in.tif", random_samples((3, 40, 50), dtype), photometric="minisblack")
        assert "holds 3" in refusal(tmp_path / "in.tif")

    def test_a_page_beside_its_preview_is_one_image(self, tmp_path):
        samples = random_samples((40, 50), np.uint16)
        for name, page, small in [("8.tif", (samples >> 8).astype(np.uint8), np.uint8), ("16.tif", samples, np.uint16)]:
            with tifffile.TiffWriter(tmp_path / name) as tiff:
                tiff.write(page)
                tiff.write(random_samples((20, 25), small), subfiletype=1)
            assert read_image(tmp_path / name).size == (50, 40)

    def test_print_colours(self, tmp_path):
        Image.new("CMYK", (40, 50)).save(tmp_path / "in.jpg")
        assert "CMYK" in refusal(tmp_path / "in.jpg")

    @pytest.mark.parametrize("name", ["8.png", "8.jpg", "8.tif", "8.webp", "8.bmp", "16.tif", "16.png"])
    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8))
    def test_any_damage_is_survived_or_refused(self, tmp_path, name, damage):
        path = tmp_path / name
        if name == "16.tif":
            tifffile.imwrite(path, random_samples((40, 50, 3), np.uint16), photometric="rgb", compression="zlib")
        else:
            colours = (3,) if name.startswith("8") else ()
            samples = random_samples((40, 50, *colours), np.uint8 if colours else np.uint16)
            Image.fromarray(samples).save(path, exif=some_exif().tobytes())
        data = bytearray(path.read_bytes())
        for place, value in damage:
            # Squared, so that headers are hit more often than pixels.
            data[int(place**2 * len(data))] = value
        path.write_bytes(data)
        with contextlib.suppress(InputError):
            image = read_image(path)
            assert np.isfinite(image.pixels).all()


class TestStaged:
    def test_all_appear_together_and_none_is_left_over(self, tmp_path):
        paths = [tmp_path / "a.png", tmp_path / "b.json"]
        with staged(paths) as temporaries:
            for temporary in temporaries:
                temporary.write_text("new")
            assert not any(path.exists() for path in paths)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.json"]

    @pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
    def test_a_failure_leaves_what_was_there(self, tmp_path, error):
        paths = [tmp_path / "a.png", tmp_path / "b.json"]
        paths[0].write_text("old")

        def write_half():
            with staged(paths) as temporaries:
                temporaries[0].write_text("new")
                raise error

        with pytest.raises(error):
            write_half()
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
        assert paths[0].read_text() == "old"


def deep_png(samples: np.ndarray, colour_type: int) -> bytes:
    """A 16-bit PNG, which Pillow cannot write for colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, colour_type, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
