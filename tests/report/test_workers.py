"""Processes that draw: the same bytes, errors, and an end."""

import ast
import pathlib

import pytest

from minarch_jax import config
from minarch_jax.report import drawing, theme, workers

SPEC = {
  "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
  "config": theme.style(),
  "data": {"values": [{"x": 1, "y": 2}, {"x": 2, "y": 5}]},
  "mark": {"type": "point", "clip": True},
  "encoding": {
    "x": {"field": "x", "type": "quantitative"},
    "y": {"field": "y", "type": "quantitative"},
  },
}
WRONG = {**SPEC, "mark": "no such mark"}


@pytest.fixture(scope="module")
def ask():
  with workers.started(1) as ask:
    yield ask


def test_how_many_processes_there_are_changes_no_byte(ask):
  names = [f"figure{i}" for i in range(4)]
  found = [ask(name, SPEC, config.FORMATS) for name in names]
  with workers.started(3) as other:
    again = [other(name, SPEC, config.FORMATS) for name in names[::-1]]
    again = [promise.result() for promise in again]
  for name, one, other in zip(names, found, again[::-1], strict=True):
    assert one.result() == other
    assert other.svg == drawing.svg(name, SPEC)
    assert other.files["svg"].decode() == other.svg
  heads = {"png": b"\x89PNG", "pdf": b"%PDF"}
  assert all(again[0].files[f].startswith(head) for f, head in heads.items())


@pytest.mark.parametrize("formats", [(), ("svg",), ("pdf",)])
def test_only_the_formats_that_are_wanted_are_made(ask, formats):
  drawn = ask("figure", SPEC, formats).result()
  assert tuple(drawn.files) == formats and drawn.svg.startswith("<svg")


def test_what_cannot_be_drawn_raises_and_the_next_is_drawn(ask):
  with pytest.raises(ValueError, match="conversion failed"):
    ask("wrong", WRONG, ()).result()
  assert ask("right", SPEC, ()).result().svg


@pytest.fixture
def processes(monkeypatch):
  """Those that are started from now on."""
  found, start = [], workers.subprocess.Popen

  def started(*arguments, **options):
    found.append(start(*arguments, **options))
    return found[-1]

  monkeypatch.setattr(workers.subprocess, "Popen", started)
  return found


def test_no_process_outlives_the_block(processes):
  with pytest.raises(KeyboardInterrupt), workers.started(2) as ask:
    for i in range(5):
      ask(f"figure{i}", SPEC, config.FORMATS)
    raise KeyboardInterrupt
  assert len(processes) == 3
  assert all(process.returncode is not None for process in processes)


def test_a_process_that_dies_is_an_error_that_says_so(processes):
  with workers.started(1) as ask:
    ask("figure", SPEC, ()).result()
    for process in processes:
      process.kill()
    with pytest.raises(ChildProcessError, match="draws figures ended"):
      ask("figure", SPEC, ()).result()


def test_the_program_imports_nothing_of_the_package():
  tree = ast.parse(pathlib.Path(drawing.__file__).read_text())
  names = {
    alias.name
    for node in ast.walk(tree)
    if isinstance(node, ast.Import)
    for alias in node.names
  } | {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
  assert not [name for name in names if name.startswith("minarch_jax")]
