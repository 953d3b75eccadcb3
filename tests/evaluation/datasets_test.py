import pathlib

import numpy as np
import pytest
from PIL import Image

from jaxdeblur.errors import InputError
from jaxdeblur.evaluation.datasets import LAYOUTS, Example, find_examples
from jaxdeblur.evaluation.metrics import aligned_metrics

DATA = pathlib.Path(__file__).parents[2] / "../shared/data"


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make_set(folder, dataset, images, *, sharp=None):
    """A set of these images with flat images, or ``sharp`` for the truth."""
    layout = LAYOUTS[dataset]
    grey = np.full(layout.size or (40, 48), 100, np.uint8)
    for image in images:
        save(folder / layout.sharp.format(image=image), grey if sharp is None else sharp)
        for number in range(1, len(layout.kernel_sizes) + 1):
            save(folder / layout.blurry.format(image=image, kernel=number), grey)


def make_kohler(folder, image, *, points=198, side=12):
    """One image of Köhler's set with this many truths for each of its kernels."""
    layout = LAYOUTS["kohler"]
    grey = np.full((side, side), 100, np.uint8)
    for number in range(1, 13):
        save(folder / layout.blurry.format(image=image, kernel=number), grey)
        content = (folder / layout.blurry.format(image=image, kernel=number)).read_bytes()
        for point in range(1, points + 1):
            path = folder / layout.sharp.format(image=image, kernel=number, point=point)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def faults(dataset, folder, **options):
    """The lines that are told about a folder, without the first."""
    with pytest.raises(InputError) as error:
        find_examples(dataset, folder, **options)
    first, *lines = str(error.value).splitlines()
    assert first.startswith(f"{folder}: {len(lines)} fault")
    assert dataset == "folder" or LAYOUTS[dataset].source in first
    return lines


def test_finds_the_images_that_are_there(tmp_path):
    make_set(tmp_path, "levin", ["im1", "im3"])
    examples = find_examples("levin", tmp_path)
    assert [example.name for example in examples][::8] == ["im1_kernel1_img", "im3_kernel1_img"]
    assert [example.kernel_size for example in examples[:8]] == [17, 15, 13, 27, 11, 19, 21, 21]
    assert [example.kernel_number for example in examples[:8]] == [*range(1, 9)]
    assert all(example.sharp.stem == example.image == example.name[:3] for example in examples)
    assert all(example.truths == (example.sharp,) for example in examples)
    assert examples[0].load_kernel() is None


def test_categories_are_those_of_the_published_tables(tmp_path):
    make_set(tmp_path, "lai", ["people_03", "text_01"])
    found = [(example.image, example.category, example.kernel_number) for example in find_examples("lai", tmp_path)]
    assert found[3:5] == [("people_03", "people", 4), ("text_01", "text", 1)]


def test_true_kernels_are_turned_to_true_convolution(tmp_path):
    make_set(tmp_path, "levin", ["im2"])
    levels = np.zeros((5, 5), np.uint8)
    levels[0, 0], levels[2, 2] = 100, 200
    for number in range(1, 9):
        save(tmp_path / f"gt/kernel{number}.png", levels)
    kernels = [example.load_kernel() for example in find_examples("levin", tmp_path)]
    for number, kernel in enumerate(kernels, start=1):
        assert kernel.sum() == pytest.approx(1.0)
        corner = (0, 0) if number in (4, 8) else (4, 4)
        assert kernel[corner] == pytest.approx(1 / 3)


def test_every_fault_is_told_at_once(tmp_path):
    make_set(tmp_path, "levin", ["im1", "im2", "im3"])
    (tmp_path / "im1_kernel3_img.png").unlink()
    (tmp_path / "im1_kernel4_img.png").rename(tmp_path / "im1_kernal4_img.png")
    (tmp_path / "gt/im2.png").rename(tmp_path / "gt/IM2.PNG")
    whole = (tmp_path / "im2_kernel5_img.png").read_bytes()
    (tmp_path / "im2_kernel5_img.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "im2_kernel6_img.png").write_bytes(b"<html>moved</html>")
    (tmp_path / "im3_kernel8_img.png").write_bytes(b"")
    save(tmp_path / "gt/im3.png", np.zeros((128, 127), np.uint8))
    save(tmp_path / "gt/kernel1.png", np.zeros((4, 4), np.uint8))
    told = {line.split(": ")[0]: line for line in faults("levin", tmp_path)}
    expected = {
        "im1_kernel3_img.png": "missing; fetch it",
        "im1_kernel4_img.png": "missing; im1_kernal4_img.png looks like it: rename it",
        "gt/im2.png": "missing; IM2.PNG looks like it: rename it",
        "im2_kernel5_img.png": "damaged or cut short",
        "im2_kernel6_img.png": "not an image",
        "im3_kernel8_img.png": "the file is empty",
        "gt/im3.png": "127×128 pixels, 255×255 expected",
        "gt/kernel1.png": "a kernel of 4×4 has no centre",
        **{f"gt/kernel{number}.png": "missing" for number in range(2, 9)},
    }
    assert told.keys() == {str(tmp_path / name) for name in expected}
    for name, reason in expected.items():
        assert reason in told[str(tmp_path / name)]


def test_a_set_whose_files_are_all_misnamed_is_not_taken_for_absent(tmp_path):
    for number in range(1, 5):
        save(tmp_path / f"blurry/Manmade_1_kernel-{number}.PNG", np.zeros((40, 48), np.uint8))
    told = faults("lai", tmp_path)
    assert len(told) == 5
    assert "manmade_01_kernel_02.png: missing; Manmade_1_kernel-2.PNG looks like it: rename it" in told[1]


def test_sizes_must_agree_where_a_set_has_several(tmp_path):
    make_set(tmp_path, "lai", ["natural_02"], sharp=np.zeros((41, 48), np.uint8))
    (line,) = faults("lai", tmp_path)
    assert "ground_truth/natural_02.png: 48×41 pixels, 48×40 expected;" in line


def test_other_folder_names_of_copies_are_known(tmp_path):
    make_set(tmp_path, "lai", ["natural_02"])
    (tmp_path / "blurry").rename(tmp_path / "uniform")
    for number in range(1, 5):
        save(tmp_path / f"kernel/kernel_{number:02d}.png", np.full((3, 3), 9, np.uint8))
    examples = find_examples("lai", tmp_path)
    assert examples[0].blurry == tmp_path / "uniform/natural_02_kernel_01.png"
    assert examples[3].kernel == tmp_path / "kernel/kernel_04.png"


def test_kohlers_images_have_a_truth_for_each_point_of_a_trajectory(tmp_path):
    make_kohler(tmp_path, "1")
    (tmp_path / "Image1/Kernel3/GroundTruth1_3_30.png").unlink()
    examples = find_examples("kohler", tmp_path)
    assert [example.name for example in examples] == [f"Blurry1_{number}" for number in range(1, 13)]
    assert [len(example.truths) for example in examples] == [198, 198, 197, *[198] * 9]
    assert [path.stem for path in examples[1].truths[9:11]] == ["GroundTruth1_2_10", "GroundTruth1_2_11"]
    assert examples[1].sharp == examples[1].truths[99]
    blurry, sharp = examples[0].load()
    assert blurry.shape == sharp.shape == next(examples[0].load_truths()).shape == (12, 12)


def test_faults_of_kohlers_set_are_told_at_once(tmp_path):
    make_kohler(tmp_path, "2")
    for point in range(100, 199):
        (tmp_path / f"Image2/Kernel1/GroundTruth2_1_{point}.png").unlink()
    (tmp_path / "Image2/Kernel2/GroundTruth2_2_7.png").unlink()
    path = tmp_path / "Image2/Kernel3/GroundTruth2_3_8.png"
    path.write_bytes(path.read_bytes()[:-6])
    (tmp_path / "Image2/Kernel4/GroundTruth2_4_9.png").write_bytes(b"no image")
    save(tmp_path / "Image2/Kernel5/GroundTruth2_5_1.png", np.zeros((13, 12), np.uint8))
    (tmp_path / "BlurryImages/Blurry2_6.png").unlink()
    told = faults("kohler", tmp_path)
    reasons = [
        "Kernel1: 99 files",
        "2_2_7.png: missing",
        "2_3_8.png: damaged",
        "2_4_9.png: damaged",
        "2_5_1.png: 12×13",
        "2_6.png: m",
    ]
    assert len(told) == len(reasons)
    assert all(any(reason in line for line in told) for reason in reasons)


def test_any_folder_with_truths_and_kernels(tmp_path):
    grey = np.full((40, 48), 100, np.uint8)
    for name in ("b", "a"):
        save(tmp_path / f"blurry/{name}.png", grey)
        save(tmp_path / f"sharp/{name}.bmp", grey)
    (tmp_path / "kernels").mkdir()
    np.save(tmp_path / "kernels/a.npy", np.ones((3, 5)))
    first, second = find_examples("folder", tmp_path)
    assert (first.name, first.kernel_size, second.name, second.kernel_size) == ("a", 5, "b", None)
    assert first.sharp == tmp_path / "sharp/a.bmp"
    np.testing.assert_allclose(first.load_kernel(), np.full((3, 5), 1 / 15))


def test_a_folder_may_have_no_truths_or_have_them_elsewhere(tmp_path):
    save(tmp_path / "images/x.jpg", np.full((40, 48, 3), 100, np.uint8))
    (tmp_path / "images/notes.txt").write_text("not an image")
    (example,) = find_examples("folder", tmp_path / "images")
    assert example.truths == ()
    assert example.load_blurry().shape == (40, 48)
    with pytest.raises(InputError, match="no sharp image"):
        example.load()
    save(tmp_path / "truths/x.png", np.full((40, 48, 3), 120, np.uint8))
    (example,) = find_examples("folder", tmp_path / "images", truth_dir=tmp_path / "truths")
    assert example.load()[1][0, 0] == pytest.approx(120 / 255)
    with pytest.raises(InputError, match="leave out"):
        find_examples("levin", tmp_path, truth_dir=tmp_path)


def test_faults_of_a_folder_are_told_at_once(tmp_path):
    grey = np.full((40, 48), 100, np.uint8)
    for name in ("a.png", "b.png", "b.bmp", "c.png", "d.png"):
        save(tmp_path / "blurry" / name, grey)
    for name in ("A_.png", "b.png", "c.png", "d.png"):
        save(tmp_path / "sharp" / name, grey)
    save(tmp_path / "sharp/c.png", grey[:30])
    (tmp_path / "blurry/d.png").write_bytes(b"")
    (tmp_path / "kernels").mkdir()
    np.save(tmp_path / "kernels/c.npy", np.ones((4, 4)))
    told = faults("folder", tmp_path)
    reasons = [
        "a.png: missing; A_.png looks",
        "b.bmp: another",
        "b.png: another",
        "c.png: 48×30",
        "d.png: the file is empty",
        "4×4",
    ]
    assert len(told) == len(reasons)
    assert all(any(reason in line for line in told) for reason in reasons)


def test_nothing_there_and_unknown_sets_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no image of the levin set.*published at"):
        find_examples("levin", tmp_path / "absent")
    with pytest.raises(InputError, match="choose from folder, kohler, lai, levin"):
        find_examples("kodak", tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        find_examples("folder", tmp_path / "absent")
    with pytest.raises(InputError, match="no image in it"):
        find_examples("folder", tmp_path)


def test_colour_truth_with_alpha_becomes_full_range_luma(tmp_path):
    sharp = np.zeros((40, 48, 4), np.uint8)
    sharp[...] = (200, 100, 50, 7)
    make_set(tmp_path, "lai", ["text_05"], sharp=sharp)
    blurry, truth = find_examples("lai", tmp_path)[0].load()
    assert blurry.shape == truth.shape == (40, 48)
    np.testing.assert_allclose(truth, (0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255, atol=1e-6)
    np.testing.assert_allclose(blurry, 100 / 255, atol=1e-6)


def test_pairs_of_different_size_are_refused(tmp_path):
    save(tmp_path / "a.png", np.zeros((40, 48), np.uint8))
    save(tmp_path / "b.png", np.zeros((41, 48), np.uint8))
    with pytest.raises(InputError, match="48×40 and 48×41"):
        Example("a", tmp_path / "a.png", tmp_path / "b.png", 15).load()


@pytest.mark.skipif(not (DATA / "lai").is_dir(), reason="needs Lai's images in ../shared/data/lai")
def test_the_published_lai_images_match_their_truths():
    examples = {example.name: example for example in find_examples("lai", DATA / "lai")}
    blurry, sharp = examples["people_01_kernel_01"].load()
    # The wrong luma conversion (studio range) would move the grey levels by several percent.
    assert abs(float(blurry.mean() - sharp.mean())) < 0.01
    assert aligned_metrics(blurry, sharp).psnr > 20.0
