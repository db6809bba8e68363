"""Analyses records and writes what is found, every file atomically."""

import contextlib
import itertools
import os

from minarch_jax import config as config_lib
from minarch_jax import records as records_lib
from minarch_jax import registries
from minarch_jax.report import export, method, page, workers
from minarch_jax.report import reading as reading_lib


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


def write(
  out: str, reading: reading_lib.Reading, ask: workers.Ask | None = None
) -> str:
  """Writes the report to <out>/report, returns the page's path.

  Figures of an earlier report that have nothing to show any more are removed,
  and so are formats that are not asked for.

  Args:
    out: the results directory.
    reading: what is reported.
    ask: draws figures, as `workers.started` yields it; None = starts that.
  """
  if ask is None:
    with workers.started() as ask:
      return write(out, reading, ask)
  folder = os.path.join(out, "report")
  drawings = {}
  promises = {}
  for name, figure in registries.FIGURES.items():
    # A figure computes the tables that it shows: it is drawn while others are.
    if drawing := figure.draw(reading):
      drawings[name] = drawing
      promises[name] = ask(name, export.spec(drawing), reading.config.figures)
  for name, table in reading.tables.items():
    path = os.path.join(folder, "tables", f"{name}.csv")
    with records_lib.atomic(path) as temporary:
      table.write_csv(temporary)
  _write(os.path.join(folder, method.FILE), method.render().encode())
  drawn = {name: promise.result() for name, promise in promises.items()}
  for name, format in itertools.product(registries.FIGURES, config_lib.FORMATS):
    path = os.path.join(folder, "figures", f"{name}.{format}")
    data = drawn[name].files.get(format) if name in drawn else None
    if data is None:
      with contextlib.suppress(FileNotFoundError):
        os.remove(path)
    else:
      _write(path, data)
  index = os.path.join(folder, "index.html")
  svgs = {name: figure.svg for name, figure in drawn.items()}
  _write(index, page.render(reading, drawings, svgs).encode())
  return index


def _write(path: str, data: bytes) -> None:
  with records_lib.atomic(path) as temporary, open(temporary, "wb") as file:
    file.write(data)
