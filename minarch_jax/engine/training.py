"""Training of one network, written once: state, step, epochs.

Everything here is a pure function of one network and one batch; `population`
maps it over members, seeds and devices.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from minarch_jax.config import Config
from minarch_jax.engine import evaluation
from minarch_jax.types import (
  Array,
  Batch,
  Masks,
  Model,
  Params,
  Sizes,
  TrainState,
)


class Step(NamedTuple):
  """Mean loss and share of correct answers of one minibatch."""

  loss: jax.Array
  accuracy: jax.Array


class Curve(NamedTuple):
  """Per epoch: running training means and the exact validation score."""

  train: Step
  validation: evaluation.Score


def data_order(
  seed: int, epoch: int, num_train: int, batch_size: int
) -> np.ndarray:
  """Draws an epoch's minibatches: int32 [num_train // batch_size, batch_size].

  Depends on (seed, epoch) only, so every architecture sees the same images in
  the same order; images beyond the last full batch sit this epoch out.
  """
  words = np.random.SeedSequence((seed, epoch, 0xDA7A))
  order = np.random.Generator(np.random.Philox(words)).permutation(num_train)
  steps = num_train // batch_size
  return order[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Own:
  """What somebody exchanges of the recipe; equal to itself only.

  Attributes:
    make_tx: `make_tx(learning_rate) -> optax.GradientTransformation`, the rate
      a scalar that may be traced.
    loss: `loss(logits [B, classes], y [B]) -> [B]`.
    init: `init(key, shapes) -> params`, for one network.
  """

  make_tx: Callable[[Array], optax.GradientTransformation] | None = None
  loss: Callable[[Array, Array], Any] | None = None
  init: Callable[[jax.Array, Params], Params] | None = None

  def losses(self, logits: Array, y: Array) -> tuple[jax.Array, jax.Array]:
    """Returns what `evaluation.losses` does, by the loss of one's own."""
    loss, correct = evaluation.losses(jnp.asarray(logits), y)
    return loss if self.loss is None else self.loss(logits, y), correct


NOTHING_OWN = Own()


class Optimizer(NamedTuple):
  """The fields of a Config that decide the direction of a step."""

  optimizer: str
  weight_decay: float
  momentum: float

  @classmethod
  def of(cls, config: Config) -> "Optimizer":
    return cls(*(getattr(config, name) for name in cls._fields))


def make_tx(config: Config | Optimizer) -> optax.GradientTransformation:
  """Makes the optimizer's direction; the learning rate is the step's argument.

  A rate per step as data, not inside the optimizer, lets one compiled program
  serve every schedule, and fine-tuning.
  """
  match config.optimizer:
    case "adam":
      return optax.scale_by_adam()
    case "adamw":
      return optax.chain(
        optax.scale_by_adam(), optax.add_decayed_weights(config.weight_decay)
      )
    case "sgd":
      return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.trace(config.momentum),
      )
  raise ValueError(f"unknown optimizer {config.optimizer!r}")


def learning_rates(config: Config, num_steps: int) -> np.ndarray:
  """Returns the learning rate of every step, float32 [num_steps]."""
  if config.schedule == "constant":
    return np.full(num_steps, config.learning_rate, np.float32)
  warmup = int(config.warmup_fraction * num_steps)
  schedule = optax.warmup_cosine_decay_schedule(
    init_value=config.learning_rate / max(1, warmup),
    peak_value=config.learning_rate,
    warmup_steps=warmup,
    decay_steps=max(num_steps, warmup + 1),
  )
  return np.asarray(schedule(np.arange(num_steps)), np.float32)


def start_state(
  optimizer: Optimizer, params: Params, own: Own = NOTHING_OWN
) -> TrainState:
  """Puts stacked host parameters [S, A, ...] beside a fresh optimizer state.

  Every optimizer of `make_tx` starts at zero, so none is run for it.
  """
  if own.make_tx is not None:
    init = jax.vmap(jax.vmap(own.make_tx(jnp.ones(())).init))
    return TrainState(params, jax.device_get(init(params)))
  leaves, structure = jax.tree.flatten(params)
  shapes = tuple(jax.ShapeDtypeStruct(p.shape, p.dtype) for p in leaves)
  found = _state_shapes(optimizer, structure, shapes)
  zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), found)
  return TrainState(params, zeros)


@functools.lru_cache(maxsize=256)  # asked for at every retraining
def _state_shapes(optimizer: Optimizer, structure: Any, shapes: Any) -> Any:
  """The shapes of an optimizer's state, [S, A, ...]."""
  init = jax.vmap(jax.vmap(make_tx(optimizer).init))
  return jax.eval_shape(init, jax.tree.unflatten(structure, shapes))


def make_step(
  model: Model,
  tx: optax.GradientTransformation,
  axis: str | None = None,
  microbatch: int | None = None,
  own: Own = NOTHING_OWN,
) -> Callable:
  """Makes `step(state, batch, learning_rate, sizes, masks) -> (state, Step)`.

  Args:
    model: the network.
    tx: the optimizer's direction.
    axis: mapped axis over which a minibatch is split; gradients are averaged.
    microbatch: how many images go through the network at a time, a divisor of
      the minibatch; gradients are averaged (None = all at once).
    own: a loss, and an optimizer instead of `tx`.

  `masks` (1 = kept) are pruning and width masks alike: masked parameters are
  exactly zero after every step, whatever the optimizer does, also in a
  network that has diverged.
  """

  def loss_fn(params, batch, sizes):
    logits = model.apply(params, batch.x, sizes)
    loss, correct = own.losses(logits, batch.y)
    return loss.mean(), correct.mean()

  gradient = jax.value_and_grad(loss_fn, has_aux=True)

  def mean_gradient(params, batch, sizes):
    if microbatch in (None, len(batch.y)):
      return gradient(params, batch, sizes)
    count = len(batch.y) // microbatch
    parts = jax.tree.map(
      lambda leaf: leaf.reshape(count, microbatch, *leaf.shape[1:]), batch
    )

    def of(i):
      return gradient(params, jax.tree.map(lambda p: p[i], parts), sizes)

    total = jax.tree.map(jnp.zeros_like, jax.eval_shape(of, 0))
    total = jax.lax.fori_loop(
      0, count, lambda i, total: jax.tree.map(jnp.add, total, of(i)), total
    )
    return jax.tree.map(lambda leaf: leaf / count, total)

  def step(
    state: TrainState,
    batch: Batch,
    learning_rate: Array,
    sizes: Sizes,
    masks: Masks,
  ) -> tuple[TrainState, Step]:
    (loss, accuracy), grads = mean_gradient(state.params, batch, sizes)
    if axis is not None:
      loss, accuracy, grads = jax.lax.pmean((loss, accuracy, grads), axis)
    if own.make_tx is not None:
      whole = optax.with_extra_args_support(own.make_tx(learning_rate))
      updates, opt_state = whole.update(
        grads, state.opt_state, state.params, value=loss
      )
      params = optax.apply_updates(state.params, updates)
      return TrainState(params, opt_state), Step(loss, accuracy)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)

    def move(value, update, mask):
      return jnp.where(mask, value - learning_rate * update, 0)

    params = jax.tree.map(move, state.params, updates, masks)
    return TrainState(params, opt_state), Step(loss, accuracy)

  return step


class Lesson(NamedTuple):
  """What one network is trained on in one call.

  The arrays have the same shapes in every call, so that one program serves
  calls of any length: of their E epochs of T steps only the first `epochs`,
  and the first `steps` of each, are taken.

  Attributes:
    epochs, steps: int32 scalars.
    order: int32 [E, T, B], indices of training images.
    learning_rate: float32 [E, T].
  """

  epochs: Array
  steps: Array
  order: Array
  learning_rate: Array


def _steps_of(
  step: Callable, lesson: Lesson, train: Batch, sizes: Sizes, masks: Masks
) -> Callable:
  """Makes `one_step(epoch, t, (state, sums)) -> (state, sums)` of a lesson."""

  def one_step(epoch, t, carry):
    state, sums = carry
    indices = lesson.order[epoch, t]
    batch = Batch(train.x[indices], train.y[indices])
    rate = lesson.learning_rate[epoch, t]
    state, seen = step(state, batch, rate, sizes, masks)
    return state, jax.tree.map(jnp.add, sums, seen)

  return one_step


def make_run(
  step: Callable, totals: Callable, validation: tuple[int, int]
) -> Callable:
  """Makes the one program of a pack: train some epochs, then score.

  Args:
    step: from `make_step`.
    totals: from `evaluation.make_totals`.
    validation: the chunks (first, last) of the validation split.

  Returns:
    `run(state, lesson, sizes, masks, chunks, places, final) -> (state, Curve,
    Totals)`. Each epoch of the lesson is followed by the exact score of the
    validation split; at the end the chunks `final` (first, last) are scored.
    With no epochs it only scores, so the same program trains, retrains and
    evaluates. The lesson's order indexes the images of `chunks`; `places` is
    the seed's order of the chunks; the curve is [E], zero beyond the lesson's
    epochs.
  """
  beginning, end = map(np.int32, validation)

  def run(
    state: TrainState,
    lesson: Lesson,
    sizes: Sizes,
    masks: Masks,
    chunks: evaluation.Chunks,
    places: Array,
    final: tuple[Array, Array],
  ) -> tuple[TrainState, Curve, evaluation.Totals]:
    epochs, steps, order, _ = lesson
    one_step = _steps_of(step, lesson, evaluation.images(chunks), sizes, masks)

    # One round more than there are epochs, so that scoring is compiled once:
    # a round that trains ends with the score of the validation split, the last
    # one takes no step and scores `final`. Only the bounds of loops differ.
    def one_round(epoch, carry):
      state, curve, _ = carry
      training = epoch < epochs
      zero = jnp.zeros_like(curve.train.loss[0])
      state, sums = jax.lax.fori_loop(
        0,
        jnp.where(training, steps, 0),
        functools.partial(one_step, epoch),
        (state, Step(zero, zero)),
      )
      first, last = (
        jnp.where(training, a, b)
        for a, b in zip((beginning, end), final, strict=True)
      )
      score = totals(state.params, sizes, chunks, places, first, last)
      point = Curve(
        jax.tree.map(lambda total: total / steps, sums),
        evaluation.mean(score, chunks, places, first, last),
      )
      # The round that only scores has no place in the curve: it writes what is
      # there already, or, after all E epochs, beyond the end, which is dropped.
      curve = jax.tree.map(
        lambda c, p: c.at[epoch].set(jnp.where(training, p, c[epoch])),
        curve,
        point,
      )
      return state, curve, score

    most = len(order)
    real = jnp.zeros(most, jnp.result_type(float))
    curve = Curve(
      Step(real, real),
      evaluation.Score(real, real, real, jnp.zeros(most, int)),
    )
    nothing = evaluation.no_totals(chunks)
    return jax.lax.fori_loop(0, epochs + 1, one_round, (state, curve, nothing))

  return run
