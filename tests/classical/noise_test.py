import numpy as np
import pytest
import scipy.ndimage

from jaxdeblur.classical.noise import noise_std


def blurred_scene(shape=(200, 220), seed=0, low=0.1, high=0.9):
    """Piecewise constant patches with texture, blurred by a horizontal motion of nine pixels."""
    generator = np.random.default_rng(seed)
    rows, columns = shape
    patches = np.kron(generator.random((rows // 20 + 1, columns // 20 + 1)), np.ones((20, 20)))[:rows, :columns]
    texture = 0.2 * scipy.ndimage.gaussian_filter(generator.normal(size=shape), 1.0)
    scene = scipy.ndimage.uniform_filter1d(patches + texture, 9, axis=1)
    scene = scipy.ndimage.gaussian_filter(scene, 0.7)
    return low + (high - low) * (scene - scene.min()) / (scene.max() - scene.min())


def eight_bits(image):
    return np.round(np.clip(image, 0, 1) * 255) / 255


@pytest.mark.parametrize("std", [0.005, 0.01, 0.02, 0.05])
@pytest.mark.parametrize("quantised", [False, True])
def test_known_noise_is_measured(std, quantised):
    image = blurred_scene()
    noisy = image + np.random.default_rng(1).normal(scale=std, size=image.shape)
    if quantised:
        noisy = eight_bits(noisy)
    assert noise_std(noisy) == pytest.approx(std, rel=0.15)


def test_clean_images_have_next_to_none():
    assert noise_std(blurred_scene()) < 0.0015
    assert noise_std(eight_bits(blurred_scene())) < 0.002
    assert noise_std(np.full((32, 40), 0.3)) == 0.0


def test_saturated_pixels_do_not_count():
    image = 2.0 * blurred_scene(low=0.0, high=1.0) - 0.4
    noisy = image + np.random.default_rng(2).normal(scale=0.02, size=image.shape)
    clipped = np.clip(noisy, 0, 1)
    assert np.mean((clipped == 0) | (clipped == 1)) > 0.3
    assert noise_std(clipped) == pytest.approx(0.02, rel=0.15)


def test_fully_saturated_image_has_an_answer():
    assert noise_std(np.ones((40, 40))) == 0.0


def test_large_image_and_few_usable_pixels():
    image = np.ones((600, 600))
    image[290:310, 291:309] = 0.5 + np.random.default_rng(3).normal(scale=0.01, size=(20, 18))
    assert noise_std(image) == pytest.approx(0.01, rel=0.2)


def test_colour_is_the_root_mean_square_over_channels():
    image = np.stack([blurred_scene()] * 3, -1)
    stds = np.array([0.01, 0.02, 0.03])
    noisy = image + np.random.default_rng(4).normal(size=image.shape) * stds
    assert noise_std(noisy) == pytest.approx(np.sqrt(np.mean(stds**2)), rel=0.1)
    per_channel = [noise_std(noisy[..., c]) for c in range(3)]
    assert noise_std(noisy) == pytest.approx(np.sqrt(np.mean(np.square(per_channel))), rel=1e-5)


def test_bad_shapes_are_refused():
    for shape in [(2, 40), (40, 2, 3), (40,)]:
        with pytest.raises(AssertionError):
            noise_std(np.zeros(shape))
