"""The population of a notebook: looked at, chosen from, kept, trained on."""

from collections.abc import Sequence
import dataclasses
import json
import os
from typing import Any

import jax
import numpy as np
import polars as pl

from minarch_jax import records
from minarch_jax.architectures import Architecture
from minarch_jax.config import Config, ConfigError
from minarch_jax.engine import evaluation, training
from minarch_jax.engine.keeping import Kept
from minarch_jax.engine.packs import Trained
from minarch_jax.engine.planning import Pack
from minarch_jax.stages import checkpoints
from minarch_jax.types import Dataset, Params, TrainState


@dataclasses.dataclass(frozen=True)
class Population:
  """Trained networks.

  Attributes:
    architectures: as given.
    params: for each architecture a tree of its true shapes with a leading seed
      axis, on the host; where several learning rates were asked for, with an
      axis of these before it.
    curves: the table of records.SCHEMAS["curves"], with the learning rate where
      there are several.
    networks: the table of records.SCHEMAS["networks"], likewise.
    learning_rates: where several were asked for.
    config, fingerprint: how they were trained, and on which data.
    trained: from where training goes on, by learning rates and packs.
  """

  architectures: list[Architecture]
  params: list[Params]
  curves: pl.DataFrame
  networks: pl.DataFrame
  learning_rates: list[float] | None = None
  config: Config = dataclasses.field(default_factory=Config, repr=False)
  fingerprint: str = ""
  trained: Sequence[Sequence[Trained]] = dataclasses.field(
    default=(), repr=False
  )

  def best(self) -> "Population":
    """Takes each architecture at its best learning rate.

    The best is that of the highest mean validation accuracy over seeds, the
    lowest among equals. Tables lose the column.

    Raises:
      ValueError: there is one rate.
    """
    if self.learning_rates is None:
      raise ValueError(
        "there is one learning rate; train with learning_rate=[1e-3, 3e-3]"
      )
    means = (
      self.networks.group_by("architecture", "learning_rate")
      .agg(pl.col("val_accuracy").mean())
      .sort("learning_rate")
      .sort("val_accuracy", descending=True, maintain_order=True)
      .group_by("architecture", maintain_order=True)
      .first()
    )
    chosen = dict(means.select("architecture", "learning_rate").iter_rows())
    pairs = means.select("architecture", "learning_rate")
    curves, networks = (
      table.join(
        pairs,
        on=["architecture", "learning_rate"],
        how="semi",
        maintain_order="left",
      ).drop("learning_rate")
      for table in (self.curves, self.networks)
    )
    places = [
      self.learning_rates.index(chosen[str(a)]) for a in self.architectures
    ]
    params = [
      jax.tree.map(lambda leaf, i=i: leaf[i], tree)
      for i, tree in zip(places, self.params, strict=True)
    ]
    return Population(self.architectures, params, curves, networks)

  def save(self, path: str) -> None:
    """Saves everything in a new directory, for `ma.load_population`.

    Raises:
      FileExistsError: there is something.
    """
    if os.path.exists(path) and os.listdir(path):
      raise FileExistsError(f"{path} is not empty; save to a new directory")
    os.makedirs(path, exist_ok=True)
    about = {
      "architectures": [str(a) for a in self.architectures],
      "learning_rates": self.learning_rates,
      "config": dataclasses.asdict(self.config),
      "fingerprint": self.fingerprint,
      "packs": [[_describe(each) for each in part] for part in self.trained],
    }
    tree = {"params": checkpoints.numbered(self.params)}
    for i, part in enumerate(self.trained):
      for j, each in enumerate(part):
        tree[f"kept {i} {j}"] = checkpoints.numbered(jax.tree.leaves(each.kept))
    checkpoints.write(os.path.abspath(os.path.join(path, "arrays")), tree)
    self.curves.write_parquet(os.path.join(path, "curves.parquet"))
    self.networks.write_parquet(os.path.join(path, "networks.parquet"))
    # Last: what has it is whole.
    with (
      records.atomic(os.path.join(path, _ABOUT)) as temporary,
      open(temporary, "w") as file,
    ):
      json.dump(about, file)


_ABOUT = "population.json"


def load_population(path: str) -> Population:
  """Reads what `Population.save` saved, bit for bit.

  >>> data = ma.load("synthetic:easy")
  >>> found = ma.train(["dnn:4"], data, num_seeds=2, num_epochs=1)
  >>> found.save("few")
  >>> longer = ma.train(
  ...   ["dnn:4"], data, num_seeds=2, num_epochs=2,
  ...   start=ma.load_population("few"))
  >>> len(longer.curves)
  4

  Raises:
    FileNotFoundError: nothing was saved there.
    ConfigError: what was saved is damaged.
  """
  if not os.path.exists(os.path.join(path, _ABOUT)):
    raise FileNotFoundError(f"{path} holds no population of Population.save")
  try:
    with open(os.path.join(path, _ABOUT)) as file:
      about = json.load(file)
    tree = checkpoints.read(os.path.abspath(os.path.join(path, "arrays")))
    curves, networks = (
      pl.read_parquet(os.path.join(path, f"{name}.parquet"))
      for name in ("curves", "networks")
    )
    params = checkpoints.listed(tree["params"])
    values: dict[str, Any] = {
      name: tuple(value) if isinstance(value, list) else value
      for name, value in about["config"].items()
    }
    trained = [
      [_read(each, tree[f"kept {i} {j}"]) for j, each in enumerate(part)]
      for i, part in enumerate(about["packs"])
    ]
  except (
    ConfigError,
    OSError,
    KeyError,
    ValueError,
    pl.exceptions.PolarsError,
  ):
    raise ConfigError(
      f"{path} is no whole population of this package; train it anew"
    ) from None
  return Population(
    [Architecture.parse(text) for text in about["architectures"]],
    params,
    curves,
    networks,
    about["learning_rates"],
    Config(**values),
    about["fingerprint"],
    trained,
  )


def _describe(trained: Trained) -> dict[str, Any]:
  pack = trained.pack
  return {
    "architectures": [str(a) for a in pack.architectures],
    "seeds": list(pack.seeds),
    "parent": str(pack.parent),
    "slots": pack.slots,
  }


def _read(described: dict[str, Any], leaves: dict[str, Any]) -> Trained:
  """Rebuilds what `From` needs of a pack: leaves, not what holds them."""
  pack = Pack(
    tuple(map(Architecture.parse, described["architectures"])),
    tuple(described["seeds"]),
    Architecture.parse(described["parent"]),
    described["slots"],
  )
  kept: Any = checkpoints.listed(leaves)
  nothing: Any = None
  return Trained(pack, [], nothing, nothing, 0.0, 0.0, kept)


# --- training on -------------------------------------------------------------


@dataclasses.dataclass
class From:
  """A keeper of a pack that has trained; see `keeping.Keeper`.

  Attributes:
    kept: a `Kept`, or its leaves as a file holds them.
  """

  kept: Any

  def load(self, like: TrainState) -> Kept:
    """Raises ValueError for the state of another optimizer."""
    shapes = jax.tree.map(np.shape, jax.tree.leaves(like))
    leaves = jax.tree.leaves(self.kept)
    structure = jax.tree.structure(Kept(like, training.Curve(*_CURVE), 0.0))
    found = [np.shape(leaf) for leaf in leaves[: len(shapes)]]
    if structure.num_leaves != len(leaves) or found != shapes:
      raise ValueError(
        "start holds the state of another optimizer; give the tx that it was "
        "trained with"
      )
    return jax.tree.unflatten(structure, leaves)

  def due(self) -> bool:
    return False

  def keep(self, kept: Kept) -> None:
    del kept


_NUMBER: Any = 0
_CURVE = (
  training.Step(_NUMBER, _NUMBER),
  evaluation.Score(_NUMBER, _NUMBER, _NUMBER, _NUMBER),
)


def check_start(
  start: Population,
  members: Sequence[Architecture],
  configs: Sequence[Config],
  dataset: Dataset,
) -> None:
  """Raises ValueError unless training goes on from a population as asked."""
  if not start.trained:
    raise ValueError(
      "start is a choice of networks, which cannot be trained on; give the "
      "population that it was chosen from"
    )
  if list(members) != list(start.architectures):
    raise ValueError(
      f"start holds {', '.join(map(str, start.architectures))}; train these"
    )
  if dataset.fingerprint != start.fingerprint:
    raise ValueError("start was trained on other data; give the same data set")
  rates = start.learning_rates or [start.config.learning_rate]
  asked = [config.learning_rate for config in configs]
  before = start.config.recipe() | {"learning_rate": rates}
  now = configs[0].recipe() | {"learning_rate": asked}
  before["seeds"], now["seeds"] = (
    list(start.config.seeds),
    list(configs[0].seeds),
  )
  for name, value in before.items():
    if name != "num_epochs" and now[name] != value:
      raise ValueError(
        f"start was trained with {name}={value}, asked for is {now[name]}; "
        "give the same"
      )
  if configs[0].num_epochs <= start.config.num_epochs:
    raise ValueError(
      f"num_epochs={configs[0].num_epochs} counts the "
      f"{start.config.num_epochs} epochs that start has; ask for more"
    )
