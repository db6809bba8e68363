"""Runs a pack: initialise, train, score; a function of its facts.

A pack is described by architectures, seeds, configuration and data; running it
touches no file. One program per parent trains, retrains and scores.
"""

from collections.abc import Callable, Sequence
import time
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax import models, random
from minarch_jax.architectures import Architecture
from minarch_jax.engine import (
  evaluation,
  keeping,
  memory,
  planning,
  population,
  training,
)
from minarch_jax.engine import session as sessions
from minarch_jax.engine.keeping import Kept
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.programs import Program
from minarch_jax.engine.session import Network, Placed, Session, Stopped
from minarch_jax.engine.training import Optimizer, Own
from minarch_jax.types import Params, TrainState

# --- programs ----------------------------------------------------------------


def _make_run(
  *,
  network: Network,
  optimizer: Optimizer,
  own: Own,
  layout: population.Mapping,
  validation: tuple[int, int],
) -> Callable:
  """Trains some epochs, then scores."""
  kernel, model = None, network.model
  if own.make_tx is None:  # another optimizer may look at the shapes of leaves
    kernel = network.architecture.traits.image_kernel
    model = models.on_unit_rows(model, network.architecture)
  axis = population.AXIS if layout.split == "batch" else None
  step = training.make_step(
    model, training.make_tx(optimizer), axis, layout.microbatch, own
  )
  totals = evaluation.make_totals(model.apply, own.losses)
  run = training.make_run(step, totals, validation)

  def function(state, masks, wanted_seed, member, order, lesson, view, data):
    sizes, wanted_member = member
    epochs, steps, rates, final = lesson
    # Networks that only fill up a pack need not be trained: where networks run
    # one after another their loops end at once. Under vmap all loops have the
    # same bounds: one that differed by network would be run to the largest,
    # with every result selected.
    bounds = (epochs, steps, final)
    if layout.seeds == "map":
      bounds = _zero_unless(wanted_seed, bounds)
    if layout.members == "map":
      bounds = _zero_unless(wanted_member, bounds)
    epochs, steps, final = bounds
    state, masks = models.unit_rows((state, masks), kernel)
    lesson = training.Lesson(epochs, steps, order, rates)
    state, curve, totals = run(
      state, lesson, sizes, masks, data, view.chunks, final
    )
    return models.unit_rows(state, kernel), curve, totals

  return function


def _zero_unless(wanted, bounds):
  return jax.tree.map(lambda bound: jnp.where(wanted, bound, 0), bounds)


RUN = Program(
  _make_run,
  {
    "state": "network",
    "masks": "network",
    "wanted_seed": "seed",
    "member": "member",  # true sizes, and whether it is wanted
    "order": "order",
    "lesson": "shared",  # epochs, steps of each, rates [E, T], chunks scored
    "view": "seed",
    "data": "shared",
  },
  donated=("state",),
)


def _make_draw(*, law: str) -> Callable:
  """Draws at coordinates, for one seed."""

  def function(seed, purpose: random.Purpose, coordinates):
    return random.LAWS[law](random.key_for(seed, purpose), *coordinates)

  return function


DRAW = Program(
  _make_draw, {"seed": "seed", "purpose": "shared", "coordinates": "shared"}
)
DRAWN = 4096  # entries of a call, for every network: one program serves all


# --- training ----------------------------------------------------------------


class Scored(NamedTuple):
  """Exact scores of placed networks on a split, on the host.

  Attributes:
    loss: float64 [S, A], means.
    correct: int [S, A].
    hits: uint8 [S, A, bytes], which images were classified correctly, as bits
      in the order of the split; of validation and test only.
  """

  loss: np.ndarray
  correct: np.ndarray
  hits: np.ndarray


class Scores(NamedTuple):
  """Scores of the final networks on the three splits."""

  train: Scored
  validation: Scored
  test: Scored


class Trained(NamedTuple):
  """What training a pack returns, on the host, discarded slots removed.

  Attributes:
    pack: the description.
    params: for each architecture a tree of its true shapes, leading axis S.
    curve: training.Curve of arrays [S, A, E].
    scores: Scores of arrays [S, A].
    compile_seconds, run_seconds: wall time.
    kept: from where training goes on, where that was asked for.
  """

  pack: Pack
  params: list[Params]
  curve: training.Curve
  scores: Scores
  compile_seconds: float
  run_seconds: float
  kept: Kept | None = None


Progress = Callable[[int], None]  # called with the epochs just finished


def _no_progress(epochs: int) -> None:
  del epochs


class Keep(Protocol):
  """Called between two calls of a program, and when a session is stopped."""

  def __call__(
    self,
    state: TrainState,
    curves: Sequence[training.Curve],
    *,
    stopped: bool = False,
  ) -> None: ...


def _keep_nothing(
  state: TrainState,
  curves: Sequence[training.Curve],
  *,
  stopped: bool = False,
) -> None:
  del state, curves, stopped


def rates_of(session: Session) -> np.ndarray:
  """Lists the learning rate of every step of the recipe, float32 [E, T]."""
  rates = training.learning_rates(session.config, session.work.num_steps)
  return rates.reshape(session.config.num_epochs, -1)


def train(
  session: Session,
  pack: Pack,
  progress: Progress = _no_progress,
  keeper_of: keeping.KeeperOf = keeping.nowhere,
  with_state: bool = False,
  more: np.ndarray | None = None,
) -> Trained:
  """Trains a pack and scores the final networks.

  Training starts from initialisation, or where the keeper says that an earlier
  process got to.

  Args:
    session: the data and programs.
    pack: what to train.
    progress: told of finished epochs.
    keeper_of: who keeps the state of the pack meanwhile.
    with_state: whether to return from where training goes on.
    more: float32 [E, T], learning rates of steps after those of the recipe;
      the curve does not show them.
  """
  start = time.perf_counter()
  placed = sessions.place(session, pack)
  masks = width_masks(placed)
  state = start_state(placed, initial(placed))
  keeper = keeper_of(pack)
  begun = keeper.load(state)
  before = begun.seconds if begun else 0.0

  def seconds() -> float:
    spent = time.perf_counter() - start - placed.compile_seconds
    return before + spent

  def keep(state, curves, *, stopped=False):
    if stopped or keeper.due():
      # Copied: the next call overwrites the buffers of the state.
      host = jax.tree.map(np.array, state)
      keeper.keep(Kept(host, _joined(curves), seconds()))

  state, curve, scores = train_epochs(
    placed,
    placed.put(begun.state, "network") if begun else state,
    masks,
    rates_of(session),
    *Scores._fields,
    progress=progress,
    begun=begun.curve if begun else None,
    keep=keep,
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
  spent = seconds()
  own = (slice(len(pack.seeds)), slice(len(pack.architectures)))
  return Trained(
    pack,
    split_members(params, pack, session),
    jax.tree.map(lambda leaf: leaf[own], curve),
    jax.tree.map(lambda leaf: leaf[own], Scores(*scores)),
    placed.compile_seconds,
    spent,
    Kept(jax.device_get(state), curve, spent) if with_state else None,
  )


def train_or_split(
  session: Session,
  pack: Pack,
  progress: Progress = _no_progress,
  keeper_of: keeping.KeeperOf = keeping.nowhere,
  with_state: bool = False,
) -> list[Trained]:
  """Trains a pack, or its halves where the whole does not fit the memory.

  Raises:
    MemoryError: one network with one seed does not fit.
  """
  return sessions.in_parts(
    pack,
    lambda part: train(session, part, progress, keeper_of, with_state),
  )


def plan(
  session: Session, members: Sequence[Architecture], seeds: Sequence[int]
) -> list[Pack]:
  """Plans the packs of a session's work.

  Raises:
    ConfigError: a single network does not fit the memory limit.
  """
  # An optimizer that looks beyond single entries must not see padding.
  alone = session.own.make_tx is not None
  return [
    pack
    for part in ([[a] for a in members] if alone else [members])
    for pack in planning.plan(
      part,
      seeds,
      session.work,
      machine=session.machine,
      devices=session.machine.devices or jax.local_device_count(),
      at_once=session.config.packs_at_once,
      memory_limit=memory.limit(session.config),
    )
  ]


# --- parameters of a pack ----------------------------------------------------


def initial(
  placed: Placed, purpose: random.Purpose = random.Purpose.INIT
) -> Params:
  """Draws the initial parameters of a pack: host arrays [S, A, ...].

  A value depends on (seed, leaf, coordinate); members differ in scale and
  extent only, so each seed draws once for all of them.
  """
  if placed.session.own.init is not None:
    return _own_initial(placed, placed.session.own.init, purpose)
  spec, law = placed.network.spec, placed.session.config.init
  coordinates, split = models.coordinates(spec, law)
  draws = draw(placed, purpose, "normal", coordinates)
  sizes = sessions.sizes_of(placed.pack, placed.session)
  return models.initial(split(draws), spec, sizes, law)


def _own_initial(placed: Placed, init: Callable, purpose: random.Purpose):
  """Draws them by a function of one's own, network by network."""
  session, pack = placed.session, placed.pack
  keys = [random.key_for(seed, purpose) for seed in pack.seeds]
  found = []
  for architecture in pack.architectures:
    shapes = models.shapes(architecture.spec(session.problem))
    drawn = [init(key, shapes) for key in keys]
    found.append(jax.tree.map(lambda *each: np.stack(each), *drawn))
  return stack_members(found, pack, session)


def draw(
  placed: Placed,
  purpose: random.Purpose,
  law: str,
  coordinates: Sequence[np.ndarray],
) -> np.ndarray:
  """Draws numbers for the seeds of a pack: host array [S, entries].

  Args:
    purpose: of the numbers.
    law: "normal" or "uniform".
    coordinates: three columns of entries, as `random.coordinates` lists them.
  """
  layout, seeds = placed.layout, np.array(placed.pack.seeds, np.int32)
  count, entries = len(layout.devices), len(coordinates[0])
  seeds = np.pad(seeds, (0, -len(seeds) % count))
  columns = [np.pad(c, (0, -entries % DRAWN)) for c in coordinates]
  parts = [
    placed.run(
      DRAW,
      static={"law": law},
      layout=population.Mapping(layout.devices, layout.device_map),
      seed=seeds[first : first + count],
      purpose=np.int32(purpose),
      coordinates=tuple(c[start : start + DRAWN] for c in columns),
    )
    for first in range(0, len(seeds), count)
    for start in range(0, len(columns[0]), DRAWN)
  ]
  found = np.stack(jax.device_get(parts))
  found = found.reshape(-1, len(columns[0]) // DRAWN, count, DRAWN)
  found = found.swapaxes(1, 2).reshape(len(seeds), -1)
  return found[: len(placed.pack.seeds), :entries]


def width_masks(placed: Placed) -> Any:
  """Marks what exists of every member, placed: [S, A, ...]."""
  sizes = sessions.sizes_of(placed.pack, placed.session)
  seeds = len(placed.pack.seeds)
  masks = models.width_masks(placed.network.spec, sizes)
  masks = jax.tree.map(
    lambda leaf: np.broadcast_to(leaf, (seeds, *leaf.shape)), masks
  )
  return placed.put(masks, "network")


def start_state(placed: Placed, params: Params) -> TrainState:
  """Places host parameters [S, A, ...] with a fresh optimizer state."""
  session = placed.session
  optimizer = Optimizer.of(session.config)
  state = training.start_state(optimizer, params, session.own)
  return placed.put(state, "network")


def split_members(params: Params, pack: Pack, session: Session) -> list[Params]:
  """Cuts stacked host parameters [S, A, ...] into each member's true shapes."""
  parent = pack.parent.spec(session.problem)
  num_seeds = len(pack.seeds)

  def member(index: int, architecture: Architecture) -> Params:
    one = jax.tree.map(lambda leaf: leaf[:num_seeds, index], params)
    return models.unpad(one, architecture.spec(session.problem), parent)

  return [member(i, a) for i, a in enumerate(pack.architectures)]


def stack_members(
  params: Sequence[Params], pack: Pack, session: Session
) -> Params:
  """Pads and stacks members' parameters to [S, A, ...]; undoes the split."""
  parent = pack.parent.spec(session.problem)
  padded = [
    models.pad(tree, a.spec(session.problem), parent)
    for tree, a in zip(params, pack.architectures, strict=True)
  ]
  padded += padded[-1:] * (pack.slots - len(padded))
  return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *padded)


# --- calls of the program ----------------------------------------------------


def train_epochs(
  placed: Placed,
  state: TrainState,
  masks: Any,
  rates: np.ndarray,
  *splits: str,
  first_epoch: int = 0,
  progress: Progress = _no_progress,
  begun: training.Curve | None = None,
  keep: Keep = _keep_nothing,
) -> tuple[TrainState, training.Curve, list[Scored]]:
  """Trains placed networks for len(rates) epochs and scores them.

  Args:
    state, masks: placed, [S, A, ...]; the state's buffers are consumed.
    rates: float32 [E, T], the learning rate of every step; T may be less than
      the steps of a whole epoch.
    *splits: what is scored at the end; neighbours in the data.
    first_epoch: number of the first epoch, which decides the data order.
    progress: told of finished epochs.
    begun: the curve of the epochs that the state has behind it.
    keep: told of the state, and of the curve in parts, between two calls and
      when the session was told to stop.

  Returns:
    The state, the curve as host arrays [S, A, E], and the score of each split.
  """
  # Every call is given arrays of E epochs of T steps, so one program serves
  # them all: the last call of training, and retraining with its fewer steps,
  # fill these up with zeros beyond the epochs and steps that they ask for.
  _, per_call, most_steps, _ = placed.order_shape
  num_epochs, num_steps = rates.shape
  curves, done, totals = [], 0, None
  if begun is not None:
    curves, done = [begun], begun.train.loss.shape[-1]
    progress(done)
  for first in range(done, num_epochs, per_call):
    epochs = range(first, min(first + per_call, num_epochs))
    padded = np.zeros((per_call, most_steps), np.float32)
    padded[: len(epochs), :num_steps] = rates[epochs.start : epochs.stop]
    try:
      state, curve, totals = _run(
        placed,
        state,
        masks,
        _orders(placed, first_epoch, epochs),
        (len(epochs), num_steps, padded),
        splits if epochs.stop == num_epochs else (),
      )
    except Stopped:  # before the call: the state has its buffers still
      if curves:
        keep(state, curves, stopped=True)
      raise
    curve = jax.device_get(curve)
    done = len(epochs)
    curves.append(jax.tree.map(lambda c, n=done: c[..., :n], curve))
    progress(done)
    if epochs.stop < num_epochs:
      keep(state, curves)
  return state, _joined(curves), split_scores(placed, totals, splits)


def _joined(curves: Sequence[training.Curve]) -> training.Curve:
  return jax.tree.map(lambda *parts: np.concatenate(parts, axis=-1), *curves)


def score(
  placed: Placed, state: TrainState, masks: Any, *splits: str
) -> tuple[TrainState, list[Scored]]:
  """Scores placed networks exactly on splits that are neighbours in the data.

  Returns:
    The state, whose buffers were consumed, and the score of each split.
  """
  order, rates = placed.idle
  state, _, totals = _run(placed, state, masks, order, (0, 0, rates), splits)
  return state, split_scores(placed, totals, splits)


def _run(
  placed: Placed,
  state: TrainState,
  masks: Any,
  order: Any,
  lesson: tuple[int, int, Any],
  splits: Sequence[str],
) -> tuple[TrainState, training.Curve, evaluation.Totals]:
  """Runs the program of a pack: so many epochs of so many steps, then a score.

  Args:
    lesson: epochs, steps of each, and learning rates [E, T].
    splits: what is scored; all chunks from the first to the last of them.
  """
  session = placed.session
  epochs, steps, rates = lesson
  final = (0, 0)
  if splits:
    final = (session.splits[splits[0]][0], session.splits[splits[-1]][1])
  wanted_seed, wanted_member = placed.wanted
  return placed.run(
    RUN,
    static={
      "network": placed.network,
      "optimizer": Optimizer.of(session.config),
      "own": session.own,
      "layout": placed.layout,
      "validation": session.splits["validation"],
    },
    hot=sessions.is_long(placed),
    state=state,
    masks=masks,
    wanted_seed=wanted_seed,
    member=(placed.sizes, wanted_member),
    order=order,
    lesson=(
      np.int32(epochs),
      np.int32(steps),
      rates,
      tuple(map(np.int32, final)),
    ),
    view=placed.view,
    data=session.data,
  )


def split_scores(
  placed: Placed, totals: Any, splits: Sequence[str]
) -> list[Scored]:
  """Adds the totals of chunks [S, A, n] up to the score of each split."""
  session = placed.session
  loss, hits = jax.device_get(totals)

  def of(split):
    first, last = session.splits[split]
    images = session.sizes(placed.pack.seeds, split)
    total = loss[..., first:last, :].sum(axis=(-2, -1), dtype=np.float64)
    own = hits[..., first:last, :].reshape(*total.shape, -1)
    # Padding ends a fold and a test split; the folds of training have theirs.
    count = 0 if split == "train" else images.max()
    return Scored(
      total / images[:, None],
      own.sum(axis=-1),
      np.packbits(own[..., :count], axis=-1),
    )

  return [of(split) for split in splits]


def _orders(placed: Placed, first_epoch: int, epochs: range) -> np.ndarray:
  """Draws minibatches of some epochs, int32 [S, E, T, B]; the rest is 0."""
  work = placed.session.work
  order = np.zeros(placed.order_shape, np.int32)
  for i, seed in enumerate(placed.pack.seeds):
    train = placed.session.fold_of(seed).train
    for j, number in enumerate(epochs):
      drawn = training.data_order(
        seed, first_epoch + number, len(train), work.batch_size
      )
      order[i, j] = train[drawn[: order.shape[2]]]
  return order
