"""How much is removed where: the allocation of a sparsity over layers."""

from collections.abc import Callable, Mapping
import difflib
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from minarch_jax.pruning import counting, selection
from minarch_jax.types import Array


class Scope(NamedTuple):
  """Whether layers compete with each other, and if not, what each keeps.

  `kept(sizes, density, sparsity)` maps the number of groups of each layer
  (int32 [L]), their relative density (float32 [L]) and a sparsity to the number
  of groups kept (int32 [L]).
  """

  kept: Callable[[Array, Array, float | Array], Array]
  pooled: bool = False


def _global(sizes, density, sparsity):
  """All layers together keep `round((1 - s) n)`; one layer may keep nothing."""
  del density
  return counting.kept_count(sparsity, sizes.sum())


def _layerwise(sizes, density, sparsity):
  """Each layer of size n keeps `round((1 - s) n)`, but at least one."""
  del density
  return _at_least_one(counting.kept_count(sparsity, sizes), sizes)


def _at_least_one(kept, sizes):
  return jnp.maximum(kept, jnp.minimum(sizes, 1))


def pool_shares(sizes, density, sparsity):
  """Each pool of size n keeps `round((1 - s) n)`, be it nothing: N of M."""
  del density
  return counting.kept_count(sparsity, sizes)


def _erk(sizes, density, sparsity):
  """Erdos-Renyi kernel (Evci et al. 2020, RigL, section 3): layer density
  min(1, eps * (sum of the kernel's dimensions) / (their product)).

  eps is found by bisection such that the total is that of `global`, except that
  each layer keeps at least one. Counts never fall as the sparsity falls.
  """
  return _spread(sizes, density, _global(sizes, density, sparsity))


@jax.jit
def _spread(sizes, density, total):
  """Counts each layer's share of `total` by ERK."""
  shares = density * sizes

  def kept(bits):
    eps = lax.bitcast_convert_type(bits, jnp.float32)
    ideal = jnp.minimum(eps * shares, sizes.astype(jnp.float32))
    return _at_least_one(jnp.round(ideal).astype(jnp.int32), sizes)

  # The bits of positive floats are in their order; infinity is the last.
  bits, _ = selection.largest(
    lambda bits: -jnp.sum(kept(bits)), -total, 0, 0x7F7FFFFE
  )
  low, high = kept(bits), kept(bits + jnp.uint32(1))
  # Layers that step up between two neighbouring floats do so one by one.
  steps = high - low
  before = jnp.cumsum(steps) - steps
  return low + jnp.clip(total - jnp.sum(low) - before, 0, steps)


SCOPES: dict[str, Scope] = {
  "global": Scope(_global, pooled=True),
  "layerwise": Scope(_layerwise),
  "erk": Scope(_erk),
}


def check(scope: str | Mapping[str, float], rows: bool) -> None:
  """Raises ValueError for an unknown scope, or one that N:M cannot follow."""
  if isinstance(scope, Mapping):
    for sparsity in scope.values():
      counting.check(sparsity)
    return
  if scope not in SCOPES:
    near = difflib.get_close_matches(str(scope), SCOPES, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
      f"scope {scope!r} is not one of {', '.join(SCOPES)}, or a dictionary "
      f"from layers to sparsities{hint}"
    )
  if rows and scope == "erk":
    raise ValueError(
      "scope 'erk' gives each layer its own density, but N of M keeps the same "
      "everywhere; use scope 'layerwise'"
    )
