"""Rounds the weights a sweep has trained to every number of bits.

python -m experiments.quantize --out=results/digits
"""

import time

from experiments import common
from minarch_jax import config

START = time.monotonic()

config.define_flags()


def stage(settings: config.Config) -> None:
  common.study(settings, train=False, compress=("quantize",))
  common.report(settings, START)


if __name__ == "__main__":
  common.run(stage)
