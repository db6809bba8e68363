"""Prints the regimes, convergence phases and minimal sizes of a sweep.

  python -m experiments.convergence --out=results/digits

Needs the records of experiments.sweep; no accelerator and no JAX.
"""

from experiments import common
from minarch_jax import config
from minarch_jax import flags as config_flags

config_flags.define("out", *config.THRESHOLDS)


def stage(settings: config.Config) -> None:
  from minarch_jax import analysis, records

  found = records.read(settings.out)
  for title, make in (
    ("minimal parameters", analysis.minimal_parameters),
    ("regimes", analysis.regimes),
    ("convergence phases (epochs)", analysis.convergence_phases),
  ):
    print(f"\n{title}")
    common.show(make(found, settings))


if __name__ == "__main__":
  common.run(stage, trains=False)
