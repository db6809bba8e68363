r"""Measures what a pruning schedule costs a training step.

  python -m experiments.benchmarks.pruning_step --out=results

Eight seeds in one program train densely, and by the gradual schedule (Zhu &
Gupta 2017), which cuts anew after every --interval steps. Cuts happen between
compiled stretches of steps, so their cost is shared by those steps; both
contestants run the same stretches. `step` is milliseconds for one network and
minibatch, `ratio` the median over repetitions of pruned to dense, measured
in turn. jaxpruner's mask update inside the step cost 23 times a dense step.
"""

import statistics
import time

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common
from experiments.benchmarks import measure, stacks
from minarch_jax import config, data, pruning
from minarch_jax.engine import population
from minarch_jax.pruning import schedules

measure.define_flags()
flags.adopt_module_key_flags(measure)
flags.DEFINE_list("networks", ["dnn:300-100", "cnn:4-8"], "Architectures.")
flags.DEFINE_integer("interval", 100, "Steps between cuts.", lower_bound=1)

NUM_SEEDS, ROUNDS, BATCH = 8, 4, 128
SPARSITY = 0.9
LIMIT = 1.1  # of the ratio


def contestants(task: stacks.Task, interval: int):
  """Makes a dense and a pruned training of ROUNDS * interval steps."""
  seeds, steps = range(NUM_SEEDS), interval * ROUNDS
  count = len(task.dataset.train.y)
  batch = min(BATCH, count)
  epochs = -(-steps // (count // batch))
  order = np.concatenate(
    list(stacks.orders(seeds, epochs, count, batch)), axis=1
  )
  parts = [
    jnp.asarray(order[:, i * interval : (i + 1) * interval])
    for i in range(ROUNDS)
  ]
  images, labels = (jnp.asarray(part) for part in task.dataset.train)
  rates = np.full(interval, 1e-3, np.float32)
  run = stacks.make_train(task.apply, optax.scale_by_adam())
  start = stacks.initial(task, seeds)
  ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), start)

  @jax.jit
  def cut(params, sparsity, masks):
    found = jax.vmap(lambda p, m: pruning.prune(p, sparsity, masks=m))(
      params, ones if masks is None else masks
    )
    return stacks.fill(found, params)

  def training(prunes):
    left = list(parts)

    def train(params, masks, share):
      del share  # one part: the steps divide by the rounds
      return run(params, masks, left.pop(0), rates, images, labels)

    def keep(params, sparsity, masks):
      del params, sparsity, masks
      return ones

    begun = time.perf_counter()
    found = schedules.gradual(
      *(start, SPARSITY, cut if prunes else keep, train, steps, ROUNDS)
    )
    jax.block_until_ready(found.params)
    seconds = time.perf_counter() - begun
    return {"seconds": seconds / (steps * NUM_SEEDS), "masks": found.masks}

  return {"dense": lambda: training(False), "pruned": lambda: training(True)}


def measured(text: str, dataset, interval: int) -> measure.Row:
  """Measures one network; the first round compiles and is dropped."""
  runs = contestants(stacks.make_task(text, dataset), interval)
  results = measure.alternate(runs, 1 + measure.repetitions())
  dense, pruned = (
    [result["seconds"] for result in results[name][1:]] for name in runs
  )
  masks = results["pruned"][-1]["masks"]
  ratio = statistics.median(p / d for p, d in zip(pruned, dense, strict=True))
  return {
    "network": text,
    "steps between cuts": interval,
    "dense step (ms)": 1e3 * statistics.median(dense),
    "pruned step (ms)": 1e3 * statistics.median(pruned),
    "ratio": ratio,
    "at most": LIMIT,
    "sparsity reached": stacks.sparsity(masks),
  }


def stage(settings: config.Config) -> None:
  population.use_cores()
  population.use_cache("default")
  dataset = data.load(settings.dataset, settings.data_dir or None)
  names = flags.FLAGS.networks[: 1 if flags.FLAGS.quick else None]
  interval = 10 if flags.FLAGS.quick else flags.FLAGS.interval
  rows = [measured(name, dataset, interval) for name in names]
  title = f"A step under a schedule, {NUM_SEEDS} seeds, {settings.dataset}"
  measure.finish(title, settings.out, "pruning_step", rows)


if __name__ == "__main__":
  common.run(stage)
