"""Members, the parents that hold them, and values for both."""

import jax
import numpy as np

from minarch_jax import architectures, models
from minarch_jax.architectures import Architecture, Problem

SHAPE, CLASSES = (8, 8, 1), 3

# Members and the parents that hold them, some of them deeper.
PADDED = {
  "dnn:5-3": "dnn:7-8",
  "dnn:5": "dnn:7-5-6",
  "dnn:4-6": "dnn:4-6-9-6",
  "cnn:3": "cnn:5",
  "cnn:2-3": "cnn:9-4",
  "vit:p4-d4-l1-h2": "vit:p4-d6-l1-h3-k4-m11",
  "vit:p4-d6-l1-h2": "vit:p4-d6-l3-h2.1.3-k3.2.2-m12.5.3",
  "vit:p4-d4-l2-h1.2-m3-cls": "vit:p4-d8-l2-h2.2-k4.5-m3.8-cls",
}
MEMBERS = [*PADDED, *PADDED.values()]
ONE_OF_EACH = ["dnn:5-3", "cnn:2-3", "vit:p4-d4-l1-h2"]


def parse(text):
  return Architecture.parse(text)


def build(text, shape=SHAPE, classes=CLASSES, **options):
  return models.make_model(parse(text), Problem(shape, classes), **options)


def pair(text):
  """The member's and the parent's (model, spec), and its sizes in there."""
  member, parent = parse(text), parse(PADDED[text])
  assert architectures.parent([member, parent]) == parent
  shape = (SHAPE, CLASSES)
  return (
    (models.make_model(member, Problem(*shape)), member.spec(Problem(*shape))),
    (models.make_model(parent, Problem(*shape)), parent.spec(Problem(*shape))),
    member.sizes(
      Problem(*shape), None if member.family == "cnn" else parent.depth
    ),
  )


def initial(text, shape=SHAPE):
  return drawn(build(text, shape), 2)


def drawn(model, seed, *sizes):
  """Initial values on the host, where what tests do to them is not compiled."""
  return jax.device_get(jax.jit(model.init)(jax.random.key(seed), *sizes))


def images(count=4, shape=SHAPE, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(count, *shape)).astype(np.float32)
  return x, np.arange(count, dtype=np.int32) % CLASSES


def perturbed(params, seed=0):
  """Parameters none of which is at its special initial value."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: np.asarray(leaf + rng.normal(size=leaf.shape) / 4, leaf.dtype),
    params,
  )


def assert_trees_equal(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
