"""What a network costs: laws, then numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minarch_jax import architectures, models, pruning
from minarch_jax.architectures import Problem
from minarch_jax.quantization import cost, storage

SHAPE, CLASSES = (8, 8, 1), 10
NETWORKS = ("dnn:6-5", "cnn:3", "cnn:4-2", "vit:p4-d4-l1-h2-cls")


def spec_of(text):
  return architectures.Architecture.parse(text).spec(Problem(SHAPE, CLASSES))


def full(spec):
  return {
    "/".join(leaf.path): int(np.prod(spec.shape(leaf))) for leaf in spec.leaves
  }


@pytest.mark.parametrize("text", NETWORKS)
def test_a_dense_network_costs_its_architecture(text):
  spec = spec_of(text)
  assert cost.macs(spec) == cost.macs(spec, full(spec)) == spec.macs
  empty = dict.fromkeys(full(spec), 0)
  attention = sum(
    spec.sizes[a] * spec.sizes[b] * n
    for (a, b), n in spec.attention_macs.items()
  )
  assert cost.macs(spec, empty) == attention


def test_macs_of_a_convolution_count_positions():
  spec = spec_of("cnn:3")
  counts = full(spec) | {"conv_0/kernel": 5}
  assert spec.macs - cost.macs(spec, counts) == (27 - 5) * 36


def test_a_summary_counts_the_tree():
  architecture = architectures.Architecture.parse("dnn:6-5")
  spec = spec_of("dnn:6-5")
  model = models.make_model(architecture, Problem(SHAPE, CLASSES))
  params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
  dense = cost.cost(spec, params, bits=32)
  assert dense["bytes"] == 4 * spec.num_params
  params["hidden_0"]["kernel"] = params["hidden_0"]["kernel"].copy()
  params["hidden_0"]["kernel"][:, :2] = 0
  told = cost.cost(spec, params, bits=8)
  assert told["params"] == spec.num_params == 64 * 6 + 6 + 35 + 60
  assert told["macs"] == spec.macs - 128
  assert told["nonzeros"] == spec.num_params - 128 - 21  # biases are zero
  # A bitmap pays for the first layer; a scale for each of 21 outputs.
  assert told["bytes"] == 48 + 256 + 30 + 50 + 4 * 21 + 4 * 21
  masks = jax.tree.map(lambda _: np.True_, params)
  masks["output"]["kernel"] = np.zeros((5, 10), bool)
  masked = pruning.apply_masks(params, masks)
  assert storage.count_nonzeros(masked)["output/kernel"] == 0
  stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 0 * leaf]), params)
  counts = jax.vmap(storage.count_nonzeros)(stacked)
  np.testing.assert_array_equal(counts["hidden_0/kernel"], [256, 0])
  totals = storage.storage_bytes(params, 32, nonzeros=counts)
  assert totals.shape == (2,) and totals[1] < totals[0]
  left = cost.macs(spec, counts)
  np.testing.assert_array_equal(left, [told["macs"], 0])


def test_a_missing_count_is_named():
  with pytest.raises(ValueError, match="counts lack leaf 'hidden_0/kernel'"):
    cost.macs(spec_of("dnn:2"), {"output/kernel": 1})
