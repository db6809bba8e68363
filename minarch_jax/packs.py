"""Runs a pack: initialise, train, score, compress; a function of its facts.

A pack is described by architectures, seeds, configuration and data; running it
touches no file. `study` decides the order and writes what comes back.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
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
  training,
)
from minarch_jax.architectures import Architecture
from minarch_jax.config import Config
from minarch_jax.planning import Pack, Work
from minarch_jax.types import Batch, Dataset, Params

EVAL_BATCH = 256
CALL_SECONDS = 2.0  # epochs per call: long enough to hide dispatch, short
# enough that progress moves and Ctrl-C is answered


Splits = Mapping[str, tuple[int, int]]  # chunk range of each split


@dataclasses.dataclass(frozen=True)
class Session:
  """One data set on this machine's devices, and the programs compiled so far.

  `data` holds the three splits end to end, each padded to whole chunks with
  images that weigh 0, replicated on every device; `splits` says which chunks
  are whose. `programs` only ever grows; it is a cache, not a state.
  """

  config: Config
  dataset: Dataset
  work: Work
  data: evaluation.Chunks
  splits: Splits
  programs: dict[Any, population.Program] = dataclasses.field(
    default_factory=dict
  )


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


def chunks_of(
  data: evaluation.Chunks, splits: Splits, *names: str
) -> evaluation.Chunks:
  """Cuts neighbouring splits out of the resident data."""
  first, last = splits[names[0]][0], splits[names[-1]][1]
  return jax.tree.map(lambda leaf: leaf[first:last], data)


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
  return population.mapping(
    session.config, pack.parent.family, pack.slots, len(pack.seeds)
  )


def padded(pack: Pack, layout: population.Mapping) -> Pack:
  """Repeats the last seed or member until the split axis divides."""
  missing = -(len(pack.seeds) if layout.split == "seed" else pack.slots)
  missing %= len(layout.devices)
  if layout.split == "seed":
    return dataclasses.replace(
      pack, seeds=pack.seeds + pack.seeds[-1:] * missing
    )
  return dataclasses.replace(pack, slots=pack.slots + missing)


def model_of(session: Session, pack: Pack, layout: population.Mapping):
  """Makes the model of a pack's parent."""
  bfloat16 = session.config.compute_dtype == "bfloat16"
  return models.make_model(
    pack.parent,
    session.work.input_shape,
    session.work.num_classes,
    compute_dtype=jnp.bfloat16 if bfloat16 else None,
    convolution=layout.convolution,
  )


def sizes_of(pack: Pack, session: Session) -> dict[str, np.ndarray]:
  """True sizes of every member: int32 [A] for each unit axis."""
  shape = (session.work.input_shape, session.work.num_classes)
  members = [a.sizes(*shape) for a in pack.members]
  return {
    axis: np.array([sizes[axis] for sizes in members], np.int32)
    for axis in members[0]
  }


def num_params(pack: Pack, session: Session) -> int:
  """Counts the parameters of a pack's slots for one seed."""
  work = session.work
  return pack.slots * pack.parent.num_params(work.input_shape, work.num_classes)


def program(
  session: Session,
  name: str,
  pack: Pack,
  make: Callable[[], tuple[Callable, tuple[str, ...], tuple[int, ...]]],
  arguments: Sequence[Any],
  layout: population.Mapping,
) -> tuple[Callable, float]:
  """Returns a compiled program and the seconds spent compiling it now."""
  shapes = tuple(
    (leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(arguments)
  )
  key = (name, pack.parent, layout, shapes, jax.tree.structure(arguments))
  if key in session.programs:
    return session.programs[key].call, 0.0
  function, kinds, donate = make()
  compiled = population.compile(
    function,
    kinds,
    layout,
    arguments,
    donate,
    # Transforms touch each weight a few times; a step touches it for each
    # image. Only in large networks do they take longer than their compilation.
    hot=name in ("epochs", "score") or num_params(pack, session) > 300_000,
  )
  session.programs[key] = compiled
  return compiled.call, compiled.compile_seconds


def _epochs_per_call(pack: Pack, session: Session) -> int:
  """How many epochs a call may run to stay within CALL_SECONDS."""
  predicted = planning.seconds(pack.parent, pack.slots, session.work)
  predicted *= len(pack.seeds) / session.work.num_epochs
  most = int(CALL_SECONDS / max(predicted, 1e-9))
  return min(max(1, most), session.work.num_epochs)


def train(
  session: Session, pack: Pack, progress: Progress = _no_progress
) -> Trained:
  """Trains a pack from initialisation and scores the final networks."""
  start = time.perf_counter()
  layout = layout_of(session, pack)
  full = padded(pack, layout)
  model = model_of(session, full, layout)
  tx = training.make_tx(session.config)
  spec = full.parent.spec(session.work.input_shape, session.work.num_classes)
  sizes = population.place(sizes_of(full, session), "member", layout)
  seeds = population.place(np.array(full.seeds, np.int32), "seed", layout)

  def make_init():
    init = training.make_init(model, tx)

    def function(seed, sizes):
      return init(seed, sizes), models.width_masks(spec, sizes)

    return function, ("seed", "member"), ()

  init, compiling = program(
    session, "init", full, make_init, (seeds, sizes), layout
  )
  state, masks = init(seeds, sizes)
  config = session.config
  num_steps = session.work.num_steps
  rates = training.learning_rates(config, num_steps)
  state, curve, more = run_epochs(
    session,
    full,
    layout,
    state,
    sizes,
    masks,
    rates.reshape(config.num_epochs, -1),
    first_epoch=0,
    progress=progress,
  )
  parts, last = score(
    session, full, layout, state.params, sizes, *Scores._fields
  )
  scores = Scores(*parts)
  params = jax.device_get(state.params)
  seconds = time.perf_counter() - start
  compiling += more + last
  keep = (slice(len(pack.seeds)), slice(len(pack.architectures)))
  return Trained(
    pack,
    split_members(params, pack, session),
    jax.tree.map(lambda leaf: leaf[keep], curve),
    jax.tree.map(lambda leaf: leaf[keep], scores),
    compiling,
    seconds - compiling,
  )


def run_epochs(
  session: Session,
  pack: Pack,
  layout: population.Mapping,
  state: training.TrainState,
  sizes: Any,
  masks: Any,
  rates: np.ndarray,
  *,
  first_epoch: int,
  progress: Progress = _no_progress,
) -> tuple[training.TrainState, training.Curve, float]:
  """Trains placed networks for len(rates) epochs.

  Args:
    state, sizes, masks: placed, kinds network, member and network.
    rates: float32 [E, T], the learning rate of every step.
    first_epoch: number of the first epoch, which decides the data order.

  Returns:
    The state, the curve as host arrays [S, A, E], seconds of compilation.
  """
  num_epochs = len(rates)
  per_call = _epochs_per_call(pack, session)
  tx = training.make_tx(session.config)

  def make():
    model = model_of(session, pack, layout)
    epochs = training.make_epochs(
      training.make_step(model, tx), evaluation.make_evaluate(model.apply)
    )

    def function(state, count, order, rates, sizes, masks, data):
      train = Batch(
        *(part.reshape(-1, *part.shape[2:]) for part in (data.x, data.y))
      )
      validation = chunks_of(data, session.splits, "validation")
      return epochs(state, count, order, rates, sizes, masks, train, validation)

    kinds = (
      *("network", "shared", "seed", "shared"),
      *("member", "network", "shared"),
    )
    return function, kinds, (0,)

  compiling, curves = 0.0, []
  for first in range(0, num_epochs, per_call):
    numbers = range(first, min(first + per_call, num_epochs))
    order = _orders(session, pack.seeds, first_epoch, numbers, per_call)
    rate = np.zeros((per_call, rates.shape[1]), np.float32)
    rate[: len(numbers)] = rates[numbers.start : numbers.stop]
    arguments = (
      state,
      population.place(np.int32(len(numbers)), "shared", layout),
      population.place(order, "seed", layout),
      population.place(rate, "shared", layout),
      sizes,
      masks,
      session.data,
    )
    call, spent = program(session, "epochs", pack, make, arguments, layout)
    compiling += spent
    state, curve = call(*arguments)
    curve = jax.device_get(curve)
    done = len(numbers)
    curves.append(jax.tree.map(lambda c, n=done: c[..., :n], curve))
    progress(done)
  curve = jax.tree.map(lambda *parts: np.concatenate(parts, axis=-1), *curves)
  return state, curve, compiling


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


def score(
  session: Session,
  pack: Pack,
  layout: population.Mapping,
  params: Params,
  sizes: Any,
  *splits: str,
) -> tuple[list[evaluation.Score], float]:
  """Scores placed networks exactly on splits that are neighbours in the data.

  Returns:
    For each split mean loss and hits, host arrays [S, A]; seconds of
    compilation.
  """

  def make():
    totals = evaluation.make_totals(model_of(session, pack, layout).apply)
    kinds = ("network", "member", "shared", "shared", "shared")
    return totals, kinds, ()

  first, last = session.splits[splits[0]][0], session.splits[splits[-1]][1]
  ends = population.place((np.int32(first), np.int32(last)), "shared", layout)
  arguments = (params, sizes, session.data, *ends)
  call, spent = program(session, "score", pack, make, arguments, layout)
  loss, correct = jax.device_get(call(*arguments))

  def of(split):
    first, last = session.splits[split]
    total = loss[..., first:last].sum(axis=-1, dtype=np.float64)
    return evaluation.Score(
      total / len(getattr(session.dataset, split).y),
      correct[..., first:last].sum(axis=-1),
    )

  return [of(split) for split in splits], spent


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
