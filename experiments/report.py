"""Analyses the records of a study again and writes its report.

  python -m experiments.report --out=results/digits

Reads <out>/records, writes <out>/report; needs no accelerator and no JAX.
Every threshold of the analysis is a flag, and so are the files of figures.
"""

import os
import time

# Before numpy is there. Its products are small here, and threads that wait for
# the next one would keep a core from the processes that draw.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from experiments import common
from minarch_jax import config
from minarch_jax import flags as config_flags

START = time.monotonic()

config_flags.define("out", "figures", *config.THRESHOLDS)


def stage(settings: config.Config) -> None:
  config.check_writable(settings.out)
  try:
    from minarch_jax import report  # not before flags are checked

    same = report.find(settings.out, settings)
    # What a study found to be its report stays that when it is made anew.
    built = report.build(settings.out, settings, same.run if same else "")
  except (FileNotFoundError, config.ConfigError) as error:
    raise config.ConfigError(f"--out={settings.out}: {error}") from None
  common.show_report(settings, built, START)


if __name__ == "__main__":
  common.run(stage, trains=False)
