"""Networks of one's own: any pure init and loss, trained for a whole sweep.

The combinations of a sweep are the members of a pack, so one program trains all
of them with all seeds. What tells combinations apart, the hyper-parameters, is
data of the program.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from minarch_jax import random
from minarch_jax.engine import planning, population
from minarch_jax.engine.examples import Examples, Part
from minarch_jax.engine.programs import Program, Table
from minarch_jax.types import Array, Batch, Params, TrainState

MOST_EPOCHS = 16  # of a call
ORDER_BYTES = 64 * 2**20  # of the minibatches of a call

Values = dict[str, Array]  # "loss" and metrics, scalars for one network


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
  """What a user's networks are; equal to itself only.

  Attributes:
    init: `init(key) -> params`.
    loss: `loss(params, batch) -> scalar`, or `(scalar, {name: scalar})`; the
      means over the examples of a batch.
    make_tx: `make_tx(**hyper) -> optax.GradientTransformation`.
    draws: whether `loss` takes `key=`, of each step another one; None where
      examples are scored.
  """

  init: Callable[[jax.Array], Params]
  loss: Callable[[Params, Batch], Any]
  make_tx: Callable[..., optax.GradientTransformation]
  draws: bool = False

  def told(
    self, params: Params, batch: Batch, key: jax.Array | None = None
  ) -> Any:
    """Calls the loss, with a key where it takes one."""
    more = {"key": key} if self.draws else {}
    return self.loss(params, batch, **more)

  def values(
    self, params: Params, batch: Batch, key: jax.Array | None = None
  ) -> tuple[jax.Array, Values]:
    """Returns the loss, and all that is recorded of a batch."""
    found = self.told(params, batch, key)
    loss, metrics = found if isinstance(found, tuple) else (found, {})
    real = jnp.result_type(float)
    named = {"loss": loss, **metrics}
    return loss, {k: jnp.asarray(v, real) for k, v in named.items()}

  def start(self, seed: Array, hyper: Mapping[str, Array]) -> TrainState:
    """Draws a network and starts its optimizer."""
    params = self.init(random.key_for(seed, random.Purpose.INIT))
    params = jax.tree.map(jnp.asarray, params)
    return TrainState(params, self.make_tx(**hyper).init(params))

  def step(
    self,
    state: TrainState,
    batch: Batch,
    hyper: Mapping[str, Array],
    at: Sequence[Any] = (0, 0, 0),
  ) -> tuple[TrainState, Values]:
    """Takes one step of the optimizer.

    Args:
      at: numbers of the seed, the epoch, and the step in it, which decide what
        the loss draws.
    """
    gradient = jax.value_and_grad(self.values, has_aux=True)
    key = _key_at(*at) if self.draws else None
    (loss, values), grads = gradient(state.params, batch, key)
    tx = optax.with_extra_args_support(self.make_tx(**hyper))
    updates, opt_state = tx.update(
      grads, state.opt_state, state.params, value=loss
    )
    return TrainState(
      optax.apply_updates(state.params, updates), opt_state
    ), values


def _key_at(seed: Array, epoch: Array, step: Array) -> jax.Array:
  key = random.key_for(seed, random.Purpose.LOSS)
  return jax.random.fold_in(jax.random.fold_in(key, epoch), step)


class Curve(NamedTuple):
  """Per epoch: running means over its steps, then the validation means.

  These weigh a batch by its examples: they are exact where the loss of a batch
  is the mean over its examples.
  """

  train: Values
  validation: Values


def _take(examples: Batch, rows: Array) -> Batch:
  return Batch(examples.x[rows], examples.y[rows])


# --- programs ----------------------------------------------------------------


def _make_start(*, recipe: Recipe) -> Callable:
  """Draws a network and starts its optimizer."""

  def function(seed, member):
    return recipe.start(seed, member[1])

  return function


# A member is its number and its hyper-parameters, of which there may be none.
START = Program(_make_start, {"seed": "seed", "member": "member"})


def _make_run(*, recipe: Recipe) -> Callable:
  """Trains some epochs, each followed by the score of the validation split."""

  def add(sums, values):
    return jax.tree.map(jnp.add, sums, values)

  def score(params, parts, examples, zero):
    def one_batch(part, i, sums):
      values = recipe.values(params, _take(examples, part.rows[i]))[1]
      size = part.rows.shape[1]
      # What does not count may be infinite: select, never multiply.
      return add(
        sums,
        jax.tree.map(
          lambda v: jnp.where(part.wanted[i] > 0, v * size, 0), values
        ),
      )

    sums = zero
    for part in parts:
      body = functools.partial(one_batch, part)
      sums = jax.lax.fori_loop(0, len(part.rows), body, sums)
    count = sum(part.wanted.sum() * part.rows.shape[1] for part in parts)
    return jax.tree.map(lambda total: total / count, sums)

  def function(state, member, order, seed, first, epochs, parts, examples):
    _, hyper = member
    steps = order.shape[1]

    def one_step(epoch, t, carry):
      state, sums = carry
      batch = _take(examples, order[epoch, t])
      state, values = recipe.step(state, batch, hyper, (seed, first + epoch, t))
      return state, add(sums, values)

    def one_epoch(epoch, carry):
      state, curve = carry
      zero = jax.tree.map(lambda c: jnp.zeros_like(c[0]), curve.train)
      state, sums = jax.lax.fori_loop(
        0, steps, functools.partial(one_step, epoch), (state, zero)
      )
      point = Curve(
        jax.tree.map(lambda total: total / steps, sums),
        score(state.params, parts, examples, zero),
      )
      curve = jax.tree.map(lambda c, p: c.at[epoch].set(p), curve, point)
      return state, curve

    batch = _take(examples, order[0, 0])
    shapes = jax.eval_shape(recipe.values, state.params, batch)[1]
    empty = jax.tree.map(lambda s: jnp.zeros(len(order), s.dtype), shapes)
    return jax.lax.fori_loop(0, epochs, one_epoch, (state, Curve(empty, empty)))

  return function


RUN = Program(
  _make_run,
  {
    "state": "network",
    "member": "member",
    "order": "order",
    "seed": "seed",
    "first": "shared",  # number of the first epoch
    "epochs": "shared",  # of the order's, how many are taken
    "parts": "seed",
    "examples": "shared",
  },
  donated=("state",),
)


# --- a part of a sweep on its devices ----------------------------------------


@dataclasses.dataclass(frozen=True)
class Placed:
  """Combinations of a sweep with all seeds, on their devices.

  The last seed or combination is repeated until the devices divide them; what
  repetitions give is dropped.

  Attributes:
    recipe: what the networks are.
    layout: how its programs are mapped.
    programs: those compiled so far.
    shape: seeds and combinations, without repetitions.
    seeds: their numbers, with repetitions.
    batch_size: examples of a step.
    examples: the data; the batch of all of them is placed.
    member: number and hyper-parameters of the combinations, placed [A].
    parts: the seeds' validation splits, placed [S, ...].
  """

  recipe: Recipe
  layout: population.Mapping
  programs: Table
  shape: tuple[int, int]
  seeds: Sequence[int]
  batch_size: int
  examples: Examples
  member: tuple[Any, Any]
  parts: tuple[Part, ...]

  @property
  def order_shape(self) -> tuple[int, int, int, int]:
    """Seeds, epochs of a call, steps of an epoch, examples of a step.

    How long a run is does not matter, so that one that goes on is computed by
    the program of one that went straight through.
    """
    steps = self.examples.num_train // self.batch_size
    one = len(self.seeds) * steps * self.batch_size * 4
    epochs = min(MOST_EPOCHS, max(1, ORDER_BYTES // one))
    return len(self.seeds), epochs, steps, self.batch_size

  def run(self, program: Program, **arguments: Any) -> Any:
    """Runs a program, compiling it the first time; results are [S, A, ...]."""
    ordered = program.placed(arguments, self.layout)
    static = {"recipe": self.recipe}
    call, _ = self.programs.find(program, static, self.layout, ordered, True)
    return call(*ordered)


def place(
  recipe: Recipe,
  hyper: Mapping[str, np.ndarray],
  count: int,
  seeds: Sequence[int],
  batch_size: int,
  examples: Examples,
  layout: population.Mapping,
  programs: Table,
) -> Placed:
  """Puts combinations of a sweep on the devices.

  Args:
    hyper: name -> values of the combinations, [count].
    examples: the data, on the host or placed.
    layout: how one network's functions are mapped; the axis that is split over
      the devices is chosen here.
    The others as of `Placed`.
  """
  devices = len(layout.devices)
  split = planning.split_axis(count, len(seeds), devices)
  layout = dataclasses.replace(layout, split=split)
  numbers, rows = list(seeds), np.arange(count, dtype=np.int32)
  if split == "seed":
    numbers += numbers[-1:] * (-len(numbers) % devices)
  else:
    rows = np.pad(rows, (0, -count % devices), mode="edge")
  member = rows, {name: values[rows] for name, values in hyper.items()}
  parts = [examples.parts(seed) for seed in numbers]
  stacked = jax.tree.map(lambda *each: np.stack(each), *parts)
  return Placed(
    recipe,
    layout,
    programs,
    (len(seeds), count),
    numbers,
    batch_size,
    examples.placed(layout),
    population.place(member, "member", layout),
    population.place(stacked, "seed", layout),
  )


def start(placed: Placed) -> TrainState:
  """Draws every network and starts its optimizer, placed [S, A, ...]."""
  seeds = np.array(placed.seeds, np.int32)
  return placed.run(START, seed=seeds, member=placed.member)


def resume(placed: Placed, state: TrainState) -> TrainState:
  """Places host states [A, S, ...] that `fetch` returned."""
  seeds, members = len(placed.seeds), len(placed.member[0])

  def full(leaf):
    leaf = np.swapaxes(np.asarray(leaf), 0, 1)
    missing = [(0, seeds - leaf.shape[0]), (0, members - leaf.shape[1])]
    return np.pad(leaf, missing + [(0, 0)] * (leaf.ndim - 2), mode="edge")

  return population.place(jax.tree.map(full, state), "network", placed.layout)


def fetch(placed: Placed, tree: Any) -> Any:
  """Brings [S, A, ...] to the host as [A, S, ...], without repetitions."""
  seeds, members = placed.shape
  return jax.tree.map(
    lambda leaf: np.swapaxes(leaf[:seeds, :members], 0, 1),
    jax.device_get(tree),
  )


def advance(
  placed: Placed, state: TrainState, epochs: range
) -> tuple[TrainState, Curve]:
  """Trains for some epochs by one call, at most those of `order_shape`.

  Args:
    state: placed; its buffers are consumed.
    epochs: their numbers, which decide the order of examples and what the
      loss draws.

  Returns:
    The state, placed, and the curve on the host, [A, S, E].
  """
  order = np.zeros(placed.order_shape, np.int32)
  for i, seed in enumerate(placed.seeds):
    for j, epoch in enumerate(epochs):
      order[i, j] = placed.examples.order(seed, epoch, placed.batch_size)
  state, curve = placed.run(
    RUN,
    state=state,
    member=placed.member,
    order=order,
    seed=np.array(placed.seeds, np.int32),
    first=np.int32(epochs.start),
    epochs=np.int32(len(epochs)),
    parts=placed.parts,
    examples=placed.examples.all,
  )
  curve = fetch(placed, curve)
  return state, jax.tree.map(lambda c: c[..., : len(epochs)], curve)
