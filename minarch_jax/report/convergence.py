"""Figures of the sweep: accuracy, learning curves, convergence phases."""

import itertools

import altair as alt
import polars as pl

from minarch_jax.analysis import tables
from minarch_jax.report import reading as reading_lib
from minarch_jax.report import theme
from minarch_jax.report.entries import Drawing, Figure
from minarch_jax.report.reading import Reading

_MOST_SEEDS = 800  # more single networks than this only blacken the panel
_MOST_BARS = 16  # bars per panel that can still be read


def _percent(column: str) -> pl.Expr:
  return (pl.col(column) * 100).round(1).cast(pl.String) + " %"


def accuracy(reading: Reading) -> Drawing | None:
  """Draws accuracy against parameters, regimes in colour, P_min as a band."""
  networks, regimes = reading.records.networks, reading.tables["regimes"]
  if regimes.is_empty():
    return None
  level = reading.config.confidence
  keys = ["dataset", "family", "architecture", "params"]
  means = tables.mean_interval(networks, keys, "val", level)
  means = means.join(
    regimes.select("dataset", "architecture", "label"),
    on=["dataset", "architecture"],
  )
  count = len(means)
  means = means.join(
    reading.shown, on=["dataset", "architecture"], how="semi"
  ).with_columns(
    pl.col("mean", "low", "high").pipe(theme.to_error),
    layer=pl.lit("mean"),
    note=theme.note(
      "{}: {} parameters, {} over {} seeds, {}",
      "architecture",
      "params",
      _percent("mean"),
      "n",
      "label",
    ),
  )
  seeds = networks.select(
    "dataset",
    "family",
    "params",
    mean=theme.to_error(pl.col("val_accuracy")),
    layer=pl.lit("seed"),
  )
  if len(seeds) > _MOST_SEEDS:
    seeds = seeds.clear()
  minimal = reading.tables["minimal_parameters"].with_columns(
    pl.col("p_min_low", "p_min_high").clip(1.0, 1e12),
    layer=pl.lit("minimal"),
    plateau=theme.to_error(pl.col("plateau")),
  )
  x = theme.params_x(networks)
  y = theme.accuracy_y("mean", [*seeds["mean"], *means["mean"]])
  light = theme.lightness(len(means))
  layers = [
    theme.only("minimal")
    .mark_rect(color=theme.PALE, opacity=0.5, clip=True)
    .encode(x=alt.X("p_min_low:Q"), x2=alt.X2("p_min_high:Q")),
    theme.only("minimal")
    .mark_rule(color=theme.BLACK, strokeWidth=1.2)
    .encode(x=alt.X("p_min:Q")),
    theme.only("minimal")
    .mark_rule(color=theme.GREY, strokeDash=[4, 3])
    .encode(y=alt.Y("plateau:Q")),
    theme.only("seed")
    .mark_point(color=theme.GREY, size=10, opacity=0.45)
    .encode(x=x, y=y),
    theme.only("mean")
    .mark_rule(strokeWidth=1.4, clip=True, opacity=light)
    .encode(
      x=x,
      y=alt.Y("low:Q"),
      y2=alt.Y2("high:Q"),
      color=theme.colour("label", theme.REGIMES, "regime"),
    ),
    theme.only("mean")
    .mark_point(aria=True, size=45 * light)
    .encode(
      x=x,
      y=y,
      color=theme.colour("label", theme.REGIMES, "regime"),
      shape=theme.shape("label", theme.REGIMES, "regime"),
      description=alt.Description("note:N"),
    ),
  ]
  chart, drawn = theme.panels(
    [minimal, seeds, means],
    layers,
    ("family", reading.families),
    ("dataset", reading.datasets),
  )
  config = reading.config
  return Drawing(
    "Accuracy against parameters",
    chart,
    f"Final validation accuracy of {reading_lib.drawn(means, count)}, "
    f"{reading_lib.seeds(regimes)}. Large marks: mean over seeds with its "
    f"{level:.0%} Student t interval, coloured by regime; small grey marks: "
    "single networks. Solid vertical line: minimal parameters P_min (all "
    f"larger networks within {config.eps_accuracy:g} of the plateau, seed "
    f"standard deviation at most {config.eps_sigma:g}); band: its "
    f"{level:.0%} bootstrap interval; none where the grid does not bracket it. "
    "Dashed line: plateau. The accuracy axis is logarithmic in the error.",
    drawn,
  )


def _curves(reading: Reading, column: str) -> tuple[pl.DataFrame, str]:
  """Median and quartiles of curves per regime; the row field beside it."""
  row = "family" if len(reading.datasets) == 1 else "dataset"
  labels = reading.tables["regimes"].select(
    "dataset", "family", "architecture", "label"
  )
  long = (
    reading.records.curves.join(labels, on=["dataset", "architecture"])
    .unpivot(
      on=[f"train_{column}", f"val_{column}"],
      index=[row, "label", "epoch"],
      variable_name="split",
    )
    .drop_nulls("value")
    .with_columns(
      split=pl.when(pl.col("split").str.starts_with("train"))
      .then(pl.lit("train"))
      .otherwise(pl.lit("validation"))
    )
  )
  keys = [row, "label", "split", "epoch"]
  spread = long.group_by(keys).agg(
    middle=pl.col("value").median(),
    low=pl.col("value").quantile(0.25, "linear"),
    high=pl.col("value").quantile(0.75, "linear"),
  )
  return spread.sort(keys).with_columns(layer=pl.lit("curve")), row


def _learning_curves(
  reading: Reading, spread: pl.DataFrame, row: str, y: alt.Y, what: str
) -> Drawing:
  last = int(max(spread["epoch"]))
  step = max(1, round(last / 6))
  x = alt.X(
    "epoch:Q",
    title="epoch",
    axis=alt.Axis(values=list(range(step, last + 1, step)), format="d"),
    scale=alt.Scale(nice=False),
  )
  split = theme.colour("split", theme.SPLITS)
  layers = [
    theme.only("curve")
    .mark_area(opacity=0.18)
    .encode(x=x, y=y, y2=alt.Y2("high:Q"), color=split),
    theme.only("curve")
    .mark_line(strokeWidth=1.8)
    .encode(x=x, y=alt.Y("middle:Q"), color=split),
  ]
  labels = [label for label in theme.REGIMES if label in set(spread["label"])]
  lines = reading.families if row == "family" else reading.datasets
  chart, drawn = theme.panels(
    [spread], layers, ("label", labels), (row, lines), height=120
  )
  counts = reading.tables["regimes"].group_by("label").agg(pl.sum("n_seeds"))
  number = dict(counts.iter_rows())
  networks = ", ".join(f"{number[label]} {label}" for label in labels)
  return Drawing(
    f"Learning curves by regime: {what}",
    chart,
    f"Lines: median over networks ({networks}); bands: quartiles. Training "
    "values are means over the minibatches of an epoch, taken while training.",
    drawn,
  )


def accuracy_curves(reading: Reading) -> Drawing | None:
  """Draws training and validation accuracy per epoch, by regime."""
  if reading.records.curves.is_empty():
    return None
  spread, row = _curves(reading, "accuracy")
  best = spread.filter(split="validation")["high"].max()
  floor = theme.to_error(best) / 3  # where training accuracy is cut off
  spread = spread.with_columns(
    pl.col("middle", "low", "high").pipe(theme.to_error).clip(floor)
  )
  y = theme.accuracy_y(
    "low", [*spread["low"], *spread["high"]], "accuracy", True
  )
  figure = _learning_curves(reading, spread, row, y, "accuracy")
  return figure._replace(
    caption=figure.caption
    + " Training accuracy is cut off where the axis, logarithmic in the error, "
    "ends."
  )


def loss_curves(reading: Reading) -> Drawing | None:
  """Draws training and validation loss per epoch, by regime."""
  if reading.records.curves.is_empty():
    return None
  spread, row = _curves(reading, "loss")
  if spread.is_empty():
    return None
  floor = 1e-4
  spread = spread.with_columns(pl.col("middle", "low", "high").clip(floor))
  low, high = min(spread["low"]) / 1.1, max(spread["high"]) * 1.1
  y = alt.Y(
    "low:Q",
    title="cross-entropy (nats)",
    axis=alt.Axis(values=theme.log_ticks(low, high), format="~g"),
    scale=alt.Scale(type="log", domain=[low, high], nice=False),
  )
  figure = _learning_curves(reading, spread, row, y, "loss")
  return figure._replace(
    caption=figure.caption
    + " Networks whose loss is not finite (diverged) are left out from then on."
  )


def phases(reading: Reading) -> Drawing | None:
  """Draws how many epochs each architecture spends in each phase."""
  table, config = reading.tables["convergence_phases"], reading.config
  names = list(theme.PHASES)
  if table.is_empty():
    return None
  shown = pl.concat(
    [
      reading_lib.spread_out(part.sort("params", "architecture"), _MOST_BARS)
      for _, part in table.group_by("dataset", "family", maintain_order=True)
    ]
  )
  left = pl.col("n_left") / pl.col("n_seeds")
  frame = (
    shown.drop("epochs")
    .with_columns(pl.col(names[1:]).fill_null(0) * left)
    .unpivot(
      on=names,
      index=["dataset", "family", "architecture", "params"],
      variable_name="phase",
      value_name="epochs",
    )
    .with_columns(
      order=pl.col("phase").replace_strict(
        {name: i for i, name in enumerate(names)}
      ),
      layer=pl.lit("bar"),
      note=theme.note(
        "{}: {} for {} epochs",
        "architecture",
        "phase",
        pl.col("epochs").round(1),
      ),
    )
    .sort(
      pl.col("dataset").cast(pl.Enum(reading.datasets)),
      pl.col("family").cast(pl.Enum(reading.families)),
      "params",
      "architecture",
      "order",
    )
  )
  lines = [
    alt.hconcat(
      *(
        _bars(dataset, family, len(reading.datasets) > 1)
        for dataset, family in cells
      ),
      spacing=14,
    )
    for _, cells in itertools.groupby(
      frame.select("dataset", "family").unique(maintain_order=True).iter_rows(),
      key=lambda cell: cell[0],
    )
  ]
  return Drawing(
    "Convergence phases",
    alt.vconcat(*lines, data=theme.ROWS),
    f"Mean length of each phase over seeds ({reading_lib.seeds(table)}), one "
    f"bar per architecture, smallest at the bottom ({len(shown)} of "
    f"{len(table)} shown). Chance: until accuracy leaves chance, all epochs "
    f"where it never does; rapid: until {config.rapid_gain:.0%} of the final "
    "gain; refinement: until within "
    f"{reading_lib.points(config.saturation_margin)} of the best; saturation: "
    f"the rest. {config.confidence:.0%} intervals are in the table.",
    theme.rows(frame),
  )


def _bars(dataset: str, family: str, several: bool) -> alt.Chart:
  """One panel of stacked bars; names the data set where there are several."""
  title = f"{dataset}, {family}" if several else family
  return (
    alt.Chart(
      title=alt.Title(title, anchor="middle"), width=170, height=alt.Step(14)
    )
    .transform_filter(
      (alt.datum.dataset == dataset) & (alt.datum.family == family)
    )
    .mark_bar(aria=True)
    .encode(
      x=alt.X(
        "epochs:Q", title="epochs", stack="zero", scale=alt.Scale(nice=False)
      ),
      y=alt.Y(
        "architecture:N",
        sort=alt.EncodingSortField("params", op="max", order="descending"),
        title=None,
        axis=alt.Axis(labelFontSize=10, labelLimit=110),
      ),
      color=theme.colour("phase", theme.PHASES),
      order=alt.Order("order:Q"),
      description=alt.Description("note:N"),
    )
  )


ACCURACY = Figure("regimes", accuracy)
ACCURACY_CURVES = Figure("regimes", accuracy_curves)
LOSS_CURVES = Figure("regimes", loss_curves)
PHASES = Figure("convergence", phases)
