"""Which weights matter: scores of importance, the higher the better."""

from collections.abc import Sequence
import difflib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from minarch_jax import random
from minarch_jax.pruning import activations, gradients, trees
from minarch_jax.pruning.context import Context, Score
from minarch_jax.types import Params


class Criterion(NamedTuple):
  """A way to score weights.

  Attributes:
    score: `score(context)` returns importances in the structure of the
      parameters; leaves that are never pruned may hold anything.
    when: what it is meant for: "any", "initialisation", "trained" or
      "training" networks.
    needs: fields of Context it reads besides params.
    pool: how a group's score comes from its entries' (granularity.POOLS).
  """

  score: Score
  when: str
  needs: tuple[str, ...] = ()
  pool: str = "sum"


def magnitude(context: Context) -> Params:
  """|w|, for trained networks (Han et al. 2015, arXiv 1506.02626).

  Groups: mean.
  """
  return jax.tree.map(jnp.abs, context.params)


def random_choice(context: Context) -> Params:
  """A uniform number: the control that every criterion must beat.

  Depends on (key, leaf path, coordinate), not on the shape of the tree.
  """
  key = context.key
  assert key is not None
  leaves = trees.named_leaves(context.params)
  draws = random.uniforms(key, [(path, w.shape) for path, w in leaves])
  return jax.tree.unflatten(jax.tree.structure(context.params), draws)


_DATA = ("loss", "batch")

CRITERIA: dict[str, Criterion] = {
  "magnitude": Criterion(magnitude, "any", pool="mean"),
  "random": Criterion(random_choice, "any", ("key",), "first"),
  "gradient": Criterion(gradients.saliency, "trained", _DATA),
  "taylor": Criterion(gradients.taylor, "trained", _DATA, "absolute"),
  "snip": Criterion(gradients.saliency, "initialisation", _DATA),
  "grasp": Criterion(gradients.grasp, "initialisation", ("apply", "batch")),
  "synflow": Criterion(
    gradients.synflow, "initialisation", ("apply", "input_shape")
  ),
  "fisher": Criterion(gradients.fisher, "trained", _DATA),
  "obd": Criterion(gradients.obd, "trained", (*_DATA, "key")),
  "movement": Criterion(gradients.movement, "training", ("movement",)),
  "wanda": Criterion(activations.wanda, "trained", ("activations",), "mean"),
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
