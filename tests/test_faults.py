"""Faults: told in one message, and made good without a number changed.

Damaged parts and checkpoints are in `stages/test_repair.py`, states of packs
in `stages/test_unfinished.py`, compiled programs in
`engine/test_kept_programs.py`, cached images in `data/test_cache.py`, changed
data in `stages/test_mixing.py`. `experiments/benchmarks/fault_campaign.py`
injects hundreds into processes.
"""

import errno
import os
import pathlib
import random
import shutil
import time

import numpy as np
import pytest

import minarch_jax as ma
from minarch_jax import records, study
from minarch_jax.config import Config, ConfigError
from tests import tiny_study

DRAW = np.random.default_rng(0)
X = DRAW.integers(0, 256, (90, 6, 6), np.uint8)
Y = np.arange(90) % 3


# --- data --------------------------------------------------------------------

REFUSED = {
  "NaN": ({"x": X / np.float32("nan"), "y": Y}, "as uint8"),
  "infinite": ({"x": np.full(X.shape, np.inf), "y": Y}, "as uint8"),
  "one class": ({"x": X, "y": 0 * Y}, "of one class"),
  "a class without images": ({"x": X, "y": Y + (Y > 1)}, "of class 2"),
  "a class in the test split only": (
    {"x": X, "y": Y, "x_test": X, "y_test": Y + 1},
    "class 3 is in the test split only",
  ),
  "labels below 0": ({"x": X, "y": Y - 1}, "a label is -1"),
  "labels of another length": ({"x": X, "y": Y[1:]}, "90 images, but labels"),
  "two shapes": (
    {"x": X, "y": Y, "x_test": X[:, 1:], "y_test": Y},
    "make all of one size",
  ),
  "fewer images than a batch": (
    {"x": X[:12], "y": Y[:12]},
    "--batch_size=64 is larger than the training split",
  ),
  "fewer images than folds": ({"x": X[:4], "y": Y[:4] % 2}, "folds|larger"),
  "none": ({"x": X[:0], "y": Y[:0]}, "give images"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_images_that_cannot_be_used_are_refused(tmp_path, monkeypatch, fault):
  arrays, message = REFUSED[fault]
  monkeypatch.chdir(tmp_path)
  np.savez("own.npz", **arrays)
  config = Config(dataset="own.npz", out="out", architectures=("dnn:3",))
  with pytest.raises(ConfigError, match=message):
    study.run(config)
  assert os.listdir() == ["own.npz"]  # nothing was begun


@pytest.mark.parametrize(
  "x",
  [np.full_like(X, 7), np.zeros_like(X), X[:1].repeat(90, 0)],
  ids=["constant", "black", "duplicated"],
)
def test_images_that_tell_nothing_are_finite(x):
  data = ma.from_arrays(x, Y)
  for split in (data.train, data.validation, data.test):
    assert np.isfinite(split.x).all()


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_of_images_is_one_message(tmp_path, monkeypatch, seed):
  """Or it still holds the same images."""
  monkeypatch.chdir(tmp_path)
  np.savez_compressed("own.npz", x=X, y=Y)
  path, draw = pathlib.Path("own.npz"), random.Random(seed)
  content = bytearray(path.read_bytes())
  if seed % 4:
    for _ in range(seed % 4):
      content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
  else:
    del content[draw.randrange(len(content)) :]
  path.write_bytes(content)
  expected = ma.from_arrays(X, Y).train.x
  try:
    found = ma.load("own.npz")
  except ConfigError as error:
    assert "--dataset=own.npz" in str(error)
  else:
    np.testing.assert_array_equal(found.train.x, expected)


# --- the machine -------------------------------------------------------------


@pytest.mark.parametrize("writes", [0, 3, 7])
def test_a_disk_that_is_full_loses_nothing(
  studied, tmp_path, monkeypatch, writes
):
  """At the start, while packs are trained, and while they are compressed."""
  replace, left = os.replace, iter(range(writes))

  def failing(source, target):
    if next(left, None) is None:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)
    replace(source, target)

  with monkeypatch.context() as patch:
    patch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="No space left") as found:
      tiny_study.run(tmp_path)
  assert str(tmp_path) in str(found.value.filename)
  assert not list(tmp_path.rglob("*.tmp"))
  tiny_study.run(tmp_path)
  tiny_study.assert_same_tables(
    ma.read_records(str(tmp_path)), ma.read_records(str(studied))
  )


@pytest.mark.parametrize("shift", [-1e9, 1e9])
def test_the_clock_decides_nothing(studied, copy, monkeypatch, shift):
  """It jumped by thirty years between two runs."""
  for table in ("compression", "hits"):
    shutil.rmtree(copy / "records" / table)
  for path in copy.rglob("*"):
    os.utime(path, (time.time() - shift,) * 2)
  now = time.time
  monkeypatch.setattr(time, "time", lambda: now() + shift)
  tiny_study.run(copy)
  found, expected = (ma.read_records(str(out)) for out in (copy, studied))
  tiny_study.assert_same_tables(found._replace(hits=expected.hits), expected)


def test_a_worker_that_fails_ends_the_others(studied, tmp_path, monkeypatch):
  write = records.write

  def failing(out, table, *rest):
    if table == "hits":
      raise OSError(errno.EIO, os.strerror(errno.EIO), out)
    return write(out, table, *rest)

  with monkeypatch.context() as patch:
    patch.setattr(records, "write", failing)
    with pytest.raises(OSError, match="Input/output"):
      tiny_study.run(tmp_path, packs_at_once=2)
  tiny_study.run(tmp_path)
  tiny_study.assert_same_tables(
    ma.read_records(str(tmp_path)), ma.read_records(str(studied))
  )
