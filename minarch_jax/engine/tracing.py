"""What the trace of a step tells before it is compiled.

Bytes, to plan what fits the memory; convolutions, to lay networks out; and the
text of its operations, by which a run is known again.
"""

from collections.abc import Callable
import hashlib
import math
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from minarch_jax.engine import population
from minarch_jax.quantization import jaxprs

COPIES = 4  # of a network's state: in, out, gradients, updates
FLAGS = ("seed_mapping", "member_mapping", "device_map")  # of `mapping`
SMALL = 256 * 2**10  # bytes of a state from which on batching does not pay


class Needs(NamedTuple):
  """What one network needs.

  Attributes:
    state: bytes of its parameters and its optimizer.
    work: bytes of all that a step computes, were nothing of it overwritten.
    convolves: whether there are convolutions.
  """

  state: int
  work: int
  convolves: bool


def needs(step: Callable, state: Any, *arguments: Any) -> Needs:
  """Reads off `step(state, *arguments)` what it needs; all are shapes."""
  closed = jax.make_jaxpr(step)(state, *arguments)
  operations = jaxprs.operations(closed.jaxpr)
  work = sum(_num_bytes([v.aval for v in op.outvars]) for op in operations)
  convolves = any("conv_general" in op.primitive.name for op in operations)
  return Needs(_num_bytes(state), work, convolves)


def _num_bytes(shapes: Any) -> int:
  return sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(shapes)
  )


def mapping(needed: Needs, **flags: str) -> population.Mapping:
  """Lays networks out as the project's own families of their kind.

  On CPU members whose state stays in the cache are batched: alone they are too
  small to keep a core busy. Larger ones, and convolutions, which XLA makes slow
  where kernels are batched, run one after another, and so do seeds, which the
  devices share.

  Args:
    needed: by one network.
    **flags: those of FLAGS, as of Config.
  """
  devices = tuple(jax.local_devices())
  seeds, members = "vmap", "vmap"
  if population.platform(devices) == "cpu":
    large = needed.convolves or needed.state > SMALL
    seeds, members = "map", "map" if large else "vmap"
  seeds, members = (
    own if flags[name] == "auto" else flags[name]
    for name, own in (("seed_mapping", seeds), ("member_mapping", members))
  )
  return population.Mapping(devices, flags["device_map"], seeds, members)


def most_members(
  needed: Needs, layout: population.Mapping, num_seeds: int, limit: float
) -> int:
  """Counts the members that fit a memory limit with all their seeds.

  Args:
    limit: bytes on all devices together.

  Returns:
    0 where not even one fits.
  """
  busy = num_seeds if layout.seeds == "vmap" else len(layout.devices)
  states = num_seeds * COPIES * needed.state
  if layout.members == "vmap":
    return int(limit / (states + busy * needed.work))
  return int(max(0, limit - busy * needed.work) / states)


def digest(function: Callable, *arguments: Any) -> str:
  """Hashes what a function does, constants that it closes over included.

  Two functions of equal operations are one, wherever they stand: a run is
  known again after its script was started anew.
  """
  closed = jax.make_jaxpr(function)(*arguments)
  # Functions among the parameters of operations print where they lie.
  text = re.sub(r" at 0x[0-9a-f]+", "", str(closed.jaxpr))
  found = hashlib.sha256(text.encode())
  for constant in closed.consts:
    found.update(np.asarray(constant).tobytes())
  return found.hexdigest()
