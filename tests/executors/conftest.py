"""A small study by one process, and processes that do it together."""

import jax
import pytest

from tests.executors import small_study


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
  """What one process leaves."""
  out = tmp_path_factory.mktemp("alone")
  small_study.run(out)
  return out


@pytest.fixture
def start(starter):
  """Starts processes on as many devices as this one, and ends those left."""
  processes = []
  devices = f"--xla_force_host_platform_device_count={jax.device_count()}"

  def begin(*words):
    processes.append(
      starter.start(small_study.__name__, *words, XLA_FLAGS=devices)
    )
    return processes[-1]

  yield begin
  for process in processes:
    process.kill()
    process.communicate()
