"""Laws of every data set, of splits, statistics and the cache."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from minarch_jax import config, data
from minarch_jax.data import cache, normalisation, sources, splits, synthetic

# Decoding a set takes seconds; one real TFDS set stands for the others.
NAMES = [
  pytest.param(
    name if name != "synthetic" else "synthetic:easy",
    marks=() if name in ("digits", "synthetic", "mnist") else pytest.mark.slow,
  )
  for name in data.DATASETS
]
FRACTION = config.Config.validation_fraction


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


def _arrays(seed=0, n=90, shape=(4, 4, 2), classes=3):
  rng = np.random.default_rng(seed)
  x = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
  return x, np.arange(n, dtype=np.int32) % classes


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
  x, y = _arrays()
  first = made(sources.raw(x, y, x[:9], y[:9]))
  other = made(sources.raw(x, y, 255 - x[:9], y[:9]))
  np.testing.assert_array_equal(first.train.x, other.train.x)
  np.testing.assert_array_equal(first.validation.x, other.validation.x)
  assert first.fingerprint != other.fingerprint


@pytest.mark.parametrize("changed", ["x", "y", "test_x", "test_y"])
def test_one_changed_value_changes_the_fingerprint(made, changed):
  x, y = _arrays()
  arrays = {"x": x, "y": y, "test_x": x[:9].copy(), "test_y": y[:9].copy()}
  first = made(sources.raw(**arrays))
  same = made(sources.raw(**{k: v.copy() for k, v in arrays.items()}))
  arrays[changed].flat[-1] = (arrays[changed].flat[-1] + 1) % 3
  assert first.fingerprint == same.fingerprint
  assert made(sources.raw(**arrays)).fingerprint != first.fingerprint


def test_a_constant_channel_is_only_centred(made):
  x, y = _arrays()
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
  x, y = _arrays()
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
    ("../mnist", "{tmp}", "is not one of"),
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


@pytest.mark.parametrize("name", ["digits", "synthetic:easy", "mnits"])
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


# --- splits and statistics ---------------------------------------------------


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


def test_statistics_are_those_of_the_chosen_images():
  x, _ = _arrays(n=1000, shape=(5, 3, 3))
  x[..., 2] //= 9
  indices = np.arange(0, 1000, 3)
  stats = normalisation.statistics(x, indices)
  part = x[indices].astype(np.float64)
  np.testing.assert_allclose(stats[0], part.mean((0, 1, 2)), rtol=1e-7)
  np.testing.assert_allclose(stats[1], part.std((0, 1, 2)), rtol=1e-7)
  np.testing.assert_allclose(
    normalisation.standardise(x, indices, stats),
    (part - stats[0]) / stats[1],
    rtol=1e-5,
    atol=1e-6,
  )


def test_synthetic_sets_are_as_hard_as_they_say():
  def nearest_mean(name):
    raw = synthetic.SOURCE.read(name, None)
    x, test_x = (
      a.reshape(len(a), -1).astype(float) for a in (raw.x, raw.test_x)
    )
    means = np.stack([x[raw.y == c].mean(0) for c in range(4)])
    distances = ((test_x[:, None] - means) ** 2).sum(-1)
    return np.mean(distances.argmin(1) == raw.test_y)

  accuracies = [
    nearest_mean(f"synthetic:{d}") for d in (0, "easy", 0.3, "hard")
  ]
  assert accuracies[0] == 1.0 and accuracies[1] > 0.99
  assert accuracies[0] >= accuracies[1] > accuracies[2] > accuracies[3]
  assert nearest_mean("synthetic:1") < 0.35


# --- cache -------------------------------------------------------------------


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("MINARCH_CACHE_DIR", str(tmp_path / "cache"))
  return tmp_path / "cache" / "data"


def _raw():
  x, y = _arrays()
  return sources.raw(
    x, y
  )  # test split empty: cannot be memory-mapped by length


def _never():
  raise AssertionError("built although cached")


def _same(a, b):
  for left, right in zip(a, b, strict=True):
    np.testing.assert_array_equal(left, right)


def test_a_second_read_is_equal_and_mapped(empty_cache):
  built = cache.fetch("key", _raw)
  read = cache.fetch("key", _never)
  _same(built, read)
  assert isinstance(read.x, np.memmap) and not read.x.flags.writeable
  assert [entry.name for entry in empty_cache.iterdir()] == ["key"]


@pytest.mark.parametrize("file", ["x.npy", "y.npy", "test_x.npy", "sha256"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_a_damaged_entry_is_built_again(empty_cache, file, damage):
  built = cache.fetch("key", _raw)
  path = empty_cache / "key" / file
  stored = path.read_bytes()
  if damage == "remove":
    path.unlink()
  else:
    flipped = stored[:-1] + bytes([stored[-1] ^ 1])
    path.write_bytes(
      {"flip": flipped, "truncate": stored[:-1], "empty": b""}[damage]
    )
  _same(built, cache.fetch("key", _raw))
  _same(built, cache.fetch("key", _never))
  assert [entry.name for entry in empty_cache.iterdir()] == ["key"]


def test_without_a_writable_cache_images_are_built_each_time(
  tmp_path, monkeypatch
):
  (tmp_path / "file").touch()
  monkeypatch.setenv("MINARCH_CACHE_DIR", str(tmp_path / "file" / "cache"))
  _same(cache.fetch("key", _raw), cache.fetch("key", _raw))


def test_a_full_disk_leaves_nothing_behind(empty_cache, monkeypatch):
  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(np, "save", full)
  _same(cache.fetch("key", _raw), _raw())
  assert list(empty_cache.iterdir()) == []


def test_writers_at_once_leave_one_good_entry(empty_cache):
  program = (
    "import time, numpy as np; from minarch_jax.data import cache, sources\n"
    "x = np.arange(1 << 20, dtype=np.uint8).reshape(-1, 8, 8, 1)\n"
    "raw = lambda: sources.raw(x, np.zeros(len(x), np.int32))\n"
    "for i in range(20): print(cache.fetch(f'key{i}', raw).digest)\n"
  )
  running = [
    subprocess.Popen(
      [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    )
    for _ in range(3)
  ]
  outputs = {process.communicate()[0] for process in running}
  assert [process.returncode for process in running] == [0, 0, 0]
  assert len(outputs) == 1 and len(outputs.pop().split()) == 20
  assert len(list(empty_cache.iterdir())) == 20
  for i in range(20):
    cache.fetch(f"key{i}", _never)


def test_the_cache_is_in_the_users_folder(monkeypatch):
  monkeypatch.delenv("MINARCH_CACHE_DIR", raising=False)
  monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
  assert cache.directory() == "/somewhere/minarch_jax"
  monkeypatch.delenv("XDG_CACHE_HOME")
  monkeypatch.setenv("HOME", "/home/someone")
  assert cache.directory() == "/home/someone/.cache/minarch_jax"
