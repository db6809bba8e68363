r"""Measures networks run in integers against float32.

  python -m experiments.benchmarks.integer_speed --out=results

The same networks at their initialisation, by the engine's float32 products, in
int8 (int8 x int8 -> int32 products, requantised to int8 between layers) and
with weights of 4 bits, which are stored packed and unpacked to int8 at every
pass, since XLA:CPU has no product of int4. `time` is milliseconds for a batch,
compiled, contestants in turn; `speed` the median ratio of float32's time to it,
so below 1 is slower. `agree` is the share of images whose class is float32's.
"""

import statistics

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from experiments import common
from experiments.benchmarks import measure, stacks
from minarch_jax import config, data
from minarch_jax.quantization import formats, packing
from minarch_jax.quantization.networks import integer

measure.define_flags()
flags.adopt_module_key_flags(measure)
flags.DEFINE_list(
  "networks",
  ["dnn:300-100", "dnn:1000-1000", "cnn:16-32-32"],
  "Dense and convolutional architectures.",
)

IMAGES = 512
CALIBRATION = 256  # training images


def packed(network: integer.Network):
  """Packs weights of 4 bits, and unpacks them inside the program."""
  four = formats.FORMATS["int4"]
  shapes = [layer.weights.shape for layer in network.layers]
  weights = [
    packing.pack(four.to_raw(jnp.asarray(layer.weights)), 4)
    for layer in network.layers
  ]

  def run(weights, x):
    layers = tuple(
      layer._replace(
        weights=four.from_raw(
          packing.unpack(raw, 4, int(np.prod(shape)))
        ).reshape(shape)
      )
      for layer, raw, shape in zip(network.layers, weights, shapes, strict=True)
    )
    return integer.run(network._replace(layers=layers), x)

  return run, weights


def contestants(task: stacks.Task):
  """Lists (function, its weights, bytes of the kernels) by name."""
  params = jax.tree.map(lambda leaf: leaf[0], stacks.initial(task, [0]))
  x = task.dataset.train.x[:CALIBRATION]
  kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
  count = sum(leaf.size for leaf in kernels)
  eight = integer.integer_network(task.apply, params, x, 8)
  run, weights = packed(integer.integer_network(task.apply, params, x, 4))
  return {
    "float32": (task.apply, params, 4 * count),
    "int8": (integer.run, eight, count),
    "int4": (run, weights, sum(int(raw.size) for raw in weights)),
  }


def measured(text: str, dataset) -> list[measure.Row]:
  """Times one network in every arithmetic."""
  found = contestants(stacks.make_task(text, dataset))
  x = jnp.asarray(dataset.test.x[:IMAGES])
  runs = {name: stacks.timer(run, w, x) for name, (run, w, _) in found.items()}
  results = measure.alternate(runs, 2 * measure.repetitions() + 1)
  times = {name: [r["seconds"] for r in results[name]] for name in runs}
  classes = {name: np.argmax(results[name][0]["logits"], -1) for name in runs}
  return [
    {
      "network": text,
      "arithmetic": name,
      "kernel bytes": size,
      "time (ms)": 1e3 * statistics.median(times[name]),
      "speed": statistics.median(
        f / t for f, t in zip(times["float32"], times[name], strict=True)
      ),
      "agree": float(np.mean(classes[name] == classes["float32"])),
    }
    for name, (_, _, size) in found.items()
  ]


def stage(settings: config.Config) -> None:
  dataset = data.load(settings.dataset, settings.data_dir or None)
  names = flags.FLAGS.networks[: 1 if flags.FLAGS.quick else None]
  rows = []
  for text in names:
    measure.say(text)
    rows += measured(text, dataset)
  title = f"Integers against float32, {IMAGES} images of {settings.dataset}"
  measure.finish(title, settings.out, "integer_speed", rows)


if __name__ == "__main__":
  common.run(stage)
