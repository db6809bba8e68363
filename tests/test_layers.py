"""Layers: imports go downwards only, and what needs no JAX does not load it."""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "minarch_jax"

# From the bottom: a room may import those before it, and none of its own floor.
LAYERS = (
  ("registries",),
  ("types", "random"),
  ("config", "leaves"),
  ("checksums",),
  ("records", "flags", "architectures"),
  ("models", "data", "pruning", "quantization"),
  ("engine",),
  ("compression",),
  ("executors",),
  ("stages",),
  ("study",),
  ("notebook",),
)
LEVEL = {name: i for i, names in enumerate(LAYERS) for name in names}
# Right of the bar: tables and plots, on a machine without an accelerator.
TABLES = ("analysis", "report")
WITHOUT_JAX = (
  *("architectures", "checksums", "config", "data", "flags", "records"),
)
DEVICES = {"pmap", "shard_map", "device_put", "Mesh", "make_mesh"}
# What a notebook calls directly compiles itself; the rest is compiled by
# population, which knows the whole program.
SELF_COMPILED = {
  "minarch_jax.models.networks",
  "minarch_jax.engine.accuracy",
  "minarch_jax.engine.exports.stablehlo",
  "minarch_jax.pruning.dynamic",
  "minarch_jax.pruning.masks",
  "minarch_jax.pruning.ranking",
  "minarch_jax.pruning.scopes",
  "minarch_jax.quantization.networks.gptq",
  "minarch_jax.quantization.networks.lsq",
  "minarch_jax.quantization.packing",
  "minarch_jax.quantization.tensors",
}


def module_of(path):
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(part for part in parts if part != "__init__")


@functools.cache
def sources():
  return {
    module_of(path): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
  }


def imports(tree):
  """Full names of the modules that a syntax tree imports."""
  modules = sources()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        whole = f"{node.module}.{alias.name}"
        yield whole if whole in modules else node.module or ""


@functools.cache
def graph():
  """Which modules of the package each imports, leaving out itself."""
  return {
    name: {m for m in imports(tree) if m in sources()} - {name}
    for name, tree in sources().items()
  }


def part(module):
  """The name directly under the package: "pruning" of pruning.masks."""
  return (module.split(".") + [""])[1]


def test_every_module_has_a_layer():
  parts = {part(name) for name in sources()} - {""}
  assert parts == LEVEL.keys() | set(TABLES)


@pytest.mark.parametrize("name", sorted(LEVEL))
def test_imports_go_down(name):
  for module, found in graph().items():
    if part(module) == name:
      # The package's first file, where the version stands, imports nothing.
      for other in {part(each) for each in found} - {name, ""}:
        if other in TABLES:  # a stage that plans may ask what records show
          assert (name, other) == ("stages", "analysis"), module
        else:
          assert LEVEL[other] < LEVEL[name], f"{module} imports {other}"


@pytest.mark.parametrize("name", TABLES)
def test_tables_import_records_and_below_only(name):
  allowed = {"config", "records", "registries", *TABLES}
  if name == "analysis":
    allowed.discard("report")
  for module, found in graph().items():
    if part(module) == name:
      assert {part(other) for other in found} <= allowed, module


def test_the_root_is_small_and_rooms_are_tied_by_few_arrows():
  root = [name for name in sources() if name.count(".") == 1]
  assert sum((PACKAGE / f"{part(name)}.py").exists() for name in root) <= 10
  arrows = {
    (part(module), part(other))
    for module, found in graph().items()
    for other in found
    if part(module) and part(module) != part(other)
  }
  assert len(arrows) <= 83, len(arrows)


def test_parts_do_not_import_in_circles():
  edges = {}
  for module, found in graph().items():
    if part(module):
      others = {part(other) for other in found} - {part(module), ""}
      edges.setdefault(part(module), set()).update(others)
  while edges:
    free = {name for name, found in edges.items() if not found & edges.keys()}
    assert free, f"a circle among {sorted(edges)}"
    edges = {name: found for name, found in edges.items() if name not in free}


def test_population_alone_compiles_and_places():
  for module, tree in sources().items():
    used = {
      node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    }
    if module != "minarch_jax.engine.population":
      assert not used & DEVICES, module
      assert "jit" not in used or module in SELF_COMPILED, module
    else:
      assert {"jit", "pmap", "shard_map", "Mesh"} <= used


def test_bodies_and_parameters_are_few():
  """Charts are long lists of what they draw."""
  for module, tree in sources().items():
    for node in ast.walk(tree):
      if isinstance(node, ast.FunctionDef):
        body, a = node.body, node.args
        where = f"{module}.{node.name}"
        assert len(a.posonlyargs + a.args + a.kwonlyargs) <= 8, where
        if len(body) > 1 and isinstance(body[0], ast.Expr):
          body = body[1:]
        length = body[-1].end_lineno - body[0].lineno + 1
        assert length <= 60 or part(module) == "report", (where, length)


def test_experiments_are_small():
  for path in (ROOT / "experiments").glob("*.py"):
    if path.name != "common.py":
      assert len(path.read_text().splitlines()) <= 60, path.name


# What must not be loaded by importing the modules, in this order.
JAX = {"jax", "flax", "optax", "orbax", "tensorflow", "sklearn"}
LIGHT = (
  ({"numpy", "polars", "scipy", *JAX}, ("minarch_jax", "minarch_jax.config")),
  (
    JAX,
    (
      *(f"minarch_jax.{name}" for name in (*WITHOUT_JAX, *TABLES)),
      *(f"experiments.{name}" for name in ("study", "sweep", "prune")),
      *(f"experiments.{name}" for name in ("quantize", "convergence")),
    ),
  ),
  (  # training does not wait for them; IPython comes with NNX
    {"orbax", "IPython", "sklearn", "tensorflow_datasets", "altair", "ray"},
    ("minarch_jax.study",),
  ),
)
LOAD = """
import importlib, sys
from absl import flags
for name in sys.argv[1:]:
  importlib.import_module(name)
  print(name, *sorted({name.partition(".")[0] for name in sys.modules}))
  for flag in list(flags.FLAGS):  # each experiment defines its own
    if flag not in sys.modules:
      delattr(flags.FLAGS, flag)
"""


@pytest.mark.parametrize("heavy, modules", LIGHT, ids=["numpy", "jax", "start"])
def test_what_is_not_needed_is_not_loaded(heavy, modules):
  found = subprocess.run(
    [sys.executable, "-c", LOAD, *modules],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert found.returncode == 0, found.stderr
  lines = [line.split() for line in found.stdout.splitlines()]
  assert [line[0] for line in lines] == list(modules)
  for module, *loaded in lines:
    assert not heavy & set(loaded), module
