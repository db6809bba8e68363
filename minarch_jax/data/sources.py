"""What a source of images gives: raw arrays, and what is known before them."""

from collections.abc import Callable
import hashlib
from typing import NamedTuple

import numpy as np

from minarch_jax.config import ConfigError


class Info(NamedTuple):
  """What a source knows without decoding an image.

  Attributes:
    input_shape: (height, width, channels) of every image.
    num_classes: number of classes.
    num_train: images outside the test split; all images when `num_test` is 0.
    num_test: images of the test split; 0 when it must be carved from train.
    test_note: what the test split is when not the official one, else ''.
  """

  input_shape: tuple[int, int, int]
  num_classes: int
  num_train: int
  num_test: int
  test_note: str


class Raw(NamedTuple):
  """Images as stored.

  Attributes:
    x, test_x: uint8 [N, H, W, C]; the latter empty when test must be carved.
    y, test_y: int32 [N], class indices.
    digest: hash of the four arrays, by `digest`.
  """

  x: np.ndarray
  y: np.ndarray
  test_x: np.ndarray
  test_y: np.ndarray
  digest: str


class Source(NamedTuple):
  """A kind of data set as two functions of (name, data_dir).

  Attributes:
    describe: is fast, imports nothing heavy and raises ValueError for whatever
      makes `read` impossible as far as that can be known without decoding.
    read: gives the images.
    suffix: what must follow the name, as messages show it (":DIFFICULTY"; ''
      = nothing may); None where `describe` judges that.
  """

  describe: Callable[[str, str | None], Info]
  read: Callable[[str, str | None], Raw]
  suffix: str | None = ""


def digest(*arrays: np.ndarray) -> str:
  """Hashes types, shapes and bytes of arrays in order (SHA-256, hex)."""
  state = hashlib.sha256()
  for array in arrays:
    state.update(f"{array.dtype.str}{array.shape}".encode())
    state.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
  return state.hexdigest()


def raw(
  x: np.ndarray,
  y: np.ndarray,
  test_x: np.ndarray | None = None,
  test_y: np.ndarray | None = None,
) -> Raw:
  """Completes arrays to a Raw; without a test split, an empty one."""
  test_x = x[:0] if test_x is None else test_x
  test_y = y[:0] if test_y is None else test_y
  return Raw(x, y, test_x, test_y, digest(x, y, test_x, test_y))


def check(name: str, info: Info, images: Raw) -> None:
  """Raises ConfigError unless the arrays are what `info` promised."""
  for split, x, y, size in (
    ("train", images.x, images.y, info.num_train),
    ("test", images.test_x, images.test_y, info.num_test),
  ):
    where = f"data set {name!r}, split {split!r}"
    if x.shape != (size, *info.input_shape) or x.dtype != np.uint8:
      raise ConfigError(
        f"{where}: got {x.dtype} images {x.shape}, expected uint8 "
        f"{(size, *info.input_shape)}; prepare the data set again"
      )
    if y.shape != (size,):
      raise ConfigError(f"{where}: {y.shape} labels for {size} images")
    bad = np.flatnonzero((y < 0) | (y >= info.num_classes))
    if bad.size:
      raise ConfigError(
        f"{where}: label {y[bad[0]]} of image {bad[0]} is outside "
        f"0..{info.num_classes - 1} ({bad.size} such images); the split is "
        "unlabelled or damaged"
      )
