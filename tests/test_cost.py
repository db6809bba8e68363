"""Cost: laws over the storage formats, then numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minarch_jax import architectures, cost, models

SHAPE, CLASSES = (8, 8, 1), 10
NETWORKS = ("dnn:6-5", "cnn:3", "cnn:4-2", "vit:p4-d4-l1-h2-cls")


def spec_of(text):
  return architectures.Architecture.parse(text).spec(SHAPE, CLASSES)


def full(spec):
  return {
    "/".join(leaf.path): int(np.prod(spec.shape(leaf))) for leaf in spec.leaves
  }


@pytest.mark.parametrize("storage", cost.FORMATS)
def test_bytes_fall_with_the_count_and_the_bits(storage):
  counts = np.arange(0, 51)
  sizes = {
    bits: cost.leaf_bytes((10, 10), counts, bits, storage)
    for bits in (32, 8, 1)
  }
  for size in sizes.values():
    assert np.all(np.diff(size) >= 0) and size.shape == counts.shape
  assert np.all(sizes[1] <= sizes[8]) and np.all(sizes[8] <= sizes[32])


@pytest.mark.parametrize("storage", ["bitmap", "csr"])
def test_no_code_for_places_beats_the_entropy_bound(storage):
  for shape in ((784, 300), (3, 3, 4, 8), (7,), (1, 1)):
    size = int(np.prod(shape))
    counts = np.unique(np.linspace(0, size, 9).astype(int))
    for bits in (32, 4):
      bound = cost.leaf_bytes(shape, counts, bits, "entropy")
      assert np.all(cost.leaf_bytes(shape, counts, bits, storage) >= bound)


@pytest.mark.parametrize("storage", cost.FORMATS)
def test_traced_counts_cost_what_known_ones_do(storage):
  counts = np.array([0, 1, 117_600, 235_199, 235_200])
  known = cost.leaf_bytes((784, 300), counts, 8, storage)
  traced = jax.jit(lambda k: cost.leaf_bytes((784, 300), k, 8, storage))(
    counts.astype(np.int32)
  )
  slack = 2 if storage == "entropy" else 0  # float32
  assert np.all(np.abs(np.asarray(traced) - known) <= slack)


@pytest.mark.parametrize("text", NETWORKS)
def test_a_dense_network_costs_its_architecture(text):
  spec = spec_of(text)
  assert cost.macs(spec) == cost.macs(spec, full(spec)) == spec.macs
  assert cost.macs_skipped(spec, full(spec)) == 0
  assert cost.model_bytes(spec) == 4 * spec.num_params
  empty = dict.fromkeys(full(spec), 0)
  attention = sum(
    spec.sizes[a] * spec.sizes[b] * n
    for (a, b), n in spec.attention_macs.items()
  )
  assert cost.macs(spec, empty) == attention


def test_formulas_by_hand():
  def leaf(storage, bits):
    return cost.leaf_bytes((784, 300), 23_520, bits, storage)

  assert leaf("dense", 32) == 940_800
  assert leaf("bitmap", 32) == 29_400 + 94_080
  # 23,520 x (32 + 9) bits and 785 x 18 bits.
  assert leaf("csr", 32) == -(-(23_520 * 41 + 785 * 18) // 8)
  # H(0.1) = 0.46900 bits, 235,200 times, and 23,520 bytes.
  assert leaf("entropy", 8) == pytest.approx(13_788.5 + 23_520, abs=1)
  assert cost.leaf_bytes((3,), 3, 3, "dense") == 2  # 9 bits


def test_macs_of_a_convolution_count_positions():
  spec = spec_of("cnn:3")
  counts = full(spec) | {"conv_0/kernel": 5}
  assert cost.macs_skipped(spec, counts) == (27 - 5) * 36


def test_a_summary_counts_the_tree():
  architecture = architectures.Architecture.parse("dnn:6-5")
  spec = spec_of("dnn:6-5")
  model = models.make_model(architecture, SHAPE, CLASSES)
  params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
  params["hidden_0"]["kernel"] = params["hidden_0"]["kernel"].copy()
  params["hidden_0"]["kernel"][:, :2] = 0
  told = cost.summary(spec, params, bits=8)
  assert told["params"] == spec.num_params == 64 * 6 + 6 + 35 + 60
  assert told["macs_skipped"] == 128
  assert told["macs"] == spec.macs - 128
  assert told["nonzeros"] == spec.num_params - 128 - 21  # biases are zero
  weights = 64 * 6 + 30 + 50
  assert told["bytes_dense"] == weights + 4 * 21
  masks = jax.tree.map(lambda _: np.True_, params)
  masks["output"]["kernel"] = np.zeros((5, 10), bool)
  assert cost.nonzeros(params, masks)["output/kernel"] == 0
  stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 0 * leaf]), params)
  counts = jax.vmap(cost.nonzeros)(stacked)
  np.testing.assert_array_equal(counts["hidden_0/kernel"], [256, 0])
  totals = cost.model_bytes(spec, counts, storage="bitmap")
  assert totals.shape == (2,) and totals[1] < totals[0]


ERRORS = {
  "bitmat": (lambda: cost.leaf_bytes((2,), 1, 8, "bitmat"), "'bitmap'"),
  "bits": (lambda: cost.leaf_bytes((2,), 1, 0, "dense"), "bits 0 is below 1"),
  "counts": (
    lambda: cost.macs(spec_of("dnn:2"), {"output/kernel": 1}),
    "counts lack leaf 'hidden_0/kernel'",
  ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_named(name):
  call, message = ERRORS[name]
  with pytest.raises(ValueError, match=message):
    call()
