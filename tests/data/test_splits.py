"""Splits: exact, stratified, and fair."""

import numpy as np
import pytest

from minarch_jax.data import splits


@pytest.mark.parametrize("seed", range(20))
def test_splits_are_exact_and_stratified(seed):
  rng = np.random.default_rng(seed)
  y = rng.integers(0, rng.integers(2, 12), rng.integers(20, 500))
  fraction = rng.uniform(0.05, 0.6)
  kept, held = splits.stratified(y, fraction, seed, 1)
  np.testing.assert_array_equal(
    np.sort(np.concatenate([kept, held])), np.arange(len(y))
  )
  assert np.all(np.diff(kept) > 0) and np.all(np.diff(held) > 0)
  assert len(held) == splits.held_out(len(y), fraction)
  share = np.bincount(y) * len(held) / len(y)
  counts = np.bincount(y[held], minlength=len(share))
  assert np.all(counts >= np.floor(share)) and np.all(counts <= np.ceil(share))
  for other in (
    splits.stratified(y, fraction, seed + 1, 1)[1],
    splits.stratified(y, fraction, seed, 2)[1],
  ):
    assert not np.array_equal(held, other)


def test_splits_draw_every_member_of_a_class_equally_often():
  y = np.repeat([0, 1], [10, 30])
  times = np.zeros(40)
  for seed in range(2000):
    times[splits.stratified(y, 0.2, seed, 0)[1]] += 1
  # 2,000 draws at 0.2: standard deviation 18.
  assert np.all(np.abs(times - 400) < 5 * 18)


@pytest.mark.parametrize("seed", range(20))
def test_folds_divide_images_and_classes_equally(seed):
  rng = np.random.default_rng(seed)
  count = int(rng.integers(2, 9))
  y = rng.integers(0, rng.integers(2, 12), rng.integers(20, 500))
  fold = splits.folds(y, count, seed, 1)
  assert np.ptp(np.bincount(fold, minlength=count)) <= 1
  for label in np.unique(y):
    assert np.ptp(np.bincount(fold[y == label], minlength=count)) <= 1
  assert np.bincount(fold).max() == splits.largest_fold(len(y), count)
  for other in (
    splits.folds(y, count, seed + 1, 1),
    splits.folds(y, count, seed, 2),
  ):
    assert not np.array_equal(fold, other)


def test_more_folds_than_images_are_refused():
  with pytest.raises(ValueError, match="3 images .* 4 folds"):
    splits.folds(np.arange(3), 4, 0, 1)
