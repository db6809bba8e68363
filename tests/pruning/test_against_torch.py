"""The masks of torch.nn.utils.prune on the same weights (skips without it)."""

import jax
import numpy as np
import pytest

from minarch_jax import pruning
from minarch_jax.architectures import Problem

torch = pytest.importorskip("torch")
torch_prune = pytest.importorskip("torch.nn.utils.prune")

SHAPES = {"hidden_0": (30, 20), "hidden_1": (20, 10), "output": (10, 5)}


def both():
  """The same weights as a tree [in, out] and as torch layers [out, in]."""
  draw = np.random.default_rng(0)
  params, layers = {}, {}
  for name, (inputs, outputs) in SHAPES.items():
    kernel = draw.normal(size=(inputs, outputs)).astype(np.float32)
    params[name] = {"kernel": kernel, "bias": np.zeros(outputs, np.float32)}
    layers[name] = torch.nn.Linear(inputs, outputs)
    with torch.no_grad():
      layers[name].weight.copy_(torch.from_numpy(kernel.T.copy()))
  return params, layers


def compare(masks, layers):
  for name, layer in layers.items():
    theirs = layer.weight_mask.numpy().T.astype(bool)
    np.testing.assert_array_equal(masks[name]["kernel"], theirs)


@pytest.mark.parametrize("sparsity", [0.2, 0.55, 0.9, 0.98])
def test_l1_unstructured_is_layerwise_magnitude(sparsity):
  params, layers = both()
  for layer in layers.values():
    torch_prune.l1_unstructured(layer, "weight", amount=sparsity)
  prune = jax.jit(pruning.prune, static_argnames="scope")
  compare(prune(params, np.float32(sparsity), scope="layerwise"), layers)


@pytest.mark.parametrize("sparsity", [0.2, 0.55, 0.9, 0.98])
def test_global_unstructured_is_global_magnitude(sparsity):
  params, layers = both()
  torch_prune.global_unstructured(
    [(layer, "weight") for layer in layers.values()],
    pruning_method=torch_prune.L1Unstructured,
    amount=sparsity,
  )
  compare(jax.jit(pruning.prune)(params, np.float32(sparsity)), layers)


def test_ln_structured_is_unit_magnitude():
  params, layers = both()
  from minarch_jax import architectures

  spec = architectures.Architecture.parse("dnn:20-10").spec(
    Problem((30, 1, 1), 5)
  )
  masks = jax.jit(
    lambda p: pruning.prune(
      p, 0.4, scope="layerwise", granularity="unit", spec=spec
    )
  )(params)
  for name in ("hidden_0", "hidden_1"):
    torch_prune.ln_structured(layers[name], "weight", amount=0.4, n=1, dim=0)
    theirs = layers[name].weight_mask.numpy().any(axis=1)
    np.testing.assert_array_equal(masks[name]["bias"], theirs)
