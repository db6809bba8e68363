"""Decoded images kept as memory-mapped arrays between runs.

An entry is a directory that appears by one rename, so a reader sees all of it
or nothing, and two writers at once leave one good entry. Entries are checked
against their hash when read and built again when damaged. A cache that cannot
be written costs time, never a result.
"""

from collections.abc import Callable
import os
import tempfile

from absl import logging
import numpy as np

from minarch_jax.data import sources

_ARRAYS = ("x", "y", "test_x", "test_y")


def directory() -> str:
  """Returns MINARCH_CACHE_DIR, else minarch_jax in the user's cache folder."""
  base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  chosen = os.environ.get("MINARCH_CACHE_DIR") or f"{base}/minarch_jax"
  return os.path.expanduser(chosen)


def fetch(key: str, build: Callable[[], sources.Raw]) -> sources.Raw:
  """Returns the entry of `key`, or builds it and keeps it.

  Args:
    key: a file name that determines what `build` returns.
    build: makes the arrays; its errors pass through and nothing is kept.
  """
  entry = os.path.join(directory(), "data", key)
  if os.path.isdir(entry):
    try:
      return _read(entry)
    except Exception as error:
      # A damaged header ends in whatever numpy's parser happens to raise.
      logging.warning("cache entry %s is built again: %s", entry, error)
  images = build()
  try:
    _write(entry, images)
  except OSError as error:
    if os.path.isdir(entry):  # another process has just written it
      return images
    logging.warning("decoded images are not kept in %s: %s", entry, error)
  return images


def _read(entry: str) -> sources.Raw:
  arrays = [
    np.load(os.path.join(entry, f"{name}.npy"), mmap_mode="r")
    for name in _ARRAYS
  ]
  with open(os.path.join(entry, "sha256")) as file:
    expected = file.read().strip()
  found = sources.digest(*arrays)
  if found != expected:
    raise ValueError(f"its hash is {found}, not {expected}")
  return sources.Raw(*arrays, digest=found)


def _write(entry: str, images: sources.Raw) -> None:
  parent = os.path.dirname(entry)
  os.makedirs(parent, exist_ok=True)
  with tempfile.TemporaryDirectory(
    prefix=".new-", dir=parent, ignore_cleanup_errors=True
  ) as work:
    fresh = os.path.join(work, "entry")
    os.mkdir(fresh)
    for name in _ARRAYS:
      with open(os.path.join(fresh, f"{name}.npy"), "wb") as file:
        np.save(file, getattr(images, name))
        _sync(file)
    with open(os.path.join(fresh, "sha256"), "w") as file:
      file.write(images.digest)
      _sync(file)
    if os.path.isdir(entry):  # damaged, or another writer's equal one
      os.rename(entry, os.path.join(work, "old"))
    os.rename(fresh, entry)


def _sync(file) -> None:
  file.flush()
  os.fsync(file.fileno())
