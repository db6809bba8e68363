"""Records drawn from a world whose truth is known, to test the analysis.

A `World` says what is true; `draw` plays one study in it; the `true_*`
functions give the numbers an analysis of that study should find.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np
import polars as pl
from scipy import special

from minarch_jax import records

CLASSES = 10
CHANCE = 1 / CLASSES
DEPTHS = (1, 2, 4)
# Changes of a world that leave every analysis something to do, quickly.
LEAN: dict[str, Any] = {
  "num_epochs": 20,
  "quant_granularities": ("channel",),
  "scope_factor": (("global", 1.0),),
}
CENTRES = {"dnn": 3.0, "cnn": 2.8, "vit": 3.4}  # log10 of the smallest P_min


@dataclasses.dataclass(frozen=True)
class World:
  """What is true. Sizes are log10 of the parameter count.

  `harder` is added per data set to a family's P_min and to its damage, so the
  data sets are ordered; `depth_effect` (per doubling of the depth) and
  `family_effect` are added to the accuracy of what learns. `matched`
  architectures of different depth share each size up to a few percent.
  Accuracy follows `true_mean`; a seed fails with a probability that falls
  over `fail_width` around `fail_below` decades under P_min. `shared` is the
  share of the seed variance common to all architectures. `overfit_above`
  decades over P_min networks overfit. Redundancy of one-shot magnitude
  pruning at depth d is `redundancy + redundancy_per_depth * log2(d)`, and
  `redundancy_per_decade * (log10 P - 4)` more. Damage at b bits is `damage[b]
  + damage_slope[b] * (log10 P - 4) + damage_harder[b] * data set`.
  """

  datasets: tuple[str, ...] = ("easy", "medium", "hard")
  families: tuple[str, ...] = ("dnn", "cnn", "vit")
  num_architectures: int = 12
  matched: int = 1
  decades: tuple[float, float] = (-1.5, 2.0)  # grid around the P_min
  num_seeds: int = 5
  num_epochs: int = 30
  harder: float = 0.25
  plateaus: tuple[float, ...] = (0.97, 0.90, 0.80)
  steepness: float = 1.5
  eps_accuracy: float = 0.02
  sigma: float = 0.006
  shared: float = 0.3
  shape_effect: float = 0.0
  depth_effect: float = 0.0
  family_effect: tuple[tuple[str, float], ...] = ()
  fail_below: float = 0.9
  fail_width: float = 0.08
  diverged_share: float = 0.5
  overfit_above: float = 1.3
  overfit_width: float = 0.1
  chance_epochs: float = 2.0
  time_constant: float = 2.5
  num_validation: int = 5000
  redundancy: float = 0.55
  redundancy_per_depth: float = 0.1
  redundancy_per_decade: float = 0.0
  criterion_factor: tuple[tuple[str, float], ...] = (
    ("magnitude", 1.0),
    ("random", 0.4),
  )
  scope_factor: tuple[tuple[str, float], ...] = (
    ("global", 1.0),
    ("layerwise", 0.95),
  )
  schedule_factor: tuple[tuple[str, float], ...] = (
    ("oneshot", 1.0),
    ("finetune", 1.15),
  )
  drop_power: float = 12.0
  sparsities: tuple[float, ...] = (
    *(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98),
  )
  bits: tuple[int, ...] = (32, 8, 4)
  quant_granularities: tuple[str, ...] = ("channel", "tensor")
  damage: tuple[tuple[int, float], ...] = ((8, 0.002), (4, 0.03))
  damage_slope: tuple[tuple[int, float], ...] = ((8, -0.0005), (4, -0.008))
  damage_harder: tuple[tuple[int, float], ...] = ((8, 0.0005), (4, 0.008))
  noise: float = 0.002  # of one compressed accuracy, paired with its dense one


def log_params(world: World, family: str) -> np.ndarray:
  """The grid of one family: log10 P, the same for every data set."""
  low, high = world.decades
  centre = CENTRES[family] + world.harder * (len(world.datasets) - 1) / 2
  sizes = -(-world.num_architectures // world.matched)
  x = np.repeat(np.linspace(low, high, sizes), world.matched)
  offsets = np.tile(np.arange(world.matched) * 0.01, sizes)
  return (centre + x + offsets)[: world.num_architectures]


def centre(world: World, dataset: str, family: str) -> float:
  """log10 P where the mean of seeds that learn is eps below the plateau."""
  return CENTRES[family] + world.harder * world.datasets.index(dataset)


def plateau(world: World, dataset: str) -> float:
  return world.plateaus[world.datasets.index(dataset)]


def learned_mean(world: World, dataset: str, family: str, x: Any) -> Any:
  """Expected accuracy of a seed that does not fail, at log10 P = x."""
  gap = world.eps_accuracy * 10 ** (
    -world.steepness * (np.asarray(x) - centre(world, dataset, family))
  )
  return np.maximum(plateau(world, dataset) - gap, CHANCE + 0.1)


def learn_probability(world: World, dataset: str, family: str, x: Any) -> Any:
  middle = centre(world, dataset, family) - world.fail_below
  return special.expit((np.asarray(x) - middle) / world.fail_width)


def true_mean(world: World, dataset: str, family: str, x: Any) -> Any:
  q = learn_probability(world, dataset, family, x)
  return q * learned_mean(world, dataset, family, x) + (1 - q) * CHANCE


def true_sigma(world: World, dataset: str, family: str, x: Any) -> Any:
  q = learn_probability(world, dataset, family, x)
  jump = learned_mean(world, dataset, family, x) - CHANCE
  return np.sqrt(world.sigma**2 * q + q * (1 - q) * jump**2)


def true_p_min(
  world: World, dataset: str, family: str, eps_sigma: float = 0.02
) -> float:
  """P_min as report/method.md defines it, on the world's smooth curves."""
  x = np.linspace(0.0, 8.0, 80001)
  good = (
    true_mean(world, dataset, family, x)
    >= plateau(world, dataset) - world.eps_accuracy
  ) & (true_sigma(world, dataset, family, x) <= eps_sigma)
  bad = np.flatnonzero(~good)
  return float(10 ** x[bad[-1] + 1 if len(bad) else 0])


def true_p_learn(
  world: World, dataset: str, family: str, learnable: float = 0.95
) -> float:
  middle = centre(world, dataset, family) - world.fail_below
  return float(10 ** (middle + world.fail_width * special.logit(learnable)))


def true_redundancy(
  world: World,
  depth: int,
  criterion: str = "magnitude",
  scope: str = "global",
  schedule: str = "oneshot",
) -> float:
  """The sparsity at which exactly one point of accuracy is lost."""
  base = world.redundancy + world.redundancy_per_depth * np.log2(depth)
  factor = (
    dict(world.criterion_factor)[criterion]
    * dict(world.scope_factor)[scope]
    * dict(world.schedule_factor)[schedule]
  )
  return float(min(base * factor, 0.97))


def true_damage(world: World, dataset: str, bits: int, x: Any) -> Any:
  if bits == 32:
    return np.zeros_like(np.asarray(x, float))
  return (
    dict(world.damage)[bits]
    + dict(world.damage_slope)[bits] * (np.asarray(x) - 4)
    + dict(world.damage_harder)[bits] * world.datasets.index(dataset)
  )


def _names(family: str, count: int) -> tuple[list[str], np.ndarray]:
  """Readable, unique architecture names with depths cycling through DEPTHS."""
  names, depths = [], []
  for i in range(count):
    depth = DEPTHS[i % len(DEPTHS)]
    if family == "vit":
      names.append(f"vit:p4-d{4 * (i + 1)}-l{depth}-h1")
    else:
      names.append(f"{family}:" + "-".join([str(i + 1)] * depth))
    depths.append(depth)
  return names, np.array(depths)


def _members(world: World) -> pl.DataFrame:
  """One row per (data set, architecture) with its true numbers."""
  rows = []
  for dataset, family in itertools.product(world.datasets, world.families):
    names, depths = _names(family, world.num_architectures)
    x = log_params(world, family)
    middle = centre(world, dataset, family) + world.overfit_above
    rows.append(
      pl.DataFrame(
        {
          "dataset": dataset,
          "family": family,
          "architecture": names,
          "depth": depths,
          "params": np.round(10**x).astype(np.int64),
          "mean": learned_mean(world, dataset, family, x)
          + world.depth_effect * np.log2(depths)
          + dict(world.family_effect).get(family, 0.0),
          "learns": learn_probability(world, dataset, family, x),
          "overfits": special.expit((x - middle) / world.overfit_width),
        }
      )
    )
  return pl.concat(rows)


def _networks(world: World, rng: np.random.Generator) -> pl.DataFrame:
  """One row per network; `fails`, `over`, `best` serve the other tables."""
  members, n = _members(world), world.num_seeds
  num = len(members)
  shape = rng.normal(0, world.shape_effect, (num, 1))
  common = rng.normal(size=(1, n)) * np.sqrt(world.shared)
  own = rng.normal(size=(num, n)) * np.sqrt(1 - world.shared)
  fails = rng.random((num, n)) >= members["learns"].to_numpy()[:, None]
  diverged = fails & (rng.random((num, n)) < world.diverged_share)
  accuracy = members["mean"].to_numpy()[:, None] + shape
  accuracy = accuracy + world.sigma * (common + own)
  stuck = CHANCE + rng.normal(0, 0.004, (num, n))
  accuracy = np.where(fails, stuck, accuracy).clip(0, 1)
  over = ~fails & (
    rng.random((num, n)) < members["overfits"].to_numpy()[:, None]
  )
  best = np.where(fails, 2.3, 0.05 + 2 * (1 - accuracy))
  wide = members.drop("mean", "learns", "overfits")
  frame = wide[np.repeat(np.arange(num), n)]

  def flat(values):
    return np.asarray(values).ravel()

  def measured(values, images):
    return flat(np.round(values * images) / images)

  def nulled(values):
    return pl.Series(flat(values)).set(pl.Series(flat(diverged)), None)

  test = (accuracy + rng.normal(0, 0.002, (num, n))).clip(0, 1)
  return frame.with_columns(
    run_id=pl.format("run-{}", "dataset"),
    fingerprint=pl.lit("simulated"),
    fold=pl.lit(0, pl.Int64),
    arm=pl.lit(records.MAIN),
    macs=pl.col("params") * 3,
    seed=np.tile(np.arange(n), num),
    steps=pl.lit(100 * world.num_epochs, pl.Int64),
    epochs=pl.lit(world.num_epochs, pl.Int64),
    train_loss=nulled(best * 0.5),
    train_accuracy=flat((accuracy + 0.01).clip(0, 1)),
    val_loss=nulled(best * np.where(over, 1.25, 1.0)),
    val_accuracy=measured(accuracy, world.num_validation),
    test_loss=nulled(best * 1.02),
    test_accuracy=measured(test, 10000),
    diverged=flat(diverged),
    diverged_epoch=pl.Series(np.where(flat(diverged), 1, 0)).replace(0, None),
    num_classes=pl.lit(CLASSES, pl.Int64),
    num_validation=pl.lit(world.num_validation, pl.Int64),
    num_test=pl.lit(10000, pl.Int64),
    seconds=pl.lit(0.5),
    fails=flat(fails),
    over=flat(over),
    best=flat(best),
  )


def true_curve(world: World, final: Any, epoch: Any) -> Any:
  """Accuracy after `epoch` epochs of a network that ends near `final`."""
  since = np.maximum(np.asarray(epoch, float) - world.chance_epochs, 0)
  return final - (final - CHANCE) * np.exp(-since / world.time_constant)


def _curves(
  world: World, networks: pl.DataFrame, rng: np.random.Generator
) -> pl.DataFrame:
  num, epochs = len(networks), world.num_epochs
  epoch = np.arange(1, epochs + 1)
  final = networks["val_accuracy"].to_numpy()[:, None]
  fails = networks["fails"].to_numpy()[:, None]
  best = networks["best"].to_numpy()[:, None]
  rise = np.where(networks["over"].to_numpy()[:, None], 0.25, 0.0)
  accuracy = np.where(fails, final, true_curve(world, final, epoch))
  accuracy = accuracy + rng.normal(0, 0.0005, accuracy.shape)
  accuracy[:, -1] = final[:, 0]
  late = np.maximum(epoch / epochs - 0.6, 0) / 0.4
  fall = np.where(fails, 0.0, np.exp(-epoch / (0.1 * epochs)))
  loss = best * (1 + 3 * fall + rise * late)
  trained = best * (0.5 + 3 * fall + 0.1 * (1 - epoch / epochs))
  index = np.repeat(np.arange(num), epochs)
  diverged = pl.Series(networks["diverged"].to_numpy()[index])
  return networks.select("run_id", "dataset", "architecture", "seed")[
    index
  ].with_columns(
    epoch=np.tile(epoch, num),
    step=np.tile(epoch * 100, num),
    train_loss=pl.Series(trained.ravel()).set(diverged, None),
    train_accuracy=(accuracy.ravel() + 0.01).clip(0, 1),
    val_loss=pl.Series(loss.ravel()).set(diverged, None),
    val_loss_even=pl.Series(loss.ravel()).set(diverged, None),
    val_loss_odd=pl.Series(loss.ravel()).set(diverged, None),
    val_accuracy=accuracy.ravel().clip(0, 1),
  )


def _settings(world: World) -> pl.DataFrame:
  """Every compression setting with the redundancy of each depth under it."""
  quantizers = [
    (bits, "none" if bits == 32 else "absmax", granularity)
    for bits in world.bits
    for granularity in (("none",) if bits == 32 else world.quant_granularities)
  ]
  cells = itertools.product(
    *(
      [name for name, _ in factors]
      for factors in (
        world.criterion_factor,
        world.scope_factor,
        world.schedule_factor,
      )
    ),
    world.sparsities,
    quantizers,
  )
  return pl.DataFrame(
    [
      (
        criterion,
        scope,
        schedule,
        sparsity,
        *quantizer,
        *(
          true_redundancy(world, depth, criterion, scope, schedule)
          for depth in DEPTHS
        ),
      )
      for criterion, scope, schedule, sparsity, quantizer in cells
    ],
    schema=[
      *("criterion", "scope", "schedule", "sparsity", "bits", "quantizer"),
      "quant_granularity",
      *(f"redundancy_{depth}" for depth in DEPTHS),
    ],
    orient="row",
  )


def _damages(world: World, networks: pl.DataFrame) -> pl.DataFrame:
  """True damage of every data set, size and number of bits."""
  sizes = networks.select("dataset", "params").unique(maintain_order=True)
  return pl.concat(
    [
      part.with_columns(
        bits=pl.lit(bits, pl.Int64),
        damage=true_damage(world, name, bits, np.log10(part["params"])),
      )
      for (name,), part in sizes.group_by("dataset", maintain_order=True)
      for bits in world.bits
    ]
  )


def _compression(
  world: World, networks: pl.DataFrame, rng: np.random.Generator
) -> pl.DataFrame:
  described = networks.select(
    *("run_id", "dataset", "family", "architecture", "depth", "params", "seed"),
    dense=pl.col("val_accuracy"),
    network_macs=pl.col("macs"),
    network_steps=pl.col("steps"),
  ).with_columns(own=rng.normal(0, world.noise, len(networks)))
  frame = described.join(_settings(world), how="cross").join(
    _damages(world, networks), on=["dataset", "params", "bits"]
  )
  redundancy = pl.coalesce(
    pl.when(pl.col("depth") == depth).then(pl.col(f"redundancy_{depth}"))
    for depth in DEPTHS
  )
  redundancy = redundancy + world.redundancy_per_decade * (
    pl.col("params").log10() - 4
  )
  frame = frame.with_columns(
    noise=rng.normal(0, world.noise, len(frame)),
    pruned=0.01 * (pl.col("sparsity") / redundancy) ** world.drop_power,
  )
  touched = (pl.col("sparsity") > 0) | (pl.col("bits") < 32)
  above = (pl.col("dense") - CHANCE).clip(0)
  lost = pl.min_horizontal(pl.col("pruned") + pl.col("damage"), above)
  accuracy = (
    pl.col("dense")
    - lost
    + pl.when(touched).then(pl.col("noise") + pl.col("own")).otherwise(0.0)
  )
  images = world.num_validation
  kept = (pl.col("params") * (1 - pl.col("sparsity"))).round().cast(pl.Int64)
  steps = pl.col("network_steps") + pl.when(
    pl.col("schedule") == "finetune"
  ).then(300).otherwise(0)
  return frame.with_columns(
    val_accuracy=((accuracy.clip(0, 1)) * images).round() / images,
    test_accuracy=(accuracy.clip(0, 1) * 10000).round() / 10000,
    achieved_sparsity=pl.col("sparsity"),
    activation_bits=pl.lit(32, pl.Int64),
    granularity=pl.lit("element"),
    control=pl.lit(records.NONE),
    dead_layers=pl.lit(0, pl.Int64),
    bytes=(pl.col("params") * pl.col("bits") / 8).ceil().cast(pl.Int64),
    nonzeros=kept,
    macs=(pl.col("network_macs") * (1 - pl.col("sparsity")))
    .round()
    .cast(pl.Int64),
    steps=steps,
  )


def draw(world: World, seed: int = 0) -> records.Records:
  """Plays one study in the world."""
  rng = np.random.default_rng(seed)
  networks = _networks(world, rng)
  tables = {
    "networks": networks,
    "curves": _curves(world, networks, rng),
    "compression": _compression(world, networks, rng),
  }
  return records.Records(
    **{
      name: table.select(
        pl.col(c).cast(t) for c, t in records.SCHEMAS[name].items()
      )
      for name, table in tables.items()
    }
  )


def simulate(seed: int = 0, **changes: Any) -> records.Records:
  """Plays one study in the default world with some fields changed."""
  return draw(World(**changes), seed)


def handmade(
  accuracy: dict[int, list[float]],
  *,
  dataset: str = "easy",
  family: str = "dnn",
  losses: list[float] | None = None,
  **columns: Any,
) -> records.Records:
  """Records whose accuracies are written out: parameter count -> per seed.

  Args:
    accuracy: final validation accuracies of the seeds of each size.
    dataset: name.
    family: name.
    losses: validation losses after each epoch, the same for every network;
      training loss falls by a tenth per epoch.
    **columns: overrides of network columns.
  """
  world = World(datasets=(dataset,), plateaus=(1.0,), families=(family,))
  wide = [
    {
      "run_id": "run-handmade",
      "dataset": dataset,
      "family": family,
      "architecture": f"{family}:{params}",
      "depth": 1,
      "params": params,
      "seed": seed,
      "fingerprint": "handmade",
      "fold": 0,
      "arm": records.MAIN,
      "macs": params,
      "steps": 100,
      "epochs": 10,
      "train_loss": 0.1,
      "train_accuracy": value,
      "val_loss": 0.1,
      "val_accuracy": value,
      "test_loss": 0.1,
      "test_accuracy": value,
      "diverged": False,
      "diverged_epoch": None,
      "num_classes": CLASSES,
      "num_validation": world.num_validation,
      "num_test": 10000,
      "seconds": 1.0,
    }
    | columns
    for params, values in accuracy.items()
    for seed, value in enumerate(values)
  ]
  networks = pl.DataFrame(wide, schema=records.SCHEMAS["networks"])
  names = ("run_id", "dataset", "architecture", "seed")
  curves = pl.DataFrame(
    [
      {name: row[name] for name in names}
      | {
        "epoch": epoch,
        "step": 10 * epoch,
        "train_loss": 1.0 - 0.1 * epoch,
        "train_accuracy": row["val_accuracy"],
        "val_loss": loss,
        "val_loss_even": loss,
        "val_loss_odd": loss,
        "val_accuracy": row["val_accuracy"],
      }
      for row in wide
      for epoch, loss in enumerate(losses or [], start=1)
    ],
    schema=records.SCHEMAS["curves"],
  )
  compression = pl.DataFrame(schema=records.SCHEMAS["compression"])
  return records.Records(networks, curves, compression)


def compressed(accuracy, *, dense=0.95, bits=32, **columns):
  """Compression rows of one architecture: sparsity -> accuracy per seed."""
  base = handmade({1000: [dense] * 5})
  rows = [
    {
      **base.networks.row(seed, named=True),
      "criterion": "magnitude",
      "scope": "global",
      "granularity": "element",
      "schedule": "oneshot",
      "control": "none",
      "sparsity": sparsity,
      "achieved_sparsity": sparsity,
      "dead_layers": 0,
      "bits": bits,
      "activation_bits": 32,
      "quantizer": "none" if bits == 32 else "absmax",
      "quant_granularity": "none" if bits == 32 else "channel",
      "val_accuracy": value,
      "test_accuracy": value,
      "bytes": 4000,
      "nonzeros": 1000,
    }
    | columns
    for sparsity, values in accuracy.items()
    for seed, value in enumerate(values)
  ]
  schema = records.SCHEMAS["compression"]
  table = pl.DataFrame(
    [{name: row[name] for name in schema} for row in rows], schema=schema
  )
  return base._replace(compression=table)
