"""Runs a pack: initialise, train, score; a function of its facts.

A pack is described by architectures, seeds, configuration and data; running it
touches no file. `study` decides the order and writes what comes back. One
program per parent trains, retrains and scores (`training.make_run`).
"""

from collections.abc import Callable, Sequence
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax import models, random
from minarch_jax.architectures import Architecture
from minarch_jax.engine import evaluation, population, training
from minarch_jax.engine import session as sessions
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.session import Placed, Session
from minarch_jax.types import Batch, Params


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
  placed = sessions.place(session, pack)
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
  return sessions.in_parts(pack, lambda part: train(session, part, progress))


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
  call, spent = sessions.program(
    placed.session, ("draw", purpose), make, arguments, layout, False
  )
  placed.compile_seconds += spent
  draws = jax.device_get(call(*arguments))[: len(placed.pack.seeds)]
  sizes = sessions.sizes_of(placed.pack, placed.session)
  return models.initial(split(draws), spec, sizes)


def _rung(count: int) -> int:
  """Rounds up to 1, 1.5, 2, 3, 4, 6, ... thousands: few sizes, little waste."""
  size = 1024
  while size < count:
    size *= 2
  return size * 3 // 4 if size > 1024 and size * 3 // 4 >= count else size


def width_masks(placed: Placed) -> Any:
  """Marks what exists of every member, placed: [S, A, ...]."""
  sizes = sessions.sizes_of(placed.pack, placed.session)
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
  per_call = sessions.epochs_per_call(pack, session)
  curves, totals = [], None
  for first in range(0, len(rates), per_call):
    numbers = range(first, min(first + per_call, len(rates)))
    order = sessions.orders(session, pack.seeds, first_epoch, numbers, per_call)
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
    hot=sessions.is_long(placed),
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
