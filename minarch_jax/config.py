"""The one frozen Config: the only home of defaults, and its absl flags.

Imports nothing heavy, so a typo in a flag is reported before JAX starts.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import importlib.util
import math
import os
import re
import tempfile
from typing import Any, TypeVar

from minarch_jax import registries

T = TypeVar("T")


class ConfigError(ValueError):
  """A value the user typed cannot be used; the message says what can."""


def _field(default: Any, help: str, role: str = "", **rules: Any) -> Any:
  """Declares a field.

  Args:
    default: what it is where nobody says otherwise.
    help: a sentence for --help.
    role: "training" (enters a network's identity), "retraining" or "threshold"
      (recorded with results), "place" (where it runs, and nothing else).
    **rules: choices (names, or a function that lists them), endings (names
      that may follow after a colon), low, high (inclusive), below, parsed_by
      ("module:name" of a function that raises ValueError for a text it cannot
      read).
  """
  return dataclasses.field(
    default=default, metadata={"help": help, "role": role, "rules": rules}
  )


# A granularity, and the sizes of those that have some: unit, nm:4, block:4x4.
_SIZES = r"[1-9]\d*(x[1-9]\d*)*"


FORMATS = ("svg", "png", "pdf")  # of figures


@dataclasses.dataclass(frozen=True)
class Config:
  """Every choice of a study. Fields are flags of the same name."""

  # What is studied.
  dataset: str = _field(
    "digits",
    "Data set: digits, synthetic:DIFFICULTY, any TFDS image set, or one's own "
    "FILE.npz (x, y) or ./FOLDER (a folder of images per class, or as "
    "datasets.save_to_disk leaves it); a harder form of any of them as "
    "digits:blurred.",
    endings=registries.VARIANTS,
  )
  datasets: tuple[str, ...] = _field(
    (),
    "Several data sets in one study, instead of --dataset: "
    "digits,digits:blurred or mnist,fashion_mnist,cifar10.",
  )
  data_dir: str = _field(
    "", "Directory of prepared TFDS data sets ('' = TFDS's own default)."
  )
  families: tuple[str, ...] = _field(
    ("dnn", "cnn", "vit"),
    "Families whose grid is swept.",
    choices=registries.FAMILIES,
  )
  grid: str = _field(
    "ladder",
    "Named grid: family and depth crossed at equal sizes (ladder), the paper's "
    "groups, its monotone shapes, equal widths (square), small, tiny.",
    choices=registries.grids,
  )
  architectures: tuple[str, ...] = _field(
    (),
    "Explicit architectures instead of a grid: dnn:30-30,cnn:8,...",
    parsed_by="minarch_jax.architectures.architecture:parse",
  )
  num_seeds: int = _field(5, "Seeds per architecture.", low=1)
  design: str = _field(
    "arms",
    "What a study trains beside its sweep: nothing (sweep); fresh seeds of what"
    " it chose, harder images and noisy labels (arms); more of each (full).",
    choices=("sweep", "arms", "full"),
  )
  first_seed: int = _field(0, "The first seed.", low=0)

  # Data protocol.
  folds: int = _field(
    5,
    "Validation folds of the training images: seed s validates on fold s mod "
    "folds and trains on the others (1 = all seeds on one split).",
    low=1,
  )
  validation_fraction: float = _field(
    0.0,
    "Share of the training images held out where --folds=1 (0 = a tenth).",
    low=0.0,
    high=0.5,
  )
  split_seed: int = _field(0, "Seed of the train/validation split.", low=0)

  # Training.
  num_epochs: int = _field(25, "Epochs of training.", low=1, role="training")
  batch_size: int = _field(64, "Images per step.", low=1, role="training")
  init: str = _field(
    "he_normal",
    "Initial values; pytorch is what torch.nn layers start from, biases too.",
    choices=registries.INITS,
    role="training",
  )
  optimizer: str = _field(
    "adam", "Optimizer.", choices=("adam", "adamw", "sgd"), role="training"
  )
  learning_rate: float = _field(
    3e-3, "Peak learning rate.", low=1e-9, role="training"
  )
  schedule: str = _field(
    "cosine",
    "Learning-rate schedule.",
    choices=("constant", "cosine"),
    role="training",
  )
  warmup_fraction: float = _field(
    0.05,
    "Share of the steps that warm up (cosine).",
    low=0.0,
    high=0.9,
    role="training",
  )
  weight_decay: float = _field(
    1e-4, "Decoupled decay (adamw, sgd).", low=0.0, role="training"
  )
  momentum: float = _field(
    0.9, "Momentum (sgd).", low=0.0, high=0.9999, role="training"
  )
  compute_dtype: str = _field(
    "float32",
    "Type of activations and products; parameters stay float32.",
    choices=("float32", "bfloat16"),
    role="training",
  )

  # Compression.
  criteria: tuple[str, ...] = _field(
    ("magnitude", "random"),
    "Pruning criteria compared; bits are crossed with the first.",
    choices=registries.TRAINED_CRITERIA,
  )
  granularities: tuple[str, ...] = _field(
    ("element",), "What is removed as one: element, unit, nm:4, block:4x4."
  )
  scopes: tuple[str, ...] = _field(
    ("global", "layerwise"),
    "How the sparsity is allocated over layers.",
    choices=registries.SCOPES,
  )
  sparsities: tuple[float, ...] = _field(
    (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
    "Fractions of weights removed.",
    low=0.0,
    below=1.0,
  )
  finetune_share: float = _field(
    0.08,
    "Steps of training after pruning, at every sparsity including 0, as a "
    "share of the training's (0 = one-shot only).",
    low=0.0,
    high=1.0,
    role="retraining",
  )
  finetune_learning_rate: float = _field(
    3e-4,
    "Constant learning rate of fine-tuning.",
    low=1e-9,
    role="retraining",
  )
  schedules: tuple[str, ...] = _field(
    ("finetune",),
    "How pruned networks are trained on, all for the same steps: cut once "
    "(finetune), cut and trained in rounds (iterative, gradual), or with "
    "connections that move between rounds (rigl, set).",
    choices=registries.RETRAINING,
  )
  retraining_rounds: int = _field(
    5,
    "Rounds of the schedules that have several.",
    low=2,
    role="retraining",
  )
  finetune: str = _field(
    "representatives",
    "Which architectures are retrained: per family one per depth at the "
    "minimal size and one above; or all.",
    choices=("representatives", "all"),
  )
  controls: tuple[str, ...] = _field(
    ("shuffled", "reinit", "small_dense"),
    "What pruning must beat: the mask shuffled within layers, new weights "
    "under it, a dense network as small; for one architecture per family.",
    choices=("shuffled", "reinit", "small_dense"),
  )
  control_sparsities: tuple[float, ...] = _field(
    (),
    "Sparsities at which controls are trained (none = the one of --sparsities "
    "nearest to 0.8).",
    low=0.0,
    below=1.0,
  )
  bits: tuple[int, ...] = _field(
    (32, 8, 4),
    "Weight precisions, 2 to 8, crossed with --sparsities; 32 = as trained.",
  )
  dense_bits: tuple[int, ...] = _field(
    (3, 2), "Further weight precisions, on dense networks only."
  )
  activation_bits: tuple[int, ...] = _field(
    (32,),
    "Precisions of layers' inputs, 2 to 8, crossed with --bits on dense "
    "networks; 32 = as computed.",
  )
  quantizers: tuple[str, ...] = _field(
    ("absmax",),
    "How weights are rounded: symmetric integers of --bits over their whole "
    "range (absmax); on dense networks also over a narrower one (percentile, "
    "mse, kl), fitted to the whole network on training images (gptq), "
    "asymmetric integers (uint) and other number formats.",
    choices=registries.QUANTIZERS,
  )
  quant_granularities: tuple[str, ...] = _field(
    ("channel", "tensor"),
    "What shares one quantization scale.",
    choices=("channel", "tensor"),
  )

  # Judgement: thresholds of the analysis, recorded with every result.
  eps_accuracy: float = _field(
    0.02,
    "Tolerated distance to the plateau.",
    low=0.0,
    high=1.0,
    role="threshold",
  )
  eps_sigma: float = _field(
    0.02,
    "Largest seed standard deviation called stable.",
    low=0.0,
    high=1.0,
    role="threshold",
  )
  max_failed: float = _field(
    0.05,
    "Largest share of failed seeds called stable.",
    low=0.0,
    high=1.0,
    role="threshold",
  )
  chance_level: float = _field(
    0.001,
    "Level of the binomial test against chance.",
    low=0.0,
    high=1.0,
    role="threshold",
  )
  chance_margin: float = _field(
    0.05,
    "Accuracy above 1/C that is no longer chance.",
    low=0.0,
    high=1.0,
    role="threshold",
  )
  overfit_rise: float = _field(
    0.05,
    "Relative rise of validation loss called overfitting.",
    low=0.0,
    role="threshold",
  )
  learnable: float = _field(
    0.95,
    "Probability of learning that defines P_learn.",
    low=0.0,
    high=1.0,
    role="threshold",
  )
  free_margin: float = _field(
    0.01,
    "Accuracy drop still called free.",
    low=0.0,
    high=1.0,
    role="threshold",
  )
  equivalence_margin: float = _field(
    0.01,
    "Margin of the equivalence tests.",
    low=0.0,
    high=1.0,
    role="threshold",
  )
  match_tolerance: float = _field(
    0.1,
    "Relative difference of matched parameter counts.",
    low=0.0,
    role="threshold",
  )
  rapid_gain: float = _field(
    0.9,
    "Share of the final gain that ends rapid learning.",
    low=0.0,
    high=1.0,
    role="threshold",
  )
  saturation_margin: float = _field(
    0.005,
    "Distance to the best accuracy called saturated.",
    low=0.0,
    high=1.0,
    role="threshold",
  )
  collapse_share: float = _field(
    0.5,
    "Share of the accuracy above chance whose loss is called collapse.",
    low=0.0,
    high=1.0,
    role="threshold",
  )
  governing_share: float = _field(
    0.5,
    "Share of the variance of accuracy from which on a factor governs it.",
    low=0.0,
    high=1.0,
    role="threshold",
  )
  sharp_decades: float = _field(
    2.0,
    "Decades of P beyond which a transition has no minimal size.",
    low=0.0,
    role="threshold",
  )
  depth_effect: float = _field(
    0.02,
    "Sparsity per doubling of depth that matters.",
    low=0.0,
    role="threshold",
  )
  damage_effect: float = _field(
    0.02,
    "Damage per decade of P, or share of it between data sets, that matters.",
    low=0.0,
    role="threshold",
  )
  claimed_redundancy: float = _field(
    0.6,
    "Sparsity that claim C6 says is free.",
    low=0.0,
    high=1.0,
    role="threshold",
  )
  confidence: float = _field(
    0.95, "Level of every interval.", low=0.5, high=0.999, role="threshold"
  )
  num_bootstrap: int = _field(
    2000, "Bootstrap resamples.", low=100, role="threshold"
  )

  # Machine.
  out: str = _field("results", "Directory of records, checkpoints, report.")
  device_map: str = _field(
    "shard_map",
    "How the population is split over devices.",
    choices=("shard_map", "pmap"),
  )
  seed_mapping: str = _field(
    "auto",
    "Seeds inside one program: vmapped or one after another.",
    choices=("auto", "vmap", "map"),
  )
  member_mapping: str = _field(
    "auto",
    "Members inside one program: vmapped or one after another.",
    choices=("auto", "vmap", "map"),
  )
  convolution: str = _field(
    "auto",
    "Convolution formulation.",
    choices=lambda: ["auto", *registries.CONVOLUTIONS],
  )
  memory_limit: float = _field(
    0.0,
    "GiB one pack may use (0 = half of the memory, of the accelerators or else "
    "of the machine or container, shared by --packs_at_once).",
    low=0.0,
  )
  packs_at_once: int = _field(
    2, "Packs in progress at a time: one compiles while another runs.", low=1
  )
  executor: str = _field(
    "local",
    "Where packs are run: in this process (local), or on the nodes of a Ray "
    "or a Slurm cluster, which all see --out.",
    choices=registries.EXECUTORS,
    role="place",
  )
  ray_address: str = _field(
    "",
    "HOST:PORT of the Ray cluster, or auto ('' = that of $RAY_ADDRESS, or one "
    "of this machine alone).",
    role="place",
  )
  worker_cpus: int = _field(
    0,
    "Cores that a worker of another executor asks for (0 = as many as here).",
    low=0,
    role="place",
  )
  worker_gpus: int = _field(
    0, "GPUs that such a worker asks for.", low=0, role="place"
  )
  worker_tpus: int = _field(
    0, "TPU chips that such a worker asks for.", low=0, role="place"
  )
  slurm_jobs: int = _field(
    4, "Jobs of the Slurm array, which share the packs.", low=1, role="place"
  )
  slurm_minutes: int = _field(
    240,
    "Minutes that a job asks for; what is left then is queued again.",
    low=1,
    role="place",
  )
  slurm_options: tuple[str, ...] = _field(
    (),
    "Further options of sbatch: partition=gpu,account=mine.",
    role="place",
  )
  checkpoint_minutes: float = _field(
    2.0,
    "Minutes of training after which the state of a pack is kept, so that it "
    "goes on from there after a kill; Ctrl-C and SIGTERM keep it at once.",
    low=0.0,
  )
  compilation_cache_dir: str = _field(
    "default",
    "Where compiled programs are kept between runs ('' = nowhere).",
  )
  figures: tuple[str, ...] = _field(
    FORMATS,
    "Files of every figure: svg (to edit, for the web), png (for slides), pdf "
    "(for papers). The page shows the figures without any of them.",
    choices=FORMATS,
  )
  log: tuple[str, ...] = _field(
    (),
    "Where else each network is logged, under <out>/logs; all but csv are "
    "extras of the package.",
    choices=registries.LOGGERS,
  )
  repair: bool = _field(
    False, "Set damaged files of --out aside and compute anew what they held."
  )
  allow_mixed: bool = _field(
    False,
    "Add to --out also where its networks of the data set were trained with "
    "other flags, on other images or by another version.",
  )
  dry_run: bool = _field(False, "Print the plan without training.")

  def replace(self, **changes: Any) -> "Config":
    """Returns a checked copy; an unknown name is a ConfigError."""
    known = [field.name for field in dataclasses.fields(self)]
    for name in changes:
      if name not in known:
        raise ConfigError(
          f"unknown option {name!r}{registries.nearest(name, known)}"
        )
    return dataclasses.replace(self, **changes).check()

  def check(self) -> "Config":
    """Raises ConfigError for the first value out of its rules."""
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      values = value if isinstance(value, tuple) else (value,)
      for item in values:
        _check_item(field.name, item, field.metadata["rules"])
      if isinstance(value, tuple) and len(set(value)) != len(value):
        raise ConfigError(f"--{field.name} names a value twice: {value}")
    for check in (_bits, _pruning, _lists, _loggers, _data, _places):
      check(self)
    return self

  def each(self) -> tuple["Config", ...]:
    """Returns a configuration of every data set, in order."""
    return tuple(
      dataclasses.replace(self, dataset=name, datasets=())
      for name in self.datasets or (self.dataset,)
    )

  def on_each(self, check: Callable[["Config"], T]) -> list[T]:
    """Calls a check with the configuration of every data set.

    Raises:
      ConfigError: what the check raises first; of several data sets it is said
        on which.
    """
    found = []
    for part in self.each():
      try:
        found.append(check(part))
      except ConfigError as error:
        if not self.datasets:
          raise
        raise ConfigError(f"--datasets, {part.dataset}: {error}") from None
    return found

  def recipe(self) -> dict[str, Any]:
    """Returns the fields that decide a network's training, for its identity.

    The data enter by their fingerprint; machine fields change where and how
    fast, thresholds how results are judged, never what is computed.
    """
    return {name: getattr(self, name) for name in TRAINING}

  @property
  def compared_sparsities(self) -> tuple[float, ...]:
    """The sparsities at which controls are trained."""
    nearest = min(self.sparsities, key=lambda s: abs(s - CONTROL_SPARSITY))
    return self.control_sparsities or ((nearest,) if nearest else ())

  @property
  def held_out(self) -> float:
    """Share of the training images that a seed validates on."""
    return (
      1 / self.folds
      if self.folds > 1
      else self.validation_fraction or SINGLE_SPLIT
    )

  @property
  def seeds(self) -> range:
    return range(self.first_seed, self.first_seed + self.num_seeds)


CONTROL_SPARSITY = 0.8
SINGLE_SPLIT = 0.1  # share held out where there is one fold

BITS = (32, 8, 7, 6, 5, 4, 3, 2)


def _with_role(role: str) -> tuple[str, ...]:
  fields = dataclasses.fields(Config)
  return tuple(f.name for f in fields if f.metadata["role"] == role)


THRESHOLDS = _with_role("threshold")
TRAINING = _with_role("training")
PLACES = _with_role("place")
# Which executors ask a choice of place; all where none is named.
_USERS = {
  "ray_address": ("ray",),
  "worker_cpus": ("ray", "slurm"),
  "worker_gpus": ("ray", "slurm"),
  "worker_tpus": ("ray",),
  "slurm_jobs": ("slurm",),
  "slurm_minutes": ("slurm",),
  "slurm_options": ("slurm",),
}
RETRAINING = _with_role("retraining")  # no column of a table shows these


# --- rules of several fields, or of what a list holds ------------------------


def _bits(config: Config) -> None:
  for name in ("bits", "dense_bits", "activation_bits"):
    for bits in getattr(config, name):
      if bits not in BITS:
        raise ConfigError(
          f"--{name}={bits} is not one of {', '.join(map(str, BITS))}"
        )


def _pruning(config: Config) -> None:
  for text in config.granularities:
    name, colon, sizes = text.partition(":")
    if name not in registries.GRANULARITIES:
      raise ConfigError(
        f"--granularities={text} is not one of "
        f"{', '.join(registries.GRANULARITIES)} (with sizes: nm:4, block:4x4)"
        f"{registries.nearest(name, registries.GRANULARITIES)}"
      )
    if colon and not re.fullmatch(_SIZES, sizes):
      raise ConfigError(
        f"--granularities={text}: write positive sizes after the colon, as "
        "in nm:4 or block:4x4"
      )
  for sparsity in config.control_sparsities:
    if sparsity not in config.sparsities:
      raise ConfigError(
        f"--control_sparsities={sparsity} is not one of --sparsities="
        f"{','.join(map(str, config.sparsities))}; controls are compared with "
        "networks pruned as much"
      )


def _lists(config: Config) -> None:
  for name in (
    *("sparsities", "bits", "activation_bits", "quantizers"),
    *("criteria", "scopes"),
  ):
    if not getattr(config, name):
      raise ConfigError(f"--{name} is empty; name at least one")
  if not config.families and not config.architectures:
    raise ConfigError("--families is empty; name at least one")


def _loggers(config: Config) -> None:
  for name in config.log:
    package = registries.PACKAGES.get(name)
    if package and not importlib.util.find_spec(package):
      raise ConfigError(
        f"--log={name} needs the package {package}, which is not installed: "
        f"pip install 'minarch-jax[{name}]'"
      )


def _data(config: Config) -> None:
  if config.folds > 1 and config.validation_fraction:
    raise ConfigError(
      f"--validation_fraction={config.validation_fraction} is for one split; "
      f"--folds={config.folds} holds out one part in {config.folds}: add "
      "--folds=1, or leave it out"
    )
  if config.datasets and config.dataset != Config.dataset:
    raise ConfigError(
      f"--datasets={','.join(config.datasets)} stands instead of --dataset="
      f"{config.dataset}; name all in --datasets"
    )


def _places(config: Config) -> None:
  for option in config.slurm_options:
    if not re.fullmatch(r"[a-z][a-z_-]*=.+", option):
      raise ConfigError(
        f"--slurm_options={option}: write name=value, as sbatch has them"
      )
  for name in PLACES:
    users = _USERS.get(name, (config.executor,))
    value = getattr(config, name)
    if config.executor not in users and value != getattr(Config, name):
      raise ConfigError(
        f"--{name}={value} is for --executor={' or '.join(users)}; "
        f"this is --executor={config.executor}"
      )


def choices_of(rules: Mapping[str, Any]) -> list[str]:
  """Lists what a field may be; [] where anything goes."""
  known = rules.get("choices", ())
  names: Any = known() if callable(known) else known
  return list(names)


def check_choice(flag: str, item: Any, known: Iterable[str]) -> None:
  """Raises ConfigError for an item of a flag that is not known."""
  if item not in (known := list(known)):
    raise ConfigError(
      f"--{flag}={item} is not one of {', '.join(known)}"
      f"{registries.nearest(item, known)}"
    )


def _check_item(name: str, item: Any, rules: Mapping[str, Any]) -> None:
  if "choices" in rules:
    check_choice(name, item, choices_of(rules))
  if "parsed_by" in rules:
    try:
      registries.resolve(rules["parsed_by"])(item)
    except ValueError as error:
      raise ConfigError(f"--{name}: {error}") from None
  if isinstance(item, float) and not math.isfinite(item):
    raise ConfigError(f"--{name}={item} is not a finite number")
  if "low" in rules and item < rules["low"]:
    raise ConfigError(f"--{name}={item} is below {rules['low']}")
  if "high" in rules and item > rules["high"]:
    raise ConfigError(f"--{name}={item} is above {rules['high']}")
  if "below" in rules and item >= rules["below"]:
    raise ConfigError(f"--{name}={item} must be below {rules['below']}")


def check_writable(path: str) -> None:
  """Raises ConfigError unless a directory can be made and written at path."""
  existing = os.path.abspath(path)
  while not os.path.lexists(existing):
    existing = os.path.dirname(existing)
  if not os.path.isdir(existing):
    raise ConfigError(f"--out={path}: {existing} is not a directory")
  try:
    # Permissions alone do not tell: try, on a nameless file.
    tempfile.TemporaryFile(dir=existing).close()
  except OSError as error:
    raise ConfigError(
      f"--out={path}: cannot write in {existing} ({error.strerror}); choose "
      "another directory"
    ) from None
