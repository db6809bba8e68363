"""Every kind of tree is treated as NumPy would treat it, and comes back whole.

The kinds and the reference stand in `tests/kinds.py`.
"""

import warnings

import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import minarch_jax as ma
from minarch_jax import leaves, quantization
from minarch_jax.architectures import specs
from tests import kinds
from tests.kinds import every_kind, every_trained, kind_of

FORMATS = ("int4", "uint4", "nf4")
GRANULARITIES = ("tensor", "channel", "group:4")


def is_float(leaf):
  return leaves.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)


@every_kind
def test_names(kind):
  tree, axes = kind_of(kind)
  names = ["/".join(path) for path, _ in leaves.named(tree)]
  assert len(set(names)) == len(jax.tree.leaves(tree)) == len(names)
  assert {"/".join(path) for path in leaves.weights(tree)} == set(axes)


# --- pruning -----------------------------------------------------------------


def assert_pruned(tree, masks, expected):
  """Masks are those expected, and applied they take nothing else away."""
  assert jax.tree.structure(masks) == jax.tree.structure(tree)
  for path, mask in leaves.named(masks):
    wanted = expected.get("/".join(path), True)
    np.testing.assert_array_equal(mask, wanted, err_msg="/".join(path))
  sparse = ma.apply_masks(tree, masks)
  kinds.assert_alike(sparse, tree)
  kinds.assert_others_left_alone(sparse, tree, expected)
  before, after = (kinds.weights_of(t, expected) for t in (tree, sparse))
  for name, mask in expected.items():
    np.testing.assert_array_equal(after[name], before[name] * mask)


@every_kind
@pytest.mark.parametrize("how", ["global", "layerwise", "nm:4", "block:2x2"])
def test_pruned_as_numpy_would(kind, how):
  tree, axes = kind_of(kind)
  options = {"granularity" if ":" in how else "scope": how}
  with warnings.catch_warnings():  # a small layer may lose all its blocks
    warnings.simplefilter("ignore", UserWarning)
    masks = ma.prune(tree, 0.6, **options)
  weights = kinds.weights_of(tree, axes)
  assert_pruned(tree, masks, kinds.pruned(weights, axes, how, 0.6))


SPEC = specs.Spec(
  (
    *specs.dense(("a",), ("input",), ("hidden",)),
    *specs.dense(("b",), ("hidden",), ("output",)),
  ),
  {"input": 8, "hidden": 4, "output": 4},
  ("hidden",),
)


@pytest.mark.parametrize("kind", ["dictionary", "bfloat16"])
def test_units_as_numpy_would(kind):
  tree, _ = kind_of(kind)
  masks = ma.prune(tree, 0.5, granularity="unit", spec=SPEC)
  incoming = np.abs(np.asarray(tree["a"]["kernel"], np.float32)).mean(0)
  kept = kinds.largest(incoming, 0.5)
  a, b = tree["a"]["kernel"], tree["b"]["kernel"]
  expected = {
    "a/kernel": np.broadcast_to(kept, a.shape),
    "a/bias": kept,
    "b/kernel": np.broadcast_to(kept[:, None], b.shape),
  }
  assert_pruned(tree, masks, expected)


@every_kind
def test_units_want_to_be_told(kind):
  with pytest.raises(ValueError, match="granularity unit needs spec="):
    ma.prune(kind_of(kind)[0], 0.5, granularity="unit")


@every_trained
def test_a_masked_optimizer_is_numpys_on_the_kept(kind):
  """Momentum and weight decay, three steps."""
  tree, axes = kind_of(kind)
  masks = ma.prune(tree, 0.6)
  grads = jax.tree.map(
    lambda leaf: (leaf * 0.5 + 0.25).astype(leaf.dtype), tree
  )
  inner = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.5, 0.9))
  tx = ma.masked(inner, masks)
  params, state = tree, tx.init(tree)
  for _ in range(3):
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
  kinds.assert_alike(params, tree)
  for before, grad, mask, after in zip(
    *map(jax.tree.leaves, (tree, grads, masks, params)), strict=True
  ):
    w, g, mask = (np.asarray(x, np.float32) for x in (before, grad, mask))
    w, trace = w * mask, 0
    for _ in range(3):
      trace = 0.9 * trace + (g + 0.1 * w) * mask
      w = w - 0.5 * trace
    fine = before.dtype == np.float32
    np.testing.assert_allclose(
      np.asarray(after, np.float32),
      w,
      *((1e-5, 1e-6) if fine else (0.05, 0.05)),
    )
    dropped = np.broadcast_to(mask, w.shape) == 0
    assert not np.asarray(after)[dropped].any()


# --- quantization ------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_quantized_as_numpy_would(kind, format, granularity):
  tree, axes = kind_of(kind)
  stored = ma.quantize(tree, format, granularity)
  plain = ma.dequantize(stored)
  kinds.assert_alike(plain, tree)
  kinds.assert_others_left_alone(plain, tree, axes)
  for (path, whole), (_, codes), (_, number) in zip(
    *map(leaves.named, (tree, stored, plain)), strict=True
  ):
    name, layer = "/".join(path), path[-2:-1]
    assert leaves.is_qtensor(codes) == (name in axes)
    if name in axes:
      expected = kinds.rounded(whole, axes[name], format, granularity, *layer)
      np.testing.assert_array_equal(codes.values, expected[0], name)
      np.testing.assert_array_equal(number, expected[1], name)


@every_kind
def test_training_sees_rounded_weights_and_straight_gradients(kind):
  """Gradients of every float leaf; the others are constants of the loss."""
  tree, axes = kind_of(kind)
  found, treedef = jax.tree.flatten(tree)
  floats = {i: leaf for i, leaf in enumerate(found) if is_float(leaf)}

  def loss(floats):
    whole = treedef.unflatten([floats.get(i, x) for i, x in enumerate(found)])
    seen = ma.straight_through(whole, 4, "group:4")
    parts = [leaf for leaf in jax.tree.leaves(seen) if is_float(leaf)]
    return sum(3 * jnp.sum(part.astype(jnp.float32)) for part in parts)

  for gradient in jax.tree.leaves(jax.jit(jax.grad(loss))(floats)):
    assert np.all(np.asarray(gradient, np.float32) == 3)
  seen = ma.straight_through(tree, 4, "group:4")
  kinds.assert_alike(seen, tree)
  kinds.assert_others_left_alone(seen, tree, axes)
  weights, now = (kinds.weights_of(t, axes) for t in (tree, seen))
  for name in axes:
    how = axes[name], "int4", "group:4", *name.split("/")[-2:-1]
    np.testing.assert_array_equal(
      now[name], kinds.rounded(weights[name], *how)[1], name
    )


# --- files -------------------------------------------------------------------


@every_kind
def test_saved_and_loaded_whole(kind, tmp_path):
  tree, _ = kind_of(kind)
  path = str(tmp_path / "model.safetensors")
  sparse = ma.apply_masks(tree, ma.prune(tree, 0.8, scope="layerwise"))
  for saved, bits, nonzeros in (
    (tree, 32, None),
    (ma.quantize(tree, 4), 4, None),
    (sparse, 32, quantization.count_nonzeros(sparse)),
  ):
    size = ma.save_model(path, saved)
    back = ma.load_model(path, like=saved)
    kinds.assert_alike(back, saved)
    for a, b in zip(*map(jax.tree.leaves, (back, saved)), strict=True):
      assert a is b or np.all(a == b)
    if bits == 32:
      assert size == ma.storage_bytes(tree, bits, nonzeros=nonzeros)
    plain = ma.load_model(path, like=tree)
    kinds.assert_alike(ma.dequantize(plain), tree)


@every_kind
def test_exported_whole(kind, tmp_path):
  """A program that reads every float computes what JAX does."""
  tree, _ = kind_of(kind)
  quantized = ma.quantize(ma.apply_masks(tree, ma.prune(tree, 0.5)), 4)

  def apply(params, x):
    parts = [p for p in jax.tree.leaves(params) if is_float(p)]
    sums = [jnp.sum(jnp.abs(p.astype(jnp.float32))) for p in parts]
    return x * jnp.stack(sums)[None]

  x = np.ones((2, 1), np.float32)
  path = str(tmp_path / "net.stablehlo")
  ma.export(path, apply, quantized, (1,))
  with open(path, "rb") as file:
    run = export.deserialize(file.read()).call
  expected = apply(ma.dequantize(quantized), x)
  np.testing.assert_allclose(run(x), expected, rtol=1e-6)


@pytest.mark.parametrize("other", ["shape", "leaf"])
def test_a_file_is_not_put_into_another_tree(other, tmp_path):
  tree, _ = kind_of("dictionary")
  path = str(tmp_path / "model.safetensors")
  ma.save_model(path, tree)
  like, named = {"a": tree["a"]}, "b/bias is"
  if other == "shape":
    like, named = {"a": tree["b"], "b": tree["b"]}, "8, 4. there, .4, 4. here"
  with pytest.raises(ValueError, match=named):
    ma.load_model(path, like=like)
