"""Which weights matter: scores of importance, the higher the better.

What a criterion may look at, what it is, and the two that need no data.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from minarch_jax import leaves, random, registries
from minarch_jax.pruning import trees
from minarch_jax.types import Array, Params

Loss = Callable[[Params, Any], jax.Array]  # mean loss of a batch, a scalar
Apply = Callable[[Params, Array], jax.Array]  # logits of images


class Context(NamedTuple):
  """Everything a criterion may read; each says in `needs` what it must have.

  Attributes:
    params: one network's parameters, already masked.
    key: for criteria that draw.
    loss: `loss(params, batch)`, a mean over the batch's examples.
    batch: a tree of arrays with a leading axis of examples; GraSP reads its
      `x` and `y`.
    apply: `apply(params, x) -> logits`.
    input_shape: (height, width, channels) of one image.
    activations: what each layer was given, by leaf name ("hidden_0/kernel"),
      as `types.record_inputs` returns it.
    outputs: number of output axes of a leaf, by leaf name, where they come last
      and names do not tell.
    described: what the axes of leaves are, by path, as `leaves.axes_of` says.
    movement: what `accumulate_movement` summed during training.
    names: last names of the leaves that are pruned; None = the weights.
  """

  params: Params
  key: jax.Array | None = None
  loss: Loss | None = None
  batch: Any = None
  apply: Apply | None = None
  input_shape: tuple[int, ...] | None = None
  activations: Mapping[str, Array] | None = None
  outputs: Mapping[str, int] | None = None
  described: Mapping[trees.Path, Any] | None = None
  movement: Params | None = None
  names: Sequence[str] | None = None


Score = Callable[[Context], Params]


class Criterion(NamedTuple):
  """A way to score weights.

  Attributes:
    score: `score(context)` returns importances in the structure of the
      parameters; leaves that are never pruned may hold anything.
    when: what it is meant for: "any", "initialisation", "trained" or
      "training" networks.
    needs: fields of Context it reads besides params.
    pool: how a group's score comes from its entries' (granularity.POOLS).
    entry: `entry(weights, draws)`, what `score` gives as a function of each
      weight and of a uniform number drawn for it, host arrays of any shape;
      None where a score takes more than that.
  """

  score: Score
  when: str = "any"
  needs: tuple[str, ...] = ()
  pool: str = "sum"
  entry: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None


CRITERIA = registries.CRITERIA


def find(name: str) -> Criterion:
  """Looks a criterion up; a function stands for the criterion it scores by.

  Raises:
    ValueError: unknown; names the nearest known one.
  """
  found = registries.find("criterion", name, CRITERIA)
  return found if isinstance(found, Criterion) else Criterion(found)


def check_needs(name: str, context: Context) -> None:
  """Raises ValueError when the context lacks what a criterion needs."""
  needs = find(name).needs
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
  changed = [function(path, leaf) for path, leaf in trees.named_leaves(tree)]
  return jax.tree.unflatten(jax.tree.structure(tree), changed)


def magnitude(context: Context) -> Params:
  """|w|, for trained networks (Han et al. 2015, arXiv 1506.02626).

  Groups: mean.
  """
  return jax.tree.map(
    lambda leaf: abs(leaves.on_host(leaf)) if leaves.is_array(leaf) else leaf,
    context.params,
  )


def random_choice(context: Context) -> Params:
  """A uniform number: the control that every criterion must beat.

  Depends on (key, leaf path, coordinate), not on the shape of the tree.
  """
  key = context.key
  assert key is not None
  named = trees.named_leaves(context.params)
  draws = random.uniforms(key, [(path, np.shape(w)) for path, w in named])
  return jax.tree.unflatten(jax.tree.structure(context.params), draws)


MAGNITUDE = Criterion(magnitude, pool="mean", entry=lambda w, _: abs(w))
RANDOM = Criterion(
  random_choice, needs=("key",), pool="first", entry=lambda _, draws: draws
)
