"""Prepares a TFDS set once, so that reading it needs no TensorFlow."""

from collections.abc import Iterator
import importlib.util
import json
import re

from etils import epath

from minarch_jax import config, registries
from minarch_jax.data import tfds


def prepare(name: str, data_dir: str | None) -> None:
  """Makes NAME[/CONFIG][:VERSION] an array_record set in `data_dir`.

  A set that is prepared is left alone, one stored as tfrecord gets its shards
  in array_record beside the old ones, anything else is downloaded.

  Args:
    name: a TFDS name; variants that follow it need no files of their own.
    data_dir: directory of prepared sets, made if need be; None or '' for
      tfds's own.

  Raises:
    ValueError: an unknown name, TensorFlow is needed and missing, or tfds
      could not prepare the set.
  """
  while name.rpartition(":")[2] in registries.VARIANTS:
    name = name.rpartition(":")[0]
  base = re.split("[/:]", name)[0]
  if registries.DATASETS.get(base, tfds.SOURCE) is not tfds.SOURCE:
    raise config.ConfigError(f"--dataset={name} needs no preparation")
  stored = _stored(name, data_dir)
  if stored is not None and "array_record" in tfds.formats(stored):
    return
  if stored is None:
    _check_known(name)
  try:
    if stored is None:
      _generate(name, data_dir)
    else:
      _convert(stored)
  except config.ConfigError:
    raise
  except Exception as error:
    # Downloads, checksums, disks and builders each raise their own.
    raise ValueError(f"{name} could not be prepared: {error}") from error


def _stored(name: str, data_dir: str | None) -> epath.Path | None:
  try:
    return tfds.locate(name, data_dir)
  except config.ConfigError:
    return None


def _check_known(name: str) -> None:
  import tensorflow_datasets

  known = tensorflow_datasets.list_builders(with_community_datasets=False)
  if re.split("[/:]", name)[0] not in known:
    raise config.ConfigError(
      f"--dataset={name} is not a data set of tensorflow_datasets (listed at "
      "https://www.tensorflow.org/datasets/catalog/overview)"
      f"{registries.nearest(name, known)}"
    )


def _generate(name: str, data_dir: str | None) -> None:
  if importlib.util.find_spec("tensorflow") is None:
    raise config.ConfigError(
      f"preparing {name} needs TensorFlow, once; install it with: pip install "
      "'minarch_jax[prepare]' (in a checkout: pip install -e '.[prepare]')"
    )
  import tensorflow_datasets

  tensorflow_datasets.builder(
    name, data_dir=data_dir or None, file_format="array_record"
  ).download_and_prepare()


def _convert(path: epath.Path) -> None:
  """Writes array_record shards of the same records beside tfrecord ones.

  The description of the set changes last, so a conversion that breaks off
  leaves a tfrecord set.
  """
  shards = sorted(path.glob("*.tfrecord-*"))
  if not shards:
    raise ValueError(f"{path} has neither array_record nor tfrecord files")
  partial = path / "incomplete"
  for shard in shards:
    _write_array_record(partial, _tfrecords(shard))
    partial.replace(path / shard.name.replace(".tfrecord-", ".array_record-"))
  info = path / "dataset_info.json"
  about = json.loads(info.read_text())
  stored = about.get("alternativeFileFormats", [])
  about["alternativeFileFormats"] = [*stored, "array_record"]
  partial.write_text(json.dumps(about, indent=2))
  partial.replace(info)


def _tfrecords(path: epath.Path) -> Iterator[bytes]:
  """Yields records; each is stored as length, checksum, bytes, checksum."""
  with path.open("rb") as file:
    while header := file.read(12):
      length = int.from_bytes(header[:8], "little")
      record = file.read(length + 4)
      if len(header) < 12 or len(record) < length + 4:
        raise ValueError(f"{path} ends within a record")
      yield record[:length]


def _write_array_record(path: epath.Path, records: Iterator[bytes]) -> None:
  from array_record.python import array_record_module  # pyright: ignore

  # Groups of one record, as tfds writes them, are read at random fastest.
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  try:
    for record in records:
      writer.write(record)
  finally:
    writer.close()
