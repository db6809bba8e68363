"""Runs a pack: initialise, train, score; a function of its facts.

A pack is described by architectures, seeds, configuration and data; running it
touches no file. `study` decides the order and writes what comes back. One
program per parent trains, retrains and scores (`training.make_run`).
"""

from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
import dataclasses
import functools
import itertools
import threading
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax import (
  evaluation,
  models,
  planning,
  population,
  random,
  training,
)
from minarch_jax.architectures import Architecture, Spec
from minarch_jax.config import Config
from minarch_jax.planning import Pack, Work
from minarch_jax.types import Batch, Dataset, Params

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


class Scores(NamedTuple):
  """Exact scores of the final networks, [S, A] each."""

  train: evaluation.Score
  validation: evaluation.Score
  test: evaluation.Score


class Trained(NamedTuple):
  """What training a pack returns, on the host, discarded slots removed.

  Attributes:
    pack: the description.
    params: for each architecture a tree of its true shapes, leading axis S.
    curve: training.Curve of arrays [S, A, E].
    scores: Scores of arrays [S, A].
    compile_seconds, run_seconds: wall time.
  """

  pack: Pack
  params: list[Params]
  curve: training.Curve
  scores: Scores
  compile_seconds: float
  run_seconds: float


Progress = Callable[[int], None]  # called with the epochs just finished


def _no_progress(epochs: int) -> None:
  del epochs


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
    per_call = _epochs_per_call(self.pack, self.session)
    order = _orders(self.session, self.pack.seeds, 0, range(0), per_call)
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
    call, spent = _program(self.session, key, make, arguments, self.layout, hot)
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


def _program(
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


def _epochs_per_call(pack: Pack, session: Session) -> int:
  """How many epochs a call may run to stay within CALL_SECONDS."""
  predicted = _predicted(pack, session) / session.work.num_epochs
  most = int(CALL_SECONDS / max(predicted, 1e-9))
  return min(max(1, most), session.work.num_epochs)


# --- training ----------------------------------------------------------------


def rates_of(session: Session) -> np.ndarray:
  """Lists the learning rate of every step of the recipe, float32 [E, T]."""
  rates = training.learning_rates(session.config, session.work.num_steps)
  return rates.reshape(session.config.num_epochs, -1)


def train(
  session: Session,
  pack: Pack,
  progress: Progress = _no_progress,
  more: np.ndarray | None = None,
) -> Trained:
  """Trains a pack from initialisation and scores the final networks.

  Args:
    session: the data and programs.
    pack: what to train.
    progress: told of finished epochs.
    more: float32 [E, T], learning rates of steps after those of the recipe.
  """
  start = time.perf_counter()
  placed = place(session, pack)
  masks = width_masks(placed)
  state = start_state(placed, initial(placed))
  state, curve, scores = train_epochs(
    placed,
    state,
    masks,
    rates_of(session),
    *Scores._fields,
    progress=progress,
  )
  if more is not None:
    state, _, scores = train_epochs(
      placed,
      state,
      masks,
      more,
      *Scores._fields,
      first_epoch=session.config.num_epochs,
    )
  params = jax.device_get(state.params)
  seconds = time.perf_counter() - start
  keep = (slice(len(pack.seeds)), slice(len(pack.architectures)))
  return Trained(
    pack,
    split_members(params, pack, session),
    jax.tree.map(lambda leaf: leaf[keep], curve),
    jax.tree.map(lambda leaf: leaf[keep], Scores(*scores)),
    placed.compile_seconds,
    seconds - placed.compile_seconds,
  )


def train_or_split(
  session: Session, pack: Pack, progress: Progress = _no_progress
) -> list[Trained]:
  """Trains a pack, or its halves where the whole does not fit the memory.

  Raises:
    MemoryError: one network with one seed does not fit.
  """
  return in_parts(pack, lambda part: train(session, part, progress))


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


def initial(placed: Placed, purpose: int = training.INIT) -> Params:
  """Draws the initial parameters of a pack: host arrays [S, A, ...].

  A value depends on (seed, leaf, coordinate); members differ in scale and
  extent only, so each seed draws once for all of them. One small program
  serves every pack of about as many parameters.
  """
  spec, layout = placed.spec, placed.layout
  coordinates, split = models.coordinates(spec)
  length = _rung(len(coordinates[0]))
  coordinates = [
    np.pad(column, (0, length - len(column))) for column in coordinates
  ]
  count = len(layout.devices)
  seeds = np.array(placed.pack.seeds, np.int32)
  seeds = np.pad(seeds, (0, -len(seeds) % count))
  layout = population.Mapping(layout.devices, layout.device_map)

  def make():
    def draw(seed, *coordinates):
      return random.draw(training.key_for(seed, purpose), *coordinates)

    return draw, ("seed", *("shared",) * len(coordinates)), ()

  arguments = (
    population.place(seeds, "seed", layout),
    *population.place(coordinates, "shared", layout),
  )
  call, spent = _program(
    placed.session, ("draw", purpose), make, arguments, layout, False
  )
  placed.compile_seconds += spent
  draws = jax.device_get(call(*arguments))[: len(placed.pack.seeds)]
  sizes = sizes_of(placed.pack, placed.session)
  return models.initial(split(draws), spec, sizes)


def _rung(count: int) -> int:
  """Rounds up to 1, 1.5, 2, 3, 4, 6, ... thousands: few sizes, little waste."""
  size = 1024
  while size < count:
    size *= 2
  return size * 3 // 4 if size > 1024 and size * 3 // 4 >= count else size


def width_masks(placed: Placed) -> Any:
  """Marks what exists of every member, placed: [S, A, ...]."""
  sizes = sizes_of(placed.pack, placed.session)
  seeds = len(placed.pack.seeds)
  masks = models.width_masks(placed.spec, sizes)
  masks = jax.tree.map(
    lambda leaf: np.broadcast_to(leaf, (seeds, *leaf.shape)), masks
  )
  return placed.put(masks, "network")


def start_state(placed: Placed, params: Params) -> training.TrainState:
  """Places host parameters [S, A, ...] with a fresh optimizer state."""
  tx = training.make_tx(placed.session.config)
  return placed.put(training.start_state(tx, params), "network")


def train_epochs(
  placed: Placed,
  state: training.TrainState,
  masks: Any,
  rates: np.ndarray,
  *splits: str,
  first_epoch: int = 0,
  progress: Progress = _no_progress,
) -> tuple[training.TrainState, training.Curve, list[evaluation.Score]]:
  """Trains placed networks for len(rates) epochs and scores them.

  Args:
    state, masks: placed, [S, A, ...]; the state's buffers are consumed.
    rates: float32 [E, T], the learning rate of every step; T may be less than
      the steps of a whole epoch.
    *splits: what is scored at the end; neighbours in the data.
    first_epoch: number of the first epoch, which decides the data order.
    progress: told of finished epochs.

  Returns:
    The state, the curve as host arrays [S, A, E], and for each split mean loss
    and hits, [S, A].
  """
  session, pack = placed.session, placed.pack
  per_call = _epochs_per_call(pack, session)
  curves, totals = [], None
  for first in range(0, len(rates), per_call):
    numbers = range(first, min(first + per_call, len(rates)))
    order = _orders(session, pack.seeds, first_epoch, numbers, per_call)
    rate = np.zeros(order.shape[1:3], np.float32)
    rate[: len(numbers), : rates.shape[1]] = rates[numbers.start : numbers.stop]
    state, curve, totals = _run(
      placed,
      state,
      masks,
      (len(numbers), rates.shape[1]),
      placed.put(order, "order"),
      placed.put(rate, "shared"),
      splits if numbers.stop == len(rates) else (),
    )
    curve = jax.device_get(curve)
    done = len(numbers)
    curves.append(jax.tree.map(lambda c, n=done: c[..., :n], curve))
    progress(done)
  curve = jax.tree.map(lambda *parts: np.concatenate(parts, axis=-1), *curves)
  return state, curve, split_scores(session, totals, splits)


def score(
  placed: Placed, state: training.TrainState, masks: Any, *splits: str
) -> tuple[training.TrainState, list[evaluation.Score]]:
  """Scores placed networks exactly on splits that are neighbours in the data.

  Returns:
    The state, whose buffers were consumed, and for each split mean loss and
    hits, host arrays [S, A].
  """
  state, _, totals = _run(placed, state, masks, (0, 0), *placed.idle, splits)
  return state, split_scores(placed.session, totals, splits)


def _run(placed: Placed, state, masks, length, order, rate, splits):
  """Runs the program of a pack: (epochs, steps of each), then a score.

  Padding neither trains nor scores where networks run one after another.
  """
  session, layout = placed.session, placed.layout

  def make():
    model = models.on_turned(placed.model)
    tx = training.make_tx(session.config)
    axis = population.AXIS if layout.split == "batch" else None
    run = training.make_run(
      training.make_step(model, tx, axis, layout.microbatch),
      evaluation.make_totals(model.apply),
    )

    def function(
      state, seed, member, length, final, order, rates, sizes, masks, data
    ):
      train = Batch(
        *(part.reshape(-1, *part.shape[2:]) for part in (data.x, data.y))
      )
      validation = tuple(map(np.int32, session.splits["validation"]))
      # Under vmap a bound that differs would turn the loops into selections.
      if layout.seeds == "map":
        length, final = _if(seed, (length, final))
      if layout.members == "map":
        length, final = _if(member, (length, final))
      state, masks = models.turned((state, masks))
      state, curve, score = run(
        *(state, *length, order, rates, sizes, masks, train, data),
        *(validation, final),
      )
      return models.turned(state), curve, score

    kinds = (
      *("network", "seed", "member", "shared", "shared", "order", "shared"),
      *("member", "network", "shared"),
    )
    return function, kinds, (0,)

  final = (0, 0)
  if splits:
    final = (session.splits[splits[0]][0], session.splits[splits[-1]][1])
  return placed.run(
    "run",
    make,
    state,
    *placed.wanted,
    placed.put(tuple(map(np.int32, length)), "shared"),
    placed.put(tuple(map(np.int32, final)), "shared"),
    order,
    rate,
    placed.sizes,
    masks,
    session.data,
    hot=is_long(placed),
  )


def _if(wanted, counts):
  """Returns the counts, or zeros."""
  return jax.tree.map(lambda count: jnp.where(wanted, count, 0), counts)


def split_scores(
  session: Session, totals: Any, splits: Sequence[str]
) -> list[evaluation.Score]:
  """Adds the sums per chunk up to each split's mean loss and hits."""
  loss, correct = jax.device_get(totals)

  def of(split):
    first, last = session.splits[split]
    total = loss[..., first:last].sum(axis=-1, dtype=np.float64)
    return evaluation.Score(
      total / len(getattr(session.dataset, split).y),
      correct[..., first:last].sum(axis=-1),
    )

  return [of(split) for split in splits]


def _orders(session, seeds, first_epoch, numbers, length) -> np.ndarray:
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


def split_members(params: Params, pack: Pack, session: Session) -> list[Params]:
  """Cuts stacked host parameters [S, A, ...] into each member's true shapes."""
  shape = (session.work.input_shape, session.work.num_classes)
  parent = pack.parent.spec(*shape)
  num_seeds = len(pack.seeds)

  def member(index: int, architecture: Architecture) -> Params:
    one = jax.tree.map(lambda leaf: leaf[:num_seeds, index], params)
    return models.unpad(one, architecture.spec(*shape), parent)

  return [member(i, a) for i, a in enumerate(pack.architectures)]


def stack_members(
  params: Sequence[Params], pack: Pack, session: Session
) -> Params:
  """Pads and stacks members' parameters to [S, A, ...]; undoes the split."""
  shape = (session.work.input_shape, session.work.num_classes)
  parent = pack.parent.spec(*shape)
  padded = [
    models.pad(tree, a.spec(*shape), parent)
    for tree, a in zip(params, pack.architectures, strict=True)
  ]
  padded += padded[-1:] * (pack.slots - len(padded))
  return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *padded)
