"""How much is removed where: the allocation of a sparsity over layers."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from minarch_jax import registries
from minarch_jax.pruning import counting, selection
from minarch_jax.types import Array, module_of


class Scope(NamedTuple):
  """Whether layers compete with each other, and if not, what each keeps.

  `kept(sizes, density, sparsity)` maps the number of groups of each layer
  (int32 [L]), their relative density (float32 [L]) and a sparsity to the number
  of groups kept (int32 [L]). If it reads the density, N of M, which is the same
  everywhere, cannot follow it.
  """

  kept: Callable[[Array, Array, float | Array], Array]
  pooled: bool = False
  reads_density: bool = False


def _global(sizes, density, sparsity):
  """All layers together keep `round((1 - s) n)`; one layer may keep nothing."""
  del density
  return counting.kept_count(sparsity, sizes.sum())


def _layerwise(sizes, density, sparsity):
  """Each layer of size n keeps `round((1 - s) n)`, but at least one."""
  del density
  return _at_least_one(counting.kept_count(sparsity, sizes), sizes)


def _at_least_one(kept, sizes):
  xp = module_of(kept, sizes)
  return xp.maximum(kept, xp.minimum(sizes, 1))


def pool_shares(sizes, density, sparsity):
  """Each row of N of M keeps `round((1 - s) n)`, but at least one.

  A known sparsity that leaves none is refused (granularity.check_sparsity); a
  traced one cannot be.
  """
  del density
  return _at_least_one(counting.kept_count(sparsity, sizes), sizes)


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


GLOBAL = Scope(_global, pooled=True)
LAYERWISE = Scope(_layerwise)
ERK = Scope(_erk, reads_density=True)
SCOPES = registries.SCOPES


def find(scope: str | Mapping[str, float], rows: bool) -> Scope:
  """Looks a scope up; a dictionary of sparsities is layer-wise.

  Args:
    scope: a name, or a dictionary from layers to sparsities.
    rows: whether the groups are those of N of M.

  Raises:
    ValueError: an unknown scope, or one that N of M cannot follow.
  """
  if isinstance(scope, Mapping):
    for sparsity in scope.values():
      counting.check(sparsity)
    return LAYERWISE
  if scope not in SCOPES:
    raise ValueError(
      f"scope {scope!r} is not one of {', '.join(SCOPES)}, or a dictionary "
      f"from layers to sparsities{registries.nearest(scope, SCOPES)}"
    )
  found = SCOPES[scope]
  found = found if isinstance(found, Scope) else Scope(found)
  if rows and found.reads_density:
    raise ValueError(
      f"scope {scope!r} gives each layer its own density, but N of M keeps the "
      "same everywhere; use scope 'layerwise'"
    )
  return found
