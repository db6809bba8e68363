"""Processes that are one program: tables of one; all end where one dies."""

import socket
import time

import pytest

from tests import started
from tests.executors import small_study
from tests.executors.small_study import assert_shared, HANGING


def free_port():
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    return found.getsockname()[1]


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_of_one_program_share_the_packs(
  alone, start, tmp_path, count
):
  where = f"127.0.0.1:{free_port()}"
  processes = [
    start(str(tmp_path), "", where, str(count), str(i)) for i in range(count)
  ]
  ended = [started.ended(process) for process in processes]
  assert [done.returncode for done in ended] == [0] * count, ended[0].stderr
  assert_shared(tmp_path, alone)
  # The first one speaks.
  said = [done.stdout.strip().endswith("done") for done in ended]
  assert said == [True] + [False] * (count - 1)


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_where_one_dies_all_end_and_one_goes_on(alone, start, tmp_path, victim):
  where = f"127.0.0.1:{free_port()}"
  pair = [start(str(tmp_path), "hang", where, "2", str(i)) for i in range(2)]
  line = pair[0].stdout.readline()
  while HANGING not in line:
    line = pair[0].stdout.readline()
  small_study.wait_until(
    lambda: len(list((tmp_path / "leases").iterdir())) == 2
  )
  pair[victim].kill()
  start_of_end = time.monotonic()
  left = started.ended(pair[1 - victim])
  assert time.monotonic() - start_of_end < 60
  assert left.returncode != 0 and "another task died" in left.stderr
  assert not list((tmp_path / "records").glob("*/*"))
  small_study.run(tmp_path)
  assert_shared(tmp_path, alone)


def test_directories_that_are_not_one_are_told(start, tmp_path):
  where = f"127.0.0.1:{free_port()}"
  pair = [
    start(str(tmp_path / str(i)), "", where, "2", str(i)) for i in range(2)
  ]
  for done in map(started.ended, pair):
    assert done.returncode == 1
    assert "another directory on process 1" in done.stderr
