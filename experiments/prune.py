"""Prunes the networks a sweep has trained, at once and with retraining.

python -m experiments.prune --out=results/digits
"""

import time

from experiments import common
from minarch_jax import config
from minarch_jax import flags as config_flags

START = time.monotonic()

config_flags.define()


def stage(settings: config.Config) -> None:
  common.study(settings, train=False, compress=("prune",))
  common.report(settings, START)


if __name__ == "__main__":
  common.run(stage)
