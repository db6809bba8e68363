"""Variants of data sets: the same images, harder; the same labels, noisier."""

import numpy as np
import pytest

from minarch_jax import config, data, registries
from minarch_jax.data import sources, variants


def raw(shape=(50, 9, 6, 2), classes=4, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.integers(0, 256, shape).astype(np.uint8)
  y = rng.integers(0, classes, len(x)).astype(np.int32)
  return sources.raw(x[10:], y[10:], x[:10], y[:10])


@pytest.mark.parametrize("name", registries.VARIANTS)
def test_a_variant_keeps_shapes_and_is_the_same_again(name):
  before = raw()
  found = registries.VARIANTS[name](before)
  for one, other in zip(before[:4], found[:4], strict=True):
    assert one.shape == other.shape and one.dtype == other.dtype
  assert found.digest == registries.VARIANTS[name](raw()).digest
  assert found.digest != before.digest


def by_hand(image, width):
  """Three boxes along the first axis of a column, edges repeated."""
  for _ in range(3):
    padded = np.concatenate(
      [[image[0]] * (width // 2), image, [image[-1]] * (width // 2)]
    )
    image = [sum(padded[i : i + width]) for i in range(len(image))]
  return image


def test_blurring_averages_neighbours_three_times():
  column = np.array([0, 9, 200, 3, 255, 0, 0, 17], np.uint8)
  x = np.zeros((1, 8, 8, 1), np.uint8) + column[None, :, None, None]
  assert variants.box(8) == 3
  found = variants.blurred(sources.raw(x, np.zeros(1, np.int32))).x
  expected = [int(v / 27 + 0.5) for v in by_hand(list(map(int, column)), 3)]
  for j in range(8):
    assert found[0, :, j, 0].tolist() == expected


def test_blurring_leaves_what_is_even():
  x = np.full((3, 28, 28, 1), 77, np.uint8)
  np.testing.assert_array_equal(
    variants.blurred(sources.raw(x, np.zeros(3, np.int32))).x, x
  )


def test_a_tenth_of_the_labels_become_other_classes_and_test_stays():
  before = raw((2010, 2, 2, 1), classes=5)
  found = variants.noisy(before)
  wrong = before.y != found.y
  assert wrong.sum() == 200
  np.testing.assert_array_equal(before.test_y, found.test_y)
  steps = (found.y - before.y)[wrong] % 5
  counts = np.bincount(steps, minlength=5)
  assert counts[0] == 0 and counts[1:].min() > 30  # of 50


@pytest.mark.parametrize("name", ["digits:blurred", "synthetic:easy:noisy"])
def test_variants_are_loaded_by_name(name):
  plain, found = data.load(name.rpartition(":")[0]), data.load(name)
  assert found.name == name and found.fingerprint != plain.fingerprint
  assert name.rpartition(":")[2] in found.test_note
  assert data.describe(name)[:5] == data.describe(plain.name)[:5]


def test_a_misspelt_variant_is_told():
  with pytest.raises(config.ConfigError, match="takes no :blured.*'blurred'"):
    data.check("digits:blured")


def test_a_new_variant_is_a_line(monkeypatch):
  def turned(raw):
    return sources.raw(raw.x[:, ::-1], raw.y, raw.test_x, raw.test_y)

  monkeypatch.setitem(registries.VARIANTS, "turned", turned)
  plain, found = data.load("digits"), data.load("digits:turned")
  np.testing.assert_array_equal(found.train.x, plain.train.x[:, ::-1])
