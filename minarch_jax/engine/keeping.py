"""What is kept of a pack in training, should the process end before it."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from minarch_jax.engine.planning import Pack
from minarch_jax.engine.training import Curve
from minarch_jax.types import TrainState


class Kept(NamedTuple):
  """A pack between two calls of its program, on the host.

  Training on from here gives what training straight through gives, bit for bit:
  minibatches and learning rates depend on the number of the epoch alone.

  Attributes:
    state: parameters and moments as the program takes them, [S, A, ...].
    curve: arrays [S, A, E] of the epochs that are finished.
    seconds: of running so far.
  """

  state: TrainState
  curve: Curve
  seconds: float

  @property
  def epochs(self) -> int:
    return self.curve.train.loss.shape[-1]


class Keeper(Protocol):
  """Whoever keeps the state of one pack."""

  def load(self, like: TrainState) -> Kept | None:
    """Returns what an earlier process kept, in the structure of a state."""
    ...

  def due(self) -> bool:
    """Says whether it is time to keep what there is."""
    ...

  def keep(self, kept: Kept) -> None:
    """Keeps a state instead of the one before."""
    ...


class _Forgetful:
  """Keeps nothing."""

  def load(self, like: TrainState) -> Kept | None:
    del like

  def due(self) -> bool:
    return False

  def keep(self, kept: Kept) -> None:
    del kept


KeeperOf = Callable[[Pack], Keeper]


def nowhere(pack: Pack) -> Keeper:
  """Keeps nothing of a pack."""
  del pack
  return _Forgetful()
