"""Initial values follow their law at the member's true fans."""

import jax
import numpy as np
import pytest

from minarch_jax import models, registries
from minarch_jax.architectures import Architecture, Problem
from minarch_jax.models import initialisers

SHAPE, CLASSES = (8, 8, 3), 10
PROBLEM = Problem(SHAPE, CLASSES)
# A member, a parent it is padded to, and (fan-in, fan-out, gain) of kernels.
CASES = {
  "dnn:300-200": (
    "dnn:310-260",
    {
      "hidden_0/kernel": (192, 300, 2),
      "hidden_1/kernel": (300, 200, 2),
      "output/kernel": (200, 10, 1),
    },
  ),
  "cnn:60-50": (
    "cnn:61-70",
    {
      "conv_1/kernel": (9 * 60, 9 * 50, 2),
      "output/kernel": (16 * 50, 10, 1),
    },
  ),
  "vit:p2-d64-l1-h2": (
    "vit:p2-d70-l1-h3-k40-m150",
    {
      "block_0/attention/query/kernel": (64, 64, 1),
      "block_0/attention/out/kernel": (64, 64, 1),
      "block_0/mlp/in/kernel": (64, 128, 1),
    },
  ),
}
VARIANCES = {
  "he_normal": lambda fan_in, fan_out, gain: gain / fan_in,
  "lecun_normal": lambda fan_in, fan_out, gain: 1 / fan_in,
  "glorot_uniform": lambda fan_in, fan_out, gain: 2 / (fan_in + fan_out),
  "pytorch": lambda fan_in, fan_out, gain: 1 / (3 * fan_in),
}
UNIFORM = ("glorot_uniform", "pytorch")


def start(text, init, seed=0, sizes=None):
  model = models.make_model(Architecture.parse(text), PROBLEM, init=init)
  params = model.init(jax.random.key(seed), sizes)
  return {
    "/".join(path): np.asarray(leaf)
    for path, leaf in models.flatten(params).items()
  }


def test_every_law_is_tested():
  assert list(registries.INITS) == list(VARIANCES)


@pytest.mark.parametrize("init", VARIANCES)
@pytest.mark.parametrize("text", CASES)
def test_kernels_have_the_variance_and_shape_of_their_law(text, init):
  found = start(text, init)
  for name, fans in CASES[text][1].items():
    values, variance = found[name].ravel(), VARIANCES[init](*fans)
    error = 5 * np.sqrt(2 / values.size)
    assert values.var() == pytest.approx(variance, rel=error), name
    assert abs(values.mean()) < 5 * np.sqrt(variance / values.size)
    most = np.abs(values).max() / np.sqrt(variance)
    if init in UNIFORM:
      assert most == pytest.approx(np.sqrt(3), rel=0.02) and most <= 1.7321
    else:
      assert most > 2.5


@pytest.mark.parametrize("init", VARIANCES)
@pytest.mark.parametrize("text", CASES)
def test_a_member_of_a_parent_starts_as_alone(text, init):
  parent = Architecture.parse(CASES[text][0])
  member = Architecture.parse(text)
  alone = start(text, init)
  within = start(str(parent), init, sizes=member.sizes(PROBLEM, None))
  for name, values in alone.items():
    inside = within[name][tuple(slice(0, size) for size in values.shape)]
    np.testing.assert_allclose(inside, values, rtol=1e-6)
    assert np.count_nonzero(within[name]) == np.count_nonzero(values)


@pytest.mark.parametrize("text", CASES)
def test_biases_of_layers_are_as_torch_has_them_and_norms_are_not(text):
  found, zero = start(text, "pytorch"), start(text, "he_normal")
  for name, values in found.items():
    if not name.endswith("bias"):
      continue
    assert not zero[name].any()
    kernel = CASES[text][1].get(name.replace("bias", "kernel"))
    if "norm" in name:
      assert not values.any()
    elif kernel:
      bound = 1 / np.sqrt(kernel[0])
      assert 0.5 * bound < np.abs(values).max() <= bound * 1.0001


def test_uniform_values_are_those_of_the_host():
  draws = np.random.default_rng(0).normal(size=50_000).astype(np.float32)
  host, device = (
    initialisers.uniform(draws),
    jax.jit(initialisers.uniform)(draws),
  )
  np.testing.assert_allclose(host, device, rtol=1e-4, atol=1e-5)
  assert host.dtype == np.float32 and abs(host.std() - 1) < 0.01
