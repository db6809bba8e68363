"""The straight line: check, open, train, compress, run the arms, describe.

The only module that knows the order of things. Each stage returns at once for
what the results directory already holds, so a study that was interrupted goes
on where it stopped, and any stage runs alone on what an earlier one left. The
binaries walk the line on files, notebooks and benchmarks in memory.
"""

from collections.abc import Iterator, Sequence
import contextlib

from minarch_jax.architectures import Architecture
from minarch_jax.config import Config
from minarch_jax.engine import packs
from minarch_jax.engine import session as sessions
from minarch_jax.engine.packs import Trained
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.session import Session
from minarch_jax.stages import arms, provenance, setup
from minarch_jax.stages import compress as compression
from minarch_jax.stages import train as training
from minarch_jax.stages.progress import Progress
from minarch_jax.stages.train import Statistics


@contextlib.contextmanager
def opened(config: Config) -> Iterator[tuple[Session, list[Statistics]]]:
  """Checks a configuration and opens a session on its data.

  What the caller adds to the list, one line per pack, is left with the
  configuration in <out>/study.json, whatever happens.

  Raises:
    ConfigError: a value that cannot be used.
  """
  setup.check(config)
  session = setup.open_session(config)
  statistics: list[Statistics] = []
  try:
    yield session, statistics
  finally:
    provenance.write(session, config.out, statistics)


def run(
  config: Config,
  *,
  train: bool = True,
  prune: bool = True,
  quantize: bool = True,
) -> str:
  """Runs stages of a study and leaves records and checkpoints in <out>.

  All stages together are a study, which then runs the arms of its design.

  Args:
    config: every choice.
    train: whether to train what is missing; otherwise all must be there.
    prune, quantize: which axes of the compression grid to walk.

  Returns:
    The fingerprint of the data.

  Raises:
    ConfigError: a value that cannot be used, or networks that are missing.
  """
  with opened(config) as (session, statistics):
    if train:
      statistics += training.sweep(session, config.out)
    if prune or quantize:
      statistics += compression.compress(
        session, config.out, prune=prune, quantize=quantize
      )
    if train and prune and quantize:
      statistics += arms.run(session, config.out)
  return session.dataset.fingerprint


def train_in_memory(
  session: Session, members: Sequence[Architecture]
) -> list[Trained]:
  """Trains architectures with every seed and writes nothing.

  Returns:
    What each pack gave.
  """
  todo = packs.plan(session, members, list(session.config.seeds))
  return train_packs(session, todo)


def train_packs(session: Session, todo: Sequence[Pack]) -> list[Trained]:
  """Trains planned packs, largest first, and shows how far it is."""
  costs = {pack: training.predicted_seconds(session, pack) for pack in todo}
  with Progress("train", sum(costs.values())) as progress:

    def run(pack: Pack) -> list[Trained]:
      share = costs[pack] / session.work.num_epochs
      return packs.train_or_split(
        session, pack, lambda epochs: progress.advance(epochs * share)
      )

    return sum(sessions.together(session, todo, run), [])
