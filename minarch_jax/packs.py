"""Runs a pack: initialise, train, score, compress; a function of its facts.

A pack is described by architectures, seeds, configuration and data; running it
touches no file. `study` decides the order and writes what comes back.
"""

from collections.abc import Callable, Sequence
import dataclasses
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax import evaluation, models, planning, population, training
from minarch_jax.architectures import Architecture
from minarch_jax.config import Config
from minarch_jax.planning import Pack, Work
from minarch_jax.types import Batch, Dataset, Params

EVAL_BATCH = 256
CALL_SECONDS = 2.0  # epochs per call: long enough to hide dispatch, short
# enough that progress moves and Ctrl-C is answered


class Data(NamedTuple):
  """The data set on the devices, replicated.

  `train` is padded to whole chunks of `train_weight` [n, B]; padding images
  are never drawn into a minibatch and weigh 0 in an evaluation.
  """

  train: Batch
  train_weight: jax.Array
  validation: evaluation.Chunks
  test: evaluation.Chunks


@dataclasses.dataclass(frozen=True)
class Session:
  """One data set on this machine's devices, and the programs compiled so far.

  `programs` only ever grows; it is a cache, not a state.
  """

  config: Config
  dataset: Dataset
  work: Work
  data: Data
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
  chunks = evaluation.chunk(dataset.train, EVAL_BATCH)
  train = Batch(*(part.reshape(-1, *part.shape[2:]) for part in chunks[:2]))
  data = Data(
    train,
    chunks.weight,
    evaluation.chunk(dataset.validation, EVAL_BATCH),
    evaluation.chunk(dataset.test, EVAL_BATCH),
  )
  layout = population.mapping(config, "dnn")
  data = population.place(data, "shared", layout)
  return Session(config, dataset, work_of(config, dataset), data)


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


def _layout(session: Session, pack: Pack) -> population.Mapping:
  return population.mapping(
    session.config, pack.parent.family, pack.slots, len(pack.seeds)
  )


def _padded(pack: Pack, layout: population.Mapping) -> Pack:
  """Repeats the last seed or member until the split axis divides."""
  missing = -(len(pack.seeds) if layout.split == "seed" else pack.slots)
  missing %= len(layout.devices)
  if layout.split == "seed":
    return dataclasses.replace(
      pack, seeds=pack.seeds + pack.seeds[-1:] * missing
    )
  return dataclasses.replace(pack, slots=pack.slots + missing)


def _model(session: Session, pack: Pack, layout: population.Mapping):
  bfloat16 = session.config.compute_dtype == "bfloat16"
  return models.make_model(
    pack.parent,
    session.work.input_shape,
    session.work.num_classes,
    compute_dtype=jnp.bfloat16 if bfloat16 else None,
    convolution=layout.convolution,
  )


def _sizes(pack: Pack, session: Session) -> dict[str, np.ndarray]:
  """True sizes of every member: int32 [A] for each unit axis."""
  shape = (session.work.input_shape, session.work.num_classes)
  members = [a.sizes(*shape) for a in pack.members]
  return {
    axis: np.array([sizes[axis] for sizes in members], np.int32)
    for axis in members[0]
  }


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
  key = (name, pack.parent, layout, shapes)
  if key in session.programs:
    return session.programs[key].call, 0.0
  function, kinds, donate = make()
  compiled = population.compile(function, kinds, layout, arguments, donate)
  session.programs[key] = compiled
  return compiled.call, compiled.compile_seconds


def _epochs_per_call(pack: Pack, session: Session, num_epochs: int) -> int:
  """The largest divisor of the epochs that stays within CALL_SECONDS."""
  predicted = planning.seconds(pack.parent, pack.slots, session.work)
  predicted *= len(pack.seeds) / session.work.num_epochs
  most = max(1, int(CALL_SECONDS / max(predicted, 1e-9)))
  return max(
    n for n in range(1, num_epochs + 1) if num_epochs % n == 0 and n <= most
  )


def train(
  session: Session, pack: Pack, progress: Progress = _no_progress
) -> Trained:
  """Trains a pack from initialisation and scores the final networks."""
  start = time.perf_counter()
  layout = _layout(session, pack)
  full = _padded(pack, layout)
  model = _model(session, full, layout)
  tx = training.make_tx(session.config)
  spec = full.parent.spec(session.work.input_shape, session.work.num_classes)
  sizes = population.place(_sizes(full, session), "member", layout)
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
  scores, last = score(session, full, layout, state.params, sizes)
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
  num_epochs, steps = rates.shape
  per_call = _epochs_per_call(pack, session, num_epochs)
  tx = training.make_tx(session.config)

  def make():
    model = _model(session, pack, layout)
    epochs = training.make_epochs(
      training.make_step(model, tx), evaluation.make_evaluate(model.apply)
    )
    kinds = (
      *("network", "seed", "shared", "member", "network"),
      *("shared", "shared"),
    )
    return epochs, kinds, (0,)

  compiling, curves = 0.0, []
  for first in range(0, num_epochs, per_call):
    order = np.stack(
      [
        [
          training.data_order(
            seed, epoch, session.work.num_train, session.work.batch_size
          )
          for epoch in range(
            first_epoch + first, first_epoch + first + per_call
          )
        ]
        for seed in pack.seeds
      ]
    )
    arguments = (
      state,
      population.place(order, "seed", layout),
      population.place(rates[first : first + per_call], "shared", layout),
      sizes,
      masks,
      session.data.train,
      session.data.validation,
    )
    call, spent = program(session, "epochs", pack, make, arguments, layout)
    compiling += spent
    state, curve = call(*arguments)
    curves.append(jax.device_get(curve))
    progress(per_call)
  curve = jax.tree.map(lambda *parts: np.concatenate(parts, axis=-1), *curves)
  return state, curve, compiling


def score(
  session: Session,
  pack: Pack,
  layout: population.Mapping,
  params: Params,
  sizes: Any,
) -> tuple[Scores, float]:
  """Scores placed networks on the three splits, exactly."""

  def make():
    evaluate = evaluation.make_evaluate(_model(session, pack, layout).apply)

    def function(params, sizes, data):
      chunked = Batch(
        *(
          part.reshape(*data.train_weight.shape, *part.shape[1:])
          for part in data.train
        )
      )
      splits = (
        evaluation.Chunks(*chunked, data.train_weight),
        data.validation,
        data.test,
      )
      return Scores(*(evaluate(params, split, sizes) for split in splits))

    return function, ("network", "member", "shared"), ()

  arguments = (params, sizes, session.data)
  call, spent = program(session, "score", pack, make, arguments, layout)
  return jax.device_get(call(*arguments)), spent


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
