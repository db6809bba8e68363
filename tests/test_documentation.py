"""What README and docstrings name exists, and what they show runs."""

import ast
import dataclasses
import functools
import importlib.util
import pathlib
import re

import jax
import numpy as np
import pytest

import minarch_jax as ma
from minarch_jax import config, leaves, models, registries
from minarch_jax.architectures import Problem
from tests.test_layers import LAYERS

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
BENCHMARKS = ROOT / "experiments" / "benchmarks"
PAGES = (README, BENCHMARKS / "README.md")
SOURCES = [
  path
  for folder in ("minarch_jax", "experiments")
  for path in sorted((ROOT / folder).rglob("*.py"))
]
# What a study leaves, below --out; nothing of it stands in the checkout.
OUTPUTS = re.compile(
  r"(<out>/|report/(index|method)\.html|report/(tables|figures)/|records/\{"
  r"|checkpoints/$|study\.json$|trace|perfetto_trace)"
)
PATH = re.compile(r"[\w.{},*<>-]+(/[\w.{},*<>-]+)*/?")
SUFFIXES = (".py", ".md", ".html", ".json", ".ipynb", ".sh", ".toml")
FLAG = re.compile(r"(?<![\w-])--([a-z][a-z_-]*[a-z])(?:=([\w.,:{}-]+))?")
FOREIGN = {
  "help",
  "flagfile",
  "cache-clear",
  "logdir",
  "signal",
}  # of other programs


def spans(text):
  """Yields what a page sets as code: words between backquotes, and blocks."""
  yield from re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
  prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
  yield from (
    " ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)
  )


def section(title):
  """The text of one section of README."""
  parts = re.split(r"^## (.+)\n", README.read_text(), flags=re.MULTILINE)
  return parts[parts.index(title) + 1]


def blocks(text, language):
  """The code blocks of a language."""
  return re.findall(
    rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL
  )


@functools.cache
def flags():
  """Every flag of ours: the choices of a study, and what binaries add."""
  own = {field.name for field in dataclasses.fields(config.Config)}
  for path in SOURCES:
    text = path.read_text()
    own |= set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', text))
  conftest = (ROOT / "tests" / "conftest.py").read_text()
  return own | set(re.findall(r'"--(\w+)"', conftest))


@pytest.fixture(params=PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def page(request):
  return request.param.read_text()


def test_commands_start_modules_that_exist(page):
  modules = re.findall(r"python -m ([\w.]+)", page)
  assert modules
  for name in modules:
    if not name.endswith(".NAME"):
      assert importlib.util.find_spec(name), name
      text = (ROOT / f"{name.replace('.', '/')}.py").read_text()
      assert '__name__ == "__main__"' in text, name


def test_flags_and_their_values_exist(page):
  fields = {field.name: field for field in dataclasses.fields(config.Config)}
  for code in spans(page):
    for name, value in FLAG.findall(code):
      assert name in flags() | FOREIGN, code
      known = name in fields and config.choices_of(
        fields[name].metadata["rules"]
      )
      for item in value.split(",") if known and value else ():
        assert item in known, f"--{name}={item}"


def test_paths_exist(page):
  for code in spans(page):
    word = code.removeprefix("./").split(" ")[0]
    if PATH.fullmatch(word) and ("/" in word or word.endswith(SUFFIXES)):
      if not OUTPUTS.match(word):
        places = (ROOT, ROOT / "minarch_jax", BENCHMARKS)
        assert any((place / word).exists() for place in places), code


def test_tests_that_hold_a_statement_exist(page):
  for path, name in re.findall(r"`(tests/\S+\.py)::(\w+)`", page):
    assert f"def {name}(" in (ROOT / path).read_text(), name


def test_names_exist(page):
  for name in re.findall(r"\bma\.(\w+)", page):
    assert name in (*ma.__all__, "__version__"), name
  for name in re.findall(r"\bregistries\.([A-Z]+)", page):
    assert isinstance(getattr(registries, name), registries.Registry), name


def test_docstrings_name_commands_and_flags_that_exist():
  for path in SOURCES:
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (
        text := ast.get_docstring(node)
      ):
        for name in re.findall(r"python -m ([\w.]+)", text):
          assert importlib.util.find_spec(name), f"{path}: {name}"
        for name, _ in FLAG.findall(text):
          ours = name in flags() | FOREIGN or name.startswith("xla_")
          assert ours, f"{path}: --{name}"


# --- README ------------------------------------------------------------------


def mapped():
  """The paths of the code map."""
  (tree,) = blocks(section("Code map"), "")[:1]
  parents = []
  for line in tree.splitlines():
    name = line.split()[0]
    parents = [*parents[: (len(line) - len(line.lstrip())) // 2], name]
    yield "".join(parents)


def test_the_code_map_is_the_tree():
  found = set(mapped())
  for path in found:
    assert (ROOT / path).exists(), path
  package = ROOT / "minarch_jax"
  there = {f"minarch_jax/{path.name}" for path in package.glob("*.py")}
  there |= {
    f"{path.parent.relative_to(ROOT)}/" for path in package.rglob("__init__.py")
  }
  assert there == {path for path in found if path.startswith("minarch_jax/")}


def test_the_layers_are_those_that_hold():
  order = blocks(section("Code map"), "")[1]
  floors = [
    tuple(floor.split(", ")) for floor in " ".join(order.split()).split(" < ")
  ]
  assert [set(floor) for floor in floors] == [
    *map(set, LAYERS),
    {"experiments"},
  ]


@pytest.fixture
def fresh_registries(monkeypatch):
  """Forgets what a test registers."""
  for registry in vars(registries).values():
    if isinstance(registry, registries.Registry):
      monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def test_how_to_add_runs(fresh_registries):
  architecture = ma.Architecture.parse("dnn:6")
  model = models.make_model(architecture, Problem((4, 4, 1), 3))
  names = {"ma": ma, "params": model.init(jax.random.key(0))}
  before = {
    name: list(getattr(registries, name))
    for name in vars(registries)
    if name.isupper()
  }
  code = blocks(section("How to add"), "python")
  for block in code:
    exec(block, names)
  added = [
    name
    for name, old in before.items()
    if list(getattr(registries, name)) != old
  ]
  assert {"FAMILIES", "CRITERIA", "SCOPES", "GRANULARITIES", "SCHEDULES"} < set(
    added
  )
  assert {"FORMATS", "CALIBRATIONS", "DATASETS", "VARIANTS", "TABLES"} < set(
    added
  )
  assert len(ma.grid("tiny", "mlp", (8, 8, 1), 10)) == 3
  assert ma.Architecture.parse("mlp:8-8").num_params((8, 8, 1), 10) == 682
  assert names["data"].input_shape == (8, 8, 1)


def test_the_notebook_example_runs(capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  code, swept = blocks(section("In a notebook"), "python")
  small = code.replace(
    "num_seeds=5, num_epochs=20", "num_seeds=2, num_epochs=1"
  )
  assert small != code
  names = {}
  exec(small, names)
  printed = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in printed] == [
    "dnn:30",
    "dnn:30-30",
    "cnn:8",
  ]
  brief = swept.replace("num_epochs=5", "num_epochs=1")
  exec(brief.replace("num_epochs=10", "num_epochs=2"), names)
  assert len(names["best"].networks) == 10
  assert names["population"].curves["epoch"].max() == 2


def test_the_example_of_a_model_of_ones_own_runs(capsys):
  code, taps = blocks(section("Your own model"), "python")
  small = code.replace("range(8)", "range(2)").replace("20", "1")
  small = small.replace("num_epochs=30", "num_epochs=2")
  names = {}
  exec(small, names)
  assert "shape: (2, 8)" in capsys.readouterr().out
  assert names["kernel"].shape == (4, 2, 64, 32)
  assert names["longer"].epochs == 2
  exec(taps, names)
  assert names["logits"].shape == (len(names["data"].validation.y), 10)
  assert abs(float(ma.sparsity(names["masks"])) - 0.5) < 0.01


def test_the_export_example_runs(tmp_path, monkeypatch):
  """All but the calls that want the extra; they are tested beside modules."""
  monkeypatch.chdir(tmp_path)
  example, reader = blocks(section("Out of the framework"), "python")
  example, calls = re.subn(r"ma.export\(.net.(stablehlo|onnx).*\n", "", example)
  assert calls == 2 and "ma.export" in example
  architecture = ma.Architecture.parse("dnn:12-6")
  model = models.make_model(architecture, Problem((8, 8, 1), 3))
  params = jax.jit(model.init)(jax.random.key(0))
  names = {"ma": ma, "architecture": architecture, "params": params}
  exec(example, names)
  exec(reader, names)
  found = names["read"]("net.safetensors")
  expected = leaves.named(ma.dequantize(names["quantized"]))
  assert set(found) == {"/".join(path) for path, _ in expected}
  for path, leaf in expected:
    np.testing.assert_array_equal(found["/".join(path)], leaf)


# --- other pages -------------------------------------------------------------


def test_every_benchmark_is_told():
  text = (BENCHMARKS / "README.md").read_text()
  for path in BENCHMARKS.glob("*.py"):
    if path.stem != "__init__":
      assert f"`{path.stem}`" in text, path.stem


def test_the_changelog_begins_with_this_version():
  text = (ROOT / "CHANGELOG.md").read_text()
  first = re.findall(r"^## (\S+?),? ", text, re.MULTILINE)[0]
  assert ma.__version__.startswith(first)
