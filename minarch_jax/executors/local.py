"""Does tasks in this process, a few at a time."""

from collections.abc import Sequence
import functools
from typing import Any

from minarch_jax.engine import session as sessions
from minarch_jax.engine.session import Session
from minarch_jax.executors.queue import Queue
from minarch_jax.executors.tasks import Task, Watcher


def run(session: Session, tasks: Sequence[Task], watcher: Watcher) -> list[Any]:
  """Does tasks in threads, so that one compiles while another runs."""
  with Queue(tasks, watcher) as queue:

    def serve(_: int) -> None:
      while (number := queue.take(session.stop)) is not None:
        task = tasks[number]
        heard = functools.partial(watcher.advance, task)
        queue.give(number, task.work(session, task, heard))

    count = min(session.config.packs_at_once, len(tasks))
    sessions.together(session, range(count), serve)
  return queue.results()
