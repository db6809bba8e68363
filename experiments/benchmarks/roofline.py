r"""Measures how near the engine comes to what this machine can do.

  python -m experiments.benchmarks.roofline --dataset=mnist --data_dir=data \
    --out=results

First the machine's own peaks, on all devices at once: a float32 product of
1024 x 1024 matrices, and a copy of arrays within the cache and beyond it. Then
each workload, trained with everything compiled. Counted are only what the
networks themselves need: two flops per multiply-accumulate of forward pass,
weight gradients and input gradients (the images need none), a third of that
for validation; and the bytes of Adam, which reads parameter, gradient and two
moments and writes three of them, and of the minibatch, once per seed. `roof`
is the least time per network and minibatch, if products ran at their peak and
the rest at cache speed, one after the other; `reached` is its share of `step`.
"""

from collections.abc import Callable
import functools
import math
import statistics
import time

from absl import flags

from experiments import common
from experiments.benchmarks import measure
from minarch_jax import config, data
from minarch_jax.architectures import Architecture, Problem, Shape
from minarch_jax.engine import population

measure.define_flags("dnn", "cnn", "cnn1", "vit")
flags.adopt_module_key_flags(measure)

PRODUCT = 1024  # rows and columns
CACHE_BYTES, MEMORY_BYTES = 2**18, 2**26
CALLS, REPEATS = 10, 3
ADAM_BYTES = 4 * 8  # write the gradient; read four, write three floats


def rate(
  function: Callable, side: tuple[int, ...], work: float, calls: int
) -> float:
  """Measures work per second of one function on all devices at once."""
  import jax
  import numpy as np

  devices = jax.local_devices()
  inputs = [jax.device_put(np.ones(side, np.float32), d) for d in devices]
  # A loop inside the program: dispatch would hide a small copy's speed.
  jitted = jax.jit(
    lambda x: jax.lax.fori_loop(0, calls, lambda _, value: function(value), x)
  )
  jax.block_until_ready([jitted(x) for x in inputs])
  seconds = []
  for _ in range(REPEATS):
    start = time.perf_counter()
    jax.block_until_ready([jitted(x) for x in inputs])
    seconds.append(time.perf_counter() - start)
  return work * calls * len(devices) / statistics.median(seconds)


def peaks() -> dict[str, float]:
  """Measures flops per second, and bytes per second read and written."""

  population.use_cores()
  side = (PRODUCT, PRODUCT)
  copies = {"cache": CACHE_BYTES, "memory": MEMORY_BYTES}
  found = {"product": rate(lambda x: x @ x * 1e-3, side, 2 * PRODUCT**3, CALLS)}
  for name, size in copies.items():
    calls = max(CALLS, 2**28 // size)
    found[name] = rate(lambda x: x + 1.0, (size // 4,), 2 * size, calls)
  return found


def needs(
  architecture: Architecture, shape: Shape, num_classes: int, evaluated: float
) -> tuple[float, float]:
  """Counts a network's flops and bytes per minibatch.

  Args:
    architecture: the network.
    shape: of one image.
    num_classes: number of logits.
    evaluated: validation images per minibatch.
  """
  batch = measure.RECIPE["batch_size"]
  spec = architecture.spec(Problem(shape, num_classes))
  first = next(leaf for leaf in spec.leaves if leaf.is_kernel)
  free = math.prod(spec.shape(first)) * first.positions
  flops = batch * (6 * spec.macs - 2 * free) + evaluated * 2 * spec.macs
  return flops, ADAM_BYTES * spec.num_params


def row(
  name: str,
  workload: measure.Workload,
  result: measure.Row,
  top: dict[str, float],
  found: data.Description,
) -> measure.Row:
  """Sets a measured workload against the peaks."""
  count = functools.partial(
    needs,
    shape=found.input_shape,
    num_classes=found.num_classes,
    evaluated=found.num_validation
    / (found.num_train // measure.RECIPE["batch_size"]),
  )
  networks = [Architecture.parse(text) for text in workload.architectures]
  flops, size = (
    statistics.mean(column)
    for column in zip(*map(count, networks), strict=True)
  )
  # The members of a pack share their minibatch: gathered, then read twice.
  images = 4 * measure.RECIPE["batch_size"] * math.prod(found.input_shape)
  size += 4 * images * result["packs"] / len(networks)
  step = measure.per_step(result)
  roof = flops / top["product"] + size / top["cache"]
  return {
    "workload": name,
    "networks": workload.num_networks,
    "step (us)": 1e6 * step,
    "GFLOP/s": flops / step / 1e9,
    "of product peak": flops / step / top["product"],
    "GB/s": size / step / 1e9,
    "of cache peak": size / step / top["cache"],
    "roof (us)": 1e6 * roof,
    "reached": roof / step,
  }


def stage(settings: config.Config) -> None:
  found = data.describe(settings.dataset, settings.data_dir or None)
  chosen = measure.chosen_workloads(found.input_shape)
  top = peaks()
  print(
    f"  peaks: product {top['product'] / 1e9:.0f} GFLOP/s, copy "
    f"{top['cache'] / 1e9:.0f} GB/s in cache, {top['memory'] / 1e9:.0f} GB/s "
    "in memory"
  )
  rows = []
  with measure.exported(settings) as directory:
    for name, workload in chosen.items():
      measure.say(name)
      job = measure.job(
        directory,
        workload,
        epochs=1,
        steady=measure.repetitions(),
        config={"compilation_cache_dir": ""},
      )
      result = measure.run("run_engine", job)
      rows.append(row(name, workload, result, top, found))
  measure.finish("Engine against the roof", settings.out, "roofline", rows)


if __name__ == "__main__":
  common.run(stage)
