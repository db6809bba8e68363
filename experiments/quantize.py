"""Rounds the weights a sweep has trained to every number of bits.

python -m experiments.quantize --out=results/digits
"""

import time

from experiments import common
from minarch_jax import config
from minarch_jax import flags as config_flags

START = time.monotonic()

config_flags.define()


def stage(settings: config.Config) -> None:
  common.study(settings, train=False, compress=("quantize",))
  common.report(settings, START)


if __name__ == "__main__":
  common.run(stage)
