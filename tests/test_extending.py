"""README's "How to add" is true: what toys.py registers works everywhere."""

import pytest

from minarch_jax import records

FLAGS = (
  *("--dataset=toy", "--families=toy,dnn", "--grid=tiny", "--num_seeds=2"),
  *("--num_epochs=20", "--learning_rate=0.02", "--batch_size=16"),
  *("--criteria=toy", "--scopes=global"),
  *("--sparsities=0.0,0.5", "--bits=32", "--quantizers=absmax,toy"),
  *("--finetune=all", "--num_bootstrap=100", "--design=sweep"),
)


@pytest.fixture(scope="module")
def out(tmp_path_factory, starter):
  """A study, by flags, of what toys.py registers by a line each."""
  path = tmp_path_factory.mktemp("toys")
  done = starter.run("tests.toys", *FLAGS, f"--out={path}")
  assert done.returncode == 0, done.stderr
  return path


def test_a_family_is_trained_beside_the_others(out):
  rows = records.read(str(out)).networks
  assert set(rows["family"]) == {"toy", "dnn"}
  ours = rows.filter(family="toy")
  assert set(ours["architecture"]) == {"toy:3", "toy:8"}
  assert ours.filter(architecture="toy:3")["params"][0] == 17 * 3 + 4 * 3
  assert ours["val_accuracy"].max() > 0.5


def test_a_data_set_is_read(out):
  assert set(records.read(str(out)).networks["dataset"]) == {"toy"}


def test_a_criterion_prunes_both_families(out):
  rows = records.read(str(out)).compression.filter(sparsity=0.5)
  assert set(rows.filter(control="none")["criterion"]) == {"toy"}
  assert set(rows["family"]) == {"toy", "dnn"}
  assert set(rows["schedule"]) == {"oneshot", "finetune"}


def test_a_number_format_rounds_and_is_counted(out):
  rows = records.read(str(out)).compression.filter(schedule="oneshot")
  rounded = rows.filter(quantizer="toy")
  assert set(rounded["bits"]) == {3}
  both = rounded.join(
    rows.filter(bits=32, sparsity=0.0), on=("architecture", "seed")
  )
  assert (both["bytes"] < both["bytes_right"] / 2).all()


def test_a_table_is_a_file_and_on_the_page(out):
  text = (out / "report" / "tables" / "toy.csv").read_text()
  assert sorted(text.split()) == ["dnn,6", "family,networks", "toy,4"]
  page = (out / "report" / "index.html").read_text()
  assert "How many networks of each family there are." in page


@pytest.mark.parametrize(
  "flag", ["--families=toi", "--criteria=toi", "--quantizers=toi"]
)
def test_a_typo_names_the_newcomer(starter, flag, tmp_path):
  done = starter.run("tests.toys", flag, f"--out={tmp_path}")
  assert done.returncode == 1
  assert "did you mean 'toy'?" in done.stderr
  assert "Traceback" not in done.stderr
