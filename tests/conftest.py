"""What every test runs under: 8 simulated devices, no silent broadcasting.

JAX reads the number of CPU devices when its backend starts, so it is set here,
before any test module is imported. Programs compiled by one run are reused by
the next (`pytest --cache-clear` forgets them), and so are decoded images; the
workers of one run share both.

Compiling is most of the time, and the laws are those of our arithmetic, so
XLA is told to skip most optimizations, also in the programs that tests start.
`pytest --optimized` compiles as users do wherever numbers are judged: what
optimizing can break is that a program computes what its definition says, and
the folders of `JUDGED` hold each program and transform to its definition. The
others ask what is planned, written, drawn or said; they compile to get there,
and what they would find out is found there. CI runs both.
"""

import functools
import gc
import os
import pathlib
import shutil

import jax
import pytest

from minarch_jax import data
from minarch_jax.engine import costs, machine, population

HERE = pathlib.Path(__file__).parent
# Where numbers are judged, so that it matters how they are compiled.
JUDGED = ("compression", "engine", "models", "pruning", "quantization")
# What takes longest, longest first: a worker that began one of these last would
# let the others wait for it.
LONGEST = (
  "experiments/test_experiments.py",
  "engine/test_lowering.py",
  "compression/test_running.py",
  "engine/test_packs.py",
  "experiments/test_benchmarks.py",
  "compression/test_programs.py",
  "stages/test_probes.py",
  "stages/test_sensitivity.py",
  "experiments/test_notebooks.py",
  "experiments/test_more_notebooks.py",
  "test_extending.py",
  "pruning/test_criteria_behaviour.py",
)

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Nobody reads where in the source an operation of these programs came from.
jax.config.update("jax_traceback_in_locations_limit", 0)


def pytest_addoption(parser):
  parser.addoption(
    "--optimized",
    action="store_true",
    help="compile with XLA's optimizations where numbers are judged",
  )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
  """One worker per core; none to wait for where one file is named."""
  cores = len(os.sched_getaffinity(0))
  one_file = len(config.option.file_or_dir) == 1 and ".py" in str(
    config.option.file_or_dir[0]
  )
  return 0 if one_file or cores == 1 else min(cores, 8)


def pytest_configure(config):
  # Tests and the programs they start leave the user's own caches alone.
  os.environ["XDG_CACHE_HOME"] = str(config.cache.mkdir("user"))
  os.environ.pop("MINARCH_CACHE_DIR", None)
  population.use_cache("default")
  jax.config.update("jax_disable_most_optimizations", True)
  os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
  if jax.__version_info__ < (0, 11) and not config.getoption("optimized"):
    flags = os.environ.get("XLA_FLAGS", "")  # see population._direct_emitters
    quick = "--xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{flags} {quick}".strip()


def pytest_collection_modifyitems(items):
  """Puts the longest files first; the others stay in their order."""
  place = {HERE / name: i for i, name in enumerate(LONGEST)}
  items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(autouse=True)
def same_machine(request, monkeypatch):
  """Plans as for the machine of the costs: what is tested is no machine."""
  if request.path.name != "test_machine.py":
    monkeypatch.setattr(machine, "here", lambda: costs.REFERENCE)


@pytest.fixture(autouse=True, scope="module")
def compiled_as_asked(request):
  """Lets a file that judges numbers compile as users do, where asked for."""
  judges = request.path.relative_to(HERE).parts[0] in JUDGED
  skip = not (judges and request.config.getoption("optimized"))
  jax.config.update("jax_disable_most_optimizations", skip)


def pytest_collection_finish():
  """Looks for garbage seldom: tracing makes many objects, few in circles."""
  gc.freeze()
  gc.set_threshold(100_000, 20, 100)


@pytest.fixture
def skip_optimizations():
  """Sets, for one test, whether XLA skips most optimizations."""
  name = "jax_disable_most_optimizations"
  before = jax.config.read(name)  # pyright: ignore
  yield functools.partial(jax.config.update, name)
  jax.config.update(name, before)


@pytest.fixture(scope="session")
def digits():
  """scikit-learn's real 8x8 images, ten classes."""
  return data.load("digits")


@pytest.fixture(scope="session")
def synthetic():
  """A tiny set the smallest networks can learn."""
  return data.load("synthetic:easy")


@pytest.fixture(scope="session")
def studied(tmp_path_factory):
  """A directory with the whole tiny study; tests that write take a copy."""
  from tests import tiny_study

  out = tmp_path_factory.mktemp("studied")
  tiny_study.run(out)
  return out


@pytest.fixture
def copy(studied, tmp_path):
  """A copy of the tiny study that a test may change."""
  return shutil.copytree(studied, tmp_path / "copy")


@pytest.fixture(scope="session")
def starter():
  """Starts commands that keep their programs with those of the tests."""
  from tests import started

  starter = started.Starter(
    # Where no flag says otherwise, the programs are kept with all the others.
    JAX_COMPILATION_CACHE_DIR=jax.config.jax_compilation_cache_dir,  # pyright: ignore
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
  )
  yield starter
  starter.end()


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
