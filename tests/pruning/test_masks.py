"""Masks: zero they stay, through every optimizer; counts, overlap, controls."""

import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from minarch_jax import architectures, models, pruning
from minarch_jax.architectures import Problem
from minarch_jax.pruning import controls, dynamic, sensitivity

OPTIMIZERS = {
  "sgd": optax.sgd(0.1, momentum=0.9, nesterov=True),
  "sgd_decay": optax.chain(
    optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9)
  ),
  "adam": optax.adam(0.1),
  "adamw": optax.adamw(0.1, weight_decay=0.3),
  "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.rmsprop(0.1)),
  "lamb": optax.lamb(0.1),
}


def tree(seed=0):
  draw = np.random.default_rng(seed)
  return {
    "hidden_0": {
      "kernel": draw.normal(size=(6, 5)).astype(np.float32),
      "bias": draw.normal(size=5).astype(np.float32),
    },
    "output": {
      "kernel": draw.normal(size=(5, 3)).astype(np.float32),
      "bias": draw.normal(size=3).astype(np.float32),
    },
  }


def magnitude_masks(params, sparsity):
  return jax.jit(pruning.prune, static_argnums=1)(params, sparsity)


@pytest.mark.parametrize("tx", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_masked_weights_stay_zero(tx):
  params = tree()  # not masked before: the first step must do it
  masks = magnitude_masks(params, 0.6)

  def loss(params):
    return sum(jnp.sum((leaf - 1) ** 2) for leaf in jax.tree.leaves(params))

  @jax.jit
  def train(params, masks):
    tx_masked = pruning.masked(tx, masks)

    def step(carry, _):
      params, state = carry
      updates, state = tx_masked.update(jax.grad(loss)(params), state, params)
      params = optax.apply_updates(params, updates)
      return (params, state), params

    start = (params, tx_masked.init(params))
    return jax.lax.scan(step, start, length=6)[1]

  for path, mask in jax.tree_util.tree_leaves_with_path(masks):
    history = jax.tree_util.tree_map_with_path(
      lambda p, leaf, path=path: leaf if p == path else None,
      train(params, masks),
    )
    (history,) = jax.tree.leaves(history)
    mask = np.broadcast_to(mask, history.shape[1:])
    assert not np.any(np.asarray(history)[:, ~mask])
    assert np.all(np.asarray(history)[:, mask])


def test_an_optimizer_sees_the_sparse_network_only():
  params = tree()
  masks = magnitude_masks(params, 0.5)
  sparse = pruning.apply_masks(params, masks)
  grads = jax.tree.map(jnp.ones_like, params)
  tx = pruning.masked(optax.trace(0.9), masks)
  _, state = tx.update(grads, tx.init(params), params)
  jax.tree.map(
    lambda m, mask: np.testing.assert_array_equal(m, m * mask),
    state.trace,
    masks,
  )
  one, _ = tx.update(grads, tx.init(params), params)
  other, _ = tx.update(grads, tx.init(sparse), sparse)
  jax.tree.map(
    lambda a, b, mask: np.testing.assert_array_equal(a * mask, b * mask),
    *(one, other, masks),
  )


def test_masks_may_be_traced_and_mapped():
  trees = [tree(seed) for seed in range(3)]
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *trees)

  @jax.jit
  @jax.vmap
  def step(params):
    tx = pruning.masked(optax.adam(0.1), pruning.prune(params, 0.5))
    updates, _ = tx.update(params, tx.init(params), params)
    return optax.apply_updates(params, updates)

  moved = step(stacked)
  for i, one in enumerate(trees):
    masks = magnitude_masks(one, 0.5)
    zero = jax.tree.map(lambda m, p, i=i: (p[i] == 0) == ~m, masks, moved)
    assert all(np.all(leaf) for leaf in jax.tree.leaves(zero))


def test_masking_removes_even_what_is_not_a_number():
  masks = {"kernel": np.array([True, False, False])}
  params = {"kernel": np.array([np.nan, np.nan, np.inf], np.float32)}
  masked = pruning.apply_masks(params, masks)["kernel"]
  assert np.isnan(masked[0]) and np.all(masked[1:] == 0)


def test_counts_and_dead_layers():
  masks = {
    "a": {"kernel": np.zeros((2, 3), bool), "bias": np.True_},
    "b": {"kernel": np.array([[True, False], [True, False]])},
  }
  within = {
    "a": {"kernel": np.True_, "bias": np.True_},
    "b": {"kernel": np.array([[True, True], [False, False]])},
  }
  assert pruning.count(masks) == 2
  np.testing.assert_allclose(pruning.sparsity(masks), 0.8)
  assert pruning.count(masks, within) == 1
  np.testing.assert_allclose(pruning.sparsity(masks, within), 1 - 1 / 8)
  dead = pruning.dead_layers(masks)
  assert {name: bool(x) for name, x in dead.items()} == {
    "a/kernel": True,
    "b/kernel": False,
  }


def test_overlap_of_masks():
  def masks(*kept):
    return {"kernel": np.isin(np.arange(8), kept), "bias": np.True_}

  assert sensitivity.jaccard(masks(0, 1), masks(0, 1)) == 1
  np.testing.assert_allclose(
    sensitivity.jaccard(masks(0, 1, 2), masks(2, 3)), 1 / 4
  )
  assert sensitivity.jaccard(masks(), masks()) == 1
  stacked = jax.tree.map(
    lambda *leaves: np.stack(leaves), masks(0, 1), masks(1, 2), masks(5)
  )
  expected = [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]]
  np.testing.assert_allclose(sensitivity.overlaps(stacked), expected)


def test_a_shuffled_mask_keeps_each_layers_count():
  masks = magnitude_masks(tree(), 0.7)
  other = jax.jit(controls.shuffled)(masks, jax.random.key(0))
  changed = False
  for a, b in zip(jax.tree.leaves(masks), jax.tree.leaves(other), strict=True):
    assert a.shape == b.shape and a.sum() == b.sum()
    changed |= bool(np.any(a != b))
  assert changed


def test_shuffling_stays_inside_the_member():
  masks = {"kernel": np.pad(np.eye(3, dtype=bool), ((0, 2), (0, 4)))}
  within = {"kernel": np.pad(np.ones((3, 3), bool), ((0, 2), (0, 4)))}
  key = jax.random.key(1)
  shuffled = jax.jit(controls.shuffled)
  alone = shuffled({"kernel": np.eye(3, dtype=bool)}, key)["kernel"]
  wide = jax.device_get(shuffled(masks, key, within)["kernel"])
  assert not np.any(wide & ~within["kernel"])
  np.testing.assert_array_equal(wide[:3, :3], alone)


@pytest.mark.parametrize("name", ["set", "rigl"])
def test_connections_move_and_their_number_stays(name):
  params = tree()
  masks = magnitude_masks(params, 0.6)
  sparse = pruning.apply_masks(params, masks)
  grads = tree(1)
  key = jax.random.key(0)

  @jax.jit
  def move(fraction):
    if name == "set":
      return dynamic.sparse_evolution(sparse, masks, fraction, key)
    return dynamic.rigl(sparse, masks, fraction, grads)

  moved = move(np.float32(0.3))
  for old, new, before, after, slope in zip(
    *map(jax.tree.leaves, (masks, moved.masks, sparse, moved.params, grads)),
    strict=True,
  ):
    if not old.ndim:
      np.testing.assert_array_equal(before, after)
      continue
    assert old.sum() == new.sum()
    kept = round((1 - 0.3) * int(old.sum()))
    survivors = np.flatnonzero(after)
    assert len(survivors) == kept
    strongest = np.argsort(np.abs(before).ravel())[::-1][:kept]
    assert set(survivors) == set(strongest)
    if name == "rigl":
      grown = np.asarray(new & (np.asarray(after) == 0))
      absent = np.asarray(~new)
      assert np.abs(slope)[grown].min() >= np.abs(slope)[absent].max()
  still = move(np.float32(0.0))
  jax.tree.map(np.testing.assert_array_equal, still.masks, masks)
  jax.tree.map(np.testing.assert_array_equal, still.params, sparse)


@pytest.mark.parametrize("name", ["set", "rigl"])
def test_connections_move_in_a_parent_as_alone(name):
  """... mapped over a stack of networks."""
  rng = np.random.default_rng(0)
  shape, wide = (6, 5), (9, 7)
  kernel, slope = rng.normal(size=(2, 3, *shape)).astype(np.float32)
  margin = ((0, 0), (0, 3), (0, 2))
  within = {"kernel": np.pad(np.ones(shape, bool), margin[1:])}

  def move(params, grads, exists):
    masks = pruning.prune(params, 0.6, within=exists)
    if name == "set":
      key = jax.random.key(0)
      return dynamic.sparse_evolution(params, masks, 0.3, key, within=exists)
    return dynamic.rigl(params, masks, 0.3, grads, within=exists)

  alone = jax.vmap(lambda p, g: move(p, g, None))(
    {"kernel": kernel}, {"kernel": slope}
  )
  # What lies outside must not matter, however steep it looks.
  outside = np.pad(slope, margin, constant_values=9.0)
  padded = jax.lax.map(
    lambda both: move(*both, within),
    ({"kernel": np.pad(kernel, margin)}, {"kernel": outside}),
  )
  for a, b in zip(alone, padded, strict=True):
    expected = np.pad(np.asarray(a["kernel"]), margin)
    np.testing.assert_array_equal(b["kernel"], expected)
  assert padded.masks["kernel"].shape == (3, *wide)


@pytest.mark.parametrize("name", ["set", "rigl"])
def test_moving_is_one_program(name):
  """Of all layers, for every traced fraction; eager it took seconds."""
  params = {"activation": jnp.tanh, **tree()}
  masks = pruning.prune(params, 0.6)
  before = dynamic._moved._cache_size()  # pyright: ignore
  for step in range(3):
    fraction = dynamic.moving_fraction(step, 10)
    if name == "set":
      key = jax.random.key(step)
      moved = dynamic.sparse_evolution(params, masks, fraction, key)
    else:
      moved = dynamic.rigl(params, masks, fraction, params)
    assert pruning.count(moved.masks) == pruning.count(masks)
    assert moved.params["activation"] is jnp.tanh
  assert dynamic._moved._cache_size() == before + 1  # pyright: ignore


def test_the_moving_fraction_falls_to_zero():
  fractions = np.asarray(dynamic.moving_fraction(np.arange(11), 10, 0.3))
  np.testing.assert_allclose(fractions[[0, 5, 10]], [0.3, 0.15, 0], atol=1e-6)
  assert np.all(np.diff(fractions) <= 0)


def test_each_layer_is_cut_alone_for_its_sensitivity():
  params = tree()

  @jax.jit
  def curves(params):
    ranking = pruning.rank(jax.tree.map(jnp.abs, params))
    return sensitivity.layer_sensitivity(
      *(params, ranking, (0.0, 0.5, 0.9)),
      lambda p: jnp.stack([jnp.sum(leaf != 0) for leaf in jax.tree.leaves(p)]),
    ).values

  ours = np.asarray(curves(params))  # leaves: bias, kernel, bias, kernel
  whole = [5, 30, 3, 15]
  expected = np.tile(whole, (2, 3, 1))
  for layer, leaf in ((0, 1), (1, 3)):
    kept = [round((1 - s) * whole[leaf]) for s in (0.0, 0.5, 0.9)]
    expected[layer, :, leaf] = kept
  np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("granularity", ["element", "unit"])
@pytest.mark.parametrize("name", ["dnn:4-5-3", "dnn:4"])
def test_a_layer_alone_is_a_scope_that_names_it(name, granularity):
  """Also in a parent, where what reads a missing layer reads the one before."""
  shape = ((2, 2, 1), 3)
  architecture = architectures.Architecture.parse(name)
  parent = architectures.Architecture.parse("dnn:6-6-6").spec(Problem(*shape))
  spec = architecture.spec(Problem(*shape))
  flat = {leaf.path: spec.shape(leaf) for leaf in spec.leaves}
  rng = np.random.default_rng(0)
  own = traverse_util.unflatten_dict(
    {path: rng.normal(size=size) for path, size in flat.items()}
  )
  params = models.pad(own, spec, parent)
  masks = functools.partial(
    *(
      models.width_masks,
      parent,
      architecture.sizes(Problem(*shape), 3),
    )
  )
  options = {"granularity": granularity, "spec": parent}
  options["within"] = jax.device_get(jax.jit(masks)())
  rank = functools.partial(pruning.rank, **options)
  ranking = jax.jit(rank)(jax.tree.map(np.abs, params))
  layers = ranking.plan.layers

  @jax.jit
  def both(params):
    found = jax.lax.map(
      lambda layer: sensitivity.alone(ranking, layer, 0.6),
      jnp.arange(len(layers)),
    )
    expected = [
      pruning.prune(*(params, 0.0, "magnitude", {layer.name: 0.6}), **options)
      for layer in layers
    ]
    return found, expected

  found, expected = both(params)
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *expected)
  jax.tree.map(np.testing.assert_array_equal, found, stacked)


def test_a_sparsity_that_layers_cannot_have_is_named():
  ranking = pruning.rank(jax.tree.map(jnp.abs, tree()))
  with pytest.raises(ValueError, match="1.5 is outside"):
    sensitivity.layer_sensitivity(tree(), ranking, (0.5, 1.5), jax.tree.leaves)


ERRORS = {
  "another structure": (
    lambda: pruning.apply_masks(tree(), {"kernel": np.True_}),
    "lacks leaf 'hidden_0/kernel'|lacks leaf 'hidden_0/bias'",
  ),
  "an extra leaf": (
    lambda: pruning.apply_masks(tree(), {**tree(), "more": np.True_}),
    "unknown leaf 'more'",
  ),
  "another shape": (
    lambda: pruning.apply_masks(
      {"kernel": np.ones(3)}, {"kernel": np.ones((3, 1), bool)}
    ),
    r"leaf 'kernel' has shape \(3, 1\), its parameter \(3,\)",
  ),
  "no params": (
    lambda: pruning.masked(optax.sgd(1.0), tree()).update(tree(), ()),
    "needs params",
  ),
  "gradients of another tree": (
    lambda: dynamic.rigl(tree(), tree(), 0.1, {"kernel": np.ones(3)}),
    "grads: the tree lacks leaf",
  ),
  "fraction": (lambda: dynamic.rigl(tree(), tree(), 1.1, tree()), "1.1"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_named(name):
  call, message = ERRORS[name]
  with pytest.raises(ValueError, match=message):
    call()
