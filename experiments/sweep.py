"""Trains every architecture of a design sweep with every seed.

python -m experiments.sweep --grid=square --families=dnn --out=results/square
"""

import time

from experiments import common
from minarch_jax import config
from minarch_jax import flags as config_flags

START = time.monotonic()

config_flags.define()


def stage(settings: config.Config) -> None:
  if settings.dry_run:
    common.dry_run(settings)
    return
  common.study(settings, train=True, compress=())
  common.report(settings, START)


if __name__ == "__main__":
  common.run(stage)
