"""Informed criteria beat random masks on real images after equal training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from minarch_jax import architectures, models, pruning
from minarch_jax.architectures import Problem
from minarch_jax.pruning import gradients
from minarch_jax.types import Batch, record_inputs

SEEDS, STEPS, SPARSITY = 5, 300, 0.95
TX = optax.adam(3e-3)


@pytest.fixture(scope="module")
def accuracies(digits):
  """Mean validation accuracy by (stage, criterion) after equal training."""
  architecture = architectures.Architecture.parse("dnn:32-24")
  shape, classes = digits.input_shape, digits.num_classes
  model = models.make_model(architecture, Problem(shape, classes))
  data = Batch(jnp.asarray(digits.train.x), jnp.asarray(digits.train.y))

  def loss(params, batch):
    return optax.softmax_cross_entropy_with_integer_labels(
      model.apply(params, batch.x), batch.y
    ).mean()

  def train(params, masks, seed, data, valid):
    """STEPS masked steps; also what movement reads, and the accuracy."""
    tx = pruning.masked(TX, masks)
    rows = jax.random.randint(
      jax.random.key(seed), (STEPS, 64), 0, data.y.shape[0]
    )

    def step(carry, rows):
      params, state, moved = carry
      grads = jax.grad(loss)(params, Batch(data.x[rows], data.y[rows]))
      moved = gradients.accumulate_movement(moved, params, grads)
      updates, state = tx.update(grads, state, params)
      return (optax.apply_updates(params, updates), state, moved), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    start = (params, tx.init(params), zeros)
    (params, _, moved), _ = jax.lax.scan(step, start, rows)
    right = model.apply(params, valid.x).argmax(-1) == valid.y
    return params, moved, right.mean()

  train = jax.jit(jax.vmap(train, (0, 0, 0, None, None)))
  seeds = np.arange(SEEDS)
  valid = Batch(*map(jnp.asarray, digits.validation))

  def cut(name, params, moved, key, data):
    few = Batch(data.x[:200], data.y[:200])
    ingredients = {
      "key": key,
      "loss": loss,
      "batch": few,
      "apply": model.apply,
      "input_shape": shape,
      "activations": record_inputs(model.apply, params, few.x)[1],
      "movement": moved,
    }
    needs = pruning.CRITERIA[name].needs
    return pruning.prune(
      *(params, SPARSITY, name),
      # Wanda compares weights that see inputs of one kind.
      scope="layerwise" if name == "wanda" else "global",
      rounds=30 if name == "synflow" else 1,
      **{need: ingredients[need] for need in needs},
    )

  keys = jax.vmap(jax.random.key)(seeds)
  initial = jax.jit(jax.vmap(model.init))(keys)
  # As `prune` makes them, so that one program trains all: scalars for biases.
  whole = jax.tree.map(
    lambda leaf: np.ones(leaf.shape if leaf.ndim == 3 else SEEDS, bool), initial
  )
  trained, moved, _ = train(initial, whole, seeds, data, valid)
  out = {}
  for name, criterion in pruning.CRITERIA.items():
    stages = {"initialisation": initial, "trained": trained}
    if criterion.when in stages:
      stages = {criterion.when: stages[criterion.when]}
    elif criterion.when == "training":
      stages = {"trained": trained}
    for stage, params in stages.items():
      masks = jax.jit(jax.vmap(functools.partial(cut, name), (0, 0, 0, None)))(
        params, moved, keys, data
      )
      start = jax.vmap(pruning.apply_masks)(params, masks)
      _, _, right = train(start, masks, seeds, data, valid)
      out[stage, name] = float(right.mean())
  return out


INFORMED = [
  ("trained" if c.when in ("any", "training") else c.when, name)
  for name, c in pruning.CRITERIA.items()
  if name != "random"
]


@pytest.mark.parametrize("stage, name", INFORMED)
def test_beats_random(accuracies, stage, name):
  assert accuracies[stage, name] > accuracies[stage, "random"]
