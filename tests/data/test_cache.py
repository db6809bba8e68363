"""The cache of decoded images: equal, whole, or built again."""

import subprocess
import sys

import numpy as np
import pytest

from minarch_jax.data import cache, sources
from tests.data import made_images


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("MINARCH_CACHE_DIR", str(tmp_path / "cache"))
  return tmp_path / "cache" / "data"


def _raw():
  x, y = made_images.draw()
  return sources.raw(
    x, y
  )  # test split empty: cannot be memory-mapped by length


def _never():
  raise AssertionError("built although cached")


def _same(a, b):
  for left, right in zip(a, b, strict=True):
    np.testing.assert_array_equal(left, right)


def test_a_second_read_is_equal_and_mapped(empty_cache):
  built = cache.fetch("key", _raw)
  read = cache.fetch("key", _never)
  _same(built, read)
  assert isinstance(read.x, np.memmap) and not read.x.flags.writeable
  assert [entry.name for entry in empty_cache.iterdir()] == ["key"]


@pytest.mark.parametrize("file", ["x.npy", "y.npy", "test_x.npy", "sha256"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_a_damaged_entry_is_built_again(empty_cache, file, damage):
  built = cache.fetch("key", _raw)
  path = empty_cache / "key" / file
  stored = path.read_bytes()
  if damage == "remove":
    path.unlink()
  else:
    flipped = stored[:-1] + bytes([stored[-1] ^ 1])
    path.write_bytes(
      {"flip": flipped, "truncate": stored[:-1], "empty": b""}[damage]
    )
  _same(built, cache.fetch("key", _raw))
  _same(built, cache.fetch("key", _never))
  assert [entry.name for entry in empty_cache.iterdir()] == ["key"]


def test_without_a_writable_cache_images_are_built_each_time(
  tmp_path, monkeypatch
):
  (tmp_path / "file").touch()
  monkeypatch.setenv("MINARCH_CACHE_DIR", str(tmp_path / "file" / "cache"))
  _same(cache.fetch("key", _raw), cache.fetch("key", _raw))


def test_a_full_disk_leaves_nothing_behind(empty_cache, monkeypatch):
  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(np, "save", full)
  _same(cache.fetch("key", _raw), _raw())
  assert list(empty_cache.iterdir()) == []


def test_writers_at_once_leave_one_good_entry(empty_cache):
  program = (
    "import time, numpy as np; from minarch_jax.data import cache, sources\n"
    "x = np.arange(1 << 20, dtype=np.uint8).reshape(-1, 8, 8, 1)\n"
    "raw = lambda: sources.raw(x, np.zeros(len(x), np.int32))\n"
    "for i in range(20): print(cache.fetch(f'key{i}', raw).digest)\n"
  )
  running = [
    subprocess.Popen(
      [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    )
    for _ in range(3)
  ]
  outputs = {process.communicate()[0] for process in running}
  assert [process.returncode for process in running] == [0, 0, 0]
  assert len(outputs) == 1 and len(outputs.pop().split()) == 20
  assert len(list(empty_cache.iterdir())) == 20
  for i in range(20):
    cache.fetch(f"key{i}", _never)


def test_the_cache_is_in_the_users_folder(monkeypatch):
  monkeypatch.delenv("MINARCH_CACHE_DIR", raising=False)
  monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
  assert cache.directory() == "/somewhere/minarch_jax"
  monkeypatch.delenv("XDG_CACHE_HOME")
  monkeypatch.setenv("HOME", "/home/someone")
  assert cache.directory() == "/home/someone/.cache/minarch_jax"
