"""Several processes in one directory: each pack once, the tables of one."""

import collections
import time

import jax
import pytest

import minarch_jax as ma
from minarch_jax import records
from minarch_jax.executors import leases
from tests import started, tiny_study
from tests.executors import small_study
from tests.executors.small_study import HANGING, PACKS

MODULE = "tests.executors.small_study"


@pytest.fixture(scope="module")
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
    processes.append(starter.start(MODULE, *words, XLA_FLAGS=devices))
    return processes[-1]

  yield begin
  for process in processes:
    process.kill()
    process.communicate()


def assert_shared(out, alone):
  """The tables of one process; every pack in study.json, and once."""
  tiny_study.assert_same_tables(
    ma.read_records(str(out)), ma.read_records(str(alone))
  )
  lines = tiny_study.packs(out)
  assert collections.Counter(line["stage"] for line in lines) == {
    "train": PACKS,
    "compress": PACKS,
  }
  names = {path.name for path in out.iterdir()}
  assert names == {"checkpoints", "records", "study.json"}
  ids = set(records.ids(str(out), "networks"))
  assert {path.name for path in (out / "checkpoints").iterdir()} == ids


def wait_until(condition):
  for _ in range(10 * started.PATIENCE):
    if condition():
      return
    time.sleep(0.1)
  raise AssertionError("nothing happened")


def test_two_processes_share_the_packs(alone, start, tmp_path):
  for process in [start(str(tmp_path)) for _ in range(2)]:
    done = started.ended(process)
    assert done.returncode == 0, done.stderr
  assert_shared(tmp_path, alone)


def test_what_a_killed_process_held_is_done_by_the_others(
  alone, start, tmp_path
):
  victim = start(str(tmp_path), "hang")
  assert victim.stdout.readline().strip() == HANGING
  others = [start(str(tmp_path)) for _ in range(2)]
  wait_until(
    lambda: (
      len(records.ids(str(tmp_path), "networks")) == PACKS - 1
      or any(process.poll() is not None for process in others)
    )
  )
  assert [process.poll() for process in others] == [None, None]
  assert len(list((tmp_path / leases.FOLDER).iterdir())) == 1
  victim.kill()
  victim.wait()
  for process in others:
    done = started.ended(process)
    assert done.returncode == 0, done.stderr
  assert_shared(tmp_path, alone)
