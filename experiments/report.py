"""Analyses the records of a study again and writes its report.

  python -m experiments.report --out=results/digits

Reads <out>/records, writes <out>/report; needs no accelerator and no JAX.
Every threshold of the analysis is a flag.
"""

import time

from experiments import common
from minarch_jax import config, records

START = time.monotonic()

config.define_flags("out", *config.THRESHOLDS)


def stage(settings: config.Config) -> None:
  try:
    tables = records.read(settings.out)
  except FileNotFoundError as error:
    raise config.ConfigError(f"--out: {error}") from None
  if tables.networks.is_empty():
    raise config.ConfigError(
      f"--out={settings.out}: the records hold no trained network; run "
      f"`python -m experiments.study --out={settings.out}`"
    )
  config.check_writable(settings.out)
  common.report(settings, START)


if __name__ == "__main__":
  common.run(stage, trains=False)
