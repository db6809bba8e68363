"""Several processes in one directory: each pack once, the tables of one."""

from minarch_jax import records
from minarch_jax.executors import leases
from tests import started
from tests.executors.small_study import (
  assert_shared,
  HANGING,
  PACKS,
  wait_until,
)


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
