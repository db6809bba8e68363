"""Prints the regimes, convergence phases and minimal sizes of a sweep.

  python -m experiments.convergence --out=results/digits

Needs the records of experiments.sweep; no accelerator and no JAX.
"""

from experiments import common
from minarch_jax import config
from minarch_jax import flags as config_flags

config_flags.define("out", *config.THRESHOLDS)


# What is printed of each table.
SHOWN = {
  "minimal_parameters": (
    "minimal parameters",
    ("family", "p_min", "p_min_low", "p_min_high", "plateau", "n_seeds")
    + ("status",),
  ),
  "regimes": (
    "regimes",
    ("architecture", "params", "n_seeds", "mean_accuracy", "sigma")
    + ("diverged", "stuck", "label"),
  ),
  "convergence_phases": (
    "convergence phases (epochs)",
    ("architecture", "params", "chance", "rapid", "refinement")
    + ("saturation",),
  ),
}


def stage(settings: config.Config) -> None:
  from minarch_jax import analysis, records

  found = analysis.Analyses(records.read(settings.out), settings)
  for name, (title, columns) in SHOWN.items():
    print(f"\n{title}")
    common.show(found[name], columns, f"tables/{name}.csv")


if __name__ == "__main__":
  common.run(stage, trains=False)
