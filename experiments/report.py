"""Analyses the records of a study again and writes its report.

  python -m experiments.report --out=results/digits

Reads <out>/records, writes <out>/report; needs no accelerator and no JAX.
Every threshold of the analysis is a flag.
"""

import sys

from absl import app

from minarch_jax import config, records

config.define_flags("out", *config.THRESHOLDS)


def main(argv):
  del argv
  try:
    settings = config.from_flags()
    tables = records.read(settings.out)
  except (ValueError, OSError) as error:
    sys.exit(str(error))

  from minarch_jax import report  # 1 s that an error should not wait for

  try:
    findings = report.analyse(settings.out, settings, tables)
    page = report.write(settings.out, findings)
  except (ValueError, OSError) as error:
    sys.exit(str(error))
  print("\n".join((*findings.summary, f"report: {page}")))


if __name__ == "__main__":
  app.run(main)
