"""Prepared TFDS sets: found, read exactly, and refused where they cannot be."""

import json
import shutil

import numpy as np
import pytest

from minarch_jax import config, data
from minarch_jax.data import tfds
from tests.data.tiny_tfds import CLASSES, draw, edit, prepare, SIDE, version


def test_images_are_found_by_type_and_read_exactly(original, tiny):
  raw = tfds.SOURCE.read("tiny_shapes", str(tiny))
  _, images = original
  for stored, split in (
    ((raw.x, raw.y), "train"),
    ((raw.test_x, raw.test_y), "test"),
  ):
    np.testing.assert_array_equal(stored[0], images[split][0])
    np.testing.assert_array_equal(stored[1], images[split][1])
  assert data.describe("tiny_shapes", str(tiny)) == (
    (SIDE, SIDE, 1),
    CLASSES,
    54,
    6,
    12,
    "",
  )
  assert data.load("tiny_shapes", str(tiny)).test.x.shape == (12, SIDE, SIDE, 1)


def test_colourdraw(tmp_path):
  images = {"train": draw(30, 3, 0), "test": draw(6, 3, 1)}
  path = prepare(tmp_path, images, channels=3)
  raw = tfds.SOURCE.read("tiny_shapes", path)
  np.testing.assert_array_equal(raw.x, images["train"][0])
  assert data.load("tiny_shapes", path).train.x.shape[1:] == (SIDE, SIDE, 3)


def test_the_second_start_decodes_nothing(tiny, monkeypatch):
  first = data.load("tiny_shapes", str(tiny))
  monkeypatch.setattr(tfds, "_decode", None)
  again = data.load("tiny_shapes", str(tiny))
  assert again.fingerprint == first.fingerprint
  np.testing.assert_array_equal(again.train.x, first.train.x)


def test_another_pixel_is_another_data_set(tmp_path, original):
  images = {k: (x.copy(), y) for k, (x, y) in original[1].items()}
  images["train"][0][7, 3, 3, 0] ^= 1
  path = prepare(tmp_path, images)
  first = data.load("tiny_shapes", original[0])
  assert data.load("tiny_shapes", path).fingerprint != first.fingerprint


@pytest.mark.parametrize(
  "official, sizes, note",
  [
    ("validation", (54, 6, 12), "official validation split"),
    (None, (43, 5, 12), "no official test split"),
  ],
)
def test_sets_without_a_test_split(tmp_path, official, sizes, note):
  images = {"train": draw(60, 1, 0)}
  if official:
    images[official] = draw(12, 1, 1)
  path = prepare(tmp_path, images)
  dataset = data.load("tiny_shapes", path)
  assert data.describe("tiny_shapes", path)[2:5] == sizes
  parts = (dataset.train, dataset.validation, dataset.test)
  assert tuple(len(batch.y) for batch in parts) == sizes
  assert note in dataset.test_note


def test_the_official_test_split_is_preferred_to_validation(tmp_path):
  sizes = {"train": 60, "validation": 9, "test": 12}
  images = {split: draw(n, 1, n) for split, n in sizes.items()}
  dataset = data.load("tiny_shapes", prepare(tmp_path, images))
  assert len(dataset.test.y) == 12 and dataset.test_note == ""


def test_the_newest_version_is_read_unless_one_is_named(tiny):
  shutil.copytree(version(tiny), tiny / "tiny_shapes" / "1.10.0")
  shutil.copytree(version(tiny), tiny / "tiny_shapes" / "1.9.0")
  assert tfds.locate("tiny_shapes", str(tiny)).name == "1.10.0"
  assert tfds.locate("tiny_shapes:1.0.0", str(tiny)).name == "1.0.0"
  with pytest.raises(config.ConfigError, match="prepared: 1.0.0, 1.9.0, 1.10"):
    data.check("tiny_shapes:3.0.0", str(tiny))


def test_a_configuration_must_be_named(tiny):
  (tiny / "tiny_shapes" / "letters").mkdir()
  shutil.move(version(tiny), tiny / "tiny_shapes" / "letters" / "1.0.0")
  data.check("tiny_shapes/letters", str(tiny))
  with pytest.raises(config.ConfigError, match="one of tiny_shapes/letters"):
    data.check("tiny_shapes", str(tiny))


def test_a_prepared_name_is_suggested(tiny):
  with pytest.raises(config.ConfigError, match="did you mean 'tiny_shapes'"):
    data.check("tiny_shape", str(tiny))
  with pytest.raises(config.ConfigError, match="there: tiny_shapes"):
    data.check("mnist", str(tiny))


@pytest.mark.parametrize(
  "features, message",
  [
    (
      lambda k: {"p": k.Image(shape=(8, 8, 1)), "l": k.Text()},
      "one classLabel",
    ),
    (lambda k: {"t": k.Text(), "l": k.ClassLabel(num_classes=3)}, "one image"),
    (
      lambda k: {"p": k.Image(), "l": k.ClassLabel(num_classes=3)},
      "uint8 images of one size",
    ),
    (
      lambda k: {
        "p": k.Image(shape=(8, 8, 1)),
        "l": k.ClassLabel(num_classes=3),
        "m": k.ClassLabel(num_classes=3),
      },
      "found l, m",
    ),
  ],
)
def test_sets_that_are_no_classification_are_refused(tiny, features, message):
  import tensorflow_datasets

  tree = features(tensorflow_datasets.features)
  described = tensorflow_datasets.features.FeaturesDict(tree)
  described.save_config(version(tiny))
  edit(tiny, supervisedKeys={})
  with pytest.raises(config.ConfigError, match=message):
    data.check("tiny_shapes", str(tiny))


def test_of_two_labels_the_supervised_one_counts(tiny):
  file = version(tiny) / "features.json"
  described = json.loads(file.read_text())
  tree = described["featuresDict"]["features"]
  tree["coarse"] = tree["kind"]
  file.write_text(json.dumps(described))
  assert tfds.inspect("tiny_shapes", str(tiny)).label == "kind"


def _shard(path, split="train"):
  (shard,) = version(path).glob(f"*-{split}.array_record*")
  return shard


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip"])
def test_damaged_files_are_named(tiny, damage):
  stored = bytearray(_shard(tiny).read_bytes())
  if damage == "flip":
    stored[200:4000] = bytes(byte ^ 0x5A for byte in stored[200:4000])
  _shard(tiny).write_bytes(
    {"truncate": stored[:40000], "empty": b"", "flip": stored}[damage]
  )
  with pytest.raises(ValueError, match="'train' in .*prepare the data set aga"):
    data.load("tiny_shapes", str(tiny))
  assert not list((tiny.parent / "cache").rglob("*.npy"))


def test_a_missing_file_is_found_before_reading(tiny):
  _shard(tiny, "test").unlink()
  with pytest.raises(config.ConfigError, match="'test' in .* has 0 files of 1"):
    data.check("tiny_shapes", str(tiny))


def test_a_missing_shard_of_several_is_found_before_reading(tiny):
  file = version(tiny) / "dataset_info.json"
  splits = json.loads(file.read_text())["splits"]
  splits[0]["shardLengths"] = ["30", "30"]
  edit(tiny, splits=splits)
  with pytest.raises(config.ConfigError, match="has 1 files of 2"):
    data.check("tiny_shapes", str(tiny))


def test_an_unreadable_description_is_named(tiny):
  (version(tiny) / "features.json").write_text("{")
  with pytest.raises(config.ConfigError, match="features.json cannot be read"):
    data.check("tiny_shapes", str(tiny))


def test_images_of_another_size_than_described_are_refused(tiny):
  file = version(tiny) / "features.json"
  file.write_text(file.read_text().replace('"8"', '"9"'))
  with pytest.raises(ValueError, match=r"an image is \(8, 8, 1\)"):
    data.load("tiny_shapes", str(tiny))


def test_unlabelled_images_are_refused(tmp_path):
  x, y = draw(12, 1, 1)
  images = {"train": draw(60, 1, 0), "test": (x, np.full_like(y, -1))}
  path = prepare(tmp_path, images)
  with pytest.raises(ValueError, match="'test': label -1 of image 0"):
    data.load("tiny_shapes", path)


# --- preparation -------------------------------------------------------------


def test_the_real_sets_are_the_real_ones(tfds_dir):
  if "mnist" not in tfds.names(tfds_dir):
    pytest.skip(f"mnist is not prepared in {tfds_dir}")
  images = tfds.SOURCE.read("mnist", tfds_dir)
  # Counts of the published files (LeCun et al. 1998).
  assert np.bincount(images.y).tolist() == [
    5923,
    6742,
    5958,
    6131,
    5842,
    5421,
    5918,
    6265,
    5851,
    5949,
  ]
  assert images.test_y[:5].tolist() == [7, 2, 1, 0, 4]
