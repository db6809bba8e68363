r"""Measures what compaction saves: parameters, MACs, bytes and time.

  python -m experiments.benchmarks.compaction_speed --out=results

Networks trained for a hundred steps are pruned by units, half of them in every
layer, and by elements, 97 % of the weights, and compacted. A masked network
costs what the dense one does; the compacted one is smaller. `dense` and
`compact` are milliseconds for a batch of 512 images, compiled, measured in
turn; `speed` is the median of their ratios. `error` is the largest difference
of the logits of the masked and the compacted network, relative to the largest
logit.
"""

import statistics

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common
from experiments.benchmarks import measure, stacks
from minarch_jax import config, data, pruning, quantization
from minarch_jax.quantization import cost

measure.define_flags()
flags.adopt_module_key_flags(measure)
flags.DEFINE_list(
  "networks",
  ["dnn:300-100", "dnn:1000-1000", "cnn:16-32-32", "vit:p{p}-d32-l2-h4"],
  "Architectures; {p} stands for a patch size that fits.",
)

IMAGES, STEPS = 512, 100
# granularity, scope, sparsity
WAYS = (("unit", "layerwise", 0.5), ("element", "layerwise", 0.97))


def briefly_trained(task: stacks.Task):
  """Trains one network a little, so that its weights differ in size."""
  start = stacks.initial(task, [0])
  count = len(task.dataset.train.y)
  order = np.random.default_rng(0).integers(0, count, (1, STEPS, 64), np.int32)
  train = stacks.make_train(task.apply, optax.scale_by_adam())
  masks = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), start)
  rates = np.full(STEPS, 1e-3, np.float32)
  trained = train(start, masks, order, rates, *task.dataset.train)
  return jax.tree.map(lambda leaf: leaf[0], trained)


def measured(text, dataset, granularity, scope, sparsity) -> measure.Row:
  """Prunes, compacts and times one network."""
  task = stacks.make_task(text, dataset)
  params = briefly_trained(task)
  masks = pruning.prune(
    params, sparsity, scope=scope, granularity=granularity, spec=task.spec
  )
  masked = pruning.apply_masks(params, masks)
  architecture, small = pruning.compact(task.architecture, masked)
  after = stacks.make_task(str(architecture), dataset)
  x = jnp.asarray(dataset.test.x[:IMAGES])
  runs = {
    "dense": stacks.timer(task.apply, masked, x),
    "compact": stacks.timer(after.apply, small, x),
  }
  results = measure.alternate(runs, 2 * measure.repetitions() + 1)
  dense, compact = (
    [result["seconds"] for result in results[name]] for name in runs
  )
  logits = [np.asarray(results[name][0]["logits"]) for name in runs]
  largest = max(np.abs(logits[0]).max(), 1e-6)
  error = np.abs(logits[0] - logits[1]).max() / largest
  before = cost.cost(task.spec, params)
  now = cost.cost(after.spec, small)
  return {
    "network": text,
    "pruned": f"{granularity} {sparsity:.0%}",
    "compacted": str(architecture),
    "params": before["params"],
    "now": now["params"],
    "MACs": before["macs"],
    "MACs now": after.spec.macs,  # zeros left inside are computed too
    "bytes": quantization.storage_bytes(params, 32),
    "bytes now": quantization.storage_bytes(small, 32),
    "dense (ms)": 1e3 * statistics.median(dense),
    "compact (ms)": 1e3 * statistics.median(compact),
    "speed": statistics.median(
      d / c for d, c in zip(dense, compact, strict=True)
    ),
    "error": float(error),
  }


def stage(settings: config.Config) -> None:
  dataset = data.load(settings.dataset, settings.data_dir or None)
  patch = 7 if dataset.input_shape[0] % 7 == 0 else 4
  names = flags.FLAGS.networks[: 1 if flags.FLAGS.quick else None]
  rows = []
  for text in (name.format(p=patch) for name in names):
    for way in WAYS:
      measure.say(f"{text}: {way[0]}")
      rows.append(measured(text, dataset, *way))
  title = f"Before and after compaction, {settings.dataset}"
  measure.finish(title, settings.out, "compaction_speed", rows)


if __name__ == "__main__":
  common.run(stage)
