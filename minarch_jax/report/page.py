"""Puts figures and tables in order on one page that needs nothing else."""

import collections
from collections.abc import Mapping
import json
from typing import Any

from minarch_jax import config as config_lib
from minarch_jax import registries
from minarch_jax.analysis import summaries
from minarch_jax.report import cells, method, networks, sections
from minarch_jax.report.entries import Drawing
from minarch_jax.report.reading import Reading

SCRIPTS = ("theme.js", "tables.js", "marks.js", "network.js")


def render(
  reading: Reading, drawings: Mapping[str, Drawing], svgs: Mapping[str, str]
) -> str:
  """Writes the page; figures and tables that have nothing to show are left out.

  Args:
    reading: what is reported.
    drawings: titles and captions by the names of the figures.
    svgs: the same figures, drawn.
  """
  parts = contents(reading, drawings, svgs)
  template = method.environment().from_string(method.resource("page.html"))
  return template.render(
    title=f"Minimal architectures: {', '.join(reading.datasets)}",
    run=describe_run(reading),
    answer=[
      (line, part if (part := _section_of(line)) in parts else None)
      for line in reading.summary
    ],
    notes=notes(reading),
    sections=parts,
    formats=reading.config.figures,
    method=method,
    provenance=provenance(reading),
    networks=networks.written(reading),
    style=method.resource("page.css"),
    script="\n".join(map(method.resource, SCRIPTS)),
  )


def contents(
  reading: Reading, drawings: Mapping[str, Drawing], svgs: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
  """Collects what each section shows, numbered; sections without are left out.

  Raises:
    ValueError: a table or figure names a section that does not exist.
  """
  parts: dict[str, dict[str, Any]] = {
    name: section._asdict() | {"figures": [], "tables": []}
    for name, section in sections.SECTIONS.items()
  }
  for name, drawing in drawings.items():
    part = registries.find("section", registries.FIGURES[name].section, parts)
    shown = drawing._asdict() | {"name": name, "svg": svgs[name]}
    part["figures"].append(shown)
  for name, table in registries.TABLES.items():
    part = registries.find("section", table.section, parts)
    frame = reading.tables.get(name)
    if frame is not None and not frame.is_empty():
      shown = cells.shown(name, table, frame, drawings)
      part["tables"].append(shown._asdict())
  for kind in ("figures", "tables"):
    entries = (entry for part in parts.values() for entry in part[kind])
    for number, entry in enumerate(entries, 1):
      entry["number"] = number
  numbered = collections.defaultdict(lambda: "A figure")
  for part in parts.values():
    for entry in part["figures"]:
      numbered[entry["name"]] = f"Figure {entry['number']}"
  for part in parts.values():
    part["text"] = part["text"].format_map(numbered)
  return {
    k: part for k, part in parts.items() if part["figures"] or part["tables"]
  }


def _section_of(line: summaries.Line) -> str | None:
  """The section of the table that a line of the summary is about."""
  return registries.TABLES[line.table].section if line.table else None


def describe_run(reading: Reading) -> str:
  """Says in one line what was trained."""
  networks = reading.records.networks
  epochs = sorted(set(networks["epochs"]))
  seeds = networks["seed"].n_unique()
  architectures = networks.select("dataset", "architecture").unique()
  parts = (
    f"{len(networks):,} networks",
    f"{len(architectures):,} architectures ({', '.join(reading.families)})",
    f"{seeds} seed{'' if seeds == 1 else 's'}",
    f"{' or '.join(map(str, epochs[:3]))} epochs",
    f"{len(reading.records.compression):,} compression settings measured",
  )
  return " \u00b7 ".join(parts)


def notes(reading: Reading) -> list[str]:
  """Says what the test split of each data set is, where it is not official."""
  described = reading.study.get("datasets", {})
  named = {
    name: described.get(name, {}).get("test_note", "")
    for name in reading.datasets
  }
  return [
    f"Test split of {name}: {note}" for name, note in named.items() if note
  ]


def provenance(reading: Reading) -> dict[str, list[tuple[str, str]]]:
  """Arranges thresholds and study.json as captioned lists of pairs."""
  thresholds = [
    (name, f"{getattr(reading.config, name):g}")
    for name in config_lib.THRESHOLDS
  ]
  groups = {"Thresholds of this report (each a flag)": thresholds}
  loose = []
  for name, value in reading.study.items():
    if name in ("packs", "recipes"):  # a table of its own; for later runs
      continue
    if isinstance(value, Mapping) and value:
      groups[f"study.json: {name}"] = [
        (str(key), _plain(item)) for key, item in value.items()
      ]
    else:
      loose.append((name, _plain(value)))
  if loose:
    groups["study.json"] = loose
  return groups


def _plain(value: Any) -> str:
  if isinstance(value, str):
    return value
  if isinstance(value, list) and all(isinstance(v, str | int) for v in value):
    return ", ".join(map(str, value))
  return json.dumps(value)
