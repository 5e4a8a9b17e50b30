"""An epoch's order is Grain's, and a permutation."""

import grain
import numpy as np
import pytest

from affjax.data import shuffle

SEEDS = (0, 1, 12345, 2**32 - 1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
  "length", [1, 2, 100, 4096, 9216, 2**16, 2**16 + 2, 70_000, 2**18, 300_001]
)
def test_it_is_what_grain_gives_row_by_row(length, seed):
  found = shuffle.permutation(length, seed)
  places = np.unique(np.random.default_rng(0).integers(0, length, 300).tolist() + [0, length - 1])
  expected = [grain.experimental.index_shuffle(int(p), length - 1, seed, 4) for p in places]
  np.testing.assert_array_equal(found[places], expected)


@pytest.mark.parametrize(
  "length", [1, 2, 17, 4095, 4096, 2**16, 2**16 + 1, 2**16 + 2, 2**18 + 1, 300_001]
)
def test_every_row_comes_once(length):
  for seed in SEEDS:
    np.testing.assert_array_equal(np.sort(shuffle.permutation(length, seed)), np.arange(length))


def test_nobody_can_change_the_order_for_others():
  with pytest.raises(ValueError, match="read-only"):
    shuffle.permutation(10, 0)[0] = 3
