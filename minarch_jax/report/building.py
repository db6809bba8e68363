"""Builds the report of a results directory."""

from minarch_jax import config as config_lib
from minarch_jax.report import standing, workers
from minarch_jax.report.standing import Built


def build(
  out: str, config: config_lib.Config | None = None, run: str = ""
) -> Built:
  """Analyses the records of a results directory and writes its report.

  Writes <out>/report/tables/*.csv, report/figures/*.{svg,png,pdf},
  report/index.html, report/method.html and report/summary.json, each
  atomically. The same records, study.json and config give the same bytes.

  Args:
    out: the results directory.
    config: thresholds of the analyses.
    run: the study that just ended, by `standing.run_of`.

  Raises:
    FileNotFoundError: there are no records at `out`.
    ConfigError: the records hold no networks.
  """
  config = config or config_lib.Config()
  with workers.started() as ask:  # they get ready while all else is imported
    from minarch_jax.report import writing

    # Before the records are read: what is added meanwhile is not in the report.
    sources = standing.sources_of(out, config)
    reading = writing.analyse(out, config)
    page = writing.write(out, reading, ask)
  built = Built(page, [(line.head, line.text) for line in reading.summary], run)
  standing.leave(out, built, sources)
  return built
