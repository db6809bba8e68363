"""Where packs are run: tasks in, results out, and nobody else knows where.

A task says all that a process must know; what it does is write part files,
named by content. So it does not matter which process does it, nor whether two
do.
"""

from collections.abc import Sequence
from typing import Any

from minarch_jax import registries
from minarch_jax.engine.session import Session
from minarch_jax.executors.tasks import Scene as Scene
from minarch_jax.executors.tasks import Task as Task
from minarch_jax.executors.tasks import Watcher as Watcher


def run(session: Session, tasks: Sequence[Task], watcher: Watcher) -> list[Any]:
  """Has tasks done that are not done yet, where --executor says.

  Args:
    session: what the tasks were planned for.
    tasks: those that are to begin first come first.
    watcher: hears of progress.

  Returns:
    The results of the tasks that were done from here, in the order of tasks.

  Raises:
    Whatever a task raises first.
  """
  if not tasks:
    return []
  execute = registries.EXECUTORS[session.config.executor]
  return execute(session, tasks, watcher)
