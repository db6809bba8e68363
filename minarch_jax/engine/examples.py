"""Examples of one's own on the devices, and in which order a seed sees them."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from minarch_jax.engine import population, training
from minarch_jax.engine.session import EVAL_BATCH
from minarch_jax.types import Array, Batch


class Part(NamedTuple):
  """Batches of one size that together are a part of a validation split.

  Attributes:
    rows: int32 [n, B], places among all examples.
    wanted: float32 [n], 0 for a batch that does not count.
  """

  rows: Array
  wanted: Array


@dataclasses.dataclass(frozen=True)
class Examples:
  """All examples, and which of them the seeds of a fold train on.

  Attributes:
    all: the batch of all examples, on the host.
    train, held: for each fold the places of its training and its validation
      examples; seed s belongs to fold s mod F.
  """

  all: Batch
  train: tuple[np.ndarray, ...]
  held: tuple[np.ndarray, ...]

  @classmethod
  def of(
    cls, train: Batch, held: Batch, folds: np.ndarray | None = None
  ) -> "Examples":
    """Lays training and validation examples end to end, as `Dataset` does."""
    whole = Batch(
      *(np.concatenate(pair) for pair in zip(train, held, strict=True))
    )
    rows = np.arange(len(whole.y), dtype=np.int32)
    first, last = rows[: len(train.y)], rows[len(train.y) :]
    trains, helds = [first], [last]
    for fold in range(1, 1 if folds is None else int(folds.max()) + 1):
      own = folds == fold
      trains.append(np.concatenate([first[~own], last]))
      helds.append(first[own])
    return cls(whole, tuple(trains), tuple(helds))

  def placed(self, layout: population.Mapping) -> "Examples":
    """Puts the batch of all examples on every device."""
    whole = population.place(self.all, "shared", layout)
    return dataclasses.replace(self, all=whole)

  def shapes(self, batch_size: int) -> Batch:
    """Returns the shapes of a minibatch."""
    one = jax.tree.map(lambda array: array[:1], self.all)
    return jax.eval_shape(
      lambda batch: jax.tree.map(lambda a: a.repeat(batch_size, 0), batch), one
    )

  @property
  def num_train(self) -> int:
    """Examples that every seed has at least to train on."""
    return min(map(len, self.train))

  def order(self, seed: int, epoch: int, batch_size: int) -> np.ndarray:
    """Draws an epoch's minibatches, int32 [T, B]: those of `ma.train`."""
    rows = self.train[seed % len(self.train)]
    drawn = training.data_order(seed, epoch, len(rows), batch_size)
    return rows[drawn[: self.num_train // batch_size]]

  def parts(self, seed: int) -> tuple[Part, ...]:
    """Cuts a seed's validation split so that all seeds have equal shapes.

    Whole batches, one smaller, and single examples: folds may differ by a few
    of these, and those that a seed lacks do not count.
    """
    sizes = [len(rows) for rows in self.held]
    rows = self.held[seed % len(self.held)]
    whole = min(sizes) // EVAL_BATCH * EVAL_BATCH
    single = np.resize(rows[min(sizes) :], max(sizes) - min(sizes))
    wanted = np.arange(len(single)) < len(rows) - min(sizes)
    batches = (
      rows[:whole].reshape(-1, EVAL_BATCH),
      rows[whole : min(sizes)].reshape(1, -1),
    )
    parts = [Part(each, np.ones(len(each), np.float32)) for each in batches]
    parts.append(Part(single[:, None], wanted.astype(np.float32)))
    return tuple(part for part in parts if part.rows.size)
