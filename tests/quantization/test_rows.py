"""Rows: what shares a scale, rounded as the leaves of trees are."""

import functools

import jax
import numpy as np
import pytest

from minarch_jax import models, quantization
from minarch_jax.architectures import Architecture, Problem, vectors
from minarch_jax.quantization import rows
from minarch_jax.quantization.rounding import Rounding

PROBLEM = Problem((4, 4, 1), 3)
TEXTS = ("dnn:8-4", "cnn:4-2", "vit:p2-d4-l2-h2")
ROUNDINGS = [
  Rounding(),
  *(Rounding("int", "channel", name) for name in ("percentile", "mse", "kl")),
  *(Rounding(name) for name in ("nf4", "uint4", "binary", "ternary")),
]
LENGTH = 64


@functools.cache
def network(text):
  architecture = Architecture.parse(text)
  model = models.make_model(architecture, PROBLEM)
  params = jax.device_get(jax.jit(model.init)(jax.random.key(1)))
  vector = vectors.vector_of(architecture, PROBLEM)
  values = vector.of(params)
  rng = np.random.default_rng(0)
  values[rng.random(values.shape) < 0.2] = 0  # pruned
  return vector, values


@pytest.mark.parametrize("granularity", ["channel", "tensor", "group:2"])
@pytest.mark.parametrize("text", TEXTS)
def test_every_weight_is_of_one_row(text, granularity):
  vector, _ = network(text)
  entries = np.concatenate(
    [
      each.reshape(-1)
      for each in rows.rows_of(Architecture.parse(text), PROBLEM, granularity)
    ]
  )
  entries = entries[entries < vector.size]
  weights = [
    np.arange(own.start, own.stop)
    for path, own in vector.slices.items()
    if path[-1] in ("kernel", "embedding")
  ]
  assert sorted(entries) == sorted(np.concatenate(weights))


@pytest.mark.parametrize("rounding", ROUNDINGS, ids=lambda r: r.quantizer)
def test_rows_are_rounded_as_trees_are(rounding):
  round = jax.jit(rows.make_round(rounding))
  format = 4 if rounding.format == "int" else rounding.format
  # The search takes long for every row.
  for text in TEXTS[:1] if rounding.calibration == "kl" else TEXTS:
    vector, values = network(text)
    for granularity in ("channel", "tensor", "group:2"):
      expected = jax.jit(
        lambda tree, granularity=granularity: quantization.fake_quantize(
          tree, format, granularity, calibration=rounding.calibration
        )
      )(vector.tree(values))
      found = np.append(values, np.float32(0))
      for own in rows.rows_of(Architecture.parse(text), PROBLEM, granularity):
        edge = LENGTH - own.shape[1]
        if edge < 0:
          continue
        table = np.pad(
          found[own], [(0, 0), (0, edge)], constant_values=np.float32(0)
        )
        real = own < vector.size
        after = np.asarray(round(table, real.sum(1).astype(np.int32), 4))
        found[own[real]] = after[:, : own.shape[1]][real]
      wanted = vector.of(jax.device_get(expected))
      there = found[:-1] != values
      # A mean of magnitudes is a sum in another order.
      np.testing.assert_allclose(found[:-1][there], wanted[there], rtol=1e-6)
      assert there.any()


def test_bits_are_data_and_32_the_identity():
  round = jax.jit(rows.make_round(Rounding()))
  table = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
  lengths = np.full(5, 16, np.int32)
  np.testing.assert_array_equal(round(table, lengths, 32), table)
  errors = [abs(round(table, lengths, b) - table).max() for b in (8, 4, 2)]
  assert 0 < errors[0] < errors[1] < errors[2]
