"""Trains a job's networks by the obvious JAX script; `sweep_vs_flax` starts it.

Flax modules, optax, one jitted program per architecture: seeds vmapped, epochs
and minibatches scanned, the data passed as arguments. Reads a job (see
`measure`) from standard input and prints one line of JSON.
"""

import time

START = time.perf_counter()

import json  # noqa: E402
import math  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402

from flax import linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

EVAL_BATCH = 1000


class DNN(nn.Module):
  widths: tuple[int, ...]
  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = x.reshape(x.shape[0], -1)
    for width in self.widths:
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(self.num_classes)(x)


class CNN(nn.Module):
  widths: tuple[int, ...]
  num_classes: int

  @nn.compact
  def __call__(self, x):
    padding = "VALID" if len(self.widths) == 1 else "SAME"
    for i, channels in enumerate(self.widths):
      if i:
        x = nn.max_pool(x, (2, 2), (2, 2))
      x = nn.relu(nn.Conv(channels, (3, 3), padding=padding)(x))
    return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


class ViT(nn.Module):
  widths: tuple[int, ...]
  patch: int
  num_classes: int

  @nn.compact
  def __call__(self, x):
    dim, heads, mlps = self.widths[0], self.widths[1::3], self.widths[3::3]
    window = (self.patch, self.patch)
    x = nn.Conv(dim, window, strides=window, padding="VALID")(x)
    x = x.reshape(x.shape[0], -1, dim)
    shape = (1, x.shape[1], dim)
    x = x + self.param("position", nn.initializers.normal(0.02), shape)
    for head, mlp in zip(heads, mlps, strict=True):
      x = x + nn.MultiHeadDotProductAttention(head)(nn.LayerNorm()(x))
      y = nn.gelu(nn.Dense(mlp)(nn.LayerNorm()(x)))
      x = x + nn.Dense(dim)(y)
    return nn.Dense(self.num_classes)(nn.LayerNorm()(x).mean(axis=1))


def make(architecture, num_classes):
  """Builds a module from {family, widths, options}."""
  widths = tuple(architecture["widths"])
  if architecture["family"] == "vit":
    return ViT(widths, architecture["options"][0], num_classes)
  build = DNN if architecture["family"] == "dnn" else CNN
  return build(widths, num_classes)


def make_train(module, job):
  """Makes `train(key, train, validation) -> accuracy [E]` of one network."""
  tx = optax.adam(job["learning_rate"])
  batch_size = job["batch_size"]

  def loss_fn(params, x, y):
    logits = module.apply(params, x)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return loss.mean()

  def train(key, train, validation):
    x, y = train
    key, init_key = jax.random.split(key)
    params = module.init(init_key, x[:1])
    num_steps = len(y) // batch_size

    def step(carry, indices):
      params, opt_state = carry
      gradient = jax.value_and_grad(loss_fn)
      loss, grads = gradient(params, x[indices], y[indices])
      updates, opt_state = tx.update(grads, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), loss

    def accuracy(params):
      def hits(part):
        return (module.apply(params, part[0]).argmax(-1) == part[1]).sum()

      size = math.gcd(len(validation[1]), EVAL_BATCH)
      parts = jax.tree.map(
        lambda a: a.reshape(-1, size, *a.shape[1:]), validation
      )
      return jax.lax.map(hits, parts).sum() / len(validation[1])

    def epoch(carry, key):
      order = jax.random.permutation(key, len(y))[: num_steps * batch_size]
      order = order.reshape(num_steps, batch_size)
      carry, losses = jax.lax.scan(step, carry, order)
      return carry, (losses.mean(), accuracy(carry[0]))

    keys = jax.random.split(key, job["epochs"])
    _, curve = jax.lax.scan(epoch, (params, tx.init(params)), keys)
    return curve

  return train


def load(directory, share, batch_size):
  """Reads train and validation, the same share the other contestants see."""

  def split(name):
    x = np.load(os.path.join(directory, f"{name}_x.npy"), mmap_mode="r")
    y = np.load(os.path.join(directory, f"{name}_y.npy"))
    count = math.ceil(len(y) * share)
    if name == "train":
      count = min(max(count, batch_size), len(y))
    return jax.device_put((np.asarray(x[:count]), y[:count]))

  return split("train"), split("validation")


def clocks():
  """Seconds of wall time, and of all processors together."""
  return np.array([time.perf_counter(), time.process_time()])


def train(job):
  """Trains every architecture; with `steady` again, and times the last."""
  if job["compilation_cache_dir"]:
    folder = job["compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  data = load(job["data"], job["share"], job["batch_size"])
  num_classes = int(data[0][1].max()) + 1
  startup = time.perf_counter() - START
  epoch, compiling, accuracies = np.zeros(2), 0.0, []
  keys = jax.vmap(jax.random.key)(jnp.asarray(job["seeds"]))
  for architecture in job["shapes"]:
    run = make_train(make(architecture, num_classes), job)
    start = time.perf_counter()
    jitted = jax.jit(jax.vmap(run, in_axes=(0, None, None)))
    program = jitted.lower(keys, *data).compile()
    compiling += time.perf_counter() - start
    spent, accuracy = np.zeros(2), np.zeros(0)
    for _ in range(1 + job["steady"]):
      start = clocks()
      _, accuracy = jax.block_until_ready(program(keys, *data))
      spent = clocks() - start
    epoch += spent / job["epochs"]
    accuracies.append(float(accuracy[:, -1].mean()))
  networks = len(job["shapes"]) * len(job["seeds"])
  return {
    "epochs": job["epochs"],
    "startup_seconds": startup,
    "compile_seconds": compiling,
    "programs": len(job["shapes"]),
    "epoch_seconds": epoch[0],
    "epoch_busy_seconds": epoch[1],
    "network_steps": networks * (len(data[0][1]) // job["batch_size"]),
    "accuracy": float(np.mean(accuracies)),
  }


if __name__ == "__main__":
  print(json.dumps(train(json.load(sys.stdin))))
