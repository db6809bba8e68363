"""Analyses records and writes the report, every file atomically."""

import contextlib
import itertools
import os

from minarch_jax import config as config_lib
from minarch_jax import records as records_lib
from minarch_jax import registries
from minarch_jax.report import export, method, page, standing
from minarch_jax.report import reading as reading_lib
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
  # Before the records are read: what is added meanwhile is not in the report.
  sources = standing.sources_of(out, config)
  reading = analyse(out, config)
  built = Built(write(out, reading), list(map(str, reading.summary)), run)
  standing.leave(out, built, sources)
  return built


def analyse(
  out: str, config: config_lib.Config | None = None
) -> reading_lib.Reading:
  """Reads the records of a results directory and runs every analysis.

  Raises:
    FileNotFoundError, ConfigError: as `build`.
  """
  records = records_lib.read(out)
  return reading_lib.analyse(
    records,
    config or config_lib.Config(),
    records_lib.read_json(os.path.join(out, "study.json")),
    {
      name: records_lib.read_table(out, name)
      for name in records_lib.SCHEMAS
      if name not in records._fields
    },
  )


def write(out: str, reading: reading_lib.Reading) -> str:
  """Writes the report to <out>/report, returns the page's path.

  Figures of an earlier report that have nothing to show any more are removed.
  """
  folder = os.path.join(out, "report")
  for name, table in reading.tables.items():
    path = os.path.join(folder, "tables", f"{name}.csv")
    with records_lib.atomic(path) as temporary:
      table.write_csv(temporary)
  drawings = {
    name: drawing
    for name, figure in registries.FIGURES.items()
    if (drawing := figure.draw(reading))
  }
  svgs = {name: export.svg(name, drawing) for name, drawing in drawings.items()}
  for name, format in itertools.product(registries.FIGURES, export.FORMATS):
    if name not in drawings:
      with contextlib.suppress(FileNotFoundError):
        os.remove(os.path.join(folder, "figures", f"{name}.{format}"))
  for name, svg in svgs.items():
    for format, data in export.encoded(svg).items():
      _write(os.path.join(folder, "figures", f"{name}.{format}"), data)
  _write(os.path.join(folder, method.FILE), method.render().encode())
  index = os.path.join(folder, "index.html")
  _write(index, page.render(reading, drawings, svgs).encode())
  return index


def _write(path: str, data: bytes) -> None:
  with records_lib.atomic(path) as temporary, open(temporary, "wb") as file:
    file.write(data)
