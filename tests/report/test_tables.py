"""Tables of the report: each is one entry and one line."""

import pathlib

import altair as alt
import polars as pl
import polars.testing
import pytest

from minarch_jax import registries, report
from minarch_jax.report import cells, page, reading, sections, theme
from minarch_jax.report.entries import Column, Drawing, Figure, Table
from tests.report import studies


def test_narrow_activations_are_in_their_own_table_only(found):
  """Not even where they seem better than anything else."""
  rows = found.records.compression
  narrow = rows.filter(
    pl.col("quant_granularity") != "tensor", sparsity=0.0, schedule="oneshot"
  ).with_columns(
    activation_bits=pl.lit(4, pl.Int64),
    val_accuracy=pl.lit(1.0),
    test_accuracy=pl.lit(1.0),
  )
  both = found.records._replace(compression=pl.concat([rows, narrow]))
  more = reading.analyse(
    both, studies.CONFIG, studies.STUDY, studies.layered(studies.small())
  )
  name = "activation_quantization"
  assert found.tables[name].is_empty()
  assert set(more.tables[name]["bits"]) == {32, 8, 4}
  for other, table in found.tables.items():
    if other != name:
      pl.testing.assert_frame_equal(more.tables[other], table)
  assert more.summary == found.summary
  for other, figure in registries.FIGURES.items():
    assert figure.draw(more) == figure.draw(found), other
  assert registries.TABLES[name].section == "quantization"
  assert name not in {
    table["name"]
    for part in page.contents(found, {}, {}).values()
    for table in part["tables"]
  }
  heads = [head.text for head in studies.shown(more, name).heads]
  assert heads[-2:] == ["activation bits", "damage (points)"]


def test_other_quantizers_are_in_their_own_table_only(found):
  """Not even where they seem better than anything else."""
  rows = found.records.compression
  dense = rows.filter(quant_granularity="channel", sparsity=0.0, bits=4)
  others = [
    dense.with_columns(
      quantizer=pl.lit(name),
      bits=pl.lit(bits, pl.Int64),
      quant_granularity=pl.lit(granularity),
      bytes=pl.lit(1, pl.Int64),
      val_accuracy=pl.lit(1.0),
      test_accuracy=pl.lit(1.0),
    )
    for name, bits, granularity in (
      *(("mse", 4, "channel"), ("binary", 1, "channel")),
      *(("nf4", 4, "channel"), ("bfloat16", 16, "none")),
    )
  ]
  both = found.records._replace(compression=pl.concat([rows, *others]))
  more = reading.analyse(
    both, studies.CONFIG, studies.STUDY, studies.layered(studies.small())
  )
  name = "quantizer_damage"
  assert more.tables.keys() - found.tables.keys() == {name}
  assert set(more.tables[name].select("quantizer", "bits").iter_rows()) == {
    *(("mse", 4), ("binary", 1), ("nf4", 4), ("bfloat16", 16))
  }
  for other, table in found.tables.items():
    assert more.tables[other].write_csv() == table.write_csv(), other
  assert more.summary == found.summary
  for other, figure in registries.FIGURES.items():
    assert figure.draw(more) == figure.draw(found), other
  assert registries.TABLES[name].section == "quantization"
  heads = [head.text for head in studies.shown(more, name).heads]
  assert heads[-4:] == ["quantizer", "bits", "scale per", "damage (points)"]


def test_selected_networks_are_chosen_on_validation_and_read_on_test(found):
  networks, rows = found.records.networks, found.tables["selected"]
  best = rows.filter(family="dnn", role="most accurate").row(0, named=True)
  means = networks.filter(family="dnn").group_by("architecture")
  means = means.agg(pl.mean("val_accuracy", "test_accuracy"))
  top = means.sort("val_accuracy", descending=True).row(0, named=True)
  assert best["architecture"] == top["architecture"]
  assert best["test_accuracy"] == pytest.approx(top["test_accuracy"])
  assert best["test_accuracy_low"] <= best["test_accuracy"]


def test_stages_add_up_the_packs(found):
  assert found.tables["stages"].rows() == [("train", 2, 2.0), ("prune", 1, 2.0)]
  assert found.tables["packs"]["names"].to_list() == ['["a"]', '["b"]', "[]"]


def test_a_study_without_single_layers_shows_nothing_of_them():
  bare = studies.small(families=("dnn",))
  for more in ({}, {k: v.clear() for k, v in studies.layered(bare).items()}):
    found = reading.analyse(bare, studies.CONFIG, {}, more)
    assert not {"sensitivity", "overlap"} & set(found.tables)
    for name in ("sensitivity", "overlap"):
      assert registries.FIGURES[name].draw(found) is None


# --- laws of every entry -----------------------------------------------------


@pytest.mark.parametrize("name", registries.TABLES)
def test_every_table_says_what_it_is_and_shows_what_it_has(name, whole):
  table, frame = registries.TABLES[name], whole.tables[name]
  assert table.caption.endswith((".", "?")) and table.caption[0].isupper()
  assert table.section in sections.SECTIONS
  assert not frame.is_empty()
  for column in table.columns:
    assert column.field in frame.columns, column
    assert column.form in cells.FORMS and column.title, column
    if column.bounds is not None:
      assert {f"{column.bounds}{e}" for e in ("low", "high")} <= {
        *frame.columns
      }
  fields = [column.field for column in table.columns]
  assert len(set(fields)) == len(fields)
  assert table.tested == any(field.startswith("test_") for field in fields)


def test_every_table_and_figure_is_on_the_page_in_its_section(whole):
  drawings = {
    name: figure.draw(whole) for name, figure in registries.FIGURES.items()
  }
  assert all(drawings.values())
  parts = page.contents(whole, drawings, dict.fromkeys(drawings, ""))
  assert list(parts) == list(sections.SECTIONS)
  for kind, entries in (
    ("tables", registries.TABLES),
    ("figures", registries.FIGURES),
  ):
    shown = {e["name"]: part for part in parts for e in parts[part][kind]}
    assert shown == {name: entry.section for name, entry in entries.items()}
    numbers = [e["number"] for part in parts.values() for e in part[kind]]
    assert numbers == list(range(1, len(entries) + 1))


def test_lines_of_the_summary_and_claims_name_what_exists(whole):
  named = [line.table for line in whole.summary]
  assert set(named) <= set(registries.TABLES) and len(named) > 5
  assert set(whole.tables["claims"]["figure"]) <= set(registries.FIGURES)


# --- a newcomer's table and figure -------------------------------------------


def mean_params(found):
  networks = found.records.networks
  return networks.group_by("family", maintain_order=True).agg(
    pl.mean("params"), networks=pl.len()
  )


TOY = Table(
  "engine",
  "Mean size of the networks of each family.",
  mean_params,
  (Column("family", "family"), Column("params", "mean params", "count")),
)


def draw_sizes(read):
  rows = read.tables["toy"].to_dicts()
  chart = alt.Chart(theme.ROWS).mark_bar().encode(x="family:N", y="params:Q")
  return Drawing("Toy sizes", chart, "Mean over 3 seeds.", rows)


TOY_FIGURE = Figure("engine", draw_sizes)


def test_one_line_adds_a_table_and_one_a_figure(tmp_path, monkeypatch):
  monkeypatch.setitem(registries.TABLES, "toy", f"{__name__}:TOY")
  monkeypatch.setitem(registries.FIGURES, "toy", f"{__name__}:TOY_FIGURE")
  records = studies.small(families=("dnn",))
  out = studies.save(tmp_path, records)
  index = pathlib.Path(report.build(out, studies.CONFIG).page)
  frame = pl.read_csv(index.parent / "tables" / "toy.csv")
  assert frame.columns == ["family", "params", "networks"]
  assert frame["networks"].to_list() == [len(records.networks)]
  text = index.read_text()
  assert '<details id="table-toy"' in text
  assert "Mean size of the networks of each family." in text
  assert '<th scope="col" class="n">mean params</th>' in text
  assert '<figure id="figure-toy">' in text
  assert (index.parent / "figures" / "toy.svg").exists()
  place = text.index('<section id="engine">')
  assert text.index('id="table-toy"') > text.index('id="figure-toy"') > place


def test_an_entry_without_columns_shows_every_one(whole):
  table = Table("engine", "Everything.", mean_params)
  frame = pl.DataFrame({"a_name": ["x"], "size": [3], "share": [0.5]})
  heads = cells.shown("toy", table, frame).heads
  assert [head.text for head in heads] == ["a name", "size", "share"]


def test_a_section_that_does_not_exist_is_told(found, monkeypatch):
  wrong = TOY._replace(section="prunning")
  monkeypatch.setitem(registries.TABLES, "toy", wrong)
  with pytest.raises(ValueError, match="did you mean 'pruning'"):
    page.render(found, {}, {})
