"""Sensitivity: what is recorded of layers and masks, against one at a time."""

import dataclasses
import importlib
import pathlib
import shutil
from unittest import mock

from flax import traverse_util
import jax
import numpy as np
import polars as pl
import polars.testing
import pytest

import minarch_jax as ma
from minarch_jax import data, models, pruning, records, registries, report
from minarch_jax import flags as config_flags
from minarch_jax.analysis import sensitivity as layer_analysis
from minarch_jax.architectures import Architecture, Problem
from minarch_jax.config import Config, ConfigError
from minarch_jax.engine import packs
from minarch_jax.engine import session as sessions
from minarch_jax.stages import representatives, sensitivity, setup, store, train
from tests import made_up
from tests.made_up import CLASSES, SHAPE

# The shallow DNN trains in the deep one's parent, and lacks its layers.
CONFIG = Config(
  dataset="made-up",
  architectures=("dnn:6-5-4", "dnn:5", "vit:p2-d4-l1-h2"),
  num_seeds=3,
  num_epochs=3,
  batch_size=8,
  learning_rate=0.02,
  criteria=("magnitude", "random"),
  granularities=("element", "unit"),
  sparsities=(0.4, 0.8),
)
MEMBERS = [Architecture.parse(name) for name in CONFIG.architectures]
DATA = made_up.dataset(52, 60, 11, spread=2.0, fingerprint="bytes")


DRAWN = ("sensitivity", "overlap")


def opened(**changes):
  return sessions.open_session(CONFIG.replace(**changes), DATA)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A directory of trained networks, and what was measured of them."""
  out = str(tmp_path_factory.mktemp("sensitivity"))
  train.sweep(opened(), out)
  by_rule = {
    granularity: sensitivity.complete(
      opened(granularities=(granularity,)), out, MEMBERS
    )
    for granularity in CONFIG.granularities
  }
  return out, by_rule


@pytest.fixture(scope="module")
def trained(finished):
  """The parameters of every architecture, by name."""
  session = opened()
  recipe = setup.recipe_id(session)
  found = store.load_params(finished[0], recipe, MEMBERS, CONFIG.seeds)
  return dict(zip(CONFIG.architectures, found, strict=True))


def masks_of(name, params, sparsities, granularity):
  """Masks under global scope, as a notebook makes them: [K, S, ...]."""
  spec = Architecture.parse(name).spec(Problem(SHAPE, CLASSES))

  def prune(tree, sparsity):
    return ma.prune(tree, sparsity, granularity=granularity, spec=spec)

  each = jax.vmap(jax.vmap(prune, (0, None)), (None, 0))
  return jax.jit(each)(params, np.array(sparsities, np.float32))


def files(folder):
  return {
    str(path): path.stat().st_mtime_ns
    for path in pathlib.Path(folder).rglob("*")
    if path.is_file()
  }


# --- one layer at a time -----------------------------------------------------


def cut(score, sparsity):
  """Marks the entries that stay: the largest, at least one."""
  flat = score.reshape(-1)
  kept = max(1, round((1 - sparsity) * flat.size))
  marks = np.zeros(flat.size, bool)
  marks[np.argsort(flat)[flat.size - kept :]] = True
  return marks.reshape(score.shape)


def pruned_alone(spec, params, layer, sparsity):
  """Prunes a leaf or an axis of units of one network, in plain numpy."""
  leaves = {"/".join(leaf.path): leaf for leaf in spec.leaves}
  flat = {
    "/".join(path): value for path, value in models.flatten(params).items()
  }
  if layer in leaves:
    marks = {layer: cut(np.abs(flat[layer]), sparsity)}
  else:
    has = {name: leaf for name, leaf in leaves.items() if layer in leaf.axes}
    at = {name: leaf.axes.index(layer) for name, leaf in has.items()}
    incoming = [
      np.moveaxis(np.abs(flat[name]), at[name], 0).reshape(
        spec.sizes[layer], -1
      )
      for name, leaf in has.items()
      if leaf.is_kernel and at[name] >= len(leaf.axes) - leaf.outputs
    ]
    stays = cut(np.concatenate(incoming, 1).mean(1), sparsity)
    marks = {
      name: np.expand_dims(
        stays, [i for i in range(len(leaf.axes)) if i != at[name]]
      )
      for name, leaf in has.items()
    }
  return traverse_util.unflatten_dict(
    {
      leaf.path: np.where(marks.get(name, True), flat[name], 0)
      for name, leaf in leaves.items()
    }
  )


@pytest.mark.parametrize("granularity", CONFIG.granularities)
@pytest.mark.parametrize("name", CONFIG.architectures)
def test_a_row_is_the_network_with_that_layer_alone_pruned(
  finished, trained, name, granularity
):
  architecture = Architecture.parse(name)
  spec = architecture.spec(Problem(SHAPE, CLASSES))
  rows = finished[1][granularity][0].filter(architecture=name)
  assert set(rows["sparsity"]) == {0, *CONFIG.sparsities}
  each = [
    jax.tree.map(lambda leaf, seed=seed: leaf[seed], trained[name])
    for seed in CONFIG.seeds
  ]
  pruned = [
    pruned_alone(spec, each[seed], layer, sparsity)
    for seed, layer, sparsity in rows.select(
      "seed", "layer", "sparsity"
    ).iter_rows()
  ]
  expected = ma.accuracy(
    architecture,
    jax.tree.map(lambda *leaves: np.stack(leaves), *pruned),
    DATA.validation,
  )
  np.testing.assert_allclose(rows["val_accuracy"], expected, atol=1e-6)
  assert rows["val_accuracy"].n_unique() > 2


@pytest.mark.parametrize("granularity", CONFIG.granularities)
def test_layers_at_sparsity_0_lose_nothing(finished, granularity):
  out, by_rule = finished
  rows = by_rule[granularity][0].filter(sparsity=0.0)
  dense = records.read(out).networks.select(
    *records.NETWORK, trained="val_accuracy"
  )
  rows = rows.join(dense, on=records.NETWORK)
  assert (rows["val_accuracy"] == rows["trained"]).all() and len(rows) >= 18


def test_a_network_has_rows_of_its_own_layers_from_the_input_on(finished):
  expected = {
    ("dnn:6-5-4", "element"): ["hidden_0", "hidden_1", "hidden_2", "output"],
    ("dnn:6-5-4", "unit"): ["hidden_0", "hidden_1", "hidden_2"],
    ("dnn:5", "element"): ["hidden_0", "output"],
    ("dnn:5", "unit"): ["hidden_0"],
    ("vit:p2-d4-l1-h2", "unit"): ["block_0/heads", "block_0/mlp"],
    ("vit:p2-d4-l1-h2", "element"): [
      *("embed", "position", "block_0/attention/query"),
      *("block_0/attention/key", "block_0/attention/value"),
      *("block_0/attention/out", "block_0/mlp/in", "block_0/mlp/out"),
      "output",
    ],
  }
  for (name, granularity), layers in expected.items():
    rows = finished[1][granularity][0].filter(
      architecture=name, seed=0, sparsity=0.0
    )
    rows = rows.sort("number").with_columns(layer_analysis.short("layer"))
    assert rows["layer"].to_list() == layers
    assert rows["number"].to_list() == list(range(len(layers)))
  groups = finished[1]["unit"][0].filter(architecture="dnn:6-5-4", seed=0)
  groups = groups.filter(sparsity=0.0).sort("number")["groups"]
  assert groups.to_list() == [6, 5, 4]


# --- the masks of seeds ------------------------------------------------------


@pytest.mark.parametrize("name", CONFIG.architectures)
def test_overlap_is_that_of_the_masks_by_layer_and_as_a_whole(
  finished, trained, name
):
  rows = finished[1]["element"][1].filter(architecture=name)
  pairs = rows.select("seed", "other").unique().sort("seed", "other")
  assert pairs.rows() == [(0, 1), (0, 2), (1, 2)]
  sparsities = [0.0, *CONFIG.sparsities]
  masks = masks_of(name, trained[name], sparsities, "element")
  flat = {
    "/".join(path): np.asarray(leaf).reshape(3, 3, -1)
    for path, leaf in models.flatten(masks).items()
    if leaf.ndim > 2
  }
  flat["all"] = np.concatenate(list(flat.values()), axis=-1)
  assert set(rows["layer"]) == set(flat)
  for row in rows.iter_rows(named=True):
    marks = flat[row["layer"]][sparsities.index(row["sparsity"])]
    one, other = marks[row["seed"]], marks[row["other"]]
    either = (one | other).sum()
    expected = (one & other).sum() / either if either else 1
    assert row["overlap"] == pytest.approx(expected)
    assert row["groups"] == one.size
    if row["layer"] == "all":
      density = one.mean()
      assert row["chance"] == pytest.approx(density / (2 - density))
  whole = rows.filter(layer="all", sparsity=0.8).sort("seed", "other")
  last = jax.tree.map(lambda leaf: leaf[-1], masks)
  matrix = np.asarray(pruning.overlaps(last))
  np.testing.assert_allclose(
    whole["overlap"], matrix[np.triu_indices(3, 1)], rtol=1e-6
  )


def test_units_are_compared_as_units(finished, trained):
  name = "dnn:6-5-4"
  rows = finished[1]["unit"][1].filter(
    architecture=name, sparsity=0.4, layer="hidden_1"
  )
  (masks,) = np.asarray(
    masks_of(name, trained[name], [0.4], "unit")["hidden_1"]["bias"]
  )
  for row in rows.iter_rows(named=True):
    one, other = masks[row["seed"]], masks[row["other"]]
    expected = (one & other).sum() / (one | other).sum()
    assert row["overlap"] == pytest.approx(expected)
    assert row["groups"] == one.size == 5


def random_marks(seeds=3, groups=(3000, 1000), kept=((900, 700), (300, 500))):
  """Random masks, bits and slices: of each layer, so many kept at each of K."""
  rng = np.random.default_rng(0)
  marks = np.zeros((seeds, len(kept), sum(groups)), bool)
  ends = np.cumsum([0, *groups])
  for seed in range(seeds):
    for k, counts in enumerate(kept):
      for count, first, size in zip(counts, ends[:-1], groups, strict=True):
        chosen = rng.choice(size, count, replace=False)
        marks[seed, k, first + chosen] = True
  slices = [slice(a, b) for a, b in zip(ends, ends[1:], strict=False)]
  return marks, slices, np.array(groups)


def test_a_seed_overlaps_with_itself_by_1_and_pairs_have_no_order():
  marks, slices, groups = random_marks()
  both = sensitivity.common(np.packbits(marks, axis=-1), slices)
  a, b = np.array([0, 0, 1]), np.array([1, 2, 2])
  found = sensitivity.compared(both, groups, a, b)
  turned = sensitivity.compared(both, groups, b, a)
  jax.tree.map(np.testing.assert_array_equal, found, turned)
  itself = sensitivity.compared(both, groups, a, a)
  assert (itself.overlap == 1).all()
  one, other = marks[0, 0], marks[1, 0]
  expected = (one & other).sum() / (one | other).sum()
  assert found.overlap[-1, 0, 0] == pytest.approx(expected)


def test_random_masks_overlap_by_what_is_called_chance():
  marks, slices, groups = random_marks(40)
  both = sensitivity.common(np.packbits(marks, axis=-1), slices)
  found = sensitivity.compared(both, groups, *np.triu_indices(40, 1))
  # Layers of the same number of kept groups are all that random masks share.
  means = found.overlap.mean(-1)
  np.testing.assert_allclose(means, found.shuffled.mean(-1), rtol=1e-2)
  np.testing.assert_allclose(means[:-1], found.chance[:-1, :, 0], rtol=1e-2)
  for k, density in enumerate((0.4, 0.2)):
    assert found.chance[-1, k, 0] == pytest.approx(density / (2 - density))
  assert (found.shuffled[-1] > 1.1 * found.chance[-1]).all()


def test_nothing_overlaps_with_nothing_by_1():
  both = np.zeros((1, 1, 2, 2))
  found = sensitivity.compared(
    both, np.array([4]), np.array([0]), np.array([1])
  )
  assert all((value == 1).all() for value in found)


# --- what is written ---------------------------------------------------------


def test_the_second_run_measures_and_writes_nothing(finished):
  out, by_rule = finished
  before = files(out)
  with mock.patch.object(sensitivity, "measure", side_effect=AssertionError):
    again = sensitivity.complete(opened(granularities=("unit",)), out, MEMBERS)
  assert files(out) == before
  for table, expected in zip(again, by_rule["unit"], strict=True):
    pl.testing.assert_frame_equal(table, expected)
    assert len(table)
  # Both rules are there, and each is read alone.
  held = records.read_table(out, "sensitivity")
  assert len(held) == sum(len(rows) for rows, _ in by_rule.values())


def test_seeds_in_several_packs_are_compared_all_the_same(finished, tmp_path):
  out, by_rule = finished
  again = str(tmp_path / "again")
  shutil.copytree(
    out, again, ignore=shutil.ignore_patterns(*sensitivity.TABLES)
  )
  members, plan = MEMBERS[:1], packs.plan

  def split(*arguments):
    (pack,) = plan(*arguments)
    parts = ((0,), (1, 2))
    return [dataclasses.replace(pack, seeds=seeds) for seeds in parts]

  with mock.patch.object(packs, "plan", split):
    found = sensitivity.complete(opened(), again, members)
  for table, expected in zip(found, by_rule["element"], strict=True):
    own = expected.filter(architecture=str(members[0]))
    pl.testing.assert_frame_equal(table, own)


def test_one_seed_has_nothing_to_be_compared_with(finished, tmp_path):
  session = sensitivity.of_first_rule(opened(num_seeds=1))
  (pack,) = packs.plan(session, MEMBERS[1:2], [0])
  found = sensitivity.measure(session, finished[0], [pack])
  for table, rows in zip(sensitivity.TABLES, found, strict=True):
    records.write(str(tmp_path), table, "one", rows)
  assert len(records.read_table(str(tmp_path), "sensitivity")) == 6
  assert records.read_table(str(tmp_path), "overlap").is_empty()


def test_flags_name_the_architectures_or_the_representatives_are_taken(
  finished,
):
  out, _ = finished
  named = opened(architectures=("vit:p2-d4-l1-h2", "dnn:5"))
  assert list(map(str, sensitivity.chosen(named, out))) == list(
    named.config.architectures
  )
  # The grid of the flags holds other architectures than the records do.
  session = opened(architectures=(), grid="tiny")
  held = sorted(MEMBERS, key=str)
  expected = representatives.representatives(session, out, held)
  assert sensitivity.chosen(session, out) == expected
  assert 1 < len(expected) <= len(MEMBERS)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"architectures": ("dnn:5", "dnn:9")}, "dnn:9 with seed 0 is not trained"),
    ({"num_seeds": 4}, "with seed 3 is not trained"),
    ({"learning_rate": 0.5}, "no network trained with these flags"),
  ],
)
def test_networks_that_are_missing_are_named_before_anything_runs(
  finished, changes, message
):
  out, _ = finished
  before = files(out)
  session = opened(**changes)
  with mock.patch.object(sensitivity, "measure", side_effect=AssertionError):
    with pytest.raises(ConfigError, match=message):
      chosen = sensitivity.chosen(session, out)
      sensitivity.complete(session, out, chosen)
  assert files(out) == before


def test_the_command_shows_what_is_recorded_and_the_report_draws_it(
  finished, capsys, tmp_path
):
  out = str(tmp_path / "out")
  shutil.copytree(finished[0], out)
  # Flags of several commands cannot stand beside each other.
  with mock.patch.object(config_flags, "define"):
    command = importlib.import_module("experiments.sensitivity")
  settings = CONFIG.replace(out=out, compilation_cache_dir="")
  before = files(out)
  with (
    mock.patch.object(setup, "check"),
    mock.patch.object(data, "load_chosen", return_value=DATA),
  ):
    command.stage(settings)
  assert files(out) == before
  shown = capsys.readouterr().out
  for part in (*CONFIG.architectures, "block_0/mlp/in", "all", "0.8"):
    assert part in shown
  with mock.patch.object(
    registries, "FIGURES", {name: registries.FIGURES[name] for name in DRAWN}
  ):
    page = pathlib.Path(report.build(out, settings).page)
  for name in DRAWN:
    assert f'<figure id="figure-{name}">' in page.read_text()
    table = pl.read_csv(page.parent / "tables" / f"{name}.csv")
    assert set(table["granularity"]) == {"element", "unit"}
    assert {f"{name}.png"} < {
      path.name for path in (page.parent / "figures").iterdir()
    }
