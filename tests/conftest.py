"""What every test runs under: 8 simulated devices, no silent broadcasting.

JAX reads the number of CPU devices when its backend starts, so it is set here,
before any test module is imported. Programs compiled by one run are reused by
the next (`pytest --cache-clear` forgets them), and so are decoded images.
"""

import os
import sys

import jax
import pytest

from minarch_jax import data

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
  versions = f"py{sys.version_info.major}{sys.version_info.minor}"
  programs = config.cache.mkdir(f"jax-{jax.__version__}-{versions}")
  jax.config.update("jax_compilation_cache_dir", str(programs))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  # Tests and the programs they start leave the user's own cache alone.
  os.environ.setdefault("MINARCH_CACHE_DIR", str(config.cache.mkdir("data")))


@pytest.fixture(scope="session")
def digits():
  """scikit-learn's real 8x8 images, ten classes."""
  return data.load("digits")


@pytest.fixture(scope="session")
def synthetic():
  """A tiny set the smallest networks can learn."""
  return data.load("synthetic:easy")


@pytest.fixture(scope="session")
def tfds_dir():
  """Directory of real prepared TFDS sets; skips where there is none."""
  root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  path = os.environ.get("MINARCH_DATA_DIR") or os.path.join(
    os.path.dirname(root), "shared", "tfds"
  )
  if not os.path.isdir(path):
    pytest.skip(f"no prepared TFDS sets at {path}; set MINARCH_DATA_DIR")
  return path
