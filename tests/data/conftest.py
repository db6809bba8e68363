"""A tiny prepared TFDS set, and an empty cache of images beside it."""

import shutil

import pytest

from tests.data import tiny_tfds


@pytest.fixture(scope="module")
def original(tmp_path_factory):
  images = {"train": tiny_tfds.draw(60, 1, 0), "test": tiny_tfds.draw(12, 1, 1)}
  return tiny_tfds.prepare(tmp_path_factory.mktemp("tfds"), images), images


@pytest.fixture
def tiny(original, tmp_path, monkeypatch):
  """A copy of the prepared set that a test may damage."""
  monkeypatch.setenv("MINARCH_CACHE_DIR", str(tmp_path / "cache"))
  shutil.copytree(original[0], tmp_path / "data")
  return tmp_path / "data"
