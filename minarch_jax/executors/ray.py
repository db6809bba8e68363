"""Does tasks on a Ray cluster.

A worker is a process on a node, with the devices that it asked for. It does a
few tasks at a time, as a process on one machine does, and keeps its programs
from one stage to the next. This process says which task is next, those that
take longest first, and gives a worker no more than it works on; it trusts a
worker that died with nothing and has its tasks done by another.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import functools
import importlib
import logging
import os
import socket
import threading
import time
from typing import Any

import jax

import minarch_jax
from minarch_jax.config import Config, ConfigError
from minarch_jax.engine.programs import Table
from minarch_jax.engine.session import Session
from minarch_jax.executors import leases
from minarch_jax.executors.queue import Queue
from minarch_jax.executors.tasks import Scene, Task, Watcher

LOOK_SECONDS = 0.5  # between looks at workers
STOP_SECONDS = 60.0  # for workers to keep what they are in the middle of
SEEN_SECONDS = 10.0  # for a new file to be seen by all nodes
MOST_DEATHS = 3  # of workers in the middle of the same task


def run(session: Session, tasks: Sequence[Task], watcher: Watcher) -> list[Any]:
  """Does tasks on the workers of a cluster.

  Raises:
    ConfigError: there is no Ray, no cluster, or no node with the resources.
    RuntimeError: the same task was the end of several workers.
  """
  crew = _crew(
    session.config.ray_address,
    session.config.packs_at_once,
    tuple(_resources(session.config).items()),
  )
  with Queue(tasks, watcher) as queue, crew.working(session) as order:
    while queue.left or crew.busy:
      crew.enlist()
      for worker in crew.free():
        number = queue.look()
        if number is None:
          break
        order(worker, number, tasks[number])
      for number, result in crew.ended():
        if isinstance(result, _Lost):
          queue.back(number)
        else:
          queue.give(number, result)
      for number, share in crew.progress():
        watcher.advance(tasks[number], share)
  return queue.results()


def _resources(config: Config) -> dict[str, float]:
  """What a worker asks for."""
  cpus = config.worker_cpus or len(jax.local_devices(backend="cpu"))
  found = {"CPU": cpus, "GPU": config.worker_gpus, "TPU": config.worker_tpus}
  return {name: count for name, count in found.items() if count}


# --- on a node ---------------------------------------------------------------


class _Works:
  """A worker process: sessions that are open, and tasks in progress."""

  def __init__(self, cpus: int):
    # Before JAX starts, which would count the cores of the whole node.
    jax.config.update("jax_num_cpu_devices", cpus)
    self._sessions: dict[Scene, Session] = {}
    self._programs, self._stop = Table(), threading.Event()
    self._lock = threading.Lock()
    self._shares: dict[int, float] = {}

  def ready(self) -> None:
    """Returns once the process stands."""

  def do(self, scene: Scene, dataset: Any, number: int, task: Task) -> Any:
    _check_seen(task)
    with self._lock:  # one opens the session, the others find it
      if scene not in self._sessions:
        self._sessions[scene] = dataclasses.replace(
          scene.open(dataset), programs=self._programs, stop=self._stop
        )
    return task.work(
      self._sessions[scene], task, functools.partial(self._hear, number)
    )

  def _hear(self, number: int, share: float) -> None:
    with self._lock:
      self._shares[number] = self._shares.get(number, 0.0) + share

  def heard(self) -> dict[int, float]:
    """Says what was finished since it was last asked."""
    with self._lock:
      found, self._shares = self._shares, {}
    return found

  def stop(self) -> None:
    self._stop.set()


def _check_seen(task: Task) -> None:
  """Raises ConfigError where the lease that was just taken is not seen."""
  patience = time.monotonic() + SEEN_SECONDS
  while not leases.exists(task.out, task.id):
    if time.monotonic() > patience:
      raise ConfigError(
        f"--out={task.out} is another directory on {socket.gethostname()}; all "
        "nodes of the Ray cluster must see one (NFS, a mounted bucket)"
      )
    time.sleep(0.1)


# --- here --------------------------------------------------------------------


class _Lost:
  """Stands for the result of a task whose worker died."""


@dataclasses.dataclass(eq=False)
class _Worker:
  actor: Any
  ready: Any  # done once the process stands
  tasks: dict[Any, int] = dataclasses.field(default_factory=dict)
  asked: Any = None  # for its progress
  dead: bool = False


@functools.cache
def _crew(address: str, at_once: int, wanted: tuple) -> "_Crew":
  """The workers of this process; they stay from stage to stage."""
  return _Crew(_connected(address), at_once, dict(wanted))


def _connected(address: str) -> Any:
  try:
    ray: Any = importlib.import_module("ray")
  except ImportError:
    raise ConfigError(
      "--executor=ray needs Ray: pip install 'minarch-jax[ray]'"
    ) from None
  if ray.is_initialized():
    return ray
  package = os.path.dirname(os.path.abspath(minarch_jax.__file__))
  try:
    ray.init(
      address=address or None,
      runtime_env={"py_modules": [package]},  # the working tree, as it is
      logging_level=logging.ERROR,
      log_to_driver=False,
    )
  except (ConnectionError, ValueError) as error:
    raise ConfigError(
      f"--ray_address={address}: no Ray cluster answers ({error}); `ray start "
      "--head` starts one, '' makes one of this machine"
    ) from None
  return ray


class _Crew:
  """The workers on a cluster, as many as it has room for."""

  def __init__(self, ray: Any, at_once: int, wanted: dict[str, float]):
    self._ray, self._at_once, self._wanted = ray, at_once, wanted
    self._workers: list[_Worker] = []
    self._datasets: dict[str, Any] = {}  # once per node, by fingerprint
    self._deaths: dict[int, int] = {}

  @contextlib.contextmanager
  def working(self, session: Session) -> Iterator[Any]:
    """Yields what gives a task of a session to a worker."""
    scene, self._deaths = Scene.of(session), {}
    if scene.fingerprint not in self._datasets:
      self._datasets[scene.fingerprint] = self._ray.put(session.dataset)
    dataset = self._datasets[scene.fingerprint]

    def order(worker: _Worker, number: int, task: Task) -> None:
      result = worker.actor.do.remote(scene, dataset, number, task.anywhere)
      worker.tasks[result] = number

    try:
      yield order
    except BaseException:
      self._dismiss()
      raise

  @property
  def busy(self) -> bool:
    return any(worker.tasks for worker in self._workers)

  def enlist(self) -> None:
    """Starts workers where there is room for more, as on nodes that came."""
    room = sum(map(self._room, self._ray.nodes()))
    if not room and not self._workers:
      wanted = ", ".join(f"{n:g} {name}" for name, n in self._wanted.items())
      raise ConfigError(
        f"no node of the Ray cluster has {wanted}, what a worker asks for; "
        "lower --worker_cpus, --worker_gpus or --worker_tpus"
      )
    for _ in range(room - len(self._workers)):
      self._workers.append(self._started())

  def _room(self, node: dict[str, Any]) -> int:
    if not node["Alive"]:
      return 0
    has = node["Resources"]
    return int(min(has.get(name, 0) // n for name, n in self._wanted.items()))

  def _started(self) -> _Worker:
    asked = dict(self._wanted)
    options = {"num_cpus": asked.pop("CPU"), "num_gpus": asked.pop("GPU", 0)}
    kind = self._ray.remote(_Works).options(
      **options,
      resources=asked,
      max_concurrency=self._at_once + 2,  # it answers while it works
    )
    actor = kind.remote(int(self._wanted["CPU"]))
    return _Worker(actor, actor.ready.remote())

  def free(self) -> Iterator[_Worker]:
    """Lists workers that can be given a task, the idle ones first."""
    standing = [
      w for w in self._workers if not w.dead and self._is_done(w.ready)
    ]
    for busy in range(self._at_once):
      yield from (w for w in standing if len(w.tasks) == busy)

  def _is_done(self, reference: Any) -> bool:
    return bool(self._ray.wait([reference], timeout=0)[0])

  def ended(self) -> Iterator[tuple[int, Any]]:
    """Yields numbers and results of tasks that ended, waiting a little.

    Raises:
      Whatever a task raised.
    """
    running = {r: w for w in self._workers for r in w.tasks}
    if not running:
      time.sleep(LOOK_SECONDS)
    elif self._ray.wait(list(running), timeout=LOOK_SECONDS)[0]:
      done = self._ray.wait(list(running), num_returns=len(running), timeout=0)[
        0
      ]
      for reference in done:
        worker = running[reference]
        number = worker.tasks.pop(reference)
        yield number, self._result(worker, number, reference)
    self._workers = [w for w in self._workers if w.tasks or not w.dead]

  def _result(self, worker: _Worker, number: int, reference: Any) -> Any:
    try:
      return self._ray.get(reference)
    except self._ray.exceptions.RayTaskError as error:
      raise error.cause from None
    except self._ray.exceptions.RayError as error:
      worker.dead = True
      self._ray.kill(worker.actor)  # it may only have been out of reach
      self._deaths[number] = self._deaths.get(number, 0) + 1
      if self._deaths[number] == MOST_DEATHS:
        raise RuntimeError(
          f"{MOST_DEATHS} workers died in the middle of the same task, as they "
          "do where memory is short; try a lower --memory_limit"
        ) from error
      return _Lost()

  def progress(self) -> Iterator[tuple[int, float]]:
    """Yields numbers and shares that workers have finished meanwhile."""
    for worker in self._workers:
      if worker.asked is not None and self._is_done(worker.asked):
        asked, worker.asked = worker.asked, None
        with contextlib.suppress(self._ray.exceptions.RayError):
          yield from self._ray.get(asked).items()
      if worker.asked is None and worker.tasks:
        worker.asked = worker.actor.heard.remote()

  def _dismiss(self) -> None:
    """Has workers keep what they are in the middle of, and ends them."""
    running = [reference for w in self._workers for reference in w.tasks]
    for worker in self._workers:
      worker.actor.stop.remote()
    if running:
      self._ray.wait(running, num_returns=len(running), timeout=STOP_SECONDS)
    for worker in self._workers:
      self._ray.kill(worker.actor)
    self._workers.clear()
