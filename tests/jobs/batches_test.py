"""Which images share a batch."""

import itertools

import pytest

from jaxdeblur.jobs.batches import default_batch_size, fit_bytes, fits_together, in_batches, pixels_of
from jaxdeblur.presets import PRESETS


def batches(items, size):
    return list(in_batches(items, alike=lambda item: item[0], size=lambda item: size))


def test_batches_hold_what_is_alike_and_nothing_is_lost():
    items = [(letter, number) for number, letter in enumerate("abcabbacb")]
    found = batches(items, 3)
    assert sorted(itertools.chain.from_iterable(found)) == sorted(items)
    assert all(len({letter for letter, _ in batch}) == 1 for batch in found)
    assert sorted(map(len, found)) == [1, 2, 3, 3]


def test_batches_of_one_come_at_once_and_in_order():
    drawn = []

    def items():
        for item in ("a0", "b0", "a1"):
            drawn.append(item)
            yield item

    found = in_batches(items(), alike=lambda item: item[0], size=lambda item: 1)
    assert next(found) == ["a0"]
    assert drawn == ["a0"]
    assert list(found) == [["b0"], ["a1"]]


def test_few_wait_for_others():
    drawn = itertools.count()
    first = next(in_batches(((next(drawn), 0) for _ in range(100)), alike=lambda item: item[0], size=lambda item: 2))
    assert first == [(0, 0)]
    assert next(drawn) < 12


def test_a_batch_is_as_large_as_the_memory_allows(monkeypatch):
    import jax

    config = PRESETS["selfdeblur"]
    pixels = pixels_of((255, 255, 3))
    assert pixels == 255 * 255
    assert default_batch_size(config, pixels) == 1

    class Device:
        def __init__(self, gigabytes):
            self.gigabytes = gigabytes

        def memory_stats(self):
            return {"bytes_limit": self.gigabytes * 2**30}

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for gigabytes, expected in ((1, 1), (16, 6), (80, 16)):
        monkeypatch.setattr(jax, "devices", lambda gigabytes=gigabytes: [Device(gigabytes)])
        assert default_batch_size(config, pixels) == expected
    assert default_batch_size(PRESETS["fast"], pixels) == 1
    assert fit_bytes(PRESETS["fast"], pixels) == 0
    assert fit_bytes(config.override(num_restarts=3), pixels) == pytest.approx(3 * fit_bytes(config, pixels))


@pytest.mark.parametrize(
    ("preset", "asked", "backend", "expected"),
    [
        ("selfdeblur", None, "cpu", False),
        ("selfdeblur", None, "gpu", True),
        ("selfdeblur", 1, "gpu", False),
        ("selfdeblur", 2, "cpu", True),
        ("fast", 2, "gpu", False),
    ],
)
def test_what_may_share_a_program(monkeypatch, preset, asked, backend, expected):
    import jax

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert fits_together(PRESETS[preset], asked) is expected
