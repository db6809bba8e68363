"""Leases: one owner at a time, taken over when the owner is gone."""

import os
import pathlib
import subprocess
import sys
import threading

import pytest

from minarch_jax.executors import leases
from minarch_jax.executors.leases import Leases, PATIENCE_SECONDS

ELSEWHERE = "another-machine 1 5 abc 000000000000"


class Clock:
  """Shows what it is told."""

  def __init__(self):
    self.now = 1e6

  def __call__(self):
    return self.now


@pytest.fixture
def clock():
  return Clock()


@pytest.fixture
def path(tmp_path):
  """The file of the lease that is asked for here."""
  found = tmp_path / leases.FOLDER / "a"
  found.parent.mkdir()
  return found


def test_one_has_it_until_it_gives_it_back(tmp_path):
  one, other = Leases(str(tmp_path)), Leases(str(tmp_path))
  assert one.claim("a") and not one.claim("a") and not other.claim("a")
  assert other.claim("b")
  one.release("a")
  assert other.claim("a")
  one.release("a")  # it is no longer its own
  assert not one.claim("a")
  one.close()
  assert {p.name for p in (tmp_path / leases.FOLDER).iterdir()} == {"a", "b"}
  other.close()
  assert not list(tmp_path.iterdir())


def test_of_many_threads_one_has_it(tmp_path):
  all_ready, found = threading.Barrier(8), []

  def claim():
    own = Leases(str(tmp_path))
    all_ready.wait(60)
    found.append(own.claim("a"))

  threads = [threading.Thread(target=claim) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sum(found) == 1


@pytest.mark.parametrize("content", [ELSEWHERE, "", "- 1 - x 0", "\0" * 20])
def test_what_does_not_change_is_taken_over_in_time(path, clock, content):
  path.write_text(content)
  own = Leases(str(path.parents[1]), clock)
  assert not own.claim("a")
  clock.now += PATIENCE_SECONDS - 1
  assert not own.claim("a")
  clock.now += 1
  assert own.claim("a")
  assert path.read_text() != content
  assert [p.name for p in path.parent.iterdir()] == ["a"]
  own.close()


def test_what_changes_is_left_to_its_owner(path, clock):
  own = Leases(str(path.parents[1]), clock)
  for number in range(5):
    path.write_text(f"{ELSEWHERE}{number}")
    os.utime(path, (0, 0))  # what its clock says does not matter
    assert not own.claim("a")
    clock.now += PATIENCE_SECONDS - 1
  assert not own.claim("a")
  own.close()


def test_who_is_late_does_not_take_it_over_again(path, clock, monkeypatch):
  """Two find it left; the slower one moves what the faster one has made."""
  path.write_text(ELSEWHERE)
  slow, quick = (Leases(str(path.parents[1]), clock) for _ in range(2))
  assert not slow.claim("a") and not quick.claim("a")
  clock.now += PATIENCE_SECONDS
  rename = os.rename

  def late(*names):
    monkeypatch.setattr(os, "rename", rename)
    assert quick.claim("a")
    rename(*names)

  monkeypatch.setattr(os, "rename", late)
  assert not slow.claim("a")
  assert quick._is_mine("a")
  slow.close()
  quick.close()


def test_an_owner_renews_it(path, monkeypatch):
  monkeypatch.setattr(leases, "RENEW_SECONDS", 0.01)
  own = Leases(str(path.parents[1]))
  assert own.claim("a")
  seen = set()
  while len(seen) < 3:
    seen.add(path.read_text())
  assert len({text.rsplit(" ", 1)[0] for text in seen} - {""}) == 1
  path.write_text(ELSEWHERE)  # taken over
  while own._count < 10:
    pass
  assert path.read_text() == ELSEWHERE
  own.close()
  assert path.exists()


# Loads the module alone, which is quick.
HOLD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("leases", sys.argv[2])
leases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(leases)
assert leases.Leases(sys.argv[1]).claim("a")
print("has it", flush=True)
sys.stdin.read(1)
"""


@pytest.mark.skipif(
  not pathlib.Path("/proc/sys/kernel/random/boot_id").exists(),
  reason="this system does not tell who is alive",
)
def test_a_dead_owner_on_this_machine_is_seen_at_once(path):
  out = str(path.parents[1])
  owner = subprocess.Popen(
    [sys.executable, "-c", HOLD, out, leases.__file__],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert owner.stdin and owner.stdout
  assert owner.stdout.readline() == "has it\n"
  own = Leases(out)
  assert not own.claim("a")
  owner.kill()
  os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)  # dead, still listed
  assert own.claim("a")
  own.release("a")
  owner.communicate()
  other = path.with_name("b")  # of what was done when it died
  other.write_text(path_of(owner.pid, started="1"))
  Leases(out).close()
  assert not path.parent.exists()
  path.parent.mkdir()
  # Another process may have its number by now.
  path.write_text(path_of(os.getpid(), started="1"))
  assert own.claim("a")
  own.release("a")
  path.write_text(path_of(os.getpid(), started=leases._started(os.getpid())))
  assert not own.claim("a")
  own.close()


def path_of(pid, started):
  """What a process of this machine writes into its lease."""
  return f"{leases._machine()} {pid} {started} name 000000000000"


def test_alone_is_alone(tmp_path):
  order = []

  def change(name):
    with leases.alone(str(tmp_path), "file"):
      order.append(name)
      order.append(name)

  threads = [threading.Thread(target=change, args=(i,)) for i in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(order) == 8 and order[::2] == order[1::2]
  assert not list(tmp_path.iterdir())
