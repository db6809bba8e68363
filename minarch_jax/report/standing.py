"""The report that stands in a results directory, and what it was made from."""

from collections.abc import Iterator
import hashlib
import json
import os
from typing import Any, NamedTuple

from minarch_jax import config as config_lib
from minarch_jax import records

FILE = "summary.json"


class Built(NamedTuple):
  """A report: the path of its page, and its summary, a sentence a line."""

  page: str
  summary: list[str]


def find(out: str, made_from: str) -> Built | None:
  """Returns the report of <out>, None unless it was made from just this."""
  folder = os.path.join(out, "report")
  built = Built(os.path.join(folder, "index.html"), [])
  try:
    left = records.read_json(os.path.join(folder, FILE))
    same = left.get("made_from") == made_from
    built.summary.extend(left["summary"] if same else [])
  except (config_lib.ConfigError, KeyError):
    return None  # damaged: the report is built again
  return built if same and os.path.exists(built.page) else None


def leave(out: str, made_from: str, built: Built) -> None:
  """Says what a report was made from; last, when all its files stand."""
  left: dict[str, Any] = {"made_from": made_from, "summary": built.summary}
  records.write_json(os.path.join(out, "report", FILE), left)


def sources(out: str, config: config_lib.Config) -> str:
  """Identifies everything that a report's bytes depend on.

  The contents of the records and of study.json, the thresholds, and the code:
  the same report comes from the same sources, wherever they lie.
  """
  thresholds = {name: getattr(config, name) for name in config_lib.THRESHOLDS}
  digest = hashlib.sha256(json.dumps(thresholds, sort_keys=True).encode())
  package = os.path.dirname(os.path.abspath(records.__file__))
  paths = [
    *_files(os.path.join(out, "records"), (".parquet",)),
    *_files(package, (".py", ".md", ".html", ".css", ".js")),
  ]
  study = os.path.join(out, "study.json")
  for path in [study] * os.path.exists(study) + paths:
    with open(path, "rb") as file:
      content = hashlib.file_digest(file, "sha256")
    digest.update(os.path.basename(path).encode() + content.digest())
  return digest.hexdigest()[:20]


def _files(folder: str, endings: tuple[str, ...]) -> Iterator[str]:
  for root, folders, names in os.walk(folder):
    folders.sort()
    yield from (
      os.path.join(root, name)
      for name in sorted(names)
      if name.endswith(endings)
    )
