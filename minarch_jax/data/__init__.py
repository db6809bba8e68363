"""Data sets of images under one protocol.

Whatever the source, `load` carves validation from train, stratified and
deterministic in a split seed, leaves the test split alone, standardises with
training statistics and names the delivered bytes by a fingerprint. A new data
set is one Source and one line of DATASETS.
"""

import re
from typing import NamedTuple, TYPE_CHECKING

import numpy as np

from minarch_jax import config as config_lib
from minarch_jax import registries
from minarch_jax.data import normalisation, sources, splits, tfds
from minarch_jax.registries import DATASETS as DATASETS
from minarch_jax.registries import VARIANTS as VARIANTS

if TYPE_CHECKING:
  from minarch_jax import types

TEST_FRACTION = 0.2  # where no test split exists
_TEST, _VALIDATION = 0, 1  # purposes of splits


class Description(NamedTuple):
  """A data set's sizes, known without decoding an image."""

  input_shape: tuple[int, int, int]
  num_classes: int
  num_train: int  # of the seed that has fewest
  num_validation: int  # of the seed that has most
  num_test: int
  test_note: str


def check(name: str, data_dir: str | None = None) -> None:
  """Raises ValueError, within a second, unless the data set can be loaded.

  Imports neither JAX nor tensorflow_datasets nor scikit-learn.

  Args:
    name: digits, synthetic:DIFFICULTY, or a TFDS set NAME[/CONFIG][:VERSION].
    data_dir: directory of prepared TFDS sets; None or '' for tfds's own.

  Raises:
    ConfigError: the name is unknown, the directory is missing, or the set in
      it is not prepared, not array_record or not labelled uint8 images; the
      message says what is allowed or what to do.
  """
  _source(name, data_dir).describe(name, data_dir)


def describe(
  name: str,
  data_dir: str | None = None,
  *,
  validation_fraction: float = config_lib.SINGLE_SPLIT,
  folds: int = 1,
) -> Description:
  """Gives the sizes that `load` will deliver, as fast as `check`.

  Raises:
    ValueError: what `check` raises, or a split would be empty.
  """
  info = _source(name, data_dir).describe(name, data_dir)
  test = info.num_test or splits.held_out(info.num_train, TEST_FRACTION)
  train = info.num_train - (0 if info.num_test else test)
  if folds > 1:
    validation = splits.largest_fold(train, folds)
  else:
    validation = splits.held_out(train, validation_fraction)
  return Description(
    info.input_shape,
    info.num_classes,
    train - validation,
    validation,
    test,
    info.test_note,
  )


def load(
  name: str,
  data_dir: str | None = None,
  *,
  validation_fraction: float = config_lib.SINGLE_SPLIT,
  folds: int = 1,
  split_seed: int = config_lib.Config.split_seed,
) -> "types.Dataset":
  """Loads a data set: x float32 [N, H, W, C] standardised, y int32 [N].

  Args:
    name: see `check`.
    data_dir: see `check`.
    validation_fraction: share of the training images held out, per class,
      where there is one fold.
    folds: how many ways to hold out images; with several, every training image
      is in one fold, and seed s validates on fold s mod folds.
    split_seed: decides which training images are held out; the test split does
      not depend on it.

  Raises:
    ValueError: what `check` raises, damaged files, labels out of range, images
      of several sizes, or a split that would be empty.
  """
  from minarch_jax import types  # brings JAX, which nothing else here needs

  protocol = _Protocol(validation_fraction, folds, split_seed)
  found = _divided(name, data_dir, protocol)

  def batch(split):
    x, y, indices = split
    return types.Batch(
      normalisation.standardise(x, indices, found.stats), np.asarray(y[indices])
    )

  return types.Dataset(
    name=name,
    train=batch(found.train),
    validation=batch(found.validation),
    test=batch(found.test),
    num_classes=found.info.num_classes,
    fingerprint=found.fingerprint,
    test_note=found.info.test_note,
    folds=found.folds,
  )


def load_chosen(config: config_lib.Config) -> "types.Dataset":
  """Loads the data set of a configuration."""
  return load(
    config.dataset,
    config.data_dir or None,
    **_Protocol.of(config)._asdict(),
  )


def fingerprint_of(config: config_lib.Config) -> str:
  """The fingerprint of a configuration's data set, without loading JAX."""
  found = _divided(
    config.dataset, config.data_dir or None, _Protocol.of(config)
  )
  return found.fingerprint


class _Protocol(NamedTuple):
  """How validation is held out; see `load`."""

  validation_fraction: float
  folds: int
  split_seed: int

  @classmethod
  def of(cls, config: config_lib.Config) -> "_Protocol":
    return cls(config.held_out, config.folds, config.split_seed)


class _Divided(NamedTuple):
  """Where each split's images are: (all images, all labels, its places)."""

  info: sources.Info
  train: tuple
  validation: tuple
  test: tuple
  folds: np.ndarray | None
  stats: np.ndarray
  fingerprint: str


def _divided(name: str, data_dir: str | None, protocol: _Protocol) -> _Divided:
  """Reads a data set and divides it; Raises: as `load`."""
  source = _source(name, data_dir)
  info = source.describe(name, data_dir)
  images = source.read(name, data_dir)
  sources.check(name, info, images)

  rest = np.arange(len(images.y))
  test_x, test_y, test = images.test_x, images.test_y, np.arange(info.num_test)
  if not info.num_test:
    test_x, test_y = images.x, images.y
    rest, test = splits.stratified(images.y, TEST_FRACTION, 0, _TEST)
  fraction, count, seed = protocol
  folds, looked_at = None, rest
  if count > 1:
    fold = splits.folds(images.y[rest], count, seed, _VALIDATION)
    order = np.argsort(fold, kind="stable")
    validation, train = np.split(rest[order], [(fold == 0).sum()])
    folds = np.sort(fold[fold > 0])
  else:
    kept, held = splits.stratified(images.y[rest], fraction, seed, _VALIDATION)
    train = looked_at = rest[kept]
    validation = rest[held]
  # With folds every image is some seed's training image: one mean and one
  # deviation of all of them, so that all seeds see the same pixels.
  stats = normalisation.statistics(images.x, looked_at)
  # Stored bytes, places and statistics decide every delivered byte, and are a
  # quarter of them.
  fingerprint = sources.digest(
    np.frombuffer(images.digest.encode(), np.uint8),
    train,
    validation,
    test,
    stats,
    np.asarray(info.num_classes),
    *(() if folds is None else (folds,)),
  )
  return _Divided(
    info,
    (images.x, images.y, train),
    (images.x, images.y, validation),
    (test_x, test_y, test),
    folds,
    stats,
    fingerprint,
  )


def variant_of(name: str) -> tuple[str, str]:
  """Splits mnist:blurred into mnist and blurred; '' where there is none."""
  base, _, last = name.rpartition(":")
  return (base, last) if base and last in VARIANTS else (name, "")


def _source(name: str, data_dir: str | None) -> sources.Source:
  base, variant = variant_of(name)
  source = (_source if variant else _plain)(base, data_dir)
  return _varied(source, base, variant) if variant else source


def _varied(source: sources.Source, base: str, variant: str) -> sources.Source:
  def describe(name: str, data_dir: str | None) -> sources.Info:
    del name
    info = source.describe(base, data_dir)
    note = f"{info.test_note}; {variant}" if info.test_note else variant
    return info._replace(test_note=note)

  def read(name: str, data_dir: str | None) -> sources.Raw:
    del name
    return VARIANTS[variant](source.read(base, data_dir))

  return sources.Source(describe, read, None)


def _plain(name: str, data_dir: str | None) -> sources.Source:
  base = re.split("[/:]", name)[0]
  if data_dir:
    tfds.root(data_dir)  # a directory that was named must exist
  if base in DATASETS:
    source: sources.Source = DATASETS[base]
    if source.suffix == "" and base != name:
      raise config_lib.ConfigError(
        f"--dataset={name}: {base} takes no {name[len(base) :]}"
        f"{registries.nearest(name[len(base) + 1 :], VARIANTS)}"
      )
    return source
  prepared = tfds.names(data_dir)
  if base in prepared:
    return tfds.SOURCE
  known = [f"{n}{source.suffix or ''}" for n, source in DATASETS.items()]
  there = ", ".join(n for n in prepared if n not in DATASETS)
  raise config_lib.ConfigError(
    f"--dataset={name} is not one of {', '.join(known)}, nor prepared in "
    f"{tfds.root(data_dir)}{f' (there also: {there})' if there else ''}"
    f"{registries.nearest(base, [*DATASETS, *prepared])}"
  )
