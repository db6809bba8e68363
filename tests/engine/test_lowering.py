"""Every program, lowered for GPUs and TPUs as they would be given it.

Small studies of made-up images are walked with the layouts of an accelerator.
Nothing is compiled or computed: a program that the walk asks for is traced and
lowered to StableHLO for CUDA and TPU, and the walk goes on with ones in place
of its results. What the StableHLO may hold is a law. Not seen here is that XLA
compiles it there, that it fits, that its numbers are right, how fast it is.
"""

from collections.abc import Mapping, Sequence
import contextlib
import functools
import importlib
import pathlib
import re
import tempfile
from typing import Any, NamedTuple
from unittest import mock

import jax
from jax.extend.mlir import ir
import numpy as np
import optax
import pytest

import minarch_jax
from minarch_jax import records, registries, study
from minarch_jax.compression import programs
from minarch_jax.engine import evaluation, packs, population
from minarch_jax.engine import own as own_engine
from minarch_jax.engine import session as sessions
from minarch_jax.engine.programs import Program, Table
from minarch_jax.stages import own as own_stage
from minarch_jax.stages import probes, sensitivity
from tests import tiny_study

# What a device calls itself, and what programs for it are lowered for.
BACKENDS = {"gpu": "cuda", "tpu": "tpu"}

# One of everything that has a program of its own.
PLAIN = {
  "criteria": ("magnitude", "snip"),
  "sparsities": (0.5,),
  "bits": (4,),
  "activation_bits": (8,),
  "quantizers": ("absmax", "gptq"),
  "schedules": ("rigl",),
  "controls": ("shuffled",),
  "retraining_rounds": 2,
}


class Case(NamedTuple):
  """A study.

  Attributes:
    architectures: of one family, in one pack.
    devices: how many there are.
    changes: of the configuration.
    whole: whether all stages are walked; otherwise networks are trained.
  """

  architectures: tuple[str, ...]
  devices: int
  changes: Mapping[str, Any] = {}
  whole: bool = True

  @property
  def family(self) -> str:
    return self.architectures[0].partition(":")[0]

  @property
  def alone(self) -> bool:
    """Whether there is one network, whose minibatches devices share."""
    return len(self.architectures) == self.changes.get("num_seeds") == 1

  @property
  def dtype(self) -> str:
    return self.changes.get("compute_dtype", "float32")


# What registries hold is shared out: a walk through all of it would be long.
CASES = {
  "dnn": Case(
    ("dnn:4", "dnn:6"),
    2,
    {
      "scopes": ("global",),
      "granularities": ("element", "unit", "nm:2", "block:2x1"),
    },
  ),
  "cnn": Case(
    ("cnn:8", "cnn:9"),
    1,
    {
      "scopes": ("layerwise",),
      "criteria": tuple(registries.TRAINED_CRITERIA),
      "quantizers": tuple(registries.QUANTIZERS),
    },
  ),
  "vit": Case(
    ("vit:p2-d4-l1-h2",),
    1,
    {"scopes": ("erk",), "schedules": ("set",), "compute_dtype": "bfloat16"},
  ),
  "dnn in bfloat16": Case(
    ("dnn:4-2", "dnn:6"), 1, {"compute_dtype": "bfloat16"}, whole=False
  ),
  "cnn in bfloat16": Case(
    ("cnn:8-8",), 2, {"compute_dtype": "bfloat16", "num_seeds": 1}, whole=False
  ),
  "vit in float32": Case(
    ("vit:p1-d4-l1-h2", "vit:p1-d6-l1-h2"), 1, whole=False
  ),
}


# --- the walk ----------------------------------------------------------------


class Lowered(NamedTuple):
  """A program as an accelerator would be given it.

  Attributes:
    program: the declaration.
    backends: keys of BACKENDS.
    layout: how it is mapped.
    operations: names of what stands in it, custom calls by their target.
    types: of the elements of all arrays in it.
    products: (type of the factors, precision) of dots and convolutions.
    donated, given: leaves whose buffers are, by the declaration, and may be, in
      the StableHLO, overwritten.
    waiting: loops that go on until the last of several networks is done.
    refused: why JAX cannot lower it, and nothing stands above.
  """

  program: Program
  backends: tuple[str, ...]
  layout: population.Mapping
  operations: frozenset[str] = frozenset()
  types: frozenset[str] = frozenset()
  products: frozenset[tuple[str, str]] = frozenset()
  donated: int = 0
  given: int = 0
  waiting: int = 0
  refused: str = ""


def read(
  program: Program,
  backends: Sequence[str],
  layout: population.Mapping,
  traced: Any,
) -> Lowered:
  """Lowers a program for backends at once and reads the StableHLO."""
  platforms = tuple(BACKENDS[backend] for backend in backends)
  try:
    lowered = traced.lower(lowering_platforms=platforms)
  except Exception as error:  # a host callback is refused by a TypeError
    why = f"{type(error).__name__}: {error}"
    return Lowered(program, tuple(backends), layout, refused=why)
  operations, types, products, waiting = set(), set(), set(), 0

  def see(op: Any) -> ir.WalkResult:
    nonlocal waiting
    name = op.name
    types.update(value.type for value in op.results)
    if name == "stablehlo.custom_call":
      name = ir.StringAttr(op.attributes["call_target_name"]).value
    if name in ("stablehlo.dot_general", "stablehlo.convolution"):
      precision = str(op.attributes["precision_config"])
      products.add((element(op.operands[0].type), precision))
    if name == "stablehlo.while":
      condition = op.regions[0].blocks[0].operations
      waiting += any(each.name == "stablehlo.reduce" for each in condition)
    operations.add(name)
    return ir.WalkResult.ADVANCE

  lowered.compiler_ir("stablehlo").operation.walk(see)
  reused = re.findall(
    r"tf\.aliasing_output|jax\.buffer_donor", lowered.as_text()
  )
  return Lowered(
    program,
    tuple(backends),
    layout,
    frozenset(operations),
    frozenset(map(element, types)),
    frozenset(products),
    sum(leaf.donated for leaf in jax.tree.leaves(lowered.args_info)),
    len(reused),
    waiting,
  )


def element(type: ir.Type) -> str:
  return str(ir.ShapedType(type).element_type)


class Recorder(Table):
  """Lowers programs instead of compiling them, and keeps what it saw."""

  def __init__(self, backends: Sequence[str]):
    super().__init__()
    self.backends, self.seen = backends, []

  def find(self, program, static, layout, arguments, hot):
    def compile(function, kinds, mapping, arguments, donate=(), *, hot=True):
      traced = population.trace(function, kinds, mapping, arguments, donate)
      self.seen.append(read(program, self.backends, layout, traced))
      ones = jax.tree.map(
        lambda leaf: np.ones(leaf.shape, leaf.dtype), traced.out_info
      )
      return population.Compiled(lambda *arguments: ones, 0.0)

    with mock.patch.object(population, "compile", compile):
      return super().find(program, static, layout, arguments, hot)


@functools.cache
def walked(name: str) -> list[Lowered]:
  """Walks a study once for each layout that a backend has."""
  case = CASES[name]
  layouts = registries.FAMILIES[case.family].layouts
  backends: dict[Any, list[str]] = {}
  for backend in BACKENDS:
    own = layouts.get(backend, layouts["other"])
    backends.setdefault(own, []).append(backend)
  return [each for some in backends.values() for each in walk(case, some)]


def walk(case: Case, backends: Sequence[str]) -> list[Lowered]:
  """Walks a study as on any of some backends, which have one layout."""
  recorder = Recorder(backends)
  devices = jax.local_devices()[: case.devices]
  patches = (
    (jax, "local_devices", lambda: devices),
    (jax, "local_device_count", lambda: len(devices)),
    (population, "platform", lambda devices: backends[0]),
    (sessions, "LARGE_STEP_SECONDS", 0.0),
    (tiny_study, "PROGRAMS", recorder),
  )
  with contextlib.ExitStack() as stack:
    for patch in patches:
      stack.enter_context(mock.patch.object(*patch))
    stack.enter_context(tiny_study.on_made_up_data())
    out = stack.enter_context(tempfile.TemporaryDirectory())
    config = tiny_study.CONFIG.replace(
      out=out, architectures=case.architectures, **PLAIN | dict(case.changes)
    )
    study.run(config, prune=case.whole, quantize=case.whole)
    if case.whole:
      session = tiny_study.open_session(config)
      probes.complete(session, out, records.read(out).networks, 2)
      sensitivity.complete(session, out, sensitivity.chosen(session, out))
    if case.whole and case.family == OWN:
      stack.enter_context(
        mock.patch.object(own_stage, "Table", lambda: recorder)
      )
      train_own()
  return recorder.seen


OWN = "dnn"  # the walk that trains a model of one's own too


def train_own() -> None:
  """Trains a model that is no family's."""

  def init(key):
    return {"w": 0.1 * jax.random.normal(key, (4, 3))}

  def loss(params, batch):
    logits = batch.x @ params["w"]
    return evaluation.losses(logits, batch.y)[0].mean()

  x, y = np.ones((8, 4), np.float32), np.arange(8, dtype=np.int32) % 3
  own_stage.train_many(
    init,
    loss,
    optax.adam,
    ((x, y), (x, y)),
    seeds=range(2),
    sweep={"learning_rate": [0.1, 0.2]},
    num_epochs=1,
    batch_size=4,
  )


# --- laws --------------------------------------------------------------------

everywhere = pytest.mark.parametrize("name", CASES)

DIALECTS = {"builtin", "func", "stablehlo", "chlo", "sdy"}
# What is called by name, from outside XLA, and where it is.
KERNELS = {
  # GPTQ inverts a matrix and factors the inverse.
  "cusolver_getrf_ffi": "gpu",
  "cu_lu_pivots_to_permutation": "gpu",
  "cusolver_potrf_ffi": "gpu",
  "LuDecomposition": "tpu",
  # Random numbers, where JAX finds a kernel of its own for them.
  "cu_threefry2x32_ffi": "gpu",
}
# A callback needs one of these, or a kernel.
HOST = {f"stablehlo.{name}" for name in ("infeed", "outfeed", "send", "recv")}
COLLECTIVE = {
  *("stablehlo.all_gather", "stablehlo.all_reduce", "stablehlo.all_to_all"),
  *("stablehlo.collective_broadcast", "stablehlo.collective_permute"),
  "stablehlo.reduce_scatter",
}
PLAIN_TYPES = {"f32", "i32", "ui32", "i1"}
# Formats that weights are rounded to, and codes of integers.
NARROW = {
  "minarch_jax.compression.programs": {
    *("bf16", "f16", "f8E4M3FN", "f8E5M2", "i8", "ui8")
  },
  # A model of one's own draws as JAX does, which counts in 64 bits.
  "minarch_jax.engine.own": {"ui64"},
}


def lowerings(name: str) -> list[Lowered]:
  return [lowered for lowered in walked(name) if not lowered.refused]


def declared() -> set[Program]:
  """Finds every program of the package."""
  found, count = set(), 0
  root = pathlib.Path(minarch_jax.__file__).parent
  for path in root.rglob("*.py"):
    written = len(re.findall(r"\bProgram\(", path.read_text()))
    if written:
      parts = path.relative_to(root.parent).with_suffix("").parts
      values = vars(importlib.import_module(".".join(parts))).values()
      found |= {value for value in values if isinstance(value, Program)}
      count += written
  assert len(found) == count, "a program is not an attribute of its module"
  return found


@pytest.mark.parametrize("family", registries.FAMILIES)
def test_every_program_is_seen(family):
  seen = {
    lowered.program
    for name, case in CASES.items()
    if case.family == family
    for lowered in walked(name)
  }
  wanted = {
    program
    for program in declared()
    if family == OWN or program.make.__module__ != own_engine.__name__
  }
  missing = [program.make.__qualname__ for program in wanted - seen]
  assert not missing


def test_so_is_every_entry_of_a_registry():
  settings = [PLAIN | dict(case.changes) for case in CASES.values()]
  for flag, known in {
    "criteria": registries.TRAINED_CRITERIA,
    "scopes": registries.SCOPES,
    "granularities": registries.GRANULARITIES,
    "quantizers": registries.QUANTIZERS,
    "schedules": registries.MOVES,
  }.items():
    asked = {
      str(value).partition(":")[0]
      for each in settings
      for value in each.get(flag, ())
    }
    assert set(known) <= asked, flag


@everywhere
def test_every_program_can_be_lowered(name):
  refused = [
    f"{lowered.program.make.__qualname__}: {lowered.refused}"
    for lowered in walked(name)
    if lowered.refused
  ]
  assert not refused


@everywhere
def test_backends_are_given_their_own_layouts(name):
  case = CASES[name]
  layouts = registries.FAMILIES[case.family].layouts
  found = [
    backend for lowered in lowerings(name) for backend in lowered.backends
  ]
  assert set(found) == set(BACKENDS)
  for lowered in lowerings(name):
    layout = lowered.layout
    assert len(layout.devices) == case.devices
    assert layout.microbatch is None  # is for the caches of a processor
    if lowered.program not in (packs.DRAW, programs.ROUND):  # of no network
      for backend in lowered.backends:
        own = layouts.get(backend, layouts["other"])
        assert own == (layout.seeds, layout.members, layout.convolution)


@everywhere
def test_nothing_is_called_that_a_backend_lacks(name):
  for lowered in lowerings(name):
    called = {x for x in lowered.operations if x.split(".")[0] not in DIALECTS}
    assert called <= KERNELS.keys(), lowered.program.make
    assert {KERNELS[kernel] for kernel in called} <= set(lowered.backends)
    assert not lowered.operations & HOST, lowered.program.make


@everywhere
def test_numbers_are_as_wide_as_they_should_be(name):
  for lowered in lowerings(name):
    allowed = PLAIN_TYPES | NARROW.get(lowered.program.make.__module__, set())
    if CASES[name].dtype == "bfloat16":
      allowed = allowed | {"bf16"}
    assert lowered.types <= allowed, lowered.program.make


@everywhere
def test_float32_is_multiplied_as_float32(name):
  for lowered in lowerings(name):
    for factors, precision in lowered.products:
      whole = factors in ("bf16", "i32") or precision.count("HIGHEST") == 2
      assert whole, (lowered.program.make, factors, precision)
    if lowered.program is packs.RUN:
      expected = {"float32": "f32", "bfloat16": "bf16"}[CASES[name].dtype]
      assert {factors for factors, _ in lowered.products} == {expected}


@everywhere
def test_devices_talk_about_a_shared_minibatch_only(name):
  for lowered in lowerings(name):
    shared = CASES[name].alone and lowered.program is packs.RUN
    expected = {"stablehlo.all_reduce"} if shared else set()
    assert lowered.operations & COLLECTIVE == expected, lowered.program.make


@everywhere
def test_the_buffers_of_what_trains_are_reused(name):
  for lowered in lowerings(name):
    assert lowered.given == lowered.donated, lowered.program.make
    assert bool(lowered.donated) == bool(lowered.program.donated)


@everywhere
def test_no_network_trains_until_the_last_is_done(name):
  for lowered in lowerings(name):
    if lowered.program in (packs.RUN, probes.PROBES):
      assert not lowered.waiting
