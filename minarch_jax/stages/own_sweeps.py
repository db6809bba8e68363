"""Trained networks of one's own: in memory, as a table, and on disk.

A checkpoint knows arrays, not the classes of a user's tree: leaves are saved by
number beside their names, and `read` puts them into the tree that `init` and
`tx` make now, if its leaves have these names, types and shapes.
"""

from collections.abc import Callable, Sequence
import dataclasses
import json
import os
import re
import shutil
from typing import Any

import jax
import numpy as np
import polars as pl

from minarch_jax.config import ConfigError
from minarch_jax.engine.own import Curve, Recipe
from minarch_jax.stages import checkpoints, own_checks
from minarch_jax.types import Params, TrainState

_SAVED = "sweep"  # the checkpoint of `Sweep.save`


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What `train_many` trained: C combinations with S seeds each, on the host.

  Attributes:
    combinations: the hyper-parameters of each.
    seeds: their numbers.
    state: parameters and optimizer, arrays [C, S, ...].
    curve: what was recorded, arrays [C, S, epochs]; see `curves`.
  """

  combinations: list[dict[str, Any]]
  seeds: list[int]
  state: TrainState
  curve: Curve

  @property
  def params(self) -> Params:
    """The tree of `init`, every leaf [C, S, ...]."""
    return self.state.params

  @property
  def epochs(self) -> int:
    """How many epochs the networks have trained."""
    return self.curve.train["loss"].shape[-1]

  @property
  def curves(self) -> pl.DataFrame:
    """One row for each combination, seed and epoch.

    Columns: seed; the swept names; epoch, from 1; train_loss, the mean over the
    steps of the epoch; validation_loss after it; and both of every metric, as
    train_accuracy and validation_accuracy. They are NaN once a network has
    diverged.
    """
    shape = len(self.combinations), len(self.seeds), self.epochs
    row, seed, epoch = (index.reshape(-1) for index in np.indices(shape))
    columns = {"seed": np.array(self.seeds)[seed]}
    for name in self.combinations[0]:
      values = np.array([each[name] for each in self.combinations])
      columns[name] = values[row]
    columns["epoch"] = epoch + 1
    for name in sorted(self.curve.train, key=lambda n: (n != "loss", n)):
      for split, values in self.curve._asdict().items():
        column = values[name].reshape(-1).astype(np.float64)
        columns[f"{split}_{name}"] = column
    return pl.DataFrame(columns)

  def save(self, path: str) -> None:
    """Saves everything in a directory, from where `ma.load_sweep` reads it."""
    write(path, _SAVED, self)


def load_sweep(path: str, init: Callable, tx: Any) -> Sweep:
  """Reads what `Sweep.save` saved, bit for bit.

  >>> init = lambda key: {"w": 0.1 * jax.random.normal(key, (16, 3))}
  >>> def loss(params, batch):
  ...   logits = batch.x.reshape(-1, 16) @ params["w"]
  ...   return optax.softmax_cross_entropy_with_integer_labels(
  ...     logits, batch.y
  ...   ).mean()
  >>> found = ma.train_many(
  ...   init, loss, optax.adam, (batch, batch), seeds=[0, 1],
  ...   sweep={"learning_rate": [0.01, 0.1]}, num_epochs=1, batch_size=3
  ... )
  >>> found.save("adam")
  >>> back = ma.load_sweep("adam", init, optax.adam)
  >>> back.params["w"].shape
  (2, 2, 16, 3)

  Args:
    path: the directory.
    init, tx: as for `ma.train_many`; they say what the trees are made of,
      which no file of arrays does.

  Raises:
    FileNotFoundError: nothing was saved there.
    ConfigError: what was saved is damaged, or of another init or tx.
  """

  def shapes(row: dict[str, Any]) -> TrainState:
    recipe = Recipe(init, _no_loss, own_checks.make_tx(tx, row))
    hyper = {name: v[0] for name, v in own_checks.stacked([row]).items()}
    return own_checks.state_of(recipe, hyper)

  return read(path, _SAVED, shapes)


def _no_loss(params: Params, batch: Any) -> Any:
  raise AssertionError("reading takes no loss")


def join(parts: Sequence[Sweep]) -> Sweep:
  """Puts combinations that were trained apart after one another."""
  state, curve = jax.tree.map(
    lambda *leaves: np.concatenate(leaves),
    *((part.state, part.curve) for part in parts),
  )
  rows = [row for part in parts for row in part.combinations]
  return Sweep(rows, parts[0].seeds, state, curve)


def part(sweep: Sweep, rows: Sequence[int]) -> Sweep:
  """Takes some of the combinations."""
  index = np.array(rows)
  state, curve = jax.tree.map(
    lambda leaf: leaf[index], (sweep.state, sweep.curve)
  )
  chosen = [sweep.combinations[i] for i in rows]
  return Sweep(chosen, sweep.seeds, state, curve)


def check(sweep: Sweep, state: TrainState, where: str) -> None:
  """Raises ConfigError for networks of another init or tx.

  Args:
    state: shapes of one network's state.
    where: what holds the networks.
  """
  grid = len(sweep.combinations), len(sweep.seeds)
  wanted, found = (
    [
      f"{name} {leaf.dtype}{[*axes, *leaf.shape]}"
      for name, leaf in zip(_names(tree), jax.tree.leaves(tree), strict=True)
    ]
    for tree, axes in ((state, grid), (sweep.state, ()))
  )
  if wanted != found:
    differs = sorted(set(wanted) ^ set(found)) or ["the order of leaves"]
    raise ConfigError(
      f"{where} holds networks of another init or tx; they differ in "
      f"{'; '.join(differs[:4])}"
    )


def write(out: str, id: str, sweep: Sweep) -> None:
  """Writes a checkpoint, whole or not at all."""
  about = {
    "combinations": sweep.combinations,
    "seeds": sweep.seeds,
    "leaves": _names(sweep.state),
    "values": sorted(sweep.curve.train),
  }
  text = json.dumps(about).encode()
  tree = {
    "about": np.frombuffer(text, np.uint8),
    "state": checkpoints.numbered(jax.tree.leaves(sweep.state)),
    **{
      name: checkpoints.numbered([values[key] for key in about["values"]])
      for name, values in sweep.curve._asdict().items()
    },
  }
  checkpoints.save(out, id, [tree])


def read(
  out: str, id: str, shapes: Callable[[dict[str, Any]], TrainState]
) -> Sweep:
  """Reads a checkpoint.

  Args:
    shapes: of the state of a network with these hyper-parameters.

  Raises:
    FileNotFoundError: there is none.
    ConfigError: it is damaged, or of other sweep.
  """
  path = checkpoints.path(out, id)
  if not os.path.isdir(path):
    raise FileNotFoundError(f"{path} is missing; no sweep was saved there")
  try:
    (tree,) = checkpoints.load(out, id)
    about = json.loads(tree["about"].tobytes())
    found = checkpoints.listed(tree["state"])
    curve = Curve(
      *(
        dict(zip(about["values"], checkpoints.listed(tree[name]), strict=True))
        for name in Curve._fields
      )
    )
  except (ConfigError, KeyError, ValueError) as error:
    raise ConfigError(
      f"{path} is no whole sweep of this package; delete it and train anew"
    ) from error
  rows, seeds = about["combinations"], about["seeds"]
  state = shapes(rows[0])
  structure = jax.tree.structure(state)
  if about["leaves"] != _names(state):
    differs = sorted(set(about["leaves"]) ^ set(_names(state)))
    raise ConfigError(
      f"{path} holds networks of another init or tx; they differ in "
      f"{'; '.join(differs[:4])}"
    )
  sweep = Sweep(rows, seeds, jax.tree.unflatten(structure, found), curve)
  check(sweep, state, path)
  return sweep


def _names(state: TrainState) -> list[str]:
  paths = jax.tree_util.tree_leaves_with_path(state)
  return [jax.tree_util.keystr(path) for path, _ in paths]


# --- a run that may be interrupted -------------------------------------------


def keep(out: str, id: str, sweep: Sweep) -> None:
  """Writes how far a run has come, then removes what it stood on before."""
  write(out, f"{id}-{sweep.epochs}", sweep)
  for epochs in _kept(out, id):
    if epochs < sweep.epochs:
      shutil.rmtree(checkpoints.path(out, f"{id}-{epochs}"))


def kept(out: str, id: str, state: TrainState) -> Sweep | None:
  """Reads how far a run has come; None where it has not begun.

  Args:
    out: the directory.
    id: of the run.
    state: shapes of one network's state.
  """
  found = _kept(out, id)
  return read(out, f"{id}-{found[-1]}", lambda row: state) if found else None


def _kept(out: str, id: str) -> list[int]:
  """The epochs of the checkpoints of a run, rising; unfinished ones are not."""
  folder = os.path.dirname(checkpoints.path(out, id))
  names = os.listdir(folder) if os.path.isdir(folder) else []
  matches = (re.fullmatch(rf"{re.escape(id)}-(\d+)", name) for name in names)
  return sorted(int(match[1]) for match in matches if match)
