"""One data set on the devices, and the programs compiled so far."""

from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
import dataclasses
import functools
import itertools
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax import models
from minarch_jax.architectures import Spec
from minarch_jax.config import Config
from minarch_jax.engine import evaluation, planning, population, training
from minarch_jax.engine.planning import Pack, Work
from minarch_jax.types import Dataset

EVAL_BATCH = 128  # twice as many leave the cache: a sixth more time


CALL_SECONDS = 2.0  # epochs per call: long enough to hide dispatch, short


# enough that progress moves and Ctrl-C is answered
LARGE_STEP_SECONDS = 1e-3  # averaging gradients costs some 0.1 ms


LOOK_SECONDS = 0.2  # between looks at packs in progress


COLD_SECONDS = 0.2  # training below this is shorter than optimising its program


Splits = Mapping[str, tuple[int, int]]  # chunk range of each split


@dataclasses.dataclass(frozen=True)
class Session:
  """One data set on this machine's devices, and the programs compiled so far.

  `data` holds the three splits end to end, each padded to whole chunks with
  images that weigh 0, replicated on every device; `splits` says which chunks
  are whose. `programs` only ever grows; it is a cache, not a state, and packs
  that run at the same time share it. Once `stop` is set they give up before
  their next program.
  """

  config: Config
  dataset: Dataset
  work: Work
  data: evaluation.Chunks
  splits: Splits
  programs: dict[Any, concurrent.futures.Future] = dataclasses.field(
    default_factory=dict
  )
  lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
  stop: threading.Event = dataclasses.field(default_factory=threading.Event)


def work_of(config: Config, dataset: Dataset) -> Work:
  """Describes the amount of training to the planner."""
  return Work(
    dataset.input_shape,
    dataset.num_classes,
    len(dataset.train.y),
    len(dataset.validation.y),
    config.batch_size,
    config.num_epochs,
  )


def open_session(config: Config, dataset: Dataset) -> Session:
  """Puts the data on the devices.

  Raises:
    ValueError: the batch is larger than the training split.
  """
  if config.batch_size > len(dataset.train.y):
    raise ValueError(
      f"--batch_size={config.batch_size} is larger than the training split of "
      f"{dataset.name} ({len(dataset.train.y)} images)"
    )
  size = min(EVAL_BATCH, len(dataset.validation.y))
  parts = {
    split: evaluation.chunk(getattr(dataset, split), size)
    for split in ("train", "validation", "test")
  }
  ends = list(itertools.accumulate(len(part.y) for part in parts.values()))
  splits = dict(zip(parts, zip([0, *ends], ends, strict=False), strict=True))
  data = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts.values())
  layout = population.mapping(config, "dnn")
  data = population.place(data, "shared", layout)
  return Session(config, dataset, work_of(config, dataset), data, splits)


def layout_of(session: Session, pack: Pack) -> population.Mapping:
  """Says how a pack is laid out on this machine."""
  work = session.work
  step = planning.seconds(pack.parent, 1, work) / work.num_steps
  layout = population.mapping(
    session.config,
    pack.parent.family,
    pack.slots,
    len(pack.seeds),
    large=step > LARGE_STEP_SECONDS,
  )
  if layout.devices[0].platform != "cpu" or layout.members == "vmap":
    return layout
  parts = len(layout.devices) if layout.split == "batch" else 1
  size = planning.microbatch(pack.parent, work.batch_size // parts, work)
  return dataclasses.replace(layout, microbatch=size)


def padded(pack: Pack, layout: population.Mapping) -> Pack:
  """Repeats the last seed or member until the split axis divides."""
  if layout.split == "batch":
    return pack
  missing = -(len(pack.seeds) if layout.split == "seed" else pack.slots)
  missing %= len(layout.devices)
  if layout.split == "seed":
    return dataclasses.replace(
      pack, seeds=pack.seeds + pack.seeds[-1:] * missing
    )
  return dataclasses.replace(pack, slots=pack.slots + missing)


def sizes_of(pack: Pack, session: Session) -> dict[str, np.ndarray]:
  """True sizes of every member: int32 [A] for each unit axis, and "depth".

  Depth is left out where members cannot differ in it: checking it costs a
  little in every step.
  """
  shape = (session.work.input_shape, session.work.num_classes)
  deep = pack.parent.family != "cnn" and pack.parent.depth > 1
  alone = set(pack.members) == {pack.parent} and pack.slots == 1
  depth = pack.parent.depth if deep and not alone else None
  members = [a.sizes(*shape, depth) for a in pack.members]
  return {
    axis: np.array([sizes[axis] for sizes in members], np.int32)
    for axis in members[0]
  }


@dataclasses.dataclass
class Placed:
  """A pack on its devices, ready to run its programs.

  `pack` is padded to what the devices divide; `wanted` says which of its seeds
  and members are not padding, placed bool [S] and [A]; `compile_seconds` adds
  up what its programs cost to compile.
  """

  session: Session
  pack: Pack
  layout: population.Mapping
  sizes: Any
  wanted: tuple[Any, Any]
  compile_seconds: float = 0.0

  @property
  def spec(self) -> Spec:
    work = self.session.work
    return self.pack.parent.spec(work.input_shape, work.num_classes)

  @property
  def model(self):
    """The model of the parent."""
    bfloat16 = self.session.config.compute_dtype == "bfloat16"
    return models.make_model(
      self.pack.parent,
      self.session.work.input_shape,
      self.session.work.num_classes,
      compute_dtype=jnp.bfloat16 if bfloat16 else None,
      convolution=self.layout.convolution,
    )

  @functools.cached_property
  def idle(self) -> tuple[Any, Any]:
    """Placed minibatches and rates for a run that only scores."""
    per_call = epochs_per_call(self.pack, self.session)
    order = orders(self.session, self.pack.seeds, 0, range(0), per_call)
    rate = np.zeros(order.shape[1:3], np.float32)
    return self.put(order, "order"), self.put(rate, "shared")

  def put(self, value: Any, kind: str) -> Any:
    """Puts host arrays where a program expects that kind."""
    return population.place(value, kind, self.layout)

  def run(
    self, name: str, make: "Make", *arguments: Any, hot: bool = False
  ) -> Any:
    """Runs a program of this pack's parent, compiling it the first time."""
    if self.session.stop.is_set():
      raise Stopped
    key = (name, self.pack.parent)
    call, spent = program(self.session, key, make, arguments, self.layout, hot)
    self.compile_seconds += spent
    return call(*arguments)


class Stopped(Exception):
  """The session was told to stop."""


# Makes a function of one network, the kinds of its arguments, and the numbers
# of those whose buffers it may overwrite.
Make = Callable[[], tuple[Callable, tuple[str, ...], tuple[int, ...]]]


def together(
  session: Session, tasks: Sequence[Any], work: Callable[[Any], Any]
) -> list[Any]:
  """Works on several packs at a time, so that one compiles while another runs.

  Returns:
    The results in the order of the tasks.

  Raises:
    Whatever a task raises first; the others stop at their next program.
  """
  count = session.config.packs_at_once
  with concurrent.futures.ThreadPoolExecutor(count) as pool:
    futures = [pool.submit(work, task) for task in tasks]
    try:
      left = True
      while left:
        # Polars restarts a wait that Ctrl-C interrupts: only one that ends by
        # itself lets the main thread see it.
        _, left = concurrent.futures.wait(
          futures, LOOK_SECONDS, concurrent.futures.FIRST_EXCEPTION
        )
        for future in futures:
          if future.done() and future.exception():
            future.result()
      return [future.result() for future in futures]
    except BaseException:
      session.stop.set()
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def place(session: Session, pack: Pack) -> Placed:
  """Decides a pack's layout and pads it to the devices."""
  layout = layout_of(session, pack)
  full = padded(pack, layout)
  sizes = population.place(sizes_of(full, session), "member", layout)
  seeds = np.arange(len(full.seeds)) < len(pack.seeds)
  members = np.arange(full.slots) < len(pack.architectures)
  wanted = (
    population.place(seeds, "seed", layout),
    population.place(members, "member", layout),
  )
  return Placed(session, full, layout, sizes, wanted)


def program(
  session: Session,
  key: tuple,
  make: Make,
  arguments: Sequence[Any],
  layout: population.Mapping,
  hot: bool,
) -> tuple[Callable, float]:
  """Returns a compiled program and the seconds spent compiling it now.

  Of several threads that need a program one compiles it and the others wait.
  """
  shapes = tuple(
    (leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(arguments)
  )
  key = (*key, layout, shapes, jax.tree.structure(arguments))
  with session.lock:
    found = session.programs.get(key)
    ours = found is None
    if found is None:
      found = session.programs[key] = concurrent.futures.Future()
  if not ours:
    return found.result().call, 0.0
  try:
    function, kinds, donate = make()
    compiled = population.compile(
      function, kinds, layout, arguments, donate, hot=hot
    )
  except BaseException as error:
    with session.lock:
      del session.programs[key]
    found.set_exception(error)
    raise
  found.set_result(compiled)
  return compiled.call, compiled.compile_seconds


def num_params(pack: Pack, session: Session) -> int:
  """Counts the parameters of a pack's slots for one seed."""
  work = session.work
  return pack.slots * pack.parent.num_params(work.input_shape, work.num_classes)


def _predicted(pack: Pack, session: Session) -> float:
  """Predicts the seconds that one device would take to train a pack."""
  run = planning.seconds(pack.parent, pack.slots, session.work)
  return run * len(pack.seeds)


def is_long(placed: Placed) -> bool:
  """Says whether work on a pack's images outlasts optimising its program."""
  return _predicted(placed.pack, placed.session) > COLD_SECONDS


def epochs_per_call(pack: Pack, session: Session) -> int:
  """How many epochs a call may run to stay within CALL_SECONDS."""
  predicted = _predicted(pack, session) / session.work.num_epochs
  most = int(CALL_SECONDS / max(predicted, 1e-9))
  return min(max(1, most), session.work.num_epochs)


def in_parts(pack: Pack, work: Callable[[Pack], Any]) -> list[Any]:
  """Works on a pack, or on its halves where the whole does not fit the memory.

  Returns:
    The results of all parts.

  Raises:
    MemoryError: one network with one seed does not fit.
  """
  try:
    return [work(pack)]
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    halves = planning.halves(pack)
    if not halves:
      raise MemoryError(
        f"{pack.parent} does not fit the memory of the device even alone; "
        "lower --batch_size or --memory_limit"
      ) from error
  return [result for half in halves for result in in_parts(half, work)]


def orders(session, seeds, first_epoch, numbers, length) -> np.ndarray:
  """Minibatches of several epochs, int32 [S, length, T, B]; the rest is 0."""
  work = session.work
  steps = work.num_train // work.batch_size
  order = np.zeros((len(seeds), length, steps, work.batch_size), np.int32)
  for i, seed in enumerate(seeds):
    for j, number in enumerate(numbers):
      order[i, j] = training.data_order(
        seed, first_epoch + number, work.num_train, work.batch_size
      )
  return order
