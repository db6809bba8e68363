"""Image-classification sets prepared by TensorFlow Datasets as array_record.

Read without TensorFlow. What must be known before decoding comes from the two
JSON files of a prepared directory, so that a wrong name or an unusable set is
reported before anything heavy is imported.
"""

from collections.abc import Mapping
import hashlib
import json
import os
import re
from typing import Any, NamedTuple

from absl import logging
from etils import epath
import numpy as np

from minarch_jax import config
from minarch_jax.data import cache, decoding, sources

# What the test split is, for sets whose `test` is not the official one.
TEST_NOTES = {
  "cifar10_45k": (
    "the last 5,000 official training images, not the official CIFAR-10 test "
    "split"
  ),
}

_NAME = re.compile(r"(\w+)(?:/([\w.-]+))?(?::(\d+\.\d+\.\d+))?", re.ASCII)
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)", re.ASCII)
_CHUNK = 1000  # examples decoded at once


class Prepared(NamedTuple):
  """A prepared data set: its version directory and what its JSON files say."""

  name: str
  path: epath.Path
  image: str
  label: str
  info: sources.Info
  splits: tuple[str, ...]  # ("train",) or ("train", the one used as test)


def root(data_dir: str | None) -> epath.Path:
  """Returns the directory of prepared sets; without one given, tfds's own.

  Raises:
    ConfigError: the given directory does not exist.
  """
  if not data_dir:
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return epath.Path(default).expanduser()
  path = epath.Path(data_dir).expanduser()
  if not path.is_dir():
    raise config.ConfigError(
      f"--data_dir={data_dir} is not a directory; name one with prepared data "
      "sets, or make one with: python -m experiments.prepare_data "
      f"--dataset=NAME --data_dir={data_dir}"
    )
  return path


def names(data_dir: str | None) -> list[str]:
  """Lists the sets prepared in a directory, in whatever file format."""
  path = root(data_dir)
  if not path.is_dir():
    return []
  return sorted(
    child.name
    for child in path.iterdir()
    if _NAME.fullmatch(child.name) and (_versions(child) or _configs(child))
  )


def _versions(path: epath.Path) -> dict[str, epath.Path]:
  """Maps prepared versions below a directory to their paths, oldest first."""
  found = {}
  if path.is_dir():
    for child in path.iterdir():
      match = _VERSION.fullmatch(child.name)
      if match and (child / "dataset_info.json").exists():
        found[tuple(map(int, match.groups()))] = child
  return {found[key].name: found[key] for key in sorted(found)}


def _configs(path: epath.Path) -> list[str]:
  if not path.is_dir():
    return []
  return sorted(child.name for child in path.iterdir() if _versions(child))


def locate(name: str, data_dir: str | None) -> epath.Path:
  """Finds the directory of a prepared set: NAME[/CONFIG][:VERSION].

  Raises:
    ConfigError: there is none; the message says how to prepare it.
  """
  match = _NAME.fullmatch(name)
  if not match:
    raise config.ConfigError(
      f"--dataset={name} is not of the form NAME, NAME/CONFIG or NAME:VERSION"
    )
  base, part, version = match.groups()
  path = root(data_dir) / base / (part or "")
  found = _versions(path)
  if version in found or (found and not version):
    return found[version or list(found)[-1]]
  if found:
    raise config.ConfigError(
      f"--dataset={name}: version {version} is not prepared; prepared: "
      f"{', '.join(found)}"
    )
  configs = _configs(path)
  if configs and not part:
    raise config.ConfigError(
      f"--dataset={name} has configurations: name one of "
      f"{', '.join(f'{base}/{c}' for c in configs)}"
    )
  there = ", ".join(names(data_dir)) or "nothing"
  raise config.ConfigError(
    f"--dataset={name} is not prepared in {root(data_dir)} (there: {there}); "
    "give the --data_dir that has it, or prepare it with: python -m "
    f"experiments.prepare_data --dataset={name} --data_dir={root(data_dir)}"
  )


def inspect(name: str, data_dir: str | None) -> Prepared:
  """Reads what a prepared directory says about itself.

  Raises:
    ConfigError: not there, not array_record, incomplete, or not a set of
      labelled uint8 images of one size.
  """
  path = locate(name, data_dir)
  about, features = (
    _json(path / file) for file in ("dataset_info.json", "features.json")
  )
  if "array_record" not in formats(path):
    raise config.ConfigError(
      f"--dataset={name}: {path} is stored as {about.get('fileFormat')}, which "
      "cannot be read without TensorFlow; convert it to array_record with: "
      f"python -m experiments.prepare_data --dataset={name} "
      f"--data_dir={root(data_dir)}"
    )
  sizes = {s["name"]: s.get("shardLengths", ()) for s in about["splits"]}
  test = next((s for s in ("test", "validation") if s in sizes), "")
  splits = ("train", test) if test else ("train",)
  for split in splits:
    shards = _shards(path, split)
    if len(shards) != len(sizes.get(split, ())) or not shards:
      raise config.ConfigError(
        f"--dataset={name}: split {split!r} in {path} has {len(shards)} files "
        f"of {len(sizes.get(split, ()))}; prepare the data set again"
      )
  image, label, shape, classes = _features(name, about, features)
  counts = [sum(map(int, sizes[split])) for split in splits]
  info = sources.Info(
    shape,
    classes,
    counts[0],
    sum(counts[1:]),
    _test_note(re.split("[/:]", name)[0], test),
  )
  return Prepared(name, path, image, label, info, splits)


def _test_note(name: str, test: str) -> str:
  if test == "test":
    return TEST_NOTES.get(name, "")
  if test:
    return f"the official {test} split: there is no labelled test split"
  return "there is no official test split: a fixed stratified 20 % of train"


def formats(path: epath.Path) -> set[str]:
  """Names the file formats a prepared directory is stored in."""
  about = _json(path / "dataset_info.json")
  return {about.get("fileFormat"), *about.get("alternativeFileFormats", ())}


def _json(path: epath.Path) -> Any:
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise config.ConfigError(
      f"{path} cannot be read ({error}); prepare the data set again"
    ) from None


def _shards(path: epath.Path, split: str) -> list[epath.Path]:
  return sorted(path.glob(f"*-{split}.array_record*"))


def _features(
  name: str, about: Mapping, features: Mapping
) -> tuple[str, str, tuple[int, int, int], int]:
  """Finds the image and the label by type; two of a type by tfds's own pair."""
  tree = features.get("featuresDict", {}).get("features", {})
  pair = about.get("supervisedKeys", {}).get("tuple", {}).get("items", ())
  supervised = [item.get("featureKey") for item in pair]
  chosen = []
  for kind in ("image", "classLabel"):
    found = [key for key, feature in tree.items() if kind in feature]
    keys = [key for key in found if len(found) == 1 or key in supervised]
    if len(keys) != 1:
      raise config.ConfigError(
        f"--dataset={name}: expected one {kind} feature among "
        f"{', '.join(tree) or 'none'}, found {', '.join(found) or 'none'}: not "
        "a set for image classification"
      )
    chosen.append(keys[0])
  image, label = tree[chosen[0]]["image"], tree[chosen[1]]["classLabel"]
  shape = tuple(map(int, image.get("shape", {}).get("dimensions", ())))
  if len(shape) != 3 or min(shape) < 1 or image.get("dtype") != "uint8":
    raise config.ConfigError(
      f"--dataset={name}: images are {image.get('dtype')} {shape} (-1 = "
      "varying); need uint8 images of one size"
    )
  return (*chosen, shape, int(label["numClasses"]))


def _describe(name: str, data_dir: str | None) -> sources.Info:
  return inspect(name, data_dir).info


def _read(name: str, data_dir: str | None) -> sources.Raw:
  prepared = inspect(name, data_dir)
  base = re.sub(r"[/:]", "-", name)
  key = f"{base}-{_content(prepared)}"
  return cache.fetch(key, lambda: _decode(prepared))


def _content(prepared: Prepared) -> str:
  """Hashes the files that are read: a copy elsewhere has the same key, and a
  set prepared again with other images another, whatever the clock says."""
  files = [prepared.path / f for f in ("dataset_info.json", "features.json")]
  files += [f for s in prepared.splits for f in _shards(prepared.path, s)]
  state = hashlib.sha256()
  for path in files:
    state.update(f"{path.name} {path.stat().length} ".encode())
    with path.open("rb") as file:
      while block := file.read(1 << 20):
        state.update(block)
  return state.hexdigest()[:32]


def _decode(prepared: Prepared) -> sources.Raw:
  logging.info(
    "decoding %d images of %s; the next start finds them decoded",
    prepared.info.num_train + prepared.info.num_test,
    prepared.name,
  )
  import tensorflow_datasets

  builder = tensorflow_datasets.builder_from_directory(str(prepared.path))
  arrays = []
  for split in prepared.splits:
    arrays += _decode_split(prepared, builder, split)
  return sources.raw(*arrays)


def _decode_split(prepared: Prepared, builder, split: str) -> list[np.ndarray]:
  import tensorflow_datasets

  # The stored bytes, decoded here: tfds would decode with whichever of OpenCV
  # and Pillow is installed, and their pixels may differ (JPEG).
  skip = {prepared.image: tensorflow_datasets.decode.SkipDecoding()}
  where = f"data set {prepared.name!r}, split {split!r} in {prepared.path}"
  try:
    source = builder.as_data_source(
      split, decoders=skip, file_format="array_record"
    )
    size = len(source)
    x = np.empty((size, *prepared.info.input_shape), np.uint8)
    y = np.empty(size, np.int32)
    for start in range(0, size, _CHUNK):
      part = range(start, min(start + _CHUNK, size))
      for i, example in zip(part, source.__getitems__(part), strict=True):
        x[i] = decoding.pixels(example[prepared.image], x.shape[1:])
        y[i] = example[prepared.label]
  except Exception as error:
    # Damaged files surface as whatever the reader below happens to raise.
    raise config.ConfigError(
      f"{where}: {error}; the files are damaged, prepare the data set again"
    ) from error
  return [x, y]


SOURCE = sources.Source(_describe, _read, suffix=None)
