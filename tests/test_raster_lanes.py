"""The eight-lane arithmetic under the CPU kernels."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from splatpipe.splatting.raster.compile import kernel
from splatpipe.splatting.raster.lanes import any_lane, exp2, gather, load, mask_bits, select, store, sums, total

floats = st.lists(st.floats(-100, 100, width=32), min_size=8, max_size=8)


@kernel
def _powers(values, out):
    for i in range(0, values.size, 8):
        store(out, i, exp2(load(values, i)))


@kernel
def _mixed(values, out):
    a = load(values, 0)
    inside = (a > -1.0) & (a <= 50.0)
    store(out, 0, select(inside, a * 2.0 + 1.0, -a))
    store(out, 8, sums(a, a * 2.0, a * 3.0, a * 4.0, a * 5.0, a * 6.0, a * 7.0, a * 8.0))
    store(out, 16, gather(values, 1, 3, 2, 1))
    return total(a), any_lane(inside), mask_bits(inside)


def test_powers_of_two_are_accurate_to_three_ten_millionths():
    x = np.linspace(-30, 10, 1 << 16, dtype=np.float32)
    out = np.empty_like(x)
    _powers(x, out)
    assert np.abs(out / np.exp2(x.astype(np.float64)) - 1).max() < 3e-7


def test_very_negative_powers_are_practically_zero():
    x = np.array([-126, -127, -1e4, -3e38, -np.inf, -200, -1e9, -500], np.float32)
    out = np.empty_like(x)
    _powers(x, out)
    assert (out >= 0).all() and (out < 2e-38).all()


@settings(max_examples=50, deadline=None)
@given(floats)
def test_lanes_compute_what_numpy_computes(values):
    x = np.array(values, np.float32)
    out = np.empty(24, np.float32)
    summed, found, bits = _mixed(x, out)
    inside = (x > -1) & (x <= 50)
    np.testing.assert_allclose(out[:8], np.where(inside, x * 2 + 1, -x), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(out[8:16], x.sum(dtype=np.float64) * np.arange(1, 9), rtol=1e-4, atol=1e-2)
    np.testing.assert_array_equal(out[16:], x[[3, 5, 7, 7, 7, 7, 7, 7]])
    assert abs(summed - x.sum(dtype=np.float64)) < 1e-3
    assert found == inside.any() and bits == int(np.packbits(inside, bitorder="little")[0])
