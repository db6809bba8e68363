"""Criteria: laws over the registry, then each against its own equation."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from minarch_jax import architectures, models, pruning, registries
from minarch_jax.architectures import Problem
from minarch_jax.pruning import gradients
from minarch_jax.types import Batch, record_inputs

SHAPE, CLASSES = (4, 4, 1), 3
NETWORKS = ("dnn:6-5", "cnn:3-2", "vit:p2-d4-l1-h2")
PARENTS = {
  "dnn:6-5": "dnn:9-7",
  "cnn:3-2": "cnn:4-4",
  "vit:p2-d4-l1-h2": "vit:p2-d6-l1-h3-m11",
}


@functools.cache
def network(text, parent=None):
  """(context, spec) of a network, alone or in a parent's shapes."""
  own = architectures.Architecture.parse(text)
  wide = architectures.Architecture.parse(parent or text)
  spec, outer = (a.spec(Problem(SHAPE, CLASSES)) for a in (own, wide))
  sizes = {axis: spec.sizes[axis] for axis in spec.unit_axes}
  model = models.make_model(wide, Problem(SHAPE, CLASSES))
  draw = np.random.default_rng(0)
  x = draw.normal(size=(12, *SHAPE)).astype(np.float32)
  batch = Batch(x, draw.integers(0, CLASSES, 12).astype(np.int32))

  def apply(params, x, **hooks):
    return model.apply(params, x, sizes, **hooks)

  def loss(params, batch):
    logits = apply(params, batch.x)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, batch.y
    ).mean()

  @jax.jit
  def prepare(key, x):
    params = model.init(key, sizes)
    return params, record_inputs(apply, params, x)[1]

  params, activations = prepare(jax.random.key(0), x)
  context = pruning.Context(
    params,
    key=jax.random.key(1),
    loss=loss,
    batch=batch,
    apply=apply,
    input_shape=SHAPE,
    activations=activations,
    outputs={"/".join(leaf.path): leaf.outputs for leaf in spec.leaves},
    movement=jax.tree.map(jnp.square, params),
  )
  return context, outer


def scored(name, context):
  """Scores in one program; the parts that are arrays are its arguments."""
  criterion = pruning.CRITERIA[name]

  def function(params, batch, activations, movement):
    return criterion.score(
      context._replace(
        params=params, batch=batch, activations=activations, movement=movement
      )
    )

  return jax.jit(function)(
    context.params, context.batch, context.activations, context.movement
  )


# Curvature takes long to compile: once is enough, its rule is the same.
PADDED = [(name, "dnn:6-5") for name in pruning.CRITERIA]
PADDED += [
  (name, text)
  for name in ("random", "gradient", "synflow", "wanda")
  for text in NETWORKS[1:]
]


@pytest.mark.parametrize("name, text", PADDED)
def test_a_padded_network_scores_as_alone(name, text):
  context, _ = network(text)
  inside, _ = network(text, PARENTS[text])
  alone, wide = scored(name, context), scored(name, inside)

  def compare(path, score, padded, param):
    assert score.shape == param.shape and np.all(np.isfinite(score))
    if path[-1].key in ("kernel", "embedding"):
      lead = tuple(slice(size) for size in score.shape)
      tolerance = 1e-3 * np.abs(score).max() + 1e-8
      np.testing.assert_allclose(score, padded[lead], atol=tolerance)

  jax.tree_util.tree_map_with_path(compare, alone, wide, context.params)


@pytest.mark.parametrize("name", pruning.CRITERIA)
def test_every_criterion_prunes(name):
  context, spec = network("dnn:6-5")
  known = {f: getattr(context, f) for f in pruning.CRITERIA[name].needs}
  static = {
    k: known.pop(k) for k in ("loss", "apply", "input_shape") if k in known
  }

  @jax.jit
  def prune(params, sparsity, known):
    return [
      pruning.prune(
        *(params, sparsity, name),
        granularity=granularity,
        spec=spec,
        **known,
        **static,
      )
      for granularity in ("element", "unit")
    ]

  elements, units = prune(context.params, np.float32(0.6), known)
  assert pruning.count(elements) == round(0.4 * (16 * 6 + 30 + 15))
  kept = [units[f"hidden_{i}"]["bias"].sum() for i in range(2)]
  assert sum(kept) == round(0.4 * 11)


def first_goes_last(context):
  """A toy: importance falls with the place in the leaf."""
  return jax.tree.map(
    lambda w: -jnp.arange(w.size, dtype=jnp.float32).reshape(w.shape),
    context.params,
  )


@pytest.mark.parametrize(
  "entry",
  [
    pruning.Criterion(first_goes_last, pool="mean"),
    first_goes_last,
    f"{__name__}:first_goes_last",
  ],
  ids=["criterion", "function", "text"],
)
def test_a_criterion_is_its_registry_line(entry):
  params = {"kernel": np.ones(10, np.float32)}
  with mock.patch.dict(registries.CRITERIA, toy=entry):
    assert "toy" in pruning.CRITERIA and "toy" in registries.TRAINED_CRITERIA
    kept = pruning.prune(params, 0.7, "toy")["kernel"]
  assert kept.tolist() == [True] * 3 + [False] * 7
  with pytest.raises(ValueError, match="criterion 'toy' is not one of"):
    pruning.prune(params, 0.7, "toy")


@pytest.mark.parametrize(
  "name, need",
  [(n, need) for n, c in pruning.CRITERIA.items() for need in c.needs],
)
def test_a_missing_ingredient_is_named(name, need):
  context, _ = network("dnn:6-5")
  known = {f: getattr(context, f) for f in pruning.CRITERIA[name].needs}
  del known[need]
  with pytest.raises(ValueError, match=f"{name!r} needs {need}="):
    pruning.prune(context.params, 0.5, name, **known)


def test_rounds_end_at_the_exact_count_and_differ_from_one_cut():
  context, _ = network("dnn:6-5")

  @functools.partial(jax.jit, static_argnums=0)
  def prune(rounds, params):
    return pruning.prune(
      *(params, 0.9, "synflow"),
      rounds=rounds,
      apply=context.apply,
      input_shape=SHAPE,
    )

  once, often = prune(1, context.params), prune(50, context.params)
  assert pruning.count(once) == pruning.count(often) == round(0.1 * 141)
  # Iterating keeps every layer alive (Tanaka et al. 2020, theorem 3).
  assert not any(pruning.dead_layers(often).values())
  assert any(
    np.any(a != b)
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(often), strict=True)
  )


# --- each against its equation -----------------------------------------------

A = np.array([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]], np.float32)
W = np.array([1.0, -2.0, 0.5], np.float32)


def quadratic(params, batch):
  """w A w / 2, averaged over examples that all say the same."""
  w = params["kernel"]
  return jnp.mean(batch) * (w @ A @ w) / 2


def known(**more):
  return pruning.Context(
    {"kernel": W}, loss=quadratic, batch=np.ones(4, np.float32), **more
  )


EQUATIONS = {
  "magnitude": np.abs(W),
  "gradient": np.abs(W * (A @ W)),
  "snip": np.abs(W * (A @ W)),
  "taylor": W * (A @ W),
  "fisher": W**2 * (A @ W) ** 2 / 2,
  "movement": 2 * W,
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_the_equation(name):
  context = known(movement={"kernel": 2 * W})
  score = pruning.CRITERIA[name].score(context)["kernel"]
  np.testing.assert_allclose(score, EQUATIONS[name], rtol=1e-5)


def test_grasp_is_the_fall_of_the_gradient_norm():
  draw = np.random.default_rng(0)
  batch = Batch(draw.normal(size=(9, 3)), draw.integers(0, 2, 9))

  def apply(params, x):
    return jnp.tanh(x @ params["kernel"]) * 300

  def norm(w):
    def loss(w):
      logits = apply({"kernel": w}, batch.x) / gradients.TEMPERATURE
      return optax.softmax_cross_entropy_with_integer_labels(
        logits, batch.y
      ).mean()

    return jnp.sum(jax.grad(loss)(w) ** 2)

  with jax.enable_x64(True):
    w = draw.normal(size=(3, 2))

    @jax.jit
    def score(w):
      context = pruning.Context({"kernel": w}, apply=apply, batch=batch)
      return pruning.CRITERIA["grasp"].score(context)["kernel"]

    score, norm = score(w), jax.jit(norm)
    for at in np.ndindex(w.shape):
      less = w.copy()
      less[at] *= 1 - 1e-6
      fall = (norm(w) - norm(less)) / 1e-6 / 2
      np.testing.assert_allclose(score[at], fall, rtol=1e-4)


def test_obd_is_exact_where_the_hessian_is_diagonal():
  diagonal = np.array([3.0, 2.0, 5.0], np.float32)

  def loss(params, batch):
    return jnp.mean(batch) * jnp.sum(diagonal * params["kernel"] ** 2) / 2

  context = known()._replace(loss=loss, key=jax.random.key(0))
  score = jax.jit(lambda: pruning.CRITERIA["obd"].score(context))()["kernel"]
  np.testing.assert_allclose(score, diagonal * W**2 / 2, rtol=1e-5)


def test_synflow_is_conserved_from_layer_to_layer():
  context, _ = network("dnn:6-5")
  score = scored("synflow", context)
  flows = [score[name]["kernel"].sum() for name in score]
  positive = jax.tree.map(jnp.abs, context.params)
  total = context.apply(positive, jnp.ones((1, *SHAPE))).sum()
  np.testing.assert_allclose(flows, [total] * 3, rtol=1e-5)


def test_wanda_multiplies_with_the_norm_of_the_inputs():
  context, _ = network("cnn:3-2")
  score = scored("wanda", context)
  w = np.asarray(context.params["conv_0"]["kernel"])
  norm = np.sqrt(np.sum(context.batch.x**2))
  np.testing.assert_allclose(
    score["conv_0"]["kernel"], np.abs(w) * norm, rtol=1e-5
  )
  w = np.asarray(context.params["output"]["kernel"])
  x = np.asarray(context.activations["output/kernel"])
  norms = np.sqrt(np.sum(x**2, 0))[:, :, None]
  np.testing.assert_allclose(
    score["output"]["kernel"], np.abs(w) * norms, rtol=1e-5
  )


def test_wanda_refuses_weights_of_other_names():
  """Not ranked by |w| alone without a word."""
  params = {"dense": {"table": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
  seen = {"dense/table": jnp.ones((5, 3))}
  options = {"activations": seen, "names": ["table"]}
  with pytest.raises(
    ValueError, match="'wanda' does not know how 'dense/table"
  ):
    pruning.prune(params, 0.5, "wanda", **options)
  assert pruning.prune(params, 0.5, "magnitude", names=["table"])


def test_wanda_names_a_layer_without_an_input():
  params = {"a": {"kernel": W}}
  context = pruning.Context(params, activations={"b/kernel": W})
  with pytest.raises(ValueError, match="lack the input of 'a/kernel'"):
    pruning.CRITERIA["wanda"].score(context)


def test_movement_prefers_weights_that_grow():
  total = {"kernel": np.zeros(2, np.float32)}
  params = {"kernel": np.array([0.1, 1.0], np.float32)}
  for _ in range(3):  # the first moves away from zero, the second towards it
    grads = {"kernel": np.array([-1.0, 1.0], np.float32)}
    total = gradients.accumulate_movement(total, params, grads)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
  masks = pruning.prune(params, 0.5, "movement", movement=total)
  assert masks["kernel"].tolist() == [True, False]


def test_taylor_pools_units_by_the_absolute_sum():
  spec = architectures.Architecture.parse("dnn:2").spec(Problem((1, 2, 1), 1))
  # Unit 0: large effects that cancel; unit 1: small ones that add up.
  scores = {
    "hidden_0": {
      "kernel": np.array([[5.0, 1.0], [-5.0, 1.0]], np.float32),
      "bias": np.zeros(2, np.float32),
    },
    "output": {
      "kernel": np.ones((2, 1), np.float32),
      "bias": np.zeros(1, np.float32),
    },
  }
  kept = {}
  for pool in ("absolute", "sum", "mean"):
    values = scores
    if pool != "absolute":
      values = jax.tree.map(np.abs, scores)
    ranking = pruning.rank(values, granularity="unit", pool=pool, spec=spec)
    kept[pool] = pruning.masks_at(ranking, 0.5)["hidden_0"]["bias"].tolist()
  assert kept["absolute"] == [False, True]
  assert kept["sum"] == kept["mean"] == [True, False]
