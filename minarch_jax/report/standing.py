"""The report that stands in a results directory, and what it was made from."""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import json
import os
from typing import NamedTuple

from minarch_jax import config as config_lib
from minarch_jax import records

FILE = "summary.json"

# What decides neither what a study leaves nor how it is judged.
_AROUND = ("out", "dry_run", "repair", "allow_mixed", *config_lib.PLACES)


class Built(NamedTuple):
  """A report that stands.

  Attributes:
    page: its path.
    summary: what each answer is to, and the answer, in sentences.
    run: the study that ended with it, by `run_of`; "" = it was built alone.
  """

  page: str
  summary: list[tuple[str, str]]
  run: str


def find(out: str, config: config_lib.Config) -> Built | None:
  """Finds the report of a results directory, if it would be built the same.

  Args:
    out: the results directory.
    config: thresholds of the analyses, formats of the figures.

  Returns:
    None where there is none, or where records, study.json, choices or code are
    not those that the report was made from.
  """
  folder = os.path.join(out, "report")
  page = os.path.join(folder, "index.html")
  try:
    left = records.read_json(os.path.join(folder, FILE))
    summary = [(head, text) for head, text in left["summary"]]
    built = Built(page, summary, left["run"])
    same = left["sources"] == sources_of(out, config)
  except (config_lib.ConfigError, KeyError, ValueError):
    return None  # damaged: the report is built again
  return built if same and os.path.exists(page) else None


def leave(out: str, built: Built, sources: str) -> None:
  """Says what a report was made from; last, when all its files stand."""
  left = {"summary": built.summary, "sources": sources, "run": built.run}
  records.write_json(os.path.join(out, "report", FILE), left)


def run_of(
  config: config_lib.Config, fingerprints: Sequence[str], stages: object
) -> str:
  """Identifies a study: every choice, the bytes of the data, the stages."""
  choices = dataclasses.asdict(config)
  for name in _AROUND:
    del choices[name]
  return records.content_id([choices, fingerprints, stages])


def sources_of(out: str, config: config_lib.Config) -> str:
  """Identifies everything that a report's bytes depend on.

  The contents of the records and of study.json, the choices, and the code:
  the same report comes from the same sources, wherever they lie.
  """
  names = (*config_lib.THRESHOLDS, "figures")
  choices = {name: getattr(config, name) for name in names}
  digest = hashlib.sha256(json.dumps(choices, sort_keys=True).encode())
  package = os.path.dirname(os.path.abspath(records.__file__))
  study = os.path.join(out, "study.json")
  paths = [study] * os.path.exists(study)
  paths += _files(os.path.join(out, "records"), (".parquet",))
  paths += _files(package, (".py", ".md", ".html", ".css", ".js", ".conf"))
  for path in paths:
    with open(path, "rb") as file:
      content = hashlib.file_digest(file, "sha256")
    digest.update(os.path.basename(path).encode() + content.digest())
  return digest.hexdigest()[:20]


def _files(folder: str, endings: tuple[str, ...]) -> Iterator[str]:
  for root, folders, names in os.walk(folder):
    folders.sort()
    for name in sorted(names):
      if name.endswith(endings):
        yield os.path.join(root, name)
