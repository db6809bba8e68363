"""Preparation: converts or downloads once; a typo ends before either."""

import subprocess
import sys

import pytest

from minarch_jax import config, data
from minarch_jax.data import preparation
from tests.data.tiny_tfds import edit, version


def _as_tfrecord(path):
  """Turns the set into what tfds stores by default."""
  from array_record.python import array_record_module

  for shard in version(path).glob("*.array_record*"):
    records = array_record_module.ArrayRecordReader(str(shard)).read_all()
    target = shard.with_name(shard.name.replace("array_record", "tfrecord"))
    with target.open("wb") as file:
      for record in records:
        length = len(record).to_bytes(8, "little")
        file.write(length + bytes(4) + record + bytes(4))
    shard.unlink()
  edit(path, fileFormat="tfrecord")


def test_tfrecord_is_refused_until_converted(original, tiny):
  _as_tfrecord(tiny)
  with pytest.raises(config.ConfigError, match="stored as tfrecord.*prepare_d"):
    data.check("tiny_shapes", str(tiny))
  preparation.prepare("tiny_shapes", str(tiny))
  converted = data.load("tiny_shapes", str(tiny))
  first = data.load("tiny_shapes", original[0])
  assert converted.fingerprint == first.fingerprint
  assert "incomplete" not in [file.name for file in version(tiny).iterdir()]


def test_a_conversion_that_breaks_off_leaves_a_tfrecord_set(tiny):
  _as_tfrecord(tiny)
  (shard,) = version(tiny).glob("*-train.tfrecord*")
  shard.write_bytes(shard.read_bytes()[:-1])
  with pytest.raises(ValueError, match="ends within a record"):
    preparation.prepare("tiny_shapes", str(tiny))
  with pytest.raises(config.ConfigError, match="stored as tfrecord"):
    data.check("tiny_shapes", str(tiny))


@pytest.mark.parametrize(
  "name, message",
  [
    ("mnits", "not a data set of tensorflow_datasets.*did you mean 'mnist'"),
    ("digits", "digits needs no preparation"),
    ("synthetic:easy", "needs no preparation"),
  ],
)
def test_names_that_cannot_be_prepared(tmp_path, name, message):
  with pytest.raises(config.ConfigError, match=message):
    preparation.prepare(name, str(tmp_path / "new"))
  assert not (tmp_path / "new").exists()


def test_missing_tensorflow_is_said_before_a_download(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  with pytest.raises(config.ConfigError, match=r"install -e '.\[prepare\]'"):
    preparation.prepare("mnist", str(tmp_path / "new"))
  assert not (tmp_path / "new").exists()


def _run(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "experiments.prepare_data", *arguments],
    capture_output=True,
    text=True,
  )


def test_the_binary_prints_what_it_prepared(tiny):
  done = _run("--dataset=tiny_shapes", f"--data_dir={tiny}")
  assert done.returncode == 0, done.stderr
  fingerprint = data.load("tiny_shapes", str(tiny), folds=5).fingerprint
  assert fingerprint in done.stdout and "48 images" in done.stdout
  assert "fold s mod 5" in done.stdout
  assert len(list((tiny.parent / "cache" / "data").iterdir())) == 1


def test_the_binary_ends_on_a_typo_with_one_message(tmp_path):
  done = _run("--dataset=mnits", f"--data_dir={tmp_path / 'new'}")
  assert done.returncode == 1 and not done.stdout
  assert "did you mean 'mnist'" in done.stderr
  assert "Traceback" not in done.stderr
  assert not (tmp_path / "new").exists()
