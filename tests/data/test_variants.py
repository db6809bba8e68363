"""Variants of data sets: the same images, harder; the same labels, noisier."""

import re

import numpy as np
import pytest

from minarch_jax import config, data, registries
from minarch_jax.data import preparation, sources, tfds, variants


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


@pytest.mark.parametrize(
  "name, message",
  [
    ("digits:blured", "takes no :blured; did you mean 'digits:blurred'"),
    ("digits:noisy:blured", "did you mean 'digits:noisy:blurred'"),
    ("synthetic:easy:nosy", "0.*hard; did you mean 'synthetic:easy:noisy'"),
    ("digits:12", "takes no :12$"),
    ("digts:blurred", "followed by :blurred or :noisy; did you mean 'digits'"),
    ("digits:noisy:blurred:noisy", "is noisy twice"),
    ("synthetic:blurred", "write synthetic:DIFFICULTY"),
    (":blurred", "is not one of digits"),
    ("blurred", "is not one of digits"),
  ],
)
@pytest.mark.parametrize("function", [data.check, data.describe, data.load])
def test_what_was_typed_wrong_is_told(function, name, message):
  with pytest.raises(config.ConfigError, match=message) as error:
    function(name)
  assert str(error.value).count("did you mean") <= 1


def test_of_a_carved_test_split_the_labels_are_right():
  plain, noisy = data.load("digits"), data.load("digits:noisy")
  np.testing.assert_array_equal(noisy.test.y, plain.test.y)
  every = [np.concatenate([d.train.y, d.validation.y]) for d in (plain, noisy)]
  wrong = np.bincount(every[0]) - np.bincount(every[1])
  assert np.abs(wrong).sum() and len(every[0]) == len(every[1])
  # Pixels too are those of the set itself, up to the mean that is taken off.
  for one, other in zip(plain.test.x, noisy.test.x, strict=True):
    np.testing.assert_allclose(
      one - one.mean(), other - other.mean(), rtol=0.02, atol=0.02
    )


def test_blurred_images_are_divided_as_their_originals():
  plain, found = (
    data.load(name, folds=5) for name in ("digits", "digits:blurred")
  )
  assert plain.folds is not None and found.folds is not None
  np.testing.assert_array_equal(plain.folds, found.folds)
  for split in ("train", "validation", "test"):
    one, other = getattr(plain, split), getattr(found, split)
    np.testing.assert_array_equal(one.y, other.y)
    assert np.corrcoef(one.x.ravel(), other.x.ravel())[0, 1] > 0.6


def test_variants_follow_one_another():
  both = data.load("digits:blurred:noisy")
  blurred, noisy = data.load("digits:blurred"), data.load("digits:noisy")
  np.testing.assert_array_equal(both.train.y, noisy.train.y)
  np.testing.assert_array_equal(both.test.x.shape, blurred.test.x.shape)
  assert both.fingerprint not in (blurred.fingerprint, noisy.fingerprint)
  note = data.describe("digits:blurred:noisy").test_note
  first = "no official test split.*; blurred: blurs every image"
  assert re.search(f"{first}.*; noisy: gives a tenth", note)


# Update only together with a deliberate change of a variant.
@pytest.mark.parametrize(
  "name, golden",
  [
    ("digits:blurred", "c496ddfb204eaea0"),
    ("digits:noisy", "f69364a88a6ec9df"),
  ],
)
def test_fingerprints_are_the_same_on_every_machine(name, golden):
  assert data.load(name).fingerprint.startswith(golden)


@pytest.mark.parametrize("version", ["", ":1.0.0"])
def test_prepared_sets_have_variants(tiny, version, monkeypatch):
  name = f"tiny_shapes{version}"
  plain = data.load(name, str(tiny))
  monkeypatch.setattr(tfds, "_decode", None)  # decoded once for all
  for variant in registries.VARIANTS:
    promised = data.describe(f"{name}:{variant}", str(tiny))
    assert promised[:5] == data.describe(name, str(tiny))[:5]
    assert promised.test_note.startswith(f"{variant}: ")
    found = data.load(f"{name}:{variant}", str(tiny))
    assert found.fingerprint != plain.fingerprint
    np.testing.assert_array_equal(found.test.y, plain.test.y)
  with pytest.raises(config.ConfigError, match=f"'{name}:noisy'"):
    data.check(f"{name}:noissy", str(tiny))
  before = list(tiny.rglob("*"))
  preparation.prepare(f"{name}:blurred", str(tiny))
  assert list(tiny.rglob("*")) == before


def test_a_new_variant_is_a_line(monkeypatch):
  def turned(raw):
    return sources.raw(raw.x[:, ::-1], raw.y, raw.test_x, raw.test_y)

  monkeypatch.setitem(registries.VARIANTS, "turned", turned)
  plain, found = data.load("digits"), data.load("digits:turned")
  np.testing.assert_array_equal(found.train.x, plain.train.x[:, ::-1])
  assert data.describe("digits:turned").test_note.endswith("; turned")
