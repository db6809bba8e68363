"""Data sets of images under one protocol.

Whatever the source, `load` carves validation from train, stratified and
deterministic in a split seed, leaves the test split alone, standardises with
training statistics and names the delivered bytes by a fingerprint. A new data
set is one Source and one line of DATASETS.
"""

import os
import re
from typing import NamedTuple, TYPE_CHECKING

import numpy as np

from minarch_jax import config as config_lib
from minarch_jax import registries
from minarch_jax.data import normalisation, own, sources, splits, tfds
from minarch_jax.registries import DATASETS as DATASETS
from minarch_jax.registries import VARIANTS as VARIANTS

if TYPE_CHECKING:
  from minarch_jax import types


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
    name: digits, synthetic:DIFFICULTY, a TFDS set NAME[/CONFIG][:VERSION], or
      one's own FILE.npz or ./FOLDER (see `own`); each may be followed by
      variants, as in digits:blurred.
    data_dir: directory of prepared TFDS sets; None or '' for tfds's own.

  Raises:
    ConfigError: the name is unknown, the directory is missing, or the set in
      it is not prepared, not array_record or not labelled uint8 images; the
      message says what is allowed or what to do.
  """
  _found(name, data_dir)


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
  _, info = _found(name, data_dir)
  train, test = _sizes(info)
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


def _sizes(info: sources.Info) -> tuple[int, int]:
  """Counts the images outside the test split and in it, once it is carved."""
  total = info.num_train + info.num_test
  test = info.num_test or splits.held_out(total, splits.TEST_FRACTION)
  return total - test, test


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
  protocol = _Protocol(validation_fraction, folds, split_seed)
  return _delivered(name, _divided(name, data_dir, protocol))


def from_arrays(
  x: np.ndarray,
  y: np.ndarray,
  test_x: np.ndarray | None = None,
  test_y: np.ndarray | None = None,
  *,
  name: str = "own",
  folds: int = 1,
) -> "types.Dataset":
  """Makes a data set of one's own images, under the protocol of all others.

  Args:
    x: uint8 [N, H, W] or [N, H, W, C].
    y: integers [N], classes from 0; every class occurs.
    test_x, test_y: likewise; without them a stratified fifth is the test split.
    name: as tables name it.
    folds: as for `load`.

  Raises:
    ValueError: they are none; the message says what they should be.

  Example:
    >>> draw = np.random.default_rng(0)
    >>> y = np.arange(200) % 2
    >>> x = draw.integers(0, 100, (200, 8, 8)) + 100 * y[:, None, None]
    >>> data = ma.from_arrays(x.astype(np.uint8), y)
    >>> len(data.train.y), len(data.validation.y), len(data.test.y)
    (144, 16, 40)
  """
  arrays = [np.asarray(x), np.asarray(y)]
  if (test_x is None) != (test_y is None):
    raise config_lib.ConfigError("give test_x and test_y, or neither")
  if test_x is not None:
    arrays += [np.asarray(test_x), np.asarray(test_y)]
  info = own.info_of(name, *arrays)
  protocol = _Protocol(
    config_lib.SINGLE_SPLIT, folds, config_lib.Config.split_seed
  )
  return _delivered(name, _parted(name, info, own.raw_of(*arrays), protocol))


def _delivered(name: str, found: "_Divided") -> "types.Dataset":
  """Standardises the images of all splits."""
  from minarch_jax import types  # brings JAX, which nothing else here needs

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
  source, info = _found(name, data_dir)
  return _parted(name, info, source.read(name, data_dir), protocol)


def _parted(
  name: str, info: sources.Info, images: sources.Raw, protocol: _Protocol
) -> _Divided:
  """Divides images; Raises: as `load`."""
  sources.check(name, info, images)
  rest = np.arange(len(images.y))
  test_x, test_y, test = images.test_x, images.test_y, np.arange(info.num_test)
  if not info.num_test:
    test_x, test_y = images.x, images.y
    rest, test = splits.carved(images.y)
  fraction, count, seed = protocol
  purpose = splits.VALIDATION
  folds, looked_at = None, rest
  if count > 1:
    fold = splits.folds(images.y[rest], count, seed, purpose)
    order = np.argsort(fold, kind="stable")
    validation, train = np.split(rest[order], [(fold == 0).sum()])
    folds = np.sort(fold[fold > 0])
  else:
    kept, held = splits.stratified(images.y[rest], fraction, seed, purpose)
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


def _found(
  name: str, data_dir: str | None
) -> tuple[sources.Source, sources.Info]:
  """Finds a source and what it knows; Raises: as `check`."""
  try:
    source = _source(name, data_dir)
    return source, source.describe(name, data_dir)
  except config_lib.ConfigError as error:
    hint = _nearest_variant(name)
    if not hint:
      raise
    said, *_ = str(error).partition(hint[: hint.index("'")])
    raise config_lib.ConfigError(f"{said}{hint}") from None


def _nearest_variant(name: str) -> str:
  """Returns "; did you mean ...?" where a name ends almost like a variant."""
  base, colon, last = name.rpartition(":")
  if not colon or last in VARIANTS or not registries.nearest(last, VARIANTS):
    return ""
  return registries.nearest(name, [f"{base}:{each}" for each in VARIANTS])


def _source(name: str, data_dir: str | None) -> sources.Source:
  base, variant = variant_of(name)
  if not variant:
    return _plain(name, data_dir)
  if f":{variant}:" in f"{base}:":
    raise config_lib.ConfigError(f"--dataset={name} is {variant} twice")
  return _varied(_source(base, data_dir), base, variant)


def _varied(source: sources.Source, base: str, variant: str) -> sources.Source:
  """Makes the source of a variant of a data set.

  Its test images are those of the data set itself, also where they are carved,
  so that a variant can tell them from the others.
  """

  def describe(name: str, data_dir: str | None) -> sources.Info:
    del name
    info = source.describe(base, data_dir)
    summary = (VARIANTS[variant].__doc__ or "").partition("\n")[0].rstrip(".")
    note = f"{variant}: {summary[:1].lower()}{summary[1:]}".rstrip(": ")
    train, test = _sizes(info)
    return info._replace(
      num_train=train,
      num_test=test,
      test_note="; ".join(filter(None, [info.test_note, note])),
    )

  def read(name: str, data_dir: str | None) -> sources.Raw:
    del name
    info, images = source.describe(base, data_dir), source.read(base, data_dir)
    sources.check(base, info, images)
    if not info.num_test:
      x, y = images.x, images.y
      rest, test = splits.carved(y)
      images = sources.raw(x[rest], y[rest], x[test], y[test])
    return VARIANTS[variant](images)

  return sources.Source(describe, read, None)


def _plain(name: str, data_dir: str | None) -> sources.Source:
  if own.is_path(name):
    return own.source_of(name)
  base = re.split("[/:]", name)[0]
  if data_dir:
    tfds.root(data_dir)  # a directory that was named must exist
  if base in DATASETS:
    source: sources.Source = DATASETS[base]
    if source.suffix == "" and base != name:
      raise config_lib.ConfigError(
        f"--dataset={name}: {base} takes no {name[len(base) :]}"
      )
    return source
  prepared = tfds.names(data_dir)
  if base in prepared:
    return tfds.SOURCE
  known = [f"{n}{source.suffix or ''}" for n, source in DATASETS.items()]
  there = ", ".join(n for n in prepared if n not in DATASETS)
  here = f" (here is --dataset=./{name})" if os.path.isdir(name) else ""
  raise config_lib.ConfigError(
    f"--dataset={name} is not one of {', '.join(known)}, nor prepared in "
    f"{tfds.root(data_dir)}{f' (there also: {there})' if there else ''}, nor "
    f"FILE.npz or ./FOLDER{here}; each alone or followed by "
    f":{' or :'.join(VARIANTS)}"
    f"{registries.nearest(base, [*DATASETS, *prepared])}"
  )
