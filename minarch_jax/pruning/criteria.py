"""Which weights matter: scores of importance, the higher the better."""

from collections.abc import Callable, Sequence
import difflib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from minarch_jax import random
from minarch_jax.pruning import trees
from minarch_jax.types import Params


class Context(NamedTuple):
  """What a criterion may look at; each says in `needs` what it must be given.

  Attributes:
    params: one network's parameters, already masked.
    key: for criteria that draw.
  """

  params: Params
  key: jax.Array | None = None


class Criterion(NamedTuple):
  """A way to score weights.

  `score(context)` returns a tree of importances in the structure of the
  parameters. `needs` names the fields of Context it reads besides params;
  `pool` how the score of a group comes from its entries' (granularity.POOLS).
  """

  score: Callable[[Context], Params]
  needs: tuple[str, ...] = ()
  pool: str = "mean"


def magnitude(context: Context) -> Params:
  """|w|, after training (Janowsky 1989; Han et al. 2015). Groups: mean."""
  return jax.tree.map(jnp.abs, context.params)


def random_choice(context: Context) -> Params:
  """A uniform number: the control every criterion must beat.

  Depends on (key, leaf path, coordinate) only, not on the shape of the tree.
  """
  return map_named(
    lambda path, leaf: random.uniform(
      random.fold_path(context.key, path), leaf.shape
    ),
    context.params,
  )


CRITERIA: dict[str, Criterion] = {
  "magnitude": Criterion(magnitude),
  "random": Criterion(random_choice, ("key",), "first"),
}


def find(name: str) -> Criterion:
  """Looks a criterion up.

  Raises:
    ValueError: unknown; names the nearest known one.
  """
  if name not in CRITERIA:
    near = difflib.get_close_matches(str(name), CRITERIA, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
      f"criterion {name!r} is not one of {', '.join(CRITERIA)}{hint}"
    )
  return CRITERIA[name]


def check_needs(name: str, context: Context) -> None:
  """Raises ValueError when the context lacks what a criterion needs."""
  needs: Sequence[str] = find(name).needs
  missing = [need for need in needs if getattr(context, need) is None]
  if missing:
    raise ValueError(
      f"criterion {name!r} needs {', '.join(f'{n}=' for n in missing)}; it "
      f"reads {', '.join(('params', *needs))}"
    )


def map_named(
  function: Callable[[trees.Path, Any], Any], tree: Params
) -> Params:
  """Maps function(path, leaf) over a tree."""
  leaves = [function(path, leaf) for path, leaf in trees.named_leaves(tree)]
  return jax.tree.unflatten(jax.tree.structure(tree), leaves)
