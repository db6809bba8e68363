"""What a criterion may look at."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

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
      as `capture` returns it.
    outputs: number of output axes of a leaf, by leaf name, where it is not 1.
    movement: what `accumulate_movement` summed during training.
  """

  params: Params
  key: jax.Array | None = None
  loss: Loss | None = None
  batch: Any = None
  apply: Apply | None = None
  input_shape: tuple[int, ...] | None = None
  activations: Mapping[str, Array] | None = None
  outputs: Mapping[str, int] | None = None
  movement: Params | None = None


Score = Callable[[Context], Params]


def map_named(
  function: Callable[[trees.Path, Any], Any], tree: Params
) -> Params:
  """Maps function(path, leaf) over a tree."""
  leaves = [function(path, leaf) for path, leaf in trees.named_leaves(tree)]
  return jax.tree.unflatten(jax.tree.structure(tree), leaves)
