"""What a trace tells: bytes, convolutions, and whether a step is the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minarch_jax.engine import tracing

FLAGS = dict.fromkeys(tracing.FLAGS, "auto") | {"device_map": "shard_map"}


def shape(*axes):
  return jax.ShapeDtypeStruct(axes, jnp.float32)


def step(state, x):
  return jax.nn.relu(x @ state["w"])


def convolve(state, x):
  dims = ("NHWC", "HWIO", "NHWC")
  return jax.jit(
    lambda x: jax.lax.conv_general_dilated(
      x, state["w"], (1, 1), "SAME", dimension_numbers=dims
    )
  )(x)


def test_bytes_are_those_of_the_arrays():
  found = tracing.needs(step, {"w": shape(3, 5)}, shape(7, 3))
  assert found.state == 3 * 5 * 4
  assert found.work >= 7 * 5 * 4
  assert not found.convolves


def test_convolutions_are_found_in_what_is_called():
  found = tracing.needs(convolve, {"w": shape(3, 3, 1, 2)}, shape(1, 4, 4, 1))
  assert found.convolves


@pytest.mark.parametrize(
  "needed, members",
  [
    (tracing.Needs(1000, 0, False), "vmap"),
    (tracing.Needs(tracing.SMALL + 1, 0, False), "map"),
    (tracing.Needs(1000, 0, True), "map"),
  ],
)
def test_small_networks_are_batched_on_cpu(needed, members):
  layout = tracing.mapping(needed, **FLAGS)
  assert (layout.seeds, layout.members) == ("map", members)
  asked = tracing.mapping(needed, **FLAGS | {"member_mapping": "vmap"})
  assert asked.members == "vmap"


@pytest.mark.parametrize("members", ["map", "vmap"])
def test_more_memory_holds_more_members(members):
  needed = tracing.Needs(100, 1000, False)
  layout = tracing.mapping(needed, **FLAGS | {"member_mapping": members})
  counts = [
    tracing.most_members(needed, layout, 2, limit)
    for limit in (100.0, 20e3, 100e3, 1e6)
  ]
  assert counts[0] == 0 and sorted(set(counts)) == counts


def test_a_step_is_known_again_by_what_it_does():
  def made(factor, table):
    return lambda state, x: step(state, x) * factor + table.sum()

  def digest(*arguments):
    return tracing.digest(made(*arguments), {"w": shape(3, 5)}, shape(7, 3))

  table = np.arange(50.0, dtype=np.float32)
  first = digest(2.0, jnp.array(table))
  assert digest(2.0, jnp.array(table)) == first
  assert digest(3.0, jnp.array(table)) != first
  assert digest(2.0, jnp.array(table[::-1] + 1)) != first
