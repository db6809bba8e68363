"""Data sets of Hugging Face, as `datasets.save_to_disk` leaves them.

A folder of one split, or of several of which `train` and `test` are read. The
first column of images and the column of classes are found by their types.
"""

import hashlib
import io
from typing import Any

from absl import logging
import numpy as np

from minarch_jax import config
from minarch_jax.data import cache, decoding, own, sources

_LABELS = ("label", "labels", "y")  # names of classes that are plain integers


def _loaded(name: str) -> list[Any]:
  """Opens the splits: of training, and of test where there is one.

  Raises:
    ConfigError: the package is missing, or there is no such split.
  """
  try:
    import datasets  # pyright: ignore
  except ImportError:
    raise config.ConfigError(
      f"--dataset={name} was saved by the package datasets, which is not "
      "installed: pip install 'minarch-jax[datasets]'"
    ) from None
  try:
    found = datasets.load_from_disk(str(own.path_of(name)))
  except Exception as error:  # of a library that is not ours
    raise config.ConfigError(
      f"--dataset={name} cannot be read ({error})"
    ) from None
  if isinstance(found, datasets.Dataset):
    found = {own.TRAIN: found}
  if own.TRAIN not in found:
    raise config.ConfigError(
      f"--dataset={name} has the splits {', '.join(found)}; name that to train "
      "on train, and that to test on test"
    )
  splits = [found[part] for part in (own.TRAIN, own.TEST) if part in found]
  if not all(map(len, splits)):
    raise config.ConfigError(f"--dataset={name} has a split without images")
  return splits


def _columns(name: str, split: Any) -> tuple[str, str]:
  """Finds the columns of images and of their classes."""
  import datasets  # pyright: ignore

  features = split.features
  images = [n for n, f in features.items() if isinstance(f, datasets.Image)]
  labels = [
    n
    for n, f in features.items()
    if isinstance(f, datasets.ClassLabel) or n in _LABELS
  ]
  if not images or not labels:
    raise config.ConfigError(
      f"--dataset={name} has the columns {', '.join(features)}; it needs one "
      "of type Image and one of type ClassLabel, or of integers named label"
    )
  return images[0], labels[0]


def _files(split: Any, column: str) -> Any:
  """The images of a split as they were stored, one after the other."""
  import datasets  # pyright: ignore

  stored = split.cast_column(column, datasets.Image(decode=False))
  for image in stored[column]:
    if image["bytes"] is None:
      with open(image["path"], "rb") as file:
        yield file.read()
    else:
      yield image["bytes"]


def _info_of(name: str, splits: list[Any]) -> sources.Info:
  image, _ = _columns(name, splits[0])
  shape = _shape(name, next(_files(splits[0].select(range(1)), image)))
  arrays = []
  for split in splits:
    _, labels = _columns(name, split)
    y = np.asarray(split.with_format("numpy")[labels][:])
    header = own.Header((len(split), *shape), np.dtype(np.uint8))
    arrays += [header, y]
  return own.info_of(name, *arrays)


def _shape(name: str, content: bytes) -> tuple[int, int, int]:
  try:
    return own.shape_of(io.BytesIO(content))
  except Exception as error:  # whatever a decoder happens to raise
    raise config.ConfigError(
      f"--dataset={name}: the first image cannot be read ({error})"
    ) from None


def _describe(name: str, data_dir: str | None) -> sources.Info:
  del data_dir
  return _info_of(name, _loaded(name))


def _read(name: str, data_dir: str | None) -> sources.Raw:
  del data_dir
  splits = _loaded(name)
  info = _info_of(name, splits)
  state = hashlib.sha256(repr(info).encode())
  for split in splits:
    images, labels = _columns(name, split)
    state.update(np.asarray(split[labels][:], np.int32).tobytes())
    for content in _files(split, images):
      state.update(hashlib.sha256(content).digest())
  return cache.fetch(
    f"saved-{state.hexdigest()[:32]}", lambda: _decode(name, info, splits)
  )


def _decode(name: str, info: sources.Info, splits: list[Any]) -> sources.Raw:
  logging.info("decoding the images of %s; the next start finds them", name)
  arrays = []
  for split in splits:
    images, labels = _columns(name, split)
    x = np.empty((len(split), *info.input_shape), np.uint8)
    for place, content in enumerate(_files(split, images)):
      try:
        x[place] = decoding.pixels(content, info.input_shape)
      except Exception as error:  # whatever a decoder happens to raise
        raise config.ConfigError(
          f"--dataset={name}: image {place}: {error}; mend it or leave it out"
        ) from None
    arrays += [x, np.asarray(split[labels][:], np.int32)]
  return sources.raw(*arrays)


SOURCE = sources.Source(_describe, _read, None)
