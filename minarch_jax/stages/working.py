"""Has the tasks of a stage done, and shows how far that is."""

from collections.abc import Sequence
from typing import Any

from minarch_jax import executors, records
from minarch_jax.engine.session import Session
from minarch_jax.executors import Task
from minarch_jax.stages.progress import Progress, say

Statistics = dict[str, Any]  # a line of study.json about one pack


def run(
  session: Session, stage: str, tasks: Sequence[Task]
) -> list[Statistics]:
  """Has tasks done.

  Args:
    session: what they were planned for.
    stage: its name, for whoever watches.
    tasks: those that take longest come first, so that the last end together.

  Returns:
    One line of engine statistics per pack that was not there.
  """
  with Progress(
    label(stage, session), sum(task.seconds for task in tasks)
  ) as progress:
    return sum(executors.run(session, tasks, _Watcher(progress)), [])


def label(stage: str, session: Session) -> str:
  """Names a stage of an arm, for whoever watches."""
  return stage if session.arm == records.MAIN else f"{stage} {session.arm}"


class _Watcher:
  """Shows progress in predicted seconds."""

  def __init__(self, progress: Progress):
    self._progress = progress

  def advance(self, task: Task, share: float) -> None:
    self._progress.advance(share * task.seconds)

  def say(self, text: str) -> None:
    say(text)
