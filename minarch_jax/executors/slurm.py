"""Does tasks in the jobs of an array on a Slurm cluster, through submitit.

A job is one more process in the results directory: it does the tasks that no
other has a lease of. Before its time is up, or where it has to make room, Slurm
tells it by a signal: it keeps what it is in the middle of and is queued
again. What the jobs print is in <out>/slurm.
"""

from collections.abc import Sequence
import importlib
import os
import re
import shutil
import signal
import threading
import time
from typing import Any

import jax

from minarch_jax.config import Config, ConfigError
from minarch_jax.engine.session import Session
from minarch_jax.executors import local
from minarch_jax.executors.tasks import Scene, Task, Watcher

CLUSTER = "slurm"
LOOK_SECONDS = 2.0  # between looks at what jobs have left
STOP_SECONDS = 80.0  # to keep what is in progress; Slurm tells 90 s before
FOLDER = "slurm"


def run(session: Session, tasks: Sequence[Task], watcher: Watcher) -> list[Any]:
  """Does tasks in jobs, and waits for them.

  Raises:
    ConfigError: there is no submitit, or no Slurm.
    RuntimeError: all jobs have ended, and not all tasks are done.
  """
  jobs = _submitted(session, tasks)
  left = list(range(len(tasks)))
  try:
    while left and not all(job.done() for job in jobs):
      left = _look(tasks, left, watcher)
      time.sleep(LOOK_SECONDS)
    if _look(tasks, left, watcher):
      raise RuntimeError(_why(jobs))
    return [line for job in jobs for line in job.result()]
  except BaseException:
    for job in jobs:
      job.cancel()
    raise


def _submitted(session: Session, tasks: Sequence[Task]) -> list[Any]:
  config = session.config
  folder = os.path.abspath(os.path.join(tasks[0].out, FOLDER))
  submitit = _submitit()
  executor = submitit.AutoExecutor(folder=folder, cluster=CLUSTER)
  cpus = config.worker_cpus or len(jax.local_devices(backend="cpu"))
  executor.update_parameters(
    name="minarch_jax",
    nodes=1,
    tasks_per_node=1,
    cpus_per_task=cpus,
    gpus_per_node=config.worker_gpus,
    timeout_min=config.slurm_minutes,
    slurm_additional_parameters=_options(config),
  )
  job = _Job(Scene.of(session), [task.anywhere for task in tasks], cpus)
  with executor.batch():
    count = min(config.slurm_jobs, len(tasks))
    return [executor.submit(job) for _ in range(count)]


def _submitit() -> Any:
  try:
    found = importlib.import_module("submitit")
  except ImportError:
    raise ConfigError(
      "--executor=slurm needs submitit: pip install 'minarch-jax[slurm]'"
    ) from None
  if CLUSTER == "slurm" and not shutil.which("sbatch"):
    raise ConfigError(
      "--executor=slurm: there is no sbatch here; start it where jobs are "
      "submitted"
    )
  return found


def _options(config: Config) -> dict[str, str]:
  """Reads partition=gpu,qos=low as sbatch takes them."""
  pairs = [option.partition("=") for option in config.slurm_options]
  return {name: value for name, _, value in pairs}


def _look(
  tasks: Sequence[Task], left: Sequence[int], watcher: Watcher
) -> list[int]:
  """Tells of tasks that are done meanwhile; lists the others."""
  still = [number for number in left if not tasks[number].done]
  for number in set(left) - set(still):
    watcher.advance(tasks[number], 1.0)
  return still


def _why(jobs: Sequence[Any]) -> str:
  """Says how jobs ended that left tasks undone."""
  reasons = [
    f"job {job.job_id}: {_error(str(failed))} (see {job.paths.stderr})"
    for job in jobs
    if (failed := job.exception())
  ]
  return "\n".join(["all jobs have ended, but packs are left", *reasons])


def _error(text: str) -> str:
  """Finds the error in what submitit tells of a job."""
  found = re.findall(r"^[\w.]+: .+", text, re.MULTILINE)
  return found[-1] if found else text.splitlines()[0]


class _Silent:
  """Nobody watches a job; what it leaves is looked at."""

  def advance(self, task: Task, share: float) -> None:
    del task, share

  def say(self, text: str) -> None:
    print(text, flush=True)


class _Job:
  """What a job does, and how it is told to stop."""

  def __init__(self, scene: Scene, tasks: list[Task], cpus: int):
    self._scene, self._tasks, self._cpus = scene, tasks, cpus

  def __getstate__(self) -> dict[str, Any]:
    names = ("_scene", "_tasks", "_cpus")
    return {name: getattr(self, name) for name in names}

  def __call__(self) -> list[Any]:
    jax.config.update("jax_num_cpu_devices", self._cpus)
    self._session = self._scene.open()
    self._found: Any = []
    # Beside the main thread, where signals are heard.
    self._thread = threading.Thread(target=self._work)
    signal.signal(signal.SIGTERM, lambda *_: self._session.stop.set())
    self._thread.start()
    self._thread.join()
    if isinstance(self._found, BaseException):
      raise self._found
    return self._found

  def _work(self) -> None:
    try:
      self._found = local.run(self._session, self._tasks, _Silent())
    except BaseException as error:  # raised where the result is returned
      self._found = error

  def checkpoint(self) -> Any:
    """Keeps what is in progress; says what is queued instead."""
    if hasattr(self, "_thread"):
      self._session.stop.set()
      self._thread.join(STOP_SECONDS)
    helpers = importlib.import_module("submitit.helpers")
    return helpers.DelayedSubmission(self)
