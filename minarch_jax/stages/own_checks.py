"""What can be wrong with networks of one's own, said before they compile."""

from collections.abc import Callable, Iterable, Mapping
import inspect
import itertools
import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from minarch_jax import leaves, registries
from minarch_jax.config import Config
from minarch_jax.engine.examples import Examples
from minarch_jax.engine.own import Recipe
from minarch_jax.types import Batch, Dataset, TrainState

# The choices of a study that mean something here too.
OPTIONS = (
  *("num_epochs", "batch_size", "memory_limit", "compilation_cache_dir"),
  *("device_map", "seed_mapping", "member_mapping"),
)
_COLUMNS = ("seed", "epoch")
_TRACED = (
  jax.errors.ConcretizationTypeError,
  jax.errors.TracerArrayConversionError,
)


def options(given: Mapping[str, Any]) -> Config:
  """Completes the options; ConfigError for a value that cannot be used."""
  for name in given:
    if name not in OPTIONS:
      raise ValueError(
        f"unknown option {name!r}{registries.nearest(name, OPTIONS)}; there "
        f"are {', '.join(OPTIONS)}"
      )
  return Config().replace(packs_at_once=1, **given)


def seeds(given: Iterable[int]) -> list[int]:
  """Lists the seeds; ValueError where they are none, or one is there twice."""
  found = list(given)
  if not found:
    raise ValueError("seeds is empty; name at least one, as in seeds=range(5)")
  for seed in found:
    whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not whole or not 0 <= seed < 2**31:
      raise ValueError(f"seed {seed!r} is no whole number from 0 to 2**31 - 1")
  if len(set(found)) < len(found):
    raise ValueError(f"seeds {found} name one twice; name each once")
  return [int(seed) for seed in found]


def combinations(sweep: Mapping[str, Iterable[Any]]) -> list[dict[str, Any]]:
  """Crosses the values of a sweep, the last name fastest.

  Raises:
    ValueError: no value, one that is no finite number or there twice, or a
      name that a column of the curves has.
  """
  values = {}
  for name, given in sweep.items():
    if name in _COLUMNS or name.startswith(("train_", "validation_")):
      raise ValueError(
        f"sweep[{name!r}]: the curves have a column of that name; call it "
        "otherwise, there and in tx"
      )
    if isinstance(given, str) or not isinstance(given, Iterable):
      raise ValueError(
        f"sweep[{name!r}] is {given!r}; list its values, as in [1e-3, 3e-3]"
      )
    found = [v.item() if hasattr(v, "item") else v for v in given]
    for value in found:
      if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"sweep[{name!r}]: {value!r} is no finite number")
    if not found or len(set(found)) < len(found):
      raise ValueError(
        f"sweep[{name!r}] is {found}; list at least one value, and each once"
      )
    # Of one type, also where combinations are trained apart.
    values[name] = np.array(found).tolist()
  rows = itertools.product(*values.values())
  return [dict(zip(values, row, strict=True)) for row in rows]


def stacked(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
  """Stacks the values of combinations: name -> [A], float or int."""
  columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
  return {
    name: values.astype(jax.dtypes.canonicalize_dtype(values.dtype))
    for name, values in columns.items()
  }


def make_tx(tx: Any, names: Iterable[str]) -> Callable[..., Any]:
  """Returns the function that makes the optimizer of a combination.

  Raises:
    ValueError: `tx` is neither an optimizer nor a function of the names.
  """
  names = list(names)
  if isinstance(tx, optax.GradientTransformation):
    if names:
      raise ValueError(
        f"sweep has {', '.join(names)}, but tx is a finished optimizer; pass "
        f"the function that makes it: lambda {', '.join(names)}: ..."
      )
    return lambda: tx
  if not callable(tx):
    raise ValueError(
      f"tx is {tx!r}; pass an optax optimizer, or a function of the swept "
      "hyper-parameters that returns one"
    )
  try:
    inspect.signature(tx).bind(**dict.fromkeys(names))
  except TypeError as error:
    raise ValueError(
      f"tx takes {inspect.signature(tx)}, the sweep has "
      f"{', '.join(names) or 'nothing'} ({error}); give them the same names"
    ) from None
  return tx


def examples(data: Any, batch_size: int) -> Examples:
  """Lays the data out; ValueError where nothing can be learnt from them."""
  folds = None
  if isinstance(data, Dataset):
    splits, folds = (data.train, data.validation), data.folds
  else:
    try:
      train, validation = data
      splits = Batch(*train), Batch(*validation)
    except (TypeError, ValueError):
      raise ValueError(
        "data is neither a data set of ma.load nor a pair of batches (train, "
        "validation), each (x, y)"
      ) from None
  found = []
  for where, split in zip(("training", "validation"), splits, strict=True):
    x, y = map(_narrow, split)
    if not x.ndim or not y.ndim or len(x) != len(y) or not len(x):
      raise ValueError(
        f"{where} data: x of shape {x.shape} and y of shape {y.shape}; give "
        "both one row for each example, and at least one"
      )
    for name, array in (("x", x), ("y", y)):
      _check_numbers(f"{where} data: {name}", array)
    found.append(Batch(x, y))
  pairs = zip(*found, strict=True)
  for name, (a, b) in zip(Batch._fields, pairs, strict=True):
    if a.shape[1:] != b.shape[1:] or a.dtype != b.dtype:
      raise ValueError(
        f"{name} is {a.dtype} {a.shape[1:]} in training and {b.dtype} "
        f"{b.shape[1:]} in validation; bring both to one type and shape"
      )
  train, validation = found
  whole = Examples.of(train, validation, folds)
  if batch_size > whole.num_train:
    raise ValueError(
      f"batch_size={batch_size} is more than the {whole.num_train} training "
      "examples; take a smaller batch"
    )
  return whole


def _narrow(array: Any) -> np.ndarray:
  """Brings an array to the host, no wider than JAX takes it."""
  array = np.asarray(array)
  if array.dtype.kind not in "biuf":
    return array
  return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def _check_numbers(where: str, array: np.ndarray) -> None:
  if array.dtype.kind not in "biuf":
    raise ValueError(f"{where} is {array.dtype}; give numbers")
  if array.dtype.kind == "f":
    bad = ~np.isfinite(array.reshape(len(array), -1)).all(1)
    if bad.any():
      raise ValueError(
        f"{where} of {bad.sum()} of {len(array)} examples is NaN or infinite, "
        f"the first at {bad.argmax()}; leave them out or mend them"
      )


def state_of(recipe: Recipe, hyper: Mapping[str, Any]) -> TrainState:
  """Returns the shapes of the state of a network with these hyper-parameters.

  Raises:
    ValueError: init is not pure in its shapes, or draws what cannot be
      trained; tx decides by a value that is swept.
  """

  def shapes():
    return jax.eval_shape(recipe.start, np.int32(0), hyper)

  try:
    state = shapes()
  except _TRACED as error:
    raise ValueError(
      f"init or tx decides by a value that is traced, the key or one of "
      f"{', '.join(hyper) or 'nothing'}; use jax.numpy.where and jax.lax.cond, "
      f"or train it apart: {first_line(error)}"
    ) from error
  if described(shapes()) != described(state):
    raise ValueError(
      "init gives other shapes at its second call; make it a function of its "
      "key alone"
    )
  if not jax.tree.leaves(state.params):
    raise ValueError(f"init returns no array, but {state.params!r}")
  for path, leaf in leaves.named(state.params):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise ValueError(
        f"init: {'/'.join(path)!r} is {leaf.dtype}, which no gradient moves; "
        "leave it out of the parameters and let loss close over it"
      )
  for path, leaf in leaves.named(state.opt_state):
    if not leaves.is_array(leaf):
      raise ValueError(
        f"tx: {'/'.join(path)!r} of its state is a {leaf.dtype}; keep "
        "jax.random.key_data of it instead"
      )
  return state


def draws(loss: Callable) -> bool:
  """Says whether a loss takes a key."""
  try:
    return "key" in inspect.signature(loss).parameters
  except (TypeError, ValueError):  # of some functions of C nothing is known
    return False


def step_of(
  recipe: Recipe, state: TrainState, batch: Batch, hyper: Mapping[str, Any]
) -> None:
  """Raises ValueError for a loss or an optimizer that cannot take a step.

  Args:
    state, batch: shapes of a network's state and of a minibatch.
    hyper: of a combination.
  """
  try:
    _check_loss(jax.eval_shape(recipe.told, state.params, batch))
    after, _ = jax.eval_shape(recipe.step, state, batch, hyper)
  except _TRACED as error:
    raise ValueError(
      "loss or tx decides by a value that is traced; use jax.numpy.where and "
      f"jax.lax.cond: {first_line(error)}"
    ) from error
  before, now = described(state), described(after)
  if now != before:
    changed = sorted(set(now) ^ set(before)) or ["its structure"]
    raise ValueError(
      "a step changes the types or shapes of the state; init, loss and tx "
      f"must keep them: {'; '.join(changed)}"
    )


def _check_loss(found: Any) -> None:
  loss, metrics = found if isinstance(found, tuple) else (found, {})
  if getattr(loss, "shape", None) != ():
    raise ValueError(
      f"loss returns {jax.tree.map(lambda x: x.shape, loss)} where one number "
      "is needed; take its mean over the batch"
    )
  if not jnp.issubdtype(loss.dtype, jnp.floating):
    raise ValueError(f"loss returns {loss.dtype}; only real numbers have slope")
  if not isinstance(metrics, dict):
    raise ValueError(
      f"loss returns {type(metrics).__name__} beside its number; give a "
      "dictionary, as in (loss, {'accuracy': accuracy})"
    )
  for name, value in metrics.items():
    shape = getattr(value, "shape", None)
    if not isinstance(name, str) or name == "loss" or shape != ():
      raise ValueError(
        f"metric {name!r} of shape {shape}: name it by a text other than "
        "'loss', and take its mean over the batch"
      )


def described(tree: Any) -> list[str]:
  """Lists the leaves of a tree by place, type and shape, in their order."""
  return [
    f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}"
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  ]


def first_line(error: Exception) -> str:
  return str(error).splitlines()[0]
