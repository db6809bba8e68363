"""What images add to errors, told from the hits of single images."""

import itertools

import numpy as np
import polars as pl
import pytest

from minarch_jax import records as records_lib
from minarch_jax.analysis import hits, statistics
from tests.analysis import items
from tests.analysis.test_images import POPULATIONS


def judged(before, after=None, folds=1):
  """What images add to mean hits, or to mean losses, of [G, S, images]."""
  none = np.zeros_like(before)
  up, down = (
    (before, none) if after is None else (before & ~after, after & ~before)
  )
  shape = before.shape[:-1]
  fold = np.broadcast_to(np.arange(shape[-1]) % folds, shape)
  return hits.from_counts(
    np.packbits(up, axis=-1),
    np.packbits(down, axis=-1),
    np.full(shape, before.shape[-1]),
    fold,
  )


def test_a_fold_for_every_seed_makes_images_part_of_the_spread():
  rng = np.random.default_rng(0)
  found = judged(rng.random((3, 5, 400)) < 0.9, folds=5)
  np.testing.assert_allclose(found.drawn, found.noise / 5)
  np.testing.assert_allclose(found.noise, 0.09 / 400, rtol=0.15)


def test_seeds_that_agree_share_all_and_seeds_at_random_nothing():
  rng = np.random.default_rng(1)
  one = rng.random((1, 1, 4000)) < 0.8
  agreeing = judged(np.repeat(one, 6, 1))
  np.testing.assert_allclose(agreeing.drawn, 0.16 / 4000, rtol=0.05)
  assert agreeing.noise < 1e-2 * agreeing.drawn
  random = judged(rng.random((1, 6, 4000)) < 0.8)
  np.testing.assert_allclose(random.noise, 0.16 / 4000, rtol=0.05)
  np.testing.assert_allclose(random.drawn, random.noise / 6, rtol=0.3)


def test_pairs_cancel_what_two_networks_have_in_common():
  rng = np.random.default_rng(2)
  before = rng.random((1, 5, 1000)) < 0.7
  after = before.copy()
  after[..., :10] = False  # at most ten images differ
  found, alone = judged(before, after, 5), judged(before, folds=5)
  assert found.noise < alone.noise / 15
  # Nothing lost anywhere still leaves the rule of three, on all folds' images.
  same = judged(before, before, 5)
  np.testing.assert_allclose(same.noise / 5, 3.3 / 5000**2)


def test_missing_seeds_do_not_count():
  rng = np.random.default_rng(3)
  before = rng.random((1, 4, 300)) < 0.8
  packed = np.packbits(before, axis=-1)
  none = np.zeros_like(packed)
  few = hits.from_counts(
    packed[:, :3], none[:, :3], np.full((1, 3), 300), np.array([[0, 1, 0]])
  )
  packed[:, 3] = 0
  whole = hits.from_counts(
    packed, none, np.array([[300] * 3 + [0]]), np.array([[0, 1, 0, -1]])
  )
  assert whole.noise == pytest.approx(few.noise)
  assert whole.drawn == pytest.approx(few.drawn)


def test_of_their_number_images_are_judged_by_folds_alone():
  mean, n = np.array([0.9]), np.array([5])
  one = statistics.image_variance(mean, 100)
  shared = hits.from_numbers(mean, 100, np.zeros((1, 5), int), n)
  apart = hits.from_numbers(mean, 100, np.arange(5)[None], n)
  np.testing.assert_allclose(shared.drawn, one)
  np.testing.assert_allclose(apart.drawn, one / 5)
  np.testing.assert_allclose([shared.noise, apart.noise], [one, one])


def table(bits, images, seeds, **setting):
  """Rows of the table of hits, one per seed."""
  rows = {
    "run_id": "r",
    "dataset": "d",
    "architecture": "dnn:3",
    **records_lib.AS_TRAINED,
    **setting,
  }
  columns = {
    "seed": list(seeds),
    "fold": [s % 5 for s in seeds],
    "images": images,
    "hits": [np.packbits(each).tobytes() for each in bits],
  }
  frame = pl.DataFrame(columns)
  return records_lib.typed(
    "hits", frame.with_columns(**{k: pl.lit(v) for k, v in rows.items()})
  )


def test_hits_are_found_by_the_setting_of_a_row():
  rng = np.random.default_rng(4)
  setting = {"criterion": "magnitude", "scope": "global", "sparsity": 0.5}
  bits = [rng.random((2, n)) < 0.8 for n in (20, 21)]
  parts = [
    table(of_seed, len(of_seed[0]), (seed, seed + 5), **changes)
    for of_seed, seed, changes in zip(bits, (0, 1), ({}, setting), strict=True)
  ]
  found = hits.Hits.of(pl.concat(parts))
  wanted = pl.concat(parts).drop("hits", "images", "fold")[[3, 0, 2]]
  np.testing.assert_array_equal(found.rows(wanted), [3, 0, 2])
  # A row of `networks` has no setting: it is the network as trained.
  networks = wanted.select(records_lib.NETWORK)
  np.testing.assert_array_equal(found.rows(networks), [-1, 0, -1])
  row = np.array([[0, 1, -1]])
  values = np.array([[bits[0][0].mean(), bits[0][1].mean(), np.nan]])
  fold = np.array([[0, 0, -1]])
  images = found.images_of(values, row, None, np.array([20.0]), fold)
  expected = judged(bits[0][None])
  np.testing.assert_allclose(images.drawn, expected.drawn)
  # One seed whose hits are not known: judged by their number.
  unknown = found.images_of(
    values, np.array([[0, -1, -1]]), None, np.array([20.0]), fold
  )
  by_number = statistics.image_variance(np.nanmean(values), 20)
  np.testing.assert_allclose(unknown.drawn, by_number)


def test_resampled_images_move_networks_that_agree_together():
  rng = np.random.default_rng(5)
  one = rng.random(500) < 0.8
  bits = np.stack([one] * 10 + [rng.random(500) < 0.8] * 10)
  parts = [
    table(bits[:10], 500, range(10)),
    table(bits[10:], 500, range(10)).with_columns(architecture=pl.lit("dnn:4")),
  ]
  whole = pl.concat(parts).with_columns(fold=pl.lit(0, pl.Int64))
  found = hits.Hits.of(whole)
  rows = np.array([range(10), range(10), range(10, 20)])
  wanted = np.array([1e-4, 4e-4, 1e-4])
  shifts = found.resampled(rows, wanted, 4000, rng)
  np.testing.assert_allclose(shifts.var(0), wanted, rtol=0.1)
  together = np.corrcoef(shifts.T)
  assert together[0, 1] > 0.999 and abs(together[0, 2]) < 0.1
  assert not found.resampled(rows, np.zeros(3), 7, rng).any()


def covered(population, studies, seeds, images, folds):
  """Shares of 95 % intervals of accuracy and of its loss that hold the truth,
  and the mean half width of each."""
  rng = np.random.default_rng(seeds * images + folds)
  before, after = population.play(studies, seeds, images, rng, folds)
  found = {}
  for name, values, known, truth in (
    ("accuracy", before.mean(-1), judged(before, None, folds), "accuracy"),
    (
      "drop",
      before.mean(-1) - after.mean(-1),
      judged(before, after, folds),
      "drop",
    ),
  ):
    _, low, high, _ = statistics.mean_interval(values, 0.95, images=known)
    true = getattr(population, truth)()
    held = (low <= true) & (true <= high)
    found[name] = (held.mean(), (high - low).mean() / 2)
  return found


@pytest.mark.parametrize("population", POPULATIONS)
@pytest.mark.parametrize("seeds", [5, 20])
def test_intervals_cover_new_seeds_on_new_images(population, seeds):
  found = covered(POPULATIONS[population], 150, seeds, 72, 5)
  for share, _ in found.values():
    assert share >= 0.9, found


@pytest.mark.slow
def test_intervals_cover_at_every_size():
  """The statement of report/method.md#intervals: 400 studies of each."""
  shares = []
  for (name, population), seeds, images, folds in itertools.product(
    POPULATIONS.items(), (5, 10, 20), (72, 144, 288), (5,)
  ):
    found = covered(population, 400, seeds, images, folds)
    shares += [share for share, _ in found.values()]
    print(name, seeds, images, folds, found)
  assert np.quantile(shares, 0.05) >= 0.92 and np.min(shares) >= 0.9
  assert np.quantile(shares, 0.9) <= 0.985


def test_folds_halve_the_intervals_of_one_split():
  """The same 360 images: a tenth held out once, or each image once."""
  population = items.Population()
  once = covered(population, 100, 5, 36, 1)
  each = covered(population, 100, 5, 72, 5)
  for name in once:
    assert each[name][1] < 0.65 * once[name][1]
