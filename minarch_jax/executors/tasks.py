"""What a process must be told to do a part of a study."""

from collections.abc import Callable
import dataclasses
import os
from typing import Any, Protocol

from minarch_jax import data, records
from minarch_jax.config import Config, ConfigError
from minarch_jax.engine import session as sessions
from minarch_jax.engine.costs import Machine
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.session import Session
from minarch_jax.types import Dataset

Heard = Callable[[float], None]  # called with the share just finished


@dataclasses.dataclass(frozen=True)
class Task:
  """Some packs and what is to be done with them.

  Attributes:
    work: does it; a function of a module, so that its name says all. What it
      leaves are part files, and what it returns can be pickled.
    out: the results directory.
    id: names the part files.
    tables: the tables that have one; once all are there, the task is done.
    packs: of one parent.
    how: what else `work` needs to know.
    seconds: how much longer the study takes by it, as foretold.
  """

  work: "Work"
  out: str
  id: str
  tables: tuple[str, ...]
  packs: tuple[Pack, ...]
  how: Any = None
  seconds: float = 0.0

  @property
  def done(self) -> bool:
    return all(records.exists(self.out, t, self.id) for t in self.tables)

  @property
  def anywhere(self) -> "Task":
    """The same for a process in another folder."""
    return dataclasses.replace(self, out=os.path.abspath(self.out))


Work = Callable[[Session, Task, Heard], Any]


class Watcher(Protocol):
  """Whoever watches tasks being done."""

  def advance(self, task: Task, share: float) -> None:
    """Hears that a share of a task is finished."""
    ...

  def say(self, text: str) -> None:
    """Hears what else there is to know."""
    ...


@dataclasses.dataclass(frozen=True)
class Scene:
  """What another process opens a session by, to do what was planned here.

  Attributes:
    config: every choice, on one data set.
    fingerprint: of its images.
    arm, machine, most_epochs: as in Session.
  """

  config: Config
  fingerprint: str
  arm: str
  machine: Machine
  most_epochs: int | None

  @classmethod
  def of(cls, session: Session) -> "Scene":
    return cls(
      session.config,
      session.dataset.fingerprint,
      session.arm,
      session.machine,
      session.most_epochs,
    )

  def open(self, dataset: Dataset | None = None) -> Session:
    """Opens a session on a data set, or on that of the configuration.

    Raises:
      ConfigError: the images are others here.
    """
    dataset = dataset or data.load_chosen(self.config)
    if dataset.fingerprint != self.fingerprint:
      raise ConfigError(
        f"--dataset={self.config.dataset}: its images are others here than "
        "where the study was planned; give all machines the same files"
      )
    session = sessions.open_session(self.config, dataset, self.machine)
    return dataclasses.replace(
      session, arm=self.arm, most_epochs=self.most_epochs
    )
