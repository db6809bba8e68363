"""Compaction: equal outputs, smaller networks, over families and masks."""

import functools

import jax
import numpy as np
import pytest

from minarch_jax import architectures, models, pruning, quantization
from minarch_jax.architectures import Problem
from minarch_jax.pruning import compaction

SHAPE, CLASSES = (8, 8, 1), 4
NETWORKS = (
  "dnn:12-9-7",
  "cnn:6",
  "cnn:6-5-4",
  "vit:p4-d6-l2-h3",
  "vit:p2-d4-l1-h2-k3-m9-cls",
)


@functools.cache
def network(text):
  """A network with all biases set: constants must be folded, not dropped."""
  architecture = architectures.Architecture.parse(text)
  spec = architecture.spec(Problem(SHAPE, CLASSES))
  draw = np.random.default_rng(0)
  params = {}
  for leaf in spec.leaves:
    node = params
    for name in leaf.path[:-1]:
      node = node.setdefault(name, {})
    value = draw.normal(size=spec.shape(leaf)).astype(np.float32)
    node[leaf.path[-1]] = value * 0.5 + (leaf.path[-1] == "scale")
  return architecture, spec, params


@functools.cache
def forward(architecture):
  model = models.make_model(architecture, Problem(SHAPE, CLASSES))
  return jax.jit(lambda params, x: model.apply(params, x))


X = np.random.default_rng(1).normal(size=(5, *SHAPE)).astype(np.float32)


def check(architecture, params, masks=None):
  small, fewer = compaction.compact(architecture, params, masks)
  if masks is not None:
    params = pruning.apply_masks(params, masks)
  np.testing.assert_allclose(
    forward(small)(fewer, X),
    forward(architecture)(params, X),
    atol=1e-5,
    rtol=1e-5,
  )
  spec = small.spec(Problem(SHAPE, CLASSES))
  sizes = [np.size(leaf) for leaf in jax.tree.leaves(fewer)]
  assert sum(sizes) == spec.num_params
  assert small.skeleton == architecture.skeleton
  assert architectures.Architecture.parse(str(small)) == small
  return small


@pytest.mark.parametrize("text", NETWORKS)
def test_a_dense_network_stays_as_it_is(text):
  architecture, _, params = network(text)
  assert check(architecture, params) == architecture


@pytest.mark.parametrize("text", NETWORKS)
@pytest.mark.parametrize("scope", ["global", "layerwise"])
def test_unit_masks_remove_exactly_their_units(text, scope):
  architecture, spec, params = network(text)
  prune = jax.jit(
    lambda p: pruning.prune(p, 0.4, scope=scope, granularity="unit", spec=spec)
  )
  masks = jax.device_get(prune(params))
  small = check(architecture, params, masks)
  before, after = architecture.widths, small.widths
  if architecture.family == "vit":
    heads = [
      masks[f"block_{i}"]["attention"]["query"]["bias"]
      for i in range(architecture.depth)
    ]
    kept = [max(1, int(m.any(1).sum())) for m in heads]
    assert list(after[1::3]) == kept and after[0] == before[0]
    units = [
      masks[f"block_{i}"]["mlp"]["in"]["bias"].sum()
      for i in range(architecture.depth)
    ]
    assert list(after[3::3]) == [max(1, int(n)) for n in units]
  else:
    name = "hidden" if architecture.family == "dnn" else "conv"
    kept = [
      int(masks[f"{name}_{i}"]["bias"].sum()) for i in range(architecture.depth)
    ]
    assert all(a <= max(1, k) for a, k in zip(after, kept, strict=True))
    if min(kept) > 0:
      assert list(after) == kept


@pytest.mark.parametrize("text", NETWORKS)
@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.97])
def test_element_masks_that_kill_units_give_equal_outputs(text, sparsity):
  architecture, _, params = network(text)
  masks = jax.device_get(jax.jit(pruning.prune)(params, np.float32(sparsity)))
  small = check(architecture, params, masks)
  if sparsity > 0.9:
    assert sum(small.widths) < sum(architecture.widths)


def zeroed(params, *cuts):
  """A copy with params[path][index] = 0 for each (path, index)."""
  params = jax.tree.map(np.copy, params)
  for path, index in cuts:
    node = params
    for name in path[:-1]:
      node = node[name]
    node[path[-1]][index] = 0
  return params


EVERY = slice(None)


def test_a_unit_without_inputs_is_folded_and_its_followers_go_too():
  architecture, _, params = network("dnn:12-9-7")
  # Unit 0 of the first layer is constant; units 1 and 2 of the second hear
  # nobody else, so they are constant as well.
  cut = zeroed(
    params,
    (("hidden_0", "kernel"), (EVERY, 0)),
    (("hidden_1", "kernel"), (slice(1, 12), slice(1, 3))),
  )
  assert check(architecture, cut).widths == (11, 7, 7)


def test_a_unit_nobody_hears_goes_and_so_do_those_heard_only_by_it():
  architecture, _, params = network("dnn:12-9-7")
  cut = zeroed(
    params,
    (("output", "kernel"), (slice(0, 2),)),
    (("hidden_2", "kernel"), (slice(0, 3), slice(2, 7))),
  )
  assert check(architecture, cut).widths == (12, 6, 5)


def test_a_dead_layer_keeps_one_unit():
  architecture, _, params = network("dnn:12-9-7")
  cut = zeroed(params, (("hidden_1", "kernel"), EVERY))
  assert check(architecture, cut).widths == (1, 1, 1)


def test_a_constant_channel_before_a_padded_convolution_stays():
  architecture, _, params = network("cnn:6-5-4")
  cut = zeroed(params, (("conv_0", "kernel"), (EVERY, EVERY, EVERY, 0)))
  cut["conv_0"]["bias"][0] = 0.7  # its edge cannot be said by a bias
  assert check(architecture, cut).widths == (6, 5, 4)
  cut["conv_0"]["bias"][0] = -0.7  # always 0
  assert check(architecture, cut).widths == (5, 5, 4)


def test_a_constant_channel_before_the_output_is_folded():
  for text, name in (("cnn:6", "conv_0"), ("cnn:6-5-4", "conv_2")):
    architecture, _, params = network(text)
    cut = zeroed(params, ((name, "kernel"), (EVERY, EVERY, EVERY, 1)))
    cut[name]["bias"][1] = 0.7
    small = check(architecture, cut)
    assert small.widths[-1] == architecture.widths[-1] - 1


def test_heads_with_constant_values_are_folded():
  architecture, _, params = network("vit:p4-d6-l2-h3")
  cut = zeroed(
    params, (("block_0", "attention", "value", "kernel"), (EVERY, 1))
  )
  assert check(architecture, cut).widths == (6, 2, 2, 12, 3, 2, 12)


def test_head_dimensions_go_when_no_head_needs_them():
  architecture, _, params = network("vit:p4-d6-l2-h3")
  block = ("block_1", "attention")
  # One score and one value dimension per head, not the same one in each.
  cut = zeroed(
    params,
    ((*block, "key", "kernel"), (EVERY, 0, 0)),
    ((*block, "key", "kernel"), (EVERY, 1, 1)),
    ((*block, "query", "kernel"), (EVERY, 2, 0)),
    ((*block, "query", "bias"), (2, 0)),
    ((*block, "out", "kernel"), (0, 1)),
    ((*block, "out", "kernel"), (1, 1)),
    ((*block, "value", "kernel"), (EVERY, 2, 0)),
  )
  assert check(architecture, cut).widths == (6, 3, 2, 12, 3, 1, 12)


def test_images_need_not_be_square():
  architecture = architectures.Architecture.parse("cnn:3-2")
  model = models.make_model(architecture, Problem((6, 14, 2), 3))
  params = jax.jit(model.init)(jax.random.key(0))
  small, fewer = compaction.compact(architecture, params)
  assert small == architecture
  jax.tree.map(np.testing.assert_array_equal, fewer, params)


def test_bad_input_is_named():
  architecture, _, params = network("dnn:12-9-7")
  stacked = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), params)
  with pytest.raises(ValueError, match="without a seed axis"):
    compaction.compact(architecture, stacked)
  other, _, _ = network("cnn:6")
  with pytest.raises(ValueError, match="lack leaf 'conv_0/kernel'"):
    compaction.compact(other, params)
  with pytest.raises(ValueError, match="other numbers of axes than cnn:6's"):
    compaction.compact(
      other, {**params, "conv_0": {"kernel": np.ones((3,) * 4)}}
    )
  with pytest.raises(ValueError, match="kernel' is quantized; prune before"):
    compaction.compact(architecture, quantization.quantize(params, 8))
  with pytest.raises(ValueError, match="concrete parameters"):
    jax.jit(lambda p: compaction.compact(architecture, p)[1])(params)
