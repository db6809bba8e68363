"""What can be named, by a flag or a call: one line here adds one.

A registry maps names to entries. An entry may be written as "module:name" and
is then imported when first asked for, so listing names (--help, checks of
flags) starts neither JAX nor anything else heavy.
"""

from collections.abc import (
  Container,
  Iterable,
  Iterator,
  Mapping,
  MutableMapping,
  Sequence,
)
import difflib
import importlib
from typing import Any, TypeVar

Entry = TypeVar("Entry")

WEIGHTS = ("kernel", "embedding")  # last names of the leaves that are weights


def is_weight(path: Sequence[str]) -> bool:
  """Says whether a leaf is pruned and quantized unless told otherwise.

  Kernels and embeddings are; biases, norms and scales are not.
  """
  return bool(path) and path[-1] in WEIGHTS


def nearest(value: object, known: Iterable[str]) -> str:
  """Returns "; did you mean ...?" for the closest known name, or ''."""
  near = difflib.get_close_matches(str(value), list(known), 1)
  return f"; did you mean {near[0]!r}?" if near else ""


def find(what: str, name: str, table: Mapping[str, Entry]) -> Entry:
  """Returns the entry of a registry.

  Raises:
    ValueError: an unknown name; the message lists the known ones.
  """
  if name not in table:
    raise ValueError(
      f"{what} {name!r} is not one of {', '.join(table)}{nearest(name, table)}"
    )
  return table[name]


def resolve(entry: Any) -> Any:
  """Returns what "module:name" stands for; anything else as it is."""
  if not isinstance(entry, str):
    return entry
  module, _, name = entry.partition(":")
  return getattr(importlib.import_module(module), name)


class Registry(MutableMapping[str, Any]):
  """Names and what they stand for, in the order in which they are listed."""

  def __init__(self, **entries: Any):
    self._entries = entries

  def __getitem__(self, name: str) -> Any:
    entry = self._entries[name] = resolve(self._entries[name])
    return entry

  def __setitem__(self, name: str, entry: Any) -> None:
    self._entries[name] = entry

  def __delitem__(self, name: str) -> None:
    del self._entries[name]

  def __contains__(self, name: object) -> bool:
    return name in self._entries  # without importing the entry

  def __iter__(self) -> Iterator[str]:
    return iter(self._entries)

  def __len__(self) -> int:
    return len(self._entries)


class Joined(Mapping[str, Any]):
  """Several registries read as one, less some names; always up to date."""

  def __init__(
    self, *parts: Mapping[str, Any], without: Container[object] = ()
  ):
    self._parts, self._without = parts, without

  def __getitem__(self, name: str) -> Any:
    for part in self._parts:
      if name in part and name not in self._without:
        return part[name]
    raise KeyError(name)

  def __contains__(self, name: object) -> bool:
    return name not in self._without and any(name in p for p in self._parts)

  def __iter__(self) -> Iterator[str]:
    names = dict.fromkeys(name for part in self._parts for name in part)
    return (name for name in names if name not in self._without)

  def __len__(self) -> int:
    return sum(1 for _ in self)


# --- data --------------------------------------------------------------------

# Where images come from: a `data.sources.Source`. Any other name stands for a
# TFDS set that is prepared already.
DATASETS = Registry(
  digits="minarch_jax.data.digits:SOURCE",
  synthetic="minarch_jax.data.synthetic:SOURCE",
  mnist="minarch_jax.data.tfds:SOURCE",
  fashion_mnist="minarch_jax.data.tfds:SOURCE",
  kmnist="minarch_jax.data.tfds:SOURCE",
  emnist="minarch_jax.data.tfds:SOURCE",
  cifar10="minarch_jax.data.tfds:SOURCE",
  cifar10_45k="minarch_jax.data.tfds:SOURCE",
  cifar100="minarch_jax.data.tfds:SOURCE",
  svhn_cropped="minarch_jax.data.tfds:SOURCE",
)

# What may follow the name of any data set after a colon: a function of
# `data.sources.Raw`.
VARIANTS = Registry(
  blurred="minarch_jax.data.variants:blurred",
  noisy="minarch_jax.data.variants:noisy",
)

# --- architectures and models ------------------------------------------------

# Each is a `Family` (architectures.families).
FAMILIES = Registry(
  dnn="minarch_jax.architectures.dnn:FAMILY",
  cnn="minarch_jax.architectures.cnn:FAMILY",
  vit="minarch_jax.architectures.vit:FAMILY",
)


def grids() -> list[str]:
  """Lists the named grids of all families."""
  return list(dict.fromkeys(g for f in FAMILIES.values() for g in f.grids))


# Each is a function (images [B, H, W, I], kernel [h, w, I, O]) -> [B, H', W',
# O]; all give the same numbers up to rounding (models.convolutions).
CONVOLUTIONS = Registry(
  stock="minarch_jax.models.convolutions:stock",
  im2col="minarch_jax.models.convolutions:im2col",
  hybrid="minarch_jax.models.convolutions:hybrid",
)

# Initial values: a `models.initialisers.Initialiser`.
INITS = Registry(
  he_normal="minarch_jax.models.initialisers:HE_NORMAL",
  lecun_normal="minarch_jax.models.initialisers:LECUN_NORMAL",
  glorot_uniform="minarch_jax.models.initialisers:GLOROT_UNIFORM",
  pytorch="minarch_jax.models.initialisers:PYTORCH",
)

# --- pruning -----------------------------------------------------------------

# Which weights go: a `pruning.criteria.Criterion`, or its scoring function.
CRITERIA = Registry(
  magnitude="minarch_jax.pruning.criteria:MAGNITUDE",
  random="minarch_jax.pruning.criteria:RANDOM",
  gradient="minarch_jax.pruning.gradients:GRADIENT",
  taylor="minarch_jax.pruning.gradients:TAYLOR",
  snip="minarch_jax.pruning.gradients:SNIP",
  grasp="minarch_jax.pruning.gradients:GRASP",
  synflow="minarch_jax.pruning.gradients:SYNFLOW",
  fisher="minarch_jax.pruning.gradients:FISHER",
  obd="minarch_jax.pruning.gradients:OBD",
  movement="minarch_jax.pruning.gradients:MOVEMENT",
  wanda="minarch_jax.pruning.activations:WANDA",
)

# Those that score what a study has: a network once it is trained.
TRAINED_CRITERIA = Joined(CRITERIA, without=("movement",))

# How much goes where: a `pruning.scopes.Scope`, or its counting function.
SCOPES = Registry(
  **{"global": "minarch_jax.pruning.scopes:GLOBAL"},
  layerwise="minarch_jax.pruning.scopes:LAYERWISE",
  erk="minarch_jax.pruning.scopes:ERK",
)

# What goes as one: a `pruning.granularity.Granularity`.
GRANULARITIES = Registry(
  element="minarch_jax.pruning.granularity:ELEMENT",
  nm="minarch_jax.pruning.granularity:NM",
  block="minarch_jax.pruning.granularity:BLOCK",
  unit="minarch_jax.pruning.granularity:UNIT",
)

# When it goes: a `pruning.schedules.Schedule`, or a function called like one.
SCHEDULES = Registry(
  oneshot="minarch_jax.pruning.schedules:oneshot",
  finetune="minarch_jax.pruning.schedules:finetune",
  iterative="minarch_jax.pruning.schedules:iterative",
  gradual="minarch_jax.pruning.schedules:gradual",
)

# How connections move while a pruned network trains: a `pruning.dynamic.Move`.
MOVES = Registry(
  rigl="minarch_jax.pruning.dynamic:RIGL",
  set="minarch_jax.pruning.dynamic:SET",
)

# How a study trains what it has pruned.
RETRAINING = Joined(SCHEDULES, MOVES, without=("oneshot",))

# --- quantization ------------------------------------------------------------

# Which numbers exist: a `quantization.formats.Format`.
FORMATS = Registry(
  float32="minarch_jax.quantization.formats:FLOAT32",
  int8="minarch_jax.quantization.formats:INT8",
  int6="minarch_jax.quantization.formats:INT6",
  int5="minarch_jax.quantization.formats:INT5",
  int4="minarch_jax.quantization.formats:INT4",
  int3="minarch_jax.quantization.formats:INT3",
  int2="minarch_jax.quantization.formats:INT2",
  nf4="minarch_jax.quantization.formats:NF4",
  ternary="minarch_jax.quantization.formats:TERNARY",
  binary="minarch_jax.quantization.formats:BINARY",
  float8_e4m3="minarch_jax.quantization.formats:FLOAT8_E4M3",
  float8_e5m2="minarch_jax.quantization.formats:FLOAT8_E5M2",
  bfloat16="minarch_jax.quantization.formats:BFLOAT16",
  float16="minarch_jax.quantization.formats:FLOAT16",
  uint8="minarch_jax.quantization.formats:UINT8",
  uint6="minarch_jax.quantization.formats:UINT6",
  uint5="minarch_jax.quantization.formats:UINT5",
  uint4="minarch_jax.quantization.formats:UINT4",
  uint3="minarch_jax.quantization.formats:UINT3",
  uint2="minarch_jax.quantization.formats:UINT2",
)

# Over which range: a `quantization.calibration.Calibration`, or its function.
CALIBRATIONS = Registry(
  absmax="minarch_jax.quantization.calibration:ABSMAX",
  percentile="minarch_jax.quantization.calibration:PERCENTILE",
  mse="minarch_jax.quantization.calibration:MSE",
  kl="minarch_jax.quantization.calibration:KL",
  mean="minarch_jax.quantization.calibration:MEAN",
)

# What rounds a whole network to symmetric integers, looking at images: called
# as `quantization.networks.gptq.gptq`.
METHODS = Registry(gptq="minarch_jax.quantization.networks.gptq:gptq")

# How a study rounds weights: calibrations of symmetric integers and methods, at
# each of --bits, and formats of their own width; not what --bits says already.
QUANTIZERS = Joined(
  CALIBRATIONS,
  FORMATS,
  METHODS,
  without=(
    *("mean", "float32"),
    *("int8", "int6", "int5", "int4", "int3", "int2"),
  ),
)

# --- exports -----------------------------------------------------------------

# How a network is written for use elsewhere, by the ending of the file: a
# function (`engine.exports.networks.Network`) -> bytes.
EXPORTS = Registry(
  stablehlo="minarch_jax.engine.exports.stablehlo:content",
  onnx="minarch_jax.engine.exports.onnx:content",
  safetensors="minarch_jax.engine.exports.numbers:content",
)

# --- machines ----------------------------------------------------------------

# Where the tasks of a study are done: called as `executors.local.run`.
EXECUTORS = Registry(
  local="minarch_jax.executors.local:run",
  ray="minarch_jax.executors.ray:run",
  slurm="minarch_jax.executors.slurm:run",
)

# --- report ------------------------------------------------------------------

# The tables and figures of the report, as they follow in each section.
TABLES = Registry(
  regime_counts="minarch_jax.report.tables:REGIME_COUNTS",
  regime_boundaries="minarch_jax.report.tables:REGIME_BOUNDARIES",
  regimes="minarch_jax.report.tables:REGIMES",
  minimal_parameters="minarch_jax.report.tables:MINIMAL_PARAMETERS",
  selected="minarch_jax.report.tables:SELECTED",
  convergence_phases="minarch_jax.report.tables:CONVERGENCE_PHASES",
  controls="minarch_jax.report.tables:CONTROLS",
  redundancy="minarch_jax.report.tables:REDUNDANCY",
  pruning_phases="minarch_jax.report.tables:PRUNING_PHASES",
  sensitivity="minarch_jax.report.tables:SENSITIVITY",
  overlap="minarch_jax.report.tables:OVERLAP",
  quantization_slopes="minarch_jax.report.tables:QUANTIZATION_SLOPES",
  quantization="minarch_jax.report.tables:QUANTIZATION",
  activation_quantization="minarch_jax.report.tables:ACTIVATION_QUANTIZATION",
  quantizer_damage="minarch_jax.report.tables:QUANTIZER_DAMAGE",
  guidance="minarch_jax.report.tables:GUIDANCE",
  claims="minarch_jax.report.tables:CLAIMS",
  stages="minarch_jax.report.tables:STAGES",
  packs="minarch_jax.report.tables:PACKS",
)

FIGURES = Registry(
  accuracy="minarch_jax.report.convergence:ACCURACY",
  accuracy_curves="minarch_jax.report.convergence:ACCURACY_CURVES",
  loss_curves="minarch_jax.report.convergence:LOSS_CURVES",
  phases="minarch_jax.report.convergence:PHASES",
  sparsity="minarch_jax.report.pruning:SPARSITY",
  redundancy="minarch_jax.report.pruning:REDUNDANCY",
  sensitivity="minarch_jax.report.sensitivity:SENSITIVITY",
  overlap="minarch_jax.report.sensitivity:OVERLAP",
  damage="minarch_jax.report.quantization:DAMAGE",
  surface="minarch_jax.report.quantization:SURFACE",
  pareto="minarch_jax.report.quantization:PARETO",
  claims="minarch_jax.report.claims:CLAIMS",
)


# --- watching ----------------------------------------------------------------

# Where runs can be watched: a function of a folder and a `loggers.Run`.
LOGGERS = Registry(
  csv="minarch_jax.stages.loggers:csv",
  tensorboard="minarch_jax.stages.loggers:tensorboard",
  wandb="minarch_jax.stages.loggers:wandb",
  trackio="minarch_jax.stages.loggers:trackio",
)
# The packages that they need, which are extras of the same names.
PACKAGES = {
  "tensorboard": "tensorboardX",
  "wandb": "wandb",
  "trackio": "trackio",
}
