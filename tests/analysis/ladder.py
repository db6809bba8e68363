"""Studies on a ladder of matched sizes, with arms, of known truth.

Every image of a validation fold has a difficulty that all networks feel, every
network its own opinion of it: a probit model, in which a network of accuracy p
hits each image with probability p over images. What is true of architectures
is in `World`; `draw` plays one study.
"""

import dataclasses
from typing import Any

import numpy as np
import polars as pl
from scipy import special

from minarch_jax import records
from minarch_jax.analysis.analyses import Analyses
from minarch_jax.analysis.claims import verdicts
from minarch_jax.config import Config

CLASSES, CHANCE = 10, 0.1
DEPTHS = {"dnn": (1, 2, 4), "cnn": (1, 2, 3), "vit": (1, 2, 4)}
OFFSETS = (-0.75, -0.25, 0.25, 0.75)  # decades from the middle of the ladder
MIDDLE = 3.2  # log10 P
SPARSITIES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclasses.dataclass(frozen=True)
class World:
  """What is true; sizes are log10 P from the middle of a family's ladder.

  Attributes:
    num_seeds, fresh, folds, images: of the main arm, of the confirmation, and
      images of one fold.
    shared: share of an image's difficulty that all networks feel alike.
    plateau: accuracy of large networks.
    fall: points below the plateau at the middle; ten to the power of
      `steepness` times as many a decade below.
    means: accuracy at each size instead of that.
    family, depth: logits per family number (-1, 0, 1) and doubling of depth.
    scatter: deviation over architectures, in logits.
    sigma, sigma_small: deviation over seeds, and below the middle.
    half, half_depth, half_scatter: sparsity at half loss; per doubling; over
      architectures.
    free: sparsity at which one point is lost, as a share of `half`.
    damage: share of accuracy above chance lost at each number of bits, at the
      middle; `slope` per decade as a share of that.
    harder: added to that share on the harder set, as a share of it.
    damage_scatter: over architectures, as a share.
    points: damage is of 0.85 rather than of the accuracy above chance.
    shift: decades that P_min is larger on the harder set.
    over: P(overfits) at the sizes of the overfitting arm; `over_dnn` of that
      family.
  """

  num_seeds: int = 5
  fresh: int = 10
  folds: int = 5
  images: int = 288
  shared: float = 0.7
  plateau: float = 0.95
  fall: float = 0.02
  steepness: float = 1.5
  means: tuple[float, ...] = ()
  family: float = 0.0
  depth: float = 0.0
  scatter: float = 0.1
  sigma: float = 0.006
  sigma_small: float = 0.05
  half: float = 0.8
  half_depth: float = 0.0
  half_scatter: float = 0.02
  free: float = 0.7
  damage: tuple[tuple[int, float], ...] = (
    *((8, 0.002), (4, 0.02), (3, 0.1), (2, 0.6)),
  )
  slope: float = 0.0
  harder: float = 0.0
  damage_scatter: float = 0.15
  shift: float = 0.25
  points: bool = False
  over: tuple[float, ...] = (0.1, 0.5, 0.97)
  over_dnn: tuple[float, ...] = ()
  families: tuple[str, ...] = ("dnn", "cnn", "vit")


def accuracy(world: World, x: Any) -> Any:
  """Mean accuracy of an architecture without effects of shape."""
  if world.means:
    return np.interp(x, OFFSETS, world.means)
  gap = world.fall * 10 ** (-world.steepness * np.asarray(x))
  return np.maximum(world.plateau - gap, 0.2)


@dataclasses.dataclass
class Shapes:
  """Architectures and what is true of each, arrays [A]."""

  table: pl.DataFrame  # family, architecture, depth, params
  mean: np.ndarray
  sigma: np.ndarray
  half: np.ndarray
  damaged: np.ndarray  # factor of damage

  def __getitem__(self, rows: np.ndarray) -> "Shapes":
    return Shapes(
      self.table[rows],
      *(v[rows] for v in (self.mean, self.sigma, self.half, self.damaged)),
    )


def shapes(world: World, rng: np.random.Generator) -> Shapes:
  """Draws the architectures of the ladder."""
  rows, truth = [], []
  for number, family in enumerate(world.families):
    depths = DEPTHS[family]
    for x in OFFSETS:
      for depth in depths:
        size = MIDDLE + x + rng.uniform(0, 0.03)
        params = round(10**size)
        rows.append((family, f"{family}:{params}-{depth}", depth, params))
        shape = world.family * (number - 1) + world.scatter * rng.normal()
        logit = special.logit(accuracy(world, x)) + shape
        logit += world.depth * (np.log2(depth) - 1)
        half = world.half + world.half_depth * (np.log2(depth) - 1)
        truth.append(
          (
            special.expit(logit),
            world.sigma if x > 0 else world.sigma_small,
            half + world.half_scatter * rng.normal(),
            1 + world.slope * x + world.damage_scatter * rng.normal(),
          )
        )
  names = ("family", "architecture", "depth", "params")
  table = pl.DataFrame(rows, schema=list(names), orient="row")
  return Shapes(table, *np.array(truth).T)


def _settings(world: World, kinds: str) -> list[tuple[float, int]]:
  """(sparsity, bits) of an arm; kinds: of `pruned`, `rounded`, both."""
  pruned = [(s, 32) for s in SPARSITIES] if "pruned" in kinds else []
  rounded = [(0.0, b) for b, _ in world.damage] if "rounded" in kinds else []
  return [(0.0, 32), *pruned, *rounded]


def play(
  world: World,
  found: Shapes,
  seeds: range,
  rng: np.random.Generator,
  difficulty: np.ndarray,
  *,
  arm: str = records.MAIN,
  dataset: str = "digits",
  kinds: str = "",
  worse: float = 1.0,
) -> records.Records:
  """Plays the networks of one arm on images of given difficulty [F, N]."""
  count, num = len(found.table), len(seeds)
  fold = np.array(seeds) % len(difficulty)
  target = found.mean[:, None] + found.sigma[:, None] * rng.normal(
    size=(count, num)
  )
  target = np.clip(target, CHANCE + 0.02, 0.995)
  opinion = np.sqrt(world.shared) * difficulty[fold] + np.sqrt(
    1 - world.shared
  ) * rng.normal(size=(count, num, difficulty.shape[1]))
  settings = _settings(world, kinds)
  above = target - CHANCE
  # A curve through one point at free * half and half of what is above chance
  # at half.
  power = np.log(above / 2 / 0.01) / -np.log(world.free)
  values = []
  for sparsity, bits in settings:
    lost = above / 2 * (sparsity / found.half[:, None]) ** power
    if bits < 32:
      share = dict(world.damage)[bits] * worse * found.damaged[:, None]
      whole = np.full_like(above, 0.85) if world.points else above
      lost = whole * np.clip(share, 0, 1)
    reached = np.maximum(target - np.minimum(lost, above), CHANCE)
    churn = 0.15 if sparsity or bits < 32 else 0.0
    seen = np.sqrt(1 - churn**2) * opinion + churn * rng.normal(
      size=opinion.shape
    )
    values.append(seen < special.ndtri(reached)[..., None])
  return _records(
    found.table,
    np.array(values),
    settings,
    seeds,
    fold,
    *(arm, dataset),
    kinds,
  )


def _records(
  table: pl.DataFrame,
  values: np.ndarray,
  settings: list[tuple[float, int]],
  seeds: range,
  fold: np.ndarray,
  arm: str,
  dataset: str,
  kinds: str,
) -> records.Records:
  """Records of hits [settings, A, S, N]; the first setting is as trained."""
  _, count, num, images = values.shape
  accuracy = values.mean(-1)
  networks = table[np.repeat(np.arange(count), num)].with_columns(
    run_id=pl.lit(f"run-{dataset}"),
    dataset=pl.lit(dataset),
    seed=np.tile(np.array(seeds), count),
    fold=np.tile(fold, count),
    arm=pl.lit(arm),
    val_accuracy=accuracy[0].ravel(),
    fingerprint=pl.lit("ladder"),
    diverged=pl.lit(False),
    diverged_epoch=pl.lit(None),
    num_classes=pl.lit(CLASSES),
    num_validation=pl.lit(images),
    num_test=pl.lit(359),
  )
  cells = [
    networks.with_columns(
      sparsity=pl.lit(sparsity),
      bits=pl.lit(bits),
      quantizer=pl.lit("none" if bits == 32 else "absmax"),
      quant_granularity=pl.lit("none" if bits == 32 else "channel"),
      criterion=pl.lit("magnitude"),
      scope=pl.lit("global"),
      granularity=pl.lit("element"),
      schedule=pl.lit("oneshot"),
      control=pl.lit(records.NONE),
      activation_bits=pl.lit(32),
      val_accuracy=value.ravel(),
    )
    for (sparsity, bits), value in zip(settings, accuracy, strict=True)
    if kinds
  ]
  bits = np.packbits(values, axis=-1).reshape(len(values), -1, -(-images // 8))
  plain = networks.with_columns(
    pl.lit(value).alias(name) for name, value in records.AS_TRAINED.items()
  )
  seen = [
    cell.with_columns(
      images=pl.lit(images), hits=pl.Series([row.tobytes() for row in own])
    )
    for cell, own in zip(
      [plain, *cells], [bits[0], *bits[: len(cells)]], strict=True
    )
  ]
  return records.Records(
    typed("networks", networks),
    pl.DataFrame(schema=records.SCHEMAS["curves"]),
    typed("compression", pl.concat(cells))
    if cells
    else pl.DataFrame(schema=records.SCHEMAS["compression"]),
    pl.concat([typed("hits", cell) for cell in seen]),
  )


def typed(name: str, frame: pl.DataFrame) -> pl.DataFrame:
  """The columns of a table; numbers that nothing looks at are 1."""
  return frame.select(
    (pl.col(c) if c in frame.columns else pl.lit(1))
    .cast(t, strict=False)
    .alias(c)
    for c, t in records.SCHEMAS[name].items()
  )


def overfitting(
  world: World, rng: np.random.Generator, dataset: str = "digits:noisy"
) -> records.Records:
  """The overfitting arm: every network's loss rises or does not."""
  rows = []
  for family, depths in DEPTHS.items():
    shares = world.over_dnn if family == "dnn" else ()
    shares = shares or world.over
    for share, x in zip(shares, (-0.75, 0.25, 1.25), strict=True):
      for depth in depths:
        params = round(10 ** (MIDDLE + x))
        name = f"{family}:{params}-{depth}"
        rows.append((family, name, depth, params, share))
  names = ("family", "architecture", "depth", "params", "share")
  table = pl.DataFrame(rows, schema=list(names), orient="row")
  num = world.num_seeds
  over = rng.random((len(table), num)) < table["share"].to_numpy()[:, None]
  base = _records(
    table,
    rng.random((1, len(table), num, world.images)) < 0.9,
    [(0.0, 32)],
    range(num),
    np.arange(num) % world.folds,
    *(records.OVERFITTING, dataset),
    kinds="",
  )
  epochs = np.arange(1, 5)
  loss = np.where(over.ravel()[:, None], [1.0, 0.5, 0.6, 0.7], 1 / epochs)
  index = np.repeat(np.arange(len(base.networks)), len(epochs))
  rows = base.networks.select(records.NETWORK)[index].with_columns(
    epoch=np.tile(epochs, len(base.networks)),
    train_loss=np.tile(1 / epochs, len(base.networks)),
    train_accuracy=pl.lit(0.9),
    val_accuracy=pl.lit(0.9),
    **dict.fromkeys(
      (c for c in records.SCHEMAS["curves"] if c.startswith("val_loss")),
      pl.Series(loss.ravel()),
    ),
  )
  return base._replace(curves=typed("curves", rows))


def curves(networks: pl.DataFrame, epochs: int = 20) -> pl.DataFrame:
  """Curves that leave chance, rise, refine and stay; no loss rises."""
  epoch = np.arange(1, epochs + 1)
  final = networks["val_accuracy"].to_numpy()[:, None]
  rising = final - (final - CHANCE) * np.exp(-np.maximum(epoch - 2, 0) / 2.5)
  index = np.repeat(np.arange(len(networks)), epochs)
  return typed(
    "curves",
    networks.select(records.NETWORK)[index].with_columns(
      epoch=np.tile(epoch, len(networks)),
      train_loss=(1.2 - rising).ravel(),
      train_accuracy=rising.ravel(),
      val_accuracy=rising.ravel(),
      val_loss=(1.2 - rising).ravel(),
      val_loss_even=(1.2 - rising).ravel(),
      val_loss_odd=(1.2 - rising).ravel(),
    ),
  )


def joined(*parts: records.Records) -> records.Records:
  return records.Records(
    *(pl.concat(tables) for tables in zip(*parts, strict=True))
  )


def draw(
  world: World, seed: int, config: Config, wanted: str = "confirm harder over"
) -> records.Records:
  """Plays one study: the ladder, then the arms that are wanted."""
  rng = np.random.default_rng(seed)
  images = rng.normal(size=(world.folds, world.images))
  found = shapes(world, rng)
  seeds = range(world.num_seeds)
  parts = [play(world, found, seeds, rng, images, kinds="pruned rounded")]
  if "curves" in wanted:
    parts[0] = parts[0]._replace(curves=curves(parts[0].networks))
  if "confirm" in wanted:
    chosen = choices(parts[0], found, config)
    fresh = range(1000, 1000 + world.fresh)
    for rows, kinds in zip(chosen, ("", "pruned"), strict=True):
      if len(rows):
        parts.append(
          play(
            world,
            found[rows],
            fresh,
            rng,
            images,
            arm=records.CONFIRMATION,
            kinds=kinds,
          )
        )
  if "harder" in wanted:
    rows = np.flatnonzero(found.table["depth"].to_numpy() != 2)
    own = found[rows]
    moved = dataclasses.replace(world, plateau=world.plateau - 0.07, means=())
    x = np.log10(own.table["params"].to_numpy()) - MIDDLE
    own.mean = accuracy(moved, x - world.shift)
    # Damage hangs on P / P_min.
    own.damaged = own.damaged - world.slope * world.shift
    parts.append(
      play(
        world,
        own,
        seeds,
        rng,
        images,
        arm=records.HARDER,
        dataset="digits:blurred",
        kinds="rounded",
        worse=1 + world.harder,
      )
    )
  if "over" in wanted:
    parts.append(overfitting(world, rng))
  return joined(*parts)


def choices(
  main: records.Records, found: Shapes, config: Config
) -> tuple[np.ndarray, np.ndarray]:
  """Rows of the architectures that fresh seeds are trained for: at P_min and
  below it, and the most redundant, per family."""
  known = Analyses(main, config)
  minimal = known["minimal_parameters"].drop_nulls("p_min")
  names = found.table["architecture"].to_list()
  at = []
  for row in minimal.iter_rows(named=True):
    own = found.table.filter(family=row["family"])
    below = own.filter(pl.col("params") < row["p_min"] / 1.1)
    accuracy = main.networks.group_by("architecture").agg(
      pl.col("val_accuracy").mean()
    )
    size = below.filter(pl.col("params") > below["params"].max() / 1.1)  # pyright: ignore
    size = size.join(accuracy, on="architecture").sort("val_accuracy")
    at += [
      names.index(row["architecture"]),
      names.index(size[-1, "architecture"]),
    ]
  phases = (
    known["pruning_phases"]
    .drop_nulls("redundancy")
    .join(
      known["regimes"].filter(pl.col("label") != "unstable"),
      on="architecture",
      how="semi",
    )
    .sort("redundancy", "architecture", descending=[True, False])
    .unique("family", keep="first", maintain_order=True)
  )
  best = [names.index(name) for name in phases["architecture"]]
  rest = [row for row in at if row not in best]
  return np.array(rest, int), np.array(best, int)


def judged(
  world: World, seed: int, config: Config, claim: str
) -> dict[str, Any]:
  """The row of one claim on one study of the world."""
  wanted = {"C3": "confirm", "C6": "confirm", "C8": "harder", "C2": "over"}
  study = draw(world, seed, config, wanted.get(claim, ""))
  found = Analyses(study, config)
  row = verdicts.CLAIMS[claim].test(found, config)
  return row._asdict()
