"""The queue of tasks: each once, those of other processes last."""

import dataclasses
import threading
import time

import polars as pl
import pytest

from minarch_jax import records
from minarch_jax.engine.session import Stopped
from minarch_jax.executors import queue as queues
from minarch_jax.executors.leases import Leases
from minarch_jax.executors.queue import Queue
from minarch_jax.executors.tasks import Task


@dataclasses.dataclass
class Heard:
  """Writes down what it hears."""

  shares: dict = dataclasses.field(default_factory=dict)
  said: list = dataclasses.field(default_factory=list)

  def advance(self, task, share):
    self.shares[task.id] = self.shares.get(task.id, 0) + share

  def say(self, text):
    self.said.append(text)


def nothing(session, task, heard):
  raise AssertionError("nobody does it here")


def tasks_in(out, count=3):
  return [
    Task(nothing, str(out), f"t{i}", ("probes",), ()) for i in range(count)
  ]


def finish(task):
  """As another process would."""
  rows = pl.DataFrame(schema=records.SCHEMAS["probes"])
  records.write(task.out, "probes", task.id, rows)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(queues, "LOOK_SECONDS", 0.01)


def test_in_order_once_and_results_in_order(tmp_path):
  heard, stop = Heard(), threading.Event()
  with Queue(tasks_in(tmp_path), heard) as queue:
    assert [queue.take(stop) for _ in range(3)] == [0, 1, 2]
    # What is in progress here is not waited for.
    assert queue.take(stop) is None
    queue.give(2, "c")
    queue.give(0, "a")
    queue.back(1)
    assert queue.take(stop) == 1
    queue.give(1, "b")
    assert queue.take(stop) is None and not queue.left
  assert queue.results() == ["a", "b", "c"]
  assert not heard.shares  # who works on them tells
  assert not list(tmp_path.iterdir())


def test_what_is_done_is_left_out(tmp_path):
  heard, tasks = Heard(), tasks_in(tmp_path)
  finish(tasks[1])
  with Queue(tasks, heard) as queue:
    assert [queue.look() for _ in range(3)] == [0, 2, None]
  assert heard.shares == {"t1": 1.0}


def test_what_another_holds_is_waited_for(tmp_path):
  heard, tasks, stop = Heard(), tasks_in(tmp_path), threading.Event()
  other = Leases(str(tmp_path))
  assert other.claim("t0") and other.claim("t1")
  with Queue(tasks, heard) as queue:
    assert queue.take(stop) == 2
    queue.give(2, "c")
    assert queue.look() is None and queue.left

    def go_on():
      time.sleep(0.05)
      other.release("t1")  # given up
      time.sleep(0.05)
      finish(tasks[0])
      other.release("t0")

    thread = threading.Thread(target=go_on)
    thread.start()
    assert queue.take(stop) == 1
    queue.give(1, "b")
    assert queue.take(stop) is None
    thread.join()
  assert queue.results() == ["b", "c"]
  assert heard.shares == {"t0": 1.0}
  (said,) = heard.said
  assert said.startswith("waiting for other processes")
  other.close()


def test_what_was_finished_just_before_it_was_claimed_is_not_done_again(
  tmp_path, monkeypatch
):
  heard, tasks = Heard(), tasks_in(tmp_path, 1)
  claim = Leases.claim

  def late(self, name):
    finish(tasks[0])
    return claim(self, name)

  monkeypatch.setattr(Leases, "claim", late)
  with Queue(tasks, heard) as queue:
    assert queue.look() is None and not queue.left
  assert heard.shares == {"t0": 1.0}


def test_who_waits_can_be_stopped(tmp_path):
  other, stop = Leases(str(tmp_path)), threading.Event()
  assert other.claim("t0")
  with Queue(tasks_in(tmp_path, 1), Heard()) as queue:
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(Stopped):
      queue.take(stop)
  other.close()


def test_threads_share_a_queue(tmp_path):
  tasks, taken, stop = tasks_in(tmp_path, 60), [], threading.Event()
  with Queue(tasks, Heard()) as queue:

    def serve():
      while (number := queue.take(stop)) is not None:
        taken.append(number)
        queue.give(number, number)

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  assert sorted(taken) == list(range(60)) == queue.results()
