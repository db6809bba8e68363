"""Images of one's own: a file FILE.npz, or a folder with one per class.

A file holds uint8 images `x` [N, H, W] or [N, H, W, C] and their classes `y`,
integers from 0; and `x_test`, `y_test` where a test split exists. `x_train` and
`y_train` are read too, as Keras names them. A folder holds one folder of images
per class, whose names in order are the classes; or two folders `train` and
`test` that hold those. Names of folders are written as paths, ./flowers. A
folder that `datasets.save_to_disk` left is read by `saved`.
"""

from collections.abc import Iterator, Mapping
import contextlib
import hashlib
import math
import pathlib
from typing import Any, NamedTuple
import zipfile

from absl import logging
import numpy as np

from minarch_jax import config, registries
from minarch_jax.data import cache, decoding, sources

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
NO_TEST = "there is no test split: a fixed stratified 20 % of the images"
TRAIN, TEST = "train", "test"
SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk leaves


def is_path(name: str) -> bool:
  """Says whether a name is that of a file or folder, not of a data set."""
  return name.endswith(".npz") or name.startswith((".", "/", "~"))


def source_of(name: str) -> sources.Source:
  """Finds the source of a path.

  Raises:
    ConfigError: there is nothing.
  """
  path = path_of(name)
  if any((path / file).is_file() for file in SAVED):
    return registries.resolve("minarch_jax.data.saved:SOURCE")
  if path.is_dir():
    return FOLDER
  if path.is_file() and name.endswith(".npz"):
    return FILE
  if path.exists():
    raise config.ConfigError(
      f"--dataset={name} is neither a folder nor a .npz file; save arrays x "
      "and y with numpy.savez"
    )
  raise config.ConfigError(f"--dataset={name}: no such file or folder")


def path_of(name: str) -> pathlib.Path:
  return pathlib.Path(name).expanduser()


def info_of(
  name: str, x: Any, y: np.ndarray, test_x: Any = None, test_y: Any = None
) -> sources.Info:
  """Describes images and labels, whose x need only have shape and dtype.

  Raises:
    ConfigError: they are no labelled uint8 images of one size; the message says
      what they should be.
  """
  _check(name, "x", x, y)
  shape, found, classes = _image(x.shape), np.unique(y), int(y.max()) + 1
  if test_x is not None and test_y is not None:
    _check(name, "x_test", test_x, test_y)
    if _image(test_x.shape) != shape:
      raise config.ConfigError(
        f"--dataset={name}: images of the test split are "
        f"{_image(test_x.shape)}, the others {shape}; make all of one size"
      )
  gaps = np.flatnonzero(found != np.arange(len(found)))
  if len(gaps):
    raise config.ConfigError(
      f"--dataset={name}: no image outside the test split is of class "
      f"{gaps[0]}; number the {len(found)} classes from 0"
    )
  if classes < 2:
    raise config.ConfigError(
      f"--dataset={name}: all images are of one class; give two at least"
    )
  if test_y is not None and int(test_y.max()) >= classes:
    raise config.ConfigError(
      f"--dataset={name}: class {int(test_y.max())} is in the test split only"
    )
  size = 0 if test_y is None else len(test_y)
  return sources.Info(shape, classes, len(y), size, "" if size else NO_TEST)


def raw_of(
  x: np.ndarray, y: np.ndarray, test_x: Any = None, test_y: Any = None
) -> sources.Raw:
  """Puts images [N, H, W] or [N, H, W, C] and labels in order of memory."""

  def images(part: np.ndarray) -> np.ndarray:
    part = np.ascontiguousarray(part)
    return part[..., None] if part.ndim == 3 else part

  rest = []
  if test_x is not None and test_y is not None:
    rest = [images(test_x), test_y.astype(np.int32)]
  return sources.raw(images(x), y.astype(np.int32), *rest)


def _image(shape: tuple[int, ...]) -> tuple[int, int, int]:
  return (*shape[1:3], *(shape[3:] or (1,)))  # type: ignore


def _check(name: str, what: str, x: Any, y: np.ndarray) -> None:
  """Raises ConfigError unless x are images and y their labels."""
  where = f"--dataset={name}: {what}"
  if len(x.shape) not in (3, 4) or not len(y) or min(x.shape) < 1:
    raise config.ConfigError(
      f"{where} is {tuple(x.shape)}; give images [N, height, width] or "
      "[N, height, width, channels]"
    )
  if x.dtype != np.uint8:
    raise config.ConfigError(
      f"{where} is {x.dtype}; store images as uint8 from 0 to 255 (of floats "
      "from 0 to 1: np.rint(255 * x).astype(np.uint8))"
    )
  if y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer):
    raise config.ConfigError(
      f"{where}: {x.shape[0]} images, but labels {y.dtype} {y.shape}; give one "
      "integer for each image"
    )
  if y.min() < 0:
    raise config.ConfigError(
      f"{where}: a label is {y.min()}; number classes from 0"
    )


# --- a file ------------------------------------------------------------------


class Header(NamedTuple):
  """What an array's header says."""

  shape: tuple[int, ...]
  dtype: np.dtype


_NAMES = (("x", "y"), ("x_train", "y_train"))


def _describe_file(name: str, data_dir: str | None) -> sources.Info:
  del data_dir
  return info_of(name, *_arrays(name, _headers(name)))


def _read_file(name: str, data_dir: str | None) -> sources.Raw:
  del data_dir
  with _reading(name), np.load(path_of(name), allow_pickle=False) as file:
    return raw_of(*_arrays(name, file))


def _arrays(name: str, images: Mapping[str, Any]) -> list[Any]:
  """Lists x and y, and those of the test split; labels are read."""
  with _reading(name), np.load(path_of(name), allow_pickle=False) as file:
    known = [pair for pair in _NAMES if set(pair) <= set(file.files)]
    if not known:
      raise config.ConfigError(
        f"--dataset={name} holds {', '.join(file.files) or 'nothing'}; save "
        "images as x and labels as y: numpy.savez(path, x=x, y=y)"
      )
    pairs = [known[0]]
    if {"x_test", "y_test"} <= set(file.files):
      pairs.append(("x_test", "y_test"))
    found = []
    for x, y in pairs:
      found += [images[x], file[y]]
  return found


def _headers(name: str) -> dict[str, Header]:
  """Reads the headers of all arrays of a file, before memory is taken.

  Raises:
    ConfigError: it is no file of arrays, or one is not as long as it says.
  """
  found = {}
  with _reading(name), zipfile.ZipFile(path_of(name)) as archive:
    for member in archive.infolist():
      with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        if version > (1, 0):
          read = np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        length = member.file_size - file.tell()
      if dtype.hasobject:
        raise ValueError(f"{member.filename} holds objects, not numbers")
      if (
        min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != length
      ):
        raise ValueError(
          f"{member.filename} is {length} bytes long and says that it holds "
          f"{dtype} {shape}"
        )
      found[member.filename.removesuffix(".npy")] = Header(shape, dtype)
  return found


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
  """Turns whatever the readers of a damaged file raise into one message."""
  try:
    yield
  except config.ConfigError:
    raise
  except Exception as error:
    raise config.ConfigError(
      f"--dataset={name} cannot be read ({error or type(error).__name__}); "
      "save x and y, integers, with numpy.savez"
    ) from None


# --- a folder ----------------------------------------------------------------


def _describe_folder(name: str, data_dir: str | None) -> sources.Info:
  del data_dir
  return _info_of(name, _splits(name))


def _info_of(name: str, splits: list["Files"]) -> sources.Info:
  first = splits[0][0][0]
  try:
    shape = shape_of(first)
  except Exception as error:  # whatever a decoder happens to raise
    raise config.ConfigError(f"{first} cannot be read ({error})") from None
  arrays = []
  for files in splits:
    y = np.concatenate([np.full(len(f), i) for i, f in enumerate(files)])
    arrays += [Header((len(y), *shape), np.dtype(np.uint8)), y]
  return info_of(name, *arrays)


def _read_folder(name: str, data_dir: str | None) -> sources.Raw:
  del data_dir
  splits = _splits(name)
  info = _info_of(name, splits)
  state = hashlib.sha256(repr(info).encode())
  root = path_of(name)
  for file in _files(splits):
    content = hashlib.sha256(file.read_bytes()).digest()
    state.update(str(file.relative_to(root)).encode() + content)
  return cache.fetch(
    f"folder-{state.hexdigest()[:32]}", lambda: _decode(name, info, splits)
  )


Files = list[list[pathlib.Path]]  # of each class


def _files(splits: list[Files]) -> Iterator[pathlib.Path]:
  for classes in splits:
    for files in classes:
      yield from files


def _splits(name: str) -> list[Files]:
  """Lists the images of each class, of the one or two splits.

  Raises:
    ConfigError: there are no folders of images, or those of the test split are
      others.
  """
  root = path_of(name)
  if (root / TRAIN).is_dir() and (root / TEST).is_dir():
    train, test = (_classes(name, root / part) for part in (TRAIN, TEST))
    unknown = sorted(test.keys() - train.keys())
    if unknown:
      raise config.ConfigError(
        f"--dataset={name}: class {unknown[0]} is in the test split only"
      )
    return [list(train.values()), [test.get(each, []) for each in train]]
  return [list(_classes(name, root).values())]


def _classes(name: str, root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  found = {}
  for folder in sorted(path for path in root.iterdir() if path.is_dir()):
    if folder.name.startswith("."):
      continue
    files = sorted(
      path
      for path in folder.iterdir()
      if path.suffix.lower() in ENDINGS and not path.name.startswith(".")
    )
    if files:
      found[folder.name] = files
  if len(found) < 2:
    raise config.ConfigError(
      f"--dataset={name}: {root} has {len(found)} folders with images "
      f"({', '.join(ENDINGS)}); make one for each class, two at least"
    )
  return found


def shape_of(path: Any) -> tuple[int, int, int]:
  """Reads the size of an image, of its path or of what is open.

  Grey ones have one channel, others three.
  """
  from PIL import Image

  with Image.open(path) as image:
    width, height = image.size
    return height, width, 1 if image.mode in ("1", "L") else 3


def _decode(name: str, info: sources.Info, splits: list[Files]) -> sources.Raw:
  logging.info("decoding the images of %s; the next start finds them", name)
  arrays = []
  for classes in splits:
    parts = [(file, i) for i, files in enumerate(classes) for file in files]
    x = np.empty((len(parts), *info.input_shape), np.uint8)
    for place, (file, _) in enumerate(parts):
      try:
        x[place] = decoding.pixels(file.read_bytes(), info.input_shape)
      except Exception as error:  # whatever a decoder happens to raise
        raise config.ConfigError(
          f"--dataset={name}: {file}: {error}; mend it or leave it out"
        ) from None
    arrays += [x, np.array([i for _, i in parts], np.int32)]
  return sources.raw(*arrays)


FILE = sources.Source(_describe_file, _read_file, None)
FOLDER = sources.Source(_describe_folder, _read_folder, None)
