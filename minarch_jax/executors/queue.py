"""The tasks of a process, less what others do in the same directory."""

from collections.abc import Sequence
import threading
from typing import Any

from minarch_jax.engine.session import Stopped
from minarch_jax.executors.leases import Leases
from minarch_jax.executors.tasks import Task, Watcher

LOOK_SECONDS = 0.5  # between looks at what other processes do


class Queue:
  """Hands out tasks that are not done, each under a lease.

  Threads may share it. What another process is doing comes last: it is done
  there, or it is handed out when that process gives it up.
  """

  def __init__(self, tasks: Sequence[Task], watcher: Watcher):
    self._tasks, self._watcher = tasks, watcher
    self._leases = Leases(tasks[0].out)
    self._fresh = list(range(len(tasks)))[::-1]
    self._elsewhere: list[int] = []
    self._results: dict[int, Any] = {}
    self._lock, self._waits = threading.Lock(), False

  def __enter__(self) -> "Queue":
    return self

  def __exit__(self, *unused: Any) -> None:
    self._leases.close()

  def take(self, stop: threading.Event) -> int | None:
    """Returns the number of a task that is now the caller's.

    Waits while all that is left is done by other processes.

    Returns:
      None where nothing is left.

    Raises:
      Stopped: the event was set.
    """
    while not stop.is_set():
      number = self.look()
      if number is not None or not self._elsewhere:
        return number
      self._say_waiting()
      stop.wait(LOOK_SECONDS)
    raise Stopped

  def look(self) -> int | None:
    """Returns the number of a task as `take` does, but does not wait."""
    with self._lock:
      while self._fresh:
        number = self._fresh.pop()
        if self._claim(number):
          return number
      others, self._elsewhere = self._elsewhere, []
      for place, number in enumerate(others):
        if self._claim(number):
          self._elsewhere += others[place + 1 :]
          return number
    return None

  @property
  def left(self) -> bool:
    """Whether there are tasks that nobody is known to have finished."""
    return bool(self._fresh or self._elsewhere)

  def give(self, number: int, result: Any) -> None:
    """Takes the result of a task."""
    self._results[number] = result
    self._leases.release(self._tasks[number].id)

  def back(self, number: int) -> None:
    """Takes a task back that is not done, to be handed out again."""
    self._leases.release(self._tasks[number].id)
    with self._lock:
      self._fresh.append(number)

  def results(self) -> list[Any]:
    """Lists what was given, in the order of the tasks."""
    return [self._results[number] for number in sorted(self._results)]

  def _claim(self, number: int) -> bool:
    task = self._tasks[number]
    if not task.done:
      if not self._leases.claim(task.id):
        self._elsewhere.append(number)
        return False
      if not task.done:
        return True
      self._leases.release(task.id)
    self._watcher.advance(task, 1.0)
    return False

  def _say_waiting(self) -> None:
    if not self._waits:
      self._waits = True
      self._watcher.say(
        f"waiting for other processes, which work on {len(self._elsewhere)} of "
        "the packs"
      )
