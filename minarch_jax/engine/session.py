"""One data set on the devices, packs placed beside it, and their programs."""

from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
import dataclasses
import functools
import itertools
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax import models, records
from minarch_jax.architectures import Architecture, Problem, Spec
from minarch_jax.config import Config, ConfigError
from minarch_jax.engine import costs, evaluation, planning, population
from minarch_jax.engine import machine as machines
from minarch_jax.engine.costs import Machine, Work
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.programs import Program, Table
from minarch_jax.engine.training import NOTHING_OWN, Own
from minarch_jax.types import Batch, Dataset, Model

EVAL_BATCH = 128  # twice as many leave the cache: a sixth more time
# Epochs per call: long enough to hide dispatch, short enough that progress
# moves and Ctrl-C is answered.
CALL_SECONDS = 2.0
LARGE_STEP_SECONDS = 1e-3  # averaging gradients costs some 0.1 ms
LOOK_SECONDS = 0.2  # between looks at packs in progress
# A program that is hardly optimised runs so many times as long, and saves so
# much of the time of compiling.
COLD = 3.0
SAVED = 0.5

Splits = Mapping[str, tuple[int, int]]  # chunk range of each split
SPLITS: tuple[str, ...] = ("train", "validation", "test")
LEADING_CHUNKS = 4  # as many training images criteria and ranges look at


class Fold(NamedTuple):
  """How the seeds of one validation fold see the images.

  Attributes:
    view: host arrays, see `evaluation.View`.
    train: int32 [num_train], places of the training images among all.
    sizes: the number of images of each split.
  """

  view: evaluation.View
  train: np.ndarray
  sizes: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Session:
  """One data set on this machine's devices, and the programs compiled so far.

  `data` holds all images, replicated on every device: each fold and each split
  padded to whole chunks with images that weigh 0. The `folds` say in which
  order a seed takes the chunks, `splits` which of them, in that order, are
  whose. `machine` is what plans and forecasts go by, `own` what somebody
  exchanges of the recipe. The networks belong to an
  `arm` of a study; one that trains longer than another shares its programs by
  calls of at most `most_epochs`. Packs that run at the same time share the
  programs. Once `stop` is set they give up before their next one.
  """

  config: Config
  dataset: Dataset
  work: Work
  data: evaluation.Chunks
  folds: tuple[Fold, ...]
  splits: Splits
  machine: Machine = costs.REFERENCE
  arm: str = records.MAIN
  own: Own = NOTHING_OWN
  most_epochs: int | None = None
  programs: Table = dataclasses.field(default_factory=Table)
  stop: threading.Event = dataclasses.field(default_factory=threading.Event)

  @property
  def problem(self) -> Problem:
    return self.work.problem

  def fold_of(self, seed: int) -> Fold:
    return self.folds[seed % len(self.folds)]

  def sizes(self, seeds: Sequence[int], split: str) -> np.ndarray:
    """Counts the images of a split, int [S]."""
    return np.array([self.fold_of(seed).sizes[split] for seed in seeds])

  def with_config(self, **changes: Any) -> "Session":
    """Returns a session of another configuration on the same data."""
    config = self.config.replace(**changes)
    work = work_of(config, self.dataset)
    return dataclasses.replace(self, config=config, work=work)


def work_of(config: Config, dataset: Dataset) -> Work:
  """Describes the amount of training to the planner; equal for all seeds."""
  held = [len(dataset.validation.y)]
  if dataset.folds is not None:
    held += np.bincount(dataset.folds)[1:].tolist()
  images = len(dataset.train.y) + len(dataset.validation.y)
  return Work(
    Problem.of(dataset),
    images - max(held),
    max(held),
    config.batch_size,
    config.num_epochs,
  )


def open_session(
  config: Config, dataset: Dataset, machine: Machine | None = None
) -> Session:
  """Starts the devices and puts the data there.

  Args:
    config: every choice.
    dataset: the data.
    machine: what an earlier session went by; None = measured now or before.

  Raises:
    ConfigError: the batch is larger than the training split.
    ValueError: the folds are not numbered 1, 2, ... in rising order.
  """
  population.use_cores()
  population.use_cache(config.compilation_cache_dir)
  _check_folds(dataset)
  work = work_of(config, dataset)
  if config.batch_size > work.num_train:
    raise ConfigError(
      f"--batch_size={config.batch_size} is larger than the training split of "
      f"{dataset.name} ({work.num_train} images)"
    )
  data, folds, splits = _laid_out(dataset, work)
  data = population.place(data, "shared", population.on_devices(config))
  machine = machine or machines.here()
  return Session(config, dataset, work, data, folds, splits, machine)


def _check_folds(dataset: Dataset) -> None:
  if dataset.folds is None:
    return
  folds = np.asarray(dataset.folds)
  steps = np.diff(folds, prepend=1)
  if folds.shape != dataset.train.y.shape or not np.isin(steps, (0, 1)).all():
    raise ValueError(
      f"folds of {dataset.name!r} must number the {len(dataset.train.y)} "
      "training images 1, 1, ..., 2, 2, ...: put the images in that order"
    )


def _laid_out(
  dataset: Dataset, work: Work
) -> tuple[evaluation.Chunks, tuple[Fold, ...], Splits]:
  """Lays all images end to end in chunks, and says how each fold sees them.

  The chunks are those of what all seeds train on, of the folds 1 to F - 1, of
  fold 0 and of the test split. All folds have as many chunks, so that the
  splits of all seeds have the same bounds: only the order of the chunks
  differs, which a program is given as data.
  """
  size = min(EVAL_BATCH, work.num_eval)
  parts = [dataset.train]
  if dataset.folds is not None:
    parts = [
      Batch(*(np.asarray(part)[dataset.folds == k] for part in dataset.train))
      for k in range(1, dataset.num_folds)
    ]
  parts += [dataset.validation, dataset.test]
  least = -(-work.num_eval // size)
  chunks = [evaluation.chunk(part, size, least) for part in parts[:-1]]
  chunks.append(evaluation.chunk(parts[-1], size))
  lengths = [len(part.y) for part in chunks]
  starts = [0, *itertools.accumulate(lengths)]
  numbers = [np.arange(a, b) for a, b in itertools.pairwise(starts)]
  places = [
    numbers[i][0] * size + np.arange(len(part.y))
    for i, part in enumerate(parts)
  ]
  held = range(len(parts) - 1) if dataset.num_folds > 1 else [1]
  folds = [
    _fold(numbers, places, own, min(LEADING_CHUNKS * size, work.num_train))
    for own in held
  ]
  ends = np.cumsum([sum(lengths[:-2]), lengths[-2], lengths[-1]]).tolist()
  splits = dict(zip(SPLITS, zip([0, *ends], ends, strict=False), strict=True))
  data = jax.tree.map(lambda *leaves: np.concatenate(leaves), *chunks)
  # Seed 0 validates on fold 0, which stands after the others.
  return data, tuple([folds[-1], *folds[:-1]]), splits


def _fold(
  numbers: Sequence[np.ndarray],
  places: Sequence[np.ndarray],
  own: int,
  leading: int,
) -> Fold:
  """Describes the fold that validates on part `own`; the last part is test."""
  rest = [i for i in range(len(numbers) - 1) if i != own]
  order = np.concatenate([numbers[i] for i in (*rest, own, len(numbers) - 1)])
  train = np.concatenate([places[i] for i in rest]).astype(np.int32)
  sizes = (len(train), len(places[own]), len(places[-1]))
  return Fold(
    evaluation.View(order.astype(np.int32), train[:leading]),
    train,
    dict(zip(SPLITS, sizes, strict=True)),
  )


class Stopped(Exception):
  """The session was told to stop."""


# --- a pack on its devices ---------------------------------------------------


class Network(NamedTuple):
  """What a program's function is built for: the static half of a pack."""

  architecture: Architecture
  problem: Problem
  compute_dtype: str
  convolution: str

  @property
  def spec(self) -> Spec:
    return self.architecture.spec(self.problem)

  @property
  def model(self) -> Model:
    bfloat16 = self.compute_dtype == "bfloat16"
    return models.make_model(
      self.architecture,
      self.problem,
      compute_dtype=jnp.bfloat16 if bfloat16 else None,
      convolution=self.convolution,
    )


@dataclasses.dataclass
class Placed:
  """A pack on its devices, ready to run its programs.

  Attributes:
    session: the data and programs.
    pack: with its last seed or member repeated until the devices divide it;
      the results of repetitions are dropped.
    layout: how its programs are mapped.
    sizes: the members' true sizes, placed.
    wanted: which of its seeds and members are no repetitions, placed bool [S]
      and [A].
    compile_seconds: what its programs took to compile, added up.
  """

  session: Session
  pack: Pack
  layout: population.Mapping
  sizes: Any
  wanted: tuple[Any, Any]
  compile_seconds: float = 0.0

  @property
  def network(self) -> Network:
    """The parent, which every program of the pack is built for."""
    config = self.session.config
    return Network(
      self.pack.parent,
      self.session.problem,
      config.compute_dtype,
      self.layout.convolution,
    )

  @functools.cached_property
  def seeds(self) -> Any:
    """The numbers of the seeds, placed int32 [S]."""
    return self.put(np.array(self.pack.seeds, np.int32), "seed")

  @functools.cached_property
  def view(self) -> evaluation.View:
    """How each seed sees the images, placed [S, ...]."""
    views = [self.session.fold_of(seed).view for seed in self.pack.seeds]
    stacked = jax.tree.map(lambda *parts: np.stack(parts), *views)
    return self.put(stacked, "seed")

  @functools.cached_property
  def order_shape(self) -> tuple[int, int, int, int]:
    """Seeds, epochs of a call, steps of an epoch, images of a step."""
    work = self.session.work
    epochs = epochs_per_call(self.pack, self.session)
    steps = work.num_train // work.batch_size
    return len(self.pack.seeds), epochs, steps, work.batch_size

  @functools.cached_property
  def idle(self) -> tuple[Any, Any]:
    """Placed minibatches and rates for a call that only scores."""
    order = np.zeros(self.order_shape, np.int32)
    rates = np.zeros(self.order_shape[1:3], np.float32)
    return self.put(order, "order"), self.put(rates, "shared")

  def put(self, value: Any, kind: str) -> Any:
    """Puts host arrays where a program expects that kind."""
    return population.place(value, kind, self.layout)

  def run(
    self,
    program: Program,
    /,
    *,
    static: Mapping[str, Any],
    hot: bool = False,
    layout: population.Mapping | None = None,
    **arguments: Any,
  ) -> Any:
    """Runs a program, compiling it the first time.

    Args:
      program: the declaration.
      static: values its function closes over; what it depends on and is
        neither here nor an argument would be that of whoever came first.
      hot: whether its speed matters more than compiling it.
      layout: where not the pack's own.
      **arguments: by name; what is on the host is placed as its kind says, and
        the buffers of donated arguments are given up.

    Returns:
      Placed results, [S, A, ...].

    Raises:
      Stopped: the session was told to stop.
      TypeError: an argument is missing or unknown, or a static value cannot be
        hashed.
    """
    # Here, because every wait for a device passes here: a thread whose session
    # ends gives up between two calls, never with half a result.
    if self.session.stop.is_set():
      raise Stopped
    layout = layout or self.layout
    # Placed before the program is looked up: it is compiled for how its
    # arguments lie on the devices.
    ordered = program.placed(arguments, layout)
    call, spent = self.session.programs.find(
      program, static, layout, ordered, hot
    )
    self.compile_seconds += spent
    return call(*ordered)


def place(session: Session, pack: Pack) -> Placed:
  """Decides a pack's layout and repeats networks until the devices divide it.

  Repetitions, like the slots that a pack has beyond its architectures, are
  marked as not wanted: a program may skip them, a result leaves them out.
  """
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


def layout_of(session: Session, pack: Pack) -> population.Mapping:
  """Says how a pack is laid out on this machine."""
  work = session.work
  step = costs.step_seconds(pack.parent, 1, work, session.machine)
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
  size = costs.microbatch(pack.parent, work.batch_size // parts, work.problem)
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
  parent = pack.parent
  deep = parent.traits.deepen is not None and parent.depth > 1
  alone = set(pack.members) == {parent} and pack.slots == 1
  depth = parent.depth if deep and not alone else None
  members = [a.sizes(session.problem, depth) for a in pack.members]
  return {
    axis: np.array([sizes[axis] for sizes in members], np.int32)
    for axis in members[0]
  }


def num_params(pack: Pack, session: Session) -> int:
  """Counts the parameters of a pack's slots for one seed."""
  return pack.slots * pack.parent.spec(session.problem).num_params


def _predicted(pack: Pack, session: Session) -> float:
  """Predicts the seconds that one device would take to train all slots."""
  run = costs.seconds(pack.parent, pack.slots, session.work, session.machine)
  return run * len(pack.seeds)


def is_long(placed: Placed) -> bool:
  """Says whether work on a pack's images outlasts optimising its program."""
  pack, session = placed.pack, placed.session
  compiling = costs.compile_seconds(pack.parent, session.machine)
  longer = planning.REUSE * _predicted(pack, session) * (COLD - 1)
  return longer > SAVED * compiling


def epochs_per_call(pack: Pack, session: Session) -> int:
  """How many epochs a call may run to stay within CALL_SECONDS."""
  predicted = _predicted(pack, session) / session.work.num_epochs
  most = int(CALL_SECONDS / max(predicted, 1e-9))
  return min(max(1, most), session.most_epochs or session.work.num_epochs)


# --- several packs -----------------------------------------------------------


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
      pending = True
      while pending:
        # Polars restarts a wait that Ctrl-C interrupts: only one that ends by
        # itself lets the main thread see it.
        _, pending = concurrent.futures.wait(
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


def is_full(error: Exception) -> bool:
  """Says whether a device failed for want of memory."""
  return "RESOURCE_EXHAUSTED" in str(error)


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
    if not is_full(error):
      raise
    halves = planning.halves(pack)
    if not halves:
      raise MemoryError(
        f"{pack.parent} does not fit the memory of the device even alone; "
        "lower --batch_size or --memory_limit"
      ) from error
  return [result for half in halves for result in in_parts(half, work)]
