r"""Measures what --compute_dtype=bfloat16 costs and saves.

  python -m experiments.benchmarks.precision --dataset=mnist --data_dir=data \
    --out=results

Trains the same networks from the same initial values on the same minibatches
with activations and products in float32 and in bfloat16 (parameters, optimizer
state and loss stay float32), alternately, each in a process of its own.
`step` is microseconds per network and minibatch of 128, everything compiled,
validation included; `speed` how many times as fast bfloat16 is, the median of
the repetitions' own ratios. `lost` is the validation accuracy that bfloat16
costs after --num_epochs, in points, the mean over networks paired by seed with
a 95 % Student t interval.
"""

import functools
import statistics

from absl import flags
import numpy as np
from scipy import stats

from experiments import common
from experiments.benchmarks import measure
from minarch_jax import config, data
from minarch_jax import flags as config_flags

config_flags.define("num_epochs")
measure.define_flags("dnn", "cnn", "vit")
flags.adopt_module_key_flags(measure)
flags.FLAGS.set_default("num_epochs", 3)

TYPES = ("float32", "bfloat16")
DNN = tuple(f"dnn:{w}-{w}" for w in (5, 20, 50, 200))


def lost(found: dict[str, list[measure.Row]]) -> tuple[float, float, float]:
  """Mean and interval, in points, of what the networks lose."""
  exact, narrow = (np.array(found[name][0]["accuracies"]) for name in TYPES)
  differences = 100 * (exact - narrow)
  mean = float(differences.mean())
  error = float(stats.sem(differences))  # NaN for a single network
  half = float(stats.t.ppf(0.975, max(1, len(differences) - 1))) * error
  return mean, mean - half, mean + half


def stage(settings: config.Config) -> None:
  found = data.describe(settings.dataset, settings.data_dir or None)
  chosen = measure.chosen_workloads(found.input_shape)
  if "dnn" in chosen and not flags.FLAGS.quick:
    chosen["dnn"] = measure.Workload(DNN, 4)
  epochs = 1 if flags.FLAGS.quick else settings.num_epochs
  rows = []
  with measure.exported(settings) as directory:
    for name, workload in chosen.items():
      contestants = {
        dtype: functools.partial(
          measure.run,
          "run_engine",
          measure.job(
            directory,
            workload,
            epochs=epochs,
            steady=1,
            config={"compilation_cache_dir": "", "compute_dtype": dtype},
          ),
        )
        for dtype in TYPES
      }
      results = measure.alternate(contestants, measure.repetitions())
      steps = {
        dtype: [1e6 * measure.per_step(result) for result in results[dtype]]
        for dtype in TYPES
      }
      ratios = [a / b for a, b in zip(*steps.values(), strict=True)]
      mean, low, high = lost(results)
      rows.append(
        {
          "workload": name,
          "networks": workload.num_networks,
          **{f"{t} step (us)": statistics.median(steps[t]) for t in TYPES},
          "speed": statistics.median(ratios),
          "float32 (%)": 100
          * float(np.mean(results["float32"][0]["accuracies"])),
          "lost (points)": mean,
          "low": low,
          "high": high,
        }
      )
  measure.finish("bfloat16 against float32", settings.out, "precision", rows)


if __name__ == "__main__":
  common.run(stage)
