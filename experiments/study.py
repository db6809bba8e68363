r"""The whole study with one command: train, prune, quantize, report.

  python -m experiments.study --out=results/digits
  python -m experiments.study --dataset=mnist --data_dir=data --num_seeds=3 \
    --num_epochs=5 --out=results/mnist

The same command again goes on where the last one stopped.
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
  common.study(settings, train=True, compress=("prune", "quantize"))
  common.report(settings, START)


if __name__ == "__main__":
  common.run(stage)
