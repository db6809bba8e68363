"""What of the recipe of `ma.train` is one's own, checked before it runs."""

from collections.abc import Callable, Iterable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from minarch_jax import models, random
from minarch_jax.architectures import Architecture, Problem
from minarch_jax.config import Config
from minarch_jax.engine.training import NOTHING_OWN, Own
from minarch_jax.stages import own_checks


def is_list(given: Any) -> bool:
  return isinstance(given, Iterable) and not isinstance(given, str)


def learning_rates(
  given: Any, tx: Any, options: Mapping[str, Any]
) -> list[float]:
  """Lists the learning rates of `ma.train`.

  Raises:
    ValueError: a value that is none, or a rate or an optimizer twice over.
  """
  if tx is not None and "optimizer" in options:
    raise ValueError(
      f"optimizer={options['optimizer']!r} and tx= both say how to step; give "
      "one"
    )
  listed = is_list(given)
  values = given if listed else [given]
  try:
    rows = own_checks.combinations({"learning_rate": values})
  except ValueError as error:
    text = str(error).replace("sweep['learning_rate']", "learning_rate")
    raise ValueError(text) from None
  if isinstance(tx, optax.GradientTransformation) and (
    listed or given != Config.learning_rate
  ):
    raise ValueError(
      "tx is a finished optimizer with a rate of its own; pass the function "
      "that makes it, as tx=optax.adam, to give learning_rate="
    )
  return [float(row["learning_rate"]) for row in rows]


def own_recipe(tx: Any, loss: Any, init: Any) -> Own:
  """Returns what of a recipe is somebody's own.

  Raises:
    ValueError: none of which a recipe can be made.
  """
  for name, function in (("loss", loss), ("init", init)):
    if function is not None and not callable(function):
      raise ValueError(f"{name} is {function!r}; pass a function")
  if tx is None and loss is None and init is None:
    return NOTHING_OWN
  make = None
  if isinstance(tx, optax.GradientTransformation):
    make = functools.partial(_finished, tx)
  elif tx is not None:
    of_rate = own_checks.make_tx(tx, ["learning_rate"])
    make = functools.partial(_of_rate, of_rate)
  return Own(make, None if loss is None else _per_image(loss), init)


def _finished(tx: Any, learning_rate: Any) -> Any:
  del learning_rate  # it has its own
  return tx


def _of_rate(make: Callable[..., Any], learning_rate: Any) -> Any:
  return make(learning_rate=learning_rate)


def _per_image(loss: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
  """Makes a loss per image of one that may be a mean over images."""

  def each(logits, y):
    found = loss(logits, y)
    if jnp.ndim(found) == 0:
      alone = jax.tree.map(lambda part: part[:, None], (logits, y))
      return jax.vmap(loss)(*alone)
    return found

  return each


def own_step(own: Own, architecture: Architecture, problem: Problem) -> None:
  """Raises ValueError where no step can be taken with what is one's own."""
  shapes = models.shapes(architecture.spec(problem))
  key = jax.eval_shape(lambda: random.key_for(0, random.Purpose.INIT))
  if own.init is not None:
    drawn = _tried("init", own.init, key, shapes)
    if differ := _differences(drawn, shapes):
      raise ValueError(
        f"init gives other parameters than {architecture} has: {differ}"
      )
  if own.loss is not None:
    logits = jax.ShapeDtypeStruct((3, problem.num_classes), jnp.float32)
    labels = jax.ShapeDtypeStruct((3,), jnp.int32)
    found = _tried("loss", own.loss, logits, labels)
    shape = getattr(found, "shape", None)
    if shape != (3,) or not jnp.issubdtype(found.dtype, jnp.floating):
      raise ValueError(
        f"loss gives {found} for three images; give a number for each of them, "
        "or their mean"
      )
  if own.make_tx is not None:
    make = own.make_tx

    def step(params, rate):
      tx = optax.with_extra_args_support(make(rate))
      state = tx.init(params)
      loss = jnp.zeros((), jnp.float32)
      return state, tx.update(params, state, params, value=loss)[1]

    rate = jax.ShapeDtypeStruct((), jnp.float32)
    before, after = _tried("tx", step, shapes, rate)
    if differ := _differences(before, after):
      raise ValueError(
        f"a step of tx changes the types or shapes of its state: {differ}"
      )


def _differences(a: Any, b: Any) -> str:
  """Lists the first leaves in which two trees differ; '' where they do not."""
  ours, theirs = own_checks.described(a), own_checks.described(b)
  differ = sorted(set(ours) ^ set(theirs))
  return "; ".join(differ[:4]) or ("" if ours == theirs else "their order")


def _tried(name: str, function: Callable, *shapes: Any) -> Any:
  """Traces a function; ValueError names whose it is."""
  try:
    return jax.eval_shape(function, *shapes)
  except Exception as error:
    raise ValueError(f"{name} fails: {own_checks.first_line(error)}") from error
