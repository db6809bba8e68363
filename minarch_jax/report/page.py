"""Puts figures and tables in order on one page that needs nothing else."""

from collections.abc import Mapping
from importlib import resources
import json
from typing import Any, NamedTuple

import jinja2

from minarch_jax import config as config_lib
from minarch_jax.report import export, tables
from minarch_jax.report.reading import Figure, Reading


class Section(NamedTuple):
  """A part of the page: its text, its figures and its tables with captions."""

  id: str
  title: str
  text: str
  figures: tuple[str, ...]
  tables: Mapping[str, str]


SECTIONS = (
  Section(
    "regimes",
    "Which sizes fail, learn, overfit",
    "An architecture is unstable when more of its seeds fail, or its accuracy "
    "varies more over seeds, than the thresholds allow; overfitting when its "
    "validation loss rises again in most seeds; learning otherwise.",
    ("accuracy", "accuracy_curves", "loss_curves"),
    {
      "regime_counts": "Architectures in each regime, and how they move when "
      "every threshold is halved or doubled.",
      "regime_boundaries": "Where along the parameter count one regime gives "
      "way to the next; a dash is a side that the grid leaves open.",
      "regimes": "Every architecture: regime, accuracy over seeds, "
      "probabilities of the regimes with Wilson intervals, reasons.",
    },
  ),
  Section(
    "minimal",
    "The smallest reliable network",
    "P_min is the parameter count from which on every network stays near the "
    "plateau with little variance over seeds; P_learn the count at which seeds "
    "stop failing. Where the grid does not reach below or above, there is no "
    "number. Figure 1 draws P_min as a line with its interval as a band.",
    (),
    {
      "minimal_parameters": "Minimal parameters with intervals.",
      "selected": "Accuracy of the networks chosen on validation. Test images "
      "were used once, after the choice.",
    },
  ),
  Section(
    "convergence",
    "How networks converge",
    "Every curve passes through up to four phases.",
    ("phases",),
    {"convergence_phases": "Lengths of the phases."},
  ),
  Section(
    "pruning",
    "How much can be pruned",
    "Sparsity is free while the accuracy lost stays below the margin. Compared "
    "networks have seen equal steps.",
    ("sparsity", "redundancy", "sensitivity", "overlap"),
    {
      "controls": "Did pruning beat its controls: a dense network of as many "
      "parameters trained as long (small_dense), the mask found on new weights "
      "(reinit), the mask shuffled within each layer (shuffled), weights "
      "removed at random (random)? Differences of validation accuracy, paired "
      "by architecture and seed.",
      "redundancy": "Redundancy averaged over the architectures of one depth.",
      "pruning_phases": "Redundancy and collapse of every architecture.",
      "sensitivity": "Accuracy lost by pruning one layer alone.",
      "overlap": "Overlap of the masks of two seeds under global scope, by "
      "layer and as a whole (all), beside random masks of that sparsity "
      "(chance) and the masks shuffled within their layers (shuffled).",
    },
  ),
  Section(
    "quantization",
    "How few bits suffice",
    "Damage is the accuracy at 32 bits minus that at fewer, seed by seed.",
    ("damage",),
    {
      "quantization_slopes": "Change of the damage per tenfold parameters "
      "(Theil-Sen), in points.",
      "quantization": "Damage of every architecture.",
      "activation_quantization": "Damage of every architecture with the inputs "
      "of its layers rounded too, over their ranges on training images; 32 "
      "bits: inputs alone.",
      "quantizer_damage": "Damage of every architecture by other number "
      "formats, and by integers over a narrower range.",
    },
  ),
  Section(
    "together",
    "What fits into so many bytes",
    "Sparsity and few bits together, and what to use under a budget.",
    ("surface", "pareto"),
    {"guidance": "Compact and stable configurations, best first."},
  ),
  Section(
    "claims",
    "The claims",
    "Each claim of arXiv 2601.17987 as one effect with an interval. Undecided "
    "means that these records cannot tell; a contradiction is a finding.",
    ("claims",),
    {"claims": "The claims with what they rest on."},
  ),
  Section(
    "engine",
    "What it cost to compute",
    "Networks were trained in packs, each by one compiled program.",
    (),
    {"stages": "Time by stage.", "packs": "Time by pack."},
  ),
)


def render(
  reading: Reading, figures: Mapping[str, Figure], svgs: Mapping[str, str]
) -> str:
  """Writes the page; figures and tables that have nothing to show are left out.

  Args:
    reading: what is reported.
    figures: titles and captions by name.
    svgs: the same figures, drawn.
  """
  numbers = {"figure": 0, "table": 0}

  def numbered(kind: str, entry: dict[str, Any]) -> dict[str, Any]:
    numbers[kind] += 1
    return entry | {"number": numbers[kind]}

  sections = []
  for section in SECTIONS:
    drawn = [
      numbered(
        "figure",
        figures[name]._asdict() | {"name": name, "svg": svgs[name]},
      )
      for name in section.figures
      if name in figures
    ]
    shown = [
      numbered("table", table._asdict())
      for name, caption in section.tables.items()
      if (table := tables.shown(reading, name, caption))
    ]
    if drawn or shown:
      sections.append(section._asdict() | {"figures": drawn, "tables": shown})
  environment = jinja2.Environment(
    autoescape=True,
    trim_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  return environment.from_string(_resource("page.html")).render(
    title=f"Minimal architectures: {', '.join(reading.datasets)}",
    run=describe_run(reading),
    answer=[(line, _section_of(line)) for line in reading.summary],
    notes=notes(reading),
    sections=sections,
    formats=export.FORMATS,
    provenance=provenance(reading),
    style=_resource("page.css"),
    script=_resource("page.js"),
  )


# The section that a line of the summary is about, by the first word found.
_ABOUT = (
  ("regimes", "regimes"),
  ("P_min", "minimal"),
  ("test accuracy", "minimal"),
  ("redundancy", "pruning"),
  ("pruned,", "pruning"),
  ("damage", "quantization"),
  ("claims", "claims"),
)


def _section_of(line: str) -> str | None:
  return next((section for word, section in _ABOUT if word in line), None)


def _resource(name: str) -> str:
  return resources.files("minarch_jax.report").joinpath(name).read_text()


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
    if name == "packs":
      continue  # a table of its own
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
