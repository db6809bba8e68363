r"""Measures pruning and quantization of trees against other ways to do it.

  python -m experiments.benchmarks.transforms --out=results \
    --torch_python=torch-env/bin/python

In one process, in turn: `ma` against what one would write by hand and jit,
NumPy's partition (which finds the threshold only), qwix and, in its own
process, torch.nn.utils.prune. `first` is the first call, with what it compiles;
`time` the median of later calls; `ratio` the median of their ratios to `ma`'s,
above 1 where `ma` is faster. Libraries that are not installed are left out.
"""

import functools
import importlib
import importlib.util
import statistics
import time
from typing import Any

from absl import flags
import flax.linen as nn
import jax
from jax import flatten_util
import jax.numpy as jnp
import numpy as np

from experiments import common
from experiments.benchmarks import measure
import minarch_jax as ma
from minarch_jax import config

measure.define_flags()
flags.adopt_module_key_flags(measure)
_PYTHON = flags.DEFINE_string(
  "torch_python", "", "Interpreter of an environment with torch; '' = none."
)

SPARSITY = 0.6
LAYERS = 28  # of a transformer of 337 leaves


def matrix(side: int) -> jax.Array:
  """A square of normal numbers; 3,163 on a side are ten million."""
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.normal(size=(side, side)).astype(np.float32))


def transformer(layers: int) -> Any:
  """Six kernels and biases in each layer, and one more."""
  rng = np.random.default_rng(0)
  shapes = {
    **dict.fromkeys(("query", "key", "value"), (64, 4, 16)),
    **{"mix": (64, 64), "wide": (64, 128), "narrow": (128, 64)},
  }
  tree = {
    f"layer_{i}": {
      name: {
        "kernel": rng.normal(size=shape).astype(np.float32),
        "bias": np.zeros(shape[1:], np.float32),
      }
      for name, shape in shapes.items()
    }
    for i in range(layers)
  }
  head = rng.normal(size=(64, 10)).astype(np.float32)
  return jax.tree.map(jnp.asarray, tree | {"head": {"kernel": head}})


@jax.jit
def prune_by_hand(tree: Any) -> Any:
  """All weights together, by one sort."""
  flat, restore = flatten_util.ravel_pytree(tree)
  scores = jnp.abs(flat)
  threshold = jnp.sort(scores)[int(SPARSITY * scores.size)]
  return jax.tree.map(lambda w: jnp.abs(w) >= threshold, restore(flat))


@functools.partial(jax.jit, static_argnums=1)
def quantize_by_hand(w: jax.Array, bits: int) -> Any:
  high = 2 ** (bits - 1) - 1
  scale = jnp.max(jnp.abs(w), 0, keepdims=True) / high
  return jnp.round(w / scale).astype(jnp.int8), scale


def partition(w: np.ndarray) -> np.ndarray:
  scores = np.abs(w).reshape(-1)
  return np.partition(scores, int(SPARSITY * scores.size))


def gptq_of(width: int) -> Any:
  """A network of two hidden layers; of 1,024 units it has 1.86 million."""
  net = nn.Sequential(
    [nn.Dense(width), nn.relu, nn.Dense(width), nn.relu, nn.Dense(10)]
  )
  rng = np.random.default_rng(0)
  x = rng.normal(size=(512, 784)).astype(np.float32)
  params = jax.jit(net.init)(jax.random.key(0), x)["params"]
  return functools.partial(ma.gptq, ma.tapped(net), params, x, 4)


def works(quick: bool) -> dict[str, dict[str, Any]]:
  """Lists what is done by whom; `ma` comes first."""
  w = matrix(256 if quick else 3163)
  tree = transformer(1 if quick else LAYERS)
  count = len(jax.tree.leaves(tree))
  one = {"layer": {"kernel": w}}
  host = np.asarray(w)
  prune = functools.partial(ma.prune, sparsity=SPARSITY)
  found = {
    f"prune {w.size / 1e6:.3g}M weights": {
      "ma": functools.partial(prune, one),
      "jit by hand": functools.partial(prune_by_hand, one),
      "np.partition": functools.partial(partition, host),
    },
    f"prune {count} leaves": {
      "ma": functools.partial(prune, tree),
      "jit by hand": functools.partial(prune_by_hand, tree),
    },
    "the same, layer by layer": {
      "ma": functools.partial(prune, tree, scope="layerwise"),
    },
    f"quantize {w.size / 1e6:.3g}M weights to 8 bits": {
      "ma": functools.partial(ma.quantize, one, 8),
      "jit by hand": functools.partial(quantize_by_hand, w, 8),
    },
    f"quantize {count} leaves to 4 bits": {
      "ma": functools.partial(ma.quantize, tree, 4)
    },
    "GPTQ": {"ma": gptq_of(64 if quick else 1024)},
  }
  if importlib.util.find_spec("qwix"):
    qwix: Any = importlib.import_module("qwix")
    eight = [each for name, each in found.items() if name.endswith("8 bits")]
    eight[0]["qwix"] = functools.partial(
      qwix.quantize, w, jnp.int8, channelwise_axes=(1,)
    )
  return found


def timed(call: Any) -> measure.Row:
  start = time.perf_counter()
  jax.block_until_ready(jax.tree.leaves(call()))
  return {"seconds": time.perf_counter() - start}


def measured(work: str, contestants: dict[str, Any]) -> list[measure.Row]:
  """Times one work by all who do it."""
  calls = {name: functools.partial(timed, c) for name, c in contestants.items()}
  first = {name: call()["seconds"] for name, call in calls.items()}
  found = measure.alternate(calls, 2 * measure.repetitions() + 1)
  times = {name: [r["seconds"] for r in found[name]] for name in calls}
  return [
    {
      "work": work,
      "by": name,
      "first (s)": first[name],
      "time (s)": statistics.median(times[name]),
      "ratio": statistics.median(
        t / own for t, own in zip(times[name], times["ma"], strict=True)
      ),
    }
    for name in calls
  ]


def torch_row(rows: list[measure.Row], side: int) -> measure.Row:
  """Times PyTorch's pruning beside the first work."""
  job = {
    **{"shape": [side, side], "sparsity": SPARSITY},
    **{"calls": measure.repetitions(), "threads": measure.num_cores()},
  }
  found = measure.run("run_torch_prune", job, python=_PYTHON.value)
  return {
    "work": rows[0]["work"],
    "by": "torch.nn.utils.prune",
    "first (s)": found["first"],
    "time (s)": found["seconds"],
    "ratio": found["seconds"] / rows[0]["time (s)"],
  }


def stage(settings: config.Config) -> None:
  quick, rows = flags.FLAGS.quick, []
  for work, contestants in works(quick).items():
    rows += measured(work, contestants)
    if _PYTHON.value and len(rows) == len(contestants):
      rows.append(torch_row(rows, 256 if quick else 3163))
  title = f"Transforms of trees, sparsity {SPARSITY}"
  measure.finish(title, settings.out, "transforms", rows)


if __name__ == "__main__":
  common.run(stage)
