"""Laws of every data set."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from minarch_jax import config, data, registries
from minarch_jax.data import preparation, sources
from tests.data import made_images

# Decoding a set takes seconds; one real TFDS set stands for the others.
NAMES = [
  pytest.param(
    name if name != "synthetic" else "synthetic:easy",
    marks=() if name in ("digits", "synthetic", "mnist") else pytest.mark.slow,
  )
  for name in data.DATASETS
]
FRACTION = config.SINGLE_SPLIT


@pytest.fixture
def load(request):
  """Loads a set by name; a TFDS one from tfds_dir, or skips."""

  def load(name, **options):
    return data.load(name, _data_dir(request, name), **options)

  return load


def _data_dir(request, name):
  if name == "digits" or name.startswith("synthetic"):
    return None
  path = request.getfixturevalue("tfds_dir")
  if not os.path.isdir(os.path.join(path, name)):
    pytest.skip(f"{name} is not prepared in {path}")
  return path


@pytest.fixture
def made(monkeypatch):
  """Registers images as the data set `made` and returns a way to load it."""

  def load(images, num_classes=3, **options):
    info = sources.Info(
      images.x.shape[1:], num_classes, len(images.x), len(images.test_x), ""
    )
    source = sources.Source(lambda *_: info, lambda *_: images)
    monkeypatch.setitem(data.DATASETS, "made", source)
    return data.load("made", **options)

  return load


def test_sets_are_listed_where_flags_look_in_the_order_of_help():
  assert data.DATASETS is registries.DATASETS
  assert list(data.DATASETS) == [
    *("digits", "synthetic", "mnist", "fashion_mnist", "kmnist", "emnist"),
    *("cifar10", "cifar10_45k", "cifar100", "svhn_cropped"),
  ]


def _describe_toy(name, data_dir):
  return sources.Info((4, 4, 2), 3, 81, 9, "made up")


def _read_toy(name, data_dir):
  x, y = made_images.draw()
  return sources.raw(x[9:], y[9:], x[:9], y[:9])


TOY = sources.Source(_describe_toy, _read_toy)


def test_a_new_set_is_a_source_and_a_line_of_the_registry(monkeypatch):
  monkeypatch.setitem(registries.DATASETS, "toy", f"{__name__}:TOY")
  data.check("toy")
  assert data.describe("toy").test_note == "made up"
  dataset = data.load("toy")
  assert dataset.name == "toy"
  assert [len(b.y) for b in (dataset.train, dataset.validation)] == [73, 8]
  with pytest.raises(config.ConfigError, match="toys .*toy.*mean 'toy'"):
    data.check("toys")
  with pytest.raises(config.ConfigError, match="=toy:3: toy takes no :3"):
    data.check("toy:3")
  with pytest.raises(config.ConfigError, match="toy needs no preparation"):
    preparation.prepare("toy", None)


@pytest.mark.parametrize("name", registries.DATASETS)
def test_every_name_stands_for_a_source(name):
  source = registries.DATASETS[name]
  assert isinstance(source, sources.Source)
  assert source.suffix in ("", None) or source.suffix.startswith((":", "/"))


def _ranks(x):
  """What is left of images when only their order of values counts."""
  return np.unique(x, return_inverse=True)[1]


@pytest.mark.parametrize("name", NAMES)
def test_every_set_is_delivered_as_promised(load, name, request):
  dataset = load(name)
  promised = data.describe(name, _data_dir(request, name))
  parts = (dataset.train, dataset.validation, dataset.test)
  for batch, size in zip(parts, promised[2:5], strict=True):
    assert batch.x.dtype == np.float32 and batch.y.dtype == np.int32
    assert batch.x.shape == (size, *promised.input_shape)
    assert batch.y.shape == (size,)
    assert set(np.unique(batch.y)) == set(range(promised.num_classes))
    assert batch.x.flags.c_contiguous and type(batch.x) is np.ndarray
  assert dataset.num_classes == promised.num_classes
  assert dataset.test_note == promised.test_note
  # In float64: sums of 4e7 float32 squares are off by 5 %.
  axes = (0, 1, 2)
  mean = dataset.train.x.mean(axes, dtype=np.float64)
  std = dataset.train.x.std(axes, dtype=np.float64)
  np.testing.assert_allclose(mean, 0, atol=1e-6)
  np.testing.assert_allclose(std, 1, atol=1e-6)
  both = np.bincount(dataset.train.y) + np.bincount(dataset.validation.y)
  held = np.bincount(dataset.validation.y)
  assert np.all(np.abs(held - FRACTION * both) <= 1)


@pytest.mark.parametrize("name", ["digits", "synthetic:easy"])
def test_the_split_seed_moves_validation_only(load, name):
  first, again, other = (load(name, split_seed=seed) for seed in (0, 0, 1))
  assert first.fingerprint == again.fingerprint != other.fingerprint
  np.testing.assert_array_equal(first.train.x, again.train.x)
  assert not np.array_equal(first.validation.y, other.validation.y)
  np.testing.assert_array_equal(first.test.y, other.test.y)
  np.testing.assert_array_equal(_ranks(first.test.x), _ranks(other.test.x))


@pytest.mark.parametrize("name", ["digits", "synthetic:easy"])
def test_every_image_is_in_exactly_one_split(load, name):
  dataset = load(name)
  images = data.DATASETS[name.partition(":")[0]].read(name, None)
  parts = (dataset.train, dataset.validation, dataset.test)
  stored = np.concatenate([images.x, images.test_x])
  labels = np.concatenate([images.y, images.test_y])
  delivered = np.concatenate([batch.x for batch in parts])
  flat = [_ranks(x).reshape(len(labels), -1) for x in (stored, delivered)]
  y = np.concatenate([batch.y for batch in parts])
  before = sorted(zip(map(bytes, flat[0]), labels, strict=True))
  assert before == sorted(zip(map(bytes, flat[1]), y, strict=True))


# Update only together with a deliberate change of protocol: every record made
# before it then belongs to other data.
@pytest.mark.parametrize(
  "name, golden",
  [("digits", "1590615ba944e320"), ("synthetic:easy", "f54509086070f824")],
)
def test_fingerprints_are_the_same_on_every_machine(load, name, golden):
  assert load(name).fingerprint.startswith(golden)


def test_statistics_come_from_train_only(made):
  x, y = made_images.draw()
  first = made(sources.raw(x, y, x[:9], y[:9]))
  other = made(sources.raw(x, y, 255 - x[:9], y[:9]))
  np.testing.assert_array_equal(first.train.x, other.train.x)
  np.testing.assert_array_equal(first.validation.x, other.validation.x)
  assert first.fingerprint != other.fingerprint


@pytest.mark.parametrize("changed", ["x", "y", "test_x", "test_y"])
def test_one_changed_value_changes_the_fingerprint(made, changed):
  x, y = made_images.draw()
  arrays = {"x": x, "y": y, "test_x": x[:9].copy(), "test_y": y[:9].copy()}
  first = made(sources.raw(**arrays))
  same = made(sources.raw(**{k: v.copy() for k, v in arrays.items()}))
  arrays[changed].flat[-1] = (arrays[changed].flat[-1] + 1) % 3
  assert first.fingerprint == same.fingerprint
  assert made(sources.raw(**arrays)).fingerprint != first.fingerprint


def test_a_constant_channel_is_only_centred(made):
  x, y = made_images.draw()
  x[..., 1] = 7
  dataset = made(sources.raw(x, y, x[:9], y[:9]))
  np.testing.assert_array_equal(dataset.train.x[..., 1], 0)
  assert np.isfinite(dataset.train.x).all()


@pytest.mark.parametrize(
  "break_it, message",
  [
    (lambda a: a["y"].__setitem__(5, 3), "label 3 of image 5"),
    (lambda a: a["test_y"].__setitem__(0, -1), "'test': label -1 of image 0"),
    (lambda a: a.update(x=a["x"].astype(np.int16)), "expected uint8"),
    (lambda a: a.update(y=a["y"][:-1]), "89,. labels for 90"),
    (lambda a: a.update(x=a["x"][:1], y=a["y"][:1]), "leaves one part empty"),
  ],
)
def test_damaged_arrays_are_refused(made, break_it, message):
  x, y = made_images.draw()
  arrays = {"x": x, "y": y, "test_x": x[:9].copy(), "test_y": y[:9].copy()}
  break_it(arrays)
  with pytest.raises(ValueError, match=message):
    made(sources.raw(**arrays))


@pytest.mark.parametrize(
  "name, data_dir, message",
  [
    ("mnits", None, "--dataset=mnits is not one of .*did you mean 'mnist'"),
    ("digit", None, "did you mean 'digits'"),
    ("", None, "is not one of digits"),
    ("digits:3", None, "takes no :3"),
    ("digits", "/no/such/place", "--data_dir=/no/such/place is not a dir"),
    ("mnist", "/no/such/place", "--data_dir=/no/such/place is not a dir"),
    ("mnist", "{tmp}", "not prepared in .*prepare_data --dataset=mnist"),
    ("mnist:x", "{tmp}", "not of the form"),
    ("../mnist", "{tmp}", "no such file or folder"),
    ("synthetic", None, "write synthetic:DIFFICULTY"),
    ("synthetic:esay", None, "did you mean 'easy'"),
    ("synthetic:1.5", None, r"a number in \[0, 1\]"),
    ("synthetic:nan", None, r"a number in \[0, 1\]"),
  ],
)
@pytest.mark.parametrize("function", [data.check, data.describe, data.load])
def test_what_was_typed_wrong_is_refused_at_once(
  tmp_path, function, name, data_dir, message
):
  start = time.perf_counter()
  with pytest.raises(config.ConfigError, match=message):
    function(name, data_dir and data_dir.format(tmp=tmp_path))
  assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
  "name", ["digits", "synthetic:easy", "mnits", "digits:blurred:noisy"]
)
def test_checking_imports_nothing_heavy(name):
  program = (
    "import sys; from minarch_jax import data\n"
    f"try: data.check({name!r}), data.describe({name!r})\n"
    "except ValueError: pass\n"
    "print({'jax', 'tensorflow_datasets', 'sklearn'} & set(sys.modules))"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("fraction", [0.0001, 0.9999])
def test_a_fraction_that_leaves_a_part_empty_is_refused(load, fraction):
  with pytest.raises(ValueError, match=f"holding out {fraction} of"):
    load("synthetic:easy", validation_fraction=fraction)


def test_every_training_image_is_in_one_fold_and_test_stays_apart(digits):
  divided = data.load("digits", folds=5)
  assert divided.num_folds == 5 and digits.num_folds == 1
  np.testing.assert_array_equal(divided.test.y, digits.test.y)
  whole = np.sort(np.concatenate([digits.train.y, digits.validation.y]))
  places = []
  for seed in range(7):
    train, held = divided.of_seed(seed)
    both = np.concatenate([train.y, held.y])
    np.testing.assert_array_equal(np.sort(both), whole)
    assert abs(len(held.y) - len(whole) / 5) < 1
    places.append(held.x.tobytes())
  assert len(set(places)) == 5 and places[:2] == places[5:]
  images = np.concatenate([divided.of_seed(s)[1].x for s in range(5)])
  assert len(np.unique(images, axis=0)) == len(
    np.unique(np.concatenate([divided.train.x, divided.validation.x]), axis=0)
  )


def test_folds_enter_the_fingerprint_and_the_sizes_described(digits):
  prints = {digits.fingerprint}
  for folds in (2, 5):
    divided, told = (
      make("digits", folds=folds) for make in (data.load, data.describe)
    )
    prints.add(divided.fingerprint)
    held = [len(divided.of_seed(s)[1].y) for s in range(folds)]
    assert told.num_validation == max(held)
    assert told.num_train == sum(held) - max(held)
  assert len(prints) == 3
  config_ = config.Config()
  assert data.load_chosen(config_).num_folds == config_.folds == 5
  assert data.fingerprint_of(config_) in prints
