"""Trains and scores stacks of networks outside the engine, for the anchors.

A stack is a tree with a leading axis of networks: seeds, or seeds of several
variants. It is split over devices, and each device takes its networks one
after another, so five seeds are one program. What is trained need not be
parameters: any tree with a loss, such as parameters and quantization steps.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import minarch_jax as ma
from minarch_jax import types
from minarch_jax.architectures import Architecture, Problem, Shape, Spec

Tree = Any
# (trained tree, images, tap) -> logits
Apply = Callable[..., jax.Array]
AXIS = "networks"
CHUNK = 500  # images scored at a time


@dataclasses.dataclass(frozen=True)
class Task:
  """A network and its data, on the device."""

  architecture: Architecture
  dataset: types.Dataset
  model: types.Model

  @property
  def shape(self) -> tuple[Shape, int]:
    return self.dataset.input_shape, self.dataset.num_classes

  @property
  def spec(self) -> Spec:
    return self.architecture.spec(Problem(*self.shape))

  def apply(self, params: Tree, x: types.Array, **hooks: Any) -> jax.Array:
    sizes: Any = None  # the model knows its own
    return self.model.apply(params, x, sizes, **hooks)


def make_task(text: str, dataset: types.Dataset) -> Task:
  """Binds an architecture to a data set."""
  architecture = Architecture.parse(text)
  model = ma.make_model(
    architecture, Problem(dataset.input_shape, dataset.num_classes)
  )
  return Task(architecture, dataset, model)


def initial(task: Task, seeds: Sequence[int]) -> Tree:
  """Draws the networks of several seeds: [S, ...]."""
  sizes: Any = None
  init = jax.jit(lambda seed: task.model.init(jax.random.key(seed), sizes))
  return stack([init(seed) for seed in seeds])


def stack(trees: Sequence[Tree]) -> Tree:
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def join(*stacks: Tree) -> Tree:
  """Puts stacks one after the other."""
  return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *stacks)


def fill(masks: Tree, params: Tree) -> Tree:
  """Gives the masks of a stack, [N] where nothing is pruned, full shapes."""

  def one(mask, leaf):
    lead = mask.reshape(mask.shape + (1,) * (leaf.ndim - mask.ndim))
    return jnp.broadcast_to(lead, leaf.shape)

  return jax.tree.map(one, masks, params)


def sparsity(masks: Tree) -> float:
  """The fraction removed from the kernels of a stack with full masks."""
  kernels = [
    leaf
    for path, leaf in jax.tree.leaves_with_path(masks)
    if getattr(path[-1], "key", "") == "kernel"
  ]
  kept = sum(int(jnp.sum(leaf)) for leaf in kernels)
  return 1 - kept / sum(leaf.size for leaf in kernels)


def spread(function: Callable, moving: int) -> Callable:
  """Maps a function over networks: devices side by side, each in turn.

  The first `moving` arguments have the axis of networks, the others are
  shared. Networks that do not divide by the devices repeat the last one.
  """
  devices = jax.local_devices()
  spec = jax.sharding.PartitionSpec

  def mapped(*arguments):
    shared = arguments[moving:]
    return jax.lax.map(lambda own: function(*own, *shared), arguments[:moving])

  def call(*arguments):
    count = jax.tree.leaves(arguments[0])[0].shape[0]
    missing = -count % len(devices)

    def repeat(leaf):
      leaf = jnp.asarray(leaf)
      return jnp.concatenate([leaf, *[leaf[-1:]] * missing])

    own = jax.tree.map(repeat, arguments[:moving])
    split = jax.shard_map(
      mapped,
      mesh=jax.sharding.Mesh(np.array(devices), (AXIS,)),
      in_specs=tuple(
        spec(AXIS) if i < moving else spec() for i in range(len(arguments))
      ),
      out_specs=spec(AXIS),
      check_vma=False,
    )
    found = split(*own, *arguments[moving:])
    return jax.tree.map(lambda leaf: leaf[:count], found)

  return jax.jit(call)


def make_train(
  apply: Apply, tx: optax.GradientTransformation
) -> Callable[..., Tree]:
  """Makes `train(trained, masks, order, rates, images, labels) -> trained`.

  The first three are stacks (order int32 [N, T, B]); rates is float32 [T]. The
  optimizer starts anew; what is masked is exactly zero after every step.
  """

  def loss(trained, x, y):
    logits = apply(trained, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  def train(trained, masks, order, rates, images, labels):
    def step(carry, now):
      trained, state = carry
      chosen, rate = now
      grads = jax.grad(loss)(trained, images[chosen], labels[chosen])
      updates, state = tx.update(grads, state, trained)

      def move(value, update, mask):
        return jnp.where(mask, value - rate * update, 0)

      return (jax.tree.map(move, trained, updates, masks), state), None

    start = (trained, tx.init(trained))
    (trained, _), _ = jax.lax.scan(step, start, (order, rates))
    return trained

  return spread(train, 3)


def orders(
  seeds: Sequence[int], num_epochs: int, num_images: int, batch_size: int
) -> Iterator[np.ndarray]:
  """Yields each epoch's minibatches: int32 [S, T, B]."""
  steps = num_images // batch_size
  for epoch in range(num_epochs):
    drawn = [
      np.random.default_rng((seed, epoch)).permutation(num_images)
      for seed in seeds
    ]
    cut = np.stack(drawn)[:, : steps * batch_size]
    yield cut.reshape(len(seeds), steps, batch_size).astype(np.int32)


def make_score(apply: Apply) -> Callable[[Tree, types.Batch], np.ndarray]:
  """Makes `score(stack, batch) -> accuracies [N]`."""

  def correct(trained, images, labels):
    def part(chunk):
      x, y = chunk
      return jnp.sum(jnp.argmax(apply(trained, x), -1) == y)

    return jnp.sum(jax.lax.map(part, (images, labels)))

  mapped = spread(correct, 1)

  def score(trained, batch):
    size = math.gcd(len(batch.y), CHUNK)
    cut = [
      np.reshape(part, (-1, size, *part.shape[1:])) for part in tuple(batch)
    ]
    return np.asarray(mapped(trained, *cut)) / len(batch.y)

  return score


def timer(function, weights, x):
  """Makes a measurement of one forward pass, in seconds."""
  call = jax.jit(function)
  jax.block_until_ready(call(weights, x))
  begun = time.perf_counter()
  jax.block_until_ready(call(weights, x))
  calls = max(1, round(0.2 / max(time.perf_counter() - begun, 1e-5)))

  def run():
    begun = time.perf_counter()
    found = call(weights, x)
    for _ in range(calls - 1):
      found = call(weights, x)
    jax.block_until_ready(found)
    return {"seconds": (time.perf_counter() - begun) / calls, "logits": found}

  return run
