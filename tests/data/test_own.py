"""Images of one's own: the same images are the same data, however stored."""

import io
import os
import sys

import numpy as np
from PIL import Image
import pytest

import minarch_jax as ma
from minarch_jax import config, data
from tests.data import tiny_tfds

COUNTS = {"train": 60, "test": 12}


def ordered(split, channels=1):
  """Images in the order of their classes, as folders list them."""
  x, y = tiny_tfds.draw(COUNTS[split], channels, len(split))
  order = np.argsort(y, kind="stable")
  return x[order], y[order]


def png(image, mode=None):
  file = io.BytesIO()
  picture = Image.fromarray(image.squeeze())
  (picture.convert(mode) if mode else picture).save(file, "png")
  return file.getvalue()


def write_folder(root, x, y, mode=None):
  for i, (image, label) in enumerate(zip(x, y, strict=True)):
    folder = root / f"class_{label}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{i:04}.png").write_bytes(png(image, mode))
  return root


def save_to_disk(path, splits):
  """Saves as Hugging Face does; None where its package is not installed."""
  try:
    import datasets
  except ImportError:
    return None
  features = datasets.Features(
    {"label": datasets.ClassLabel(4), "image": datasets.Image()}
  )
  made = {
    name: datasets.Dataset.from_dict(
      {
        "label": y.tolist(),
        "image": [{"bytes": png(image), "path": None} for image in x],
      },
      features=features,
    )
    for name, (x, y) in splits.items()
  }
  if len(made) == 1:
    (made,) = made.values()
    made.save_to_disk(path)
  else:
    datasets.DatasetDict(made).save_to_disk(path)
  return str(path)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("MINARCH_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(params=[1, 3], ids=["grey", "coloured"])
def channels(request):
  return request.param


def test_the_same_images_are_the_same_data(tmp_path, channels):
  splits = {name: ordered(name, channels) for name in COUNTS}
  (x, y), (test_x, test_y) = splits.values()
  tiny_tfds.prepare(tmp_path / "tfds", splits, channels)
  np.savez(tmp_path / "a.npz", x=x, y=y, x_test=test_x, y_test=test_y)
  np.savez_compressed(
    tmp_path / "keras.npz",
    x_train=x.squeeze(),
    y_train=y.astype(np.uint8),
    x_test=test_x.squeeze(),
    y_test=test_y.astype(np.uint8),
  )
  for name, (images, labels) in splits.items():
    write_folder(tmp_path / "folder" / name, images, labels)
  saved = save_to_disk(tmp_path / "saved", splits)
  for folds in (1, 5):
    found = [
      *([data.load(saved, folds=folds)] if saved else []),
      data.load("tiny_shapes", str(tmp_path / "tfds"), folds=folds),
      data.load(str(tmp_path / "a.npz"), folds=folds),
      data.load(str(tmp_path / "keras.npz"), folds=folds),
      data.load(str(tmp_path / "folder"), folds=folds),
      data.load(str(tmp_path / "folder"), folds=folds),  # decoded before
      ma.from_arrays(x, y, test_x, test_y, folds=folds),
    ]
    for other in found:
      assert other.fingerprint == found[0].fingerprint
      for split in ("train", "validation", "test"):
        for a, b in zip(
          getattr(other, split), getattr(found[0], split), strict=True
        ):
          np.testing.assert_array_equal(a, b)


def test_without_a_test_split_one_is_carved(tmp_path):
  x, y = ordered("train")
  np.savez(tmp_path / "a.npz", x=x, y=y)
  folder = write_folder(tmp_path / "folder", x, y)
  found = [
    data.load(str(tmp_path / "a.npz")),
    data.load(str(folder)),
    ma.from_arrays(x, y),
  ]
  assert len({each.fingerprint for each in found}) == 1
  for each in found:
    assert len(each.test.y) == 12 and "no test split" in each.test_note
  told = data.describe(str(folder))
  assert told == data.describe(str(tmp_path / "a.npz"))
  assert told.num_test == 12 and told.num_train + told.num_validation == 48


def test_variants_stand_on_paths_too(tmp_path, monkeypatch):
  x, y = ordered("train")
  write_folder(tmp_path / "shapes", x, y)
  monkeypatch.chdir(tmp_path)
  found = data.load("./shapes:blurred")
  assert found.name == "./shapes:blurred"
  assert found.fingerprint != data.load("./shapes").fingerprint
  assert "blurs every image" in found.test_note


def test_images_in_another_mode_are_converted(tmp_path):
  x, y = ordered("train")
  folder = write_folder(tmp_path / "folder", x, y)
  expected = data.load(str(folder))
  for i in (7, 31):
    path = next(folder.glob(f"*/{i:04}.png"))
    path.write_bytes(png(x[i], "RGB"))  # grey all the same
  found = data.load(str(folder))
  assert found.fingerprint == expected.fingerprint


def test_changed_images_are_decoded_anew(tmp_path):
  x, y = ordered("train")
  folder = write_folder(tmp_path / "folder", x, y)
  before = data.load(str(folder)).fingerprint
  path = next(folder.glob("*/0003.png"))
  kept = path.stat()
  path.write_bytes(png(255 - x[3]))
  os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
  assert data.load(str(folder)).fingerprint != before


X, Y = ordered("train")
LABELS = Y.astype(float)


@pytest.mark.parametrize(
  "arrays, said",
  [
    ({}, "holds nothing; save images as x and labels as y"),
    ({"images": X, "y": Y}, "holds images, y; save"),
    ({"x": X / 255, "y": Y}, "x is float64; store images as uint8"),
    ({"x": X[:, 0, 0], "y": Y}, r"x is \(60, 1\); give images"),
    ({"x": X, "y": Y[1:]}, "60 images, but labels int32"),
    ({"x": X, "y": LABELS}, "but labels float64"),
    ({"x": X, "y": Y.astype(str).astype(object)}, "y.npy holds objects"),
    ({"x": X, "y": Y - 1}, "a label is -1; number classes from 0"),
    ({"x": X, "y": 2 * Y}, "no image outside the test split is of class 1"),
    ({"x": X, "y": 0 * Y}, "all images are of one class"),
    ({"x": X, "y": Y, "x_test": X[:, 1:], "y_test": Y}, "images of the test"),
    ({"x": X, "y": Y, "x_test": X, "y_test": Y + 1}, "class 3 is in the test"),
  ],
)
def test_what_is_no_data_set_is_told(tmp_path, arrays, said):
  path = str(tmp_path / "own.npz")
  np.savez(path, allow_pickle=True, **arrays)
  with pytest.raises(config.ConfigError, match=said) as error:
    data.check(path)
  assert str(error.value).startswith(f"--dataset={path}")


def test_arrays_are_checked_like_files():
  with pytest.raises(ValueError, match="x is float64; store images as uint8"):
    ma.from_arrays(X / 255, Y)
  with pytest.raises(ValueError, match="test_x and test_y, or neither"):
    ma.from_arrays(X, Y, X)


def test_damaged_and_missing_files_are_told(tmp_path, monkeypatch):
  path = tmp_path / "own.npz"
  with pytest.raises(config.ConfigError, match="no such file or folder"):
    data.check(str(path))
  np.savez(path, x=X, y=Y)
  whole = path.read_bytes()
  for content in (b"", b"no archive", whole[: len(whole) // 2]):
    path.write_bytes(content)
    with pytest.raises(config.ConfigError, match="cannot be read"):
      data.check(str(path))
  monkeypatch.chdir(tmp_path)
  (tmp_path / "shapes").mkdir()
  with pytest.raises(config.ConfigError, match="has 0 folders with images"):
    data.check("./shapes")
  with pytest.raises(config.ConfigError, match="--dataset=./shapes"):
    data.check("shapes")
  (tmp_path / "x.txt").write_text("")
  with pytest.raises(config.ConfigError, match="neither a folder nor"):
    data.check("./x.txt")


@pytest.mark.parametrize(
  "content, said",
  [
    (b"no image", "cannot identify"),
    (png(np.zeros((4, 8), np.uint8)), r"an image is \(4, 8, 1\)"),
    (png(np.zeros((8, 8), np.uint16)), "more than eight bits"),
  ],
)
def test_an_image_that_does_not_fit_is_named(tmp_path, content, said):
  folder = write_folder(tmp_path / "folder", X, Y)
  (folder / "class_1" / "other.png").write_bytes(content)
  with pytest.raises(config.ConfigError, match=said) as error:
    data.load(str(folder))
  assert "other.png" in str(error.value)
  (folder / "class_0" / "0.png").write_bytes(content)  # the first that is read
  with pytest.raises(config.ConfigError, match=r"0\.png|\d+\.png"):
    data.load(str(folder))


def test_a_class_of_the_test_split_alone_is_told(tmp_path):
  for split in COUNTS:
    write_folder(tmp_path / "own" / split, *ordered(split))
  (tmp_path / "own" / "train" / "class_2").rename(
    tmp_path / "own" / "train" / ".hidden"
  )
  with pytest.raises(config.ConfigError, match="class_2 is in the test split"):
    data.check(str(tmp_path / "own"))


def test_what_hugging_face_saved_is_read_or_refused(tmp_path, monkeypatch):
  datasets = pytest.importorskip("datasets")
  x, y = ordered("train")
  one = save_to_disk(tmp_path / "one", {"train": (x, y)})
  found = data.load(one)
  assert found.fingerprint == ma.from_arrays(x, y).fingerprint
  other = save_to_disk(
    tmp_path / "other", {"test": (x, y), "validation": (x, y)}
  )
  with pytest.raises(config.ConfigError, match="splits test, validation; name"):
    data.check(other, None)
  bare = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
  bare.save_to_disk(tmp_path / "bare")
  with pytest.raises(config.ConfigError, match="one of type Image"):
    data.check(str(tmp_path / "bare"), None)
  monkeypatch.setitem(sys.modules, "datasets", None)
  with pytest.raises(config.ConfigError, match=r"minarch-jax\[datasets\]"):
    data.check(one, None)
