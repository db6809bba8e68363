"""The experiments as a user starts them: errors, and a study end to end."""

import dataclasses
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import polars as pl
import polars.testing
import pytest

import minarch_jax as ma
from minarch_jax import records
from minarch_jax.config import Config, THRESHOLDS
from tests.started import ended

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted(path.stem for path in (ROOT / "experiments").glob("*.py"))
ENVIRONMENT = os.environ | {
  "JAX_PLATFORMS": "cpu",
  "PYTHONPATH": str(ROOT),
  "PYTHONWARNINGS": "error::RuntimeWarning",
}


def start(folder, *words):
  """Starts an interpreter as a user does; its exit status, what it printed."""
  done = subprocess.run(
    [sys.executable, *words],
    cwd=folder,
    env=ENVIRONMENT,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=600,
  )
  return done.returncode, done.stdout, done.stderr


# --- what a user typed wrong -------------------------------------------------

# Binary, flag, and what the message must hold.
TYPOS = [
  ("study", "--dataset=mnits", ["--dataset=mnits", "'mnist'"]),
  ("study", "--dataset=digits:blured", ["'digits:blurred'"]),
  ("study", "--datasets=digits,mnits", ["--datasets, mnits: ", "'mnist'"]),
  ("study", "--families=dnn,cmn", ["--families=cmn", "dnn, cnn, vit", "'cnn'"]),
  ("study", "--sparsities=1.5", ["--sparsities=1.5", "below 1"]),
  ("study", "--bits=0", ["--bits=0", "32, 8, 7"]),
  ("study", "--grid=papr", ["--grid=papr", "'paper'"]),
  ("study", "--granularities=elment", ["=elment", "'element'", "nm:4"]),
  ("prune", "--granularities=nm:4", ["nm:4 does not fit", "multiple of 4"]),
  ("study", "--out=/proc/results", ["--out=/proc/results", "/proc"]),
  ("study", "--data_dir=nowhere", ["nowhere"]),
  ("study", "--architectures=dnn:3,dn:3", ["'dn:3'", "'dnn'"]),
  ("study", "--num_seed=3", ["num_seed", "num_seeds"]),
  ("study", "--num_seeds=x", ["num_seeds", "x"]),
  ("study", "--batch_size=5000", ["--batch_size=5000", "digits"]),
  ("study", "digits", ["'digits'", "--name=value"]),
  ("study", "--process_id=1", ["--process_id=1", "--distributed"]),
  ("study", "--executor=loacl", ["--executor=loacl", "'local'"]),
  ("sweep", "--optimizer=adm", ["--optimizer=adm", "'adam'"]),
  ("prune", "--criteria=magnitud", ["--criteria=magnitud", "'magnitude'"]),
  ("quantize", "--bits=8,5.5", ["--bits=8,5.5", "integers"]),
  ("convergence", "--eps_sigma=-1", ["--eps_sigma=-1", "below 0"]),
  ("convergence", "--out=nowhere", ["nowhere", "python -m experiments"]),
  ("report", "--out=nowhere", ["nowhere", "python -m experiments"]),
  ("sensitivity", "--out=nowhere", ["nowhere", "python -m experiments"]),
]


@pytest.mark.parametrize(
  "flags, part",
  [
    (["--coordinator=here"], "--coordinator=here is not HOST:PORT"),
    (
      ["--coordinator=here:1", "--num_processes=2", "--process_id=2"],
      "--process_id=2 is not one of the --num_processes=2",
    ),
    (["--repair"], "--repair is for one process"),
  ],
)
def test_hosts_that_cannot_be_end_with_one_message(
  starter, tmp_path, flags, part
):
  done = starter.run("experiments.study", "--distributed", *flags, cwd=tmp_path)
  assert_one_message(done.returncode, done.stdout, done.stderr)
  assert part in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("binary, flag, parts", TYPOS)
def test_a_typo_ends_with_one_message(starter, tmp_path, binary, flag, parts):
  code, stdout, stderr = starter.run(
    f"experiments.{binary}", flag, cwd=tmp_path
  )
  assert_one_message(code, stdout, stderr)
  for part in parts:
    assert part in stderr
  assert not list(tmp_path.iterdir())


def assert_one_message(code, stdout, stderr):
  assert code == 1, stderr
  assert "Traceback" not in stderr and not stdout
  lines = [line for line in stderr.splitlines() if line.strip()]
  # Wrong flags of absl's own come with its hint of --help below.
  assert len(lines) == 1 or lines[0].startswith("FATAL Flags parsing error")


STAGE = """
from experiments import common
from minarch_jax import config, flags
flags.define("out")
def stage(settings):
  {body}
common.run(stage, trains=False)
"""


@pytest.mark.parametrize(
  "body, status, message",
  [
    ("raise KeyboardInterrupt", os.EX_TEMPFAIL, "Go on with: "),
    ("raise OSError(28, 'No space left')", 1, "No space left"),
    ("raise config.ConfigError('--x=1 is wrong')", 1, "error: --x=1 is wrong"),
    ("raise MemoryError('4 GiB')", 1, "out of memory (4 GiB); what is"),
    ("raise RuntimeError('RESOURCE_EXHAUSTED: x')", 1, "--packs_at_once=1"),
  ],
)
def test_the_end_of_a_stage_is_a_message(tmp_path, body, status, message):
  code, stdout, stderr = start(tmp_path, "-c", STAGE.format(body=body))
  assert code == status and message in stderr
  assert "Traceback" not in stderr and not stdout


@pytest.mark.parametrize("name", FILES)
def test_help_shows_how_to_start_it(name):
  """The command in a docstring names the module it stands in."""
  text = (ROOT / "experiments" / f"{name}.py").read_text()
  if name not in ("__init__", "common"):
    assert f"python -m experiments.{name}" in text.split('"""')[1]
    assert 'if __name__ == "__main__":' in text


BINARIES = [name for name in FILES if name not in ("__init__", "common")]

# Runs command lines in children of one process, which start in no time: of each
# binary its flags and its --help, and one command line per mistyped flag.
ATTEMPTS = """
import dataclasses, json, os, runpy, sys, tempfile
from absl import flags
from experiments import common
from minarch_jax import config, data

def wrong(field):
  \"\"\"A value that cannot be used; None where any text can.\"\"\"
  if field.name in ("dataset", "out"):
    return {"dataset": "digts", "out": "/proc/no/such/place"}[field.name]
  if field.name == "datasets":
    return "digts"
  if isinstance(field.default, (bool, int, float)):
    return "x"
  if isinstance(field.default, tuple) or field.metadata["rules"]:
    return "nonsuch"

def attempt(name, *words):
  files = [tempfile.TemporaryFile("w+") for _ in range(2)]
  child = os.fork()
  if not child:
    for file, number in zip(files, (1, 2)):
      os.dup2(file.fileno(), number)
    sys.argv = [name, *words]
    code = 70
    try:
      runpy.run_module(f"experiments.{name}", run_name="__main__")
    except SystemExit as end:
      if isinstance(end.code, str):
        print(end.code, file=sys.stderr)
      code = end.code if isinstance(end.code, int) else 1
    except BaseException:
      sys.excepthook(*sys.exc_info())
    finally:
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(code)
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  for file in files:
    file.seek(0)
  return [code, *(file.read() for file in files)]

def defined(name):
  \"\"\"The flags that a binary adds.\"\"\"
  read, write = os.pipe()
  if not os.fork():
    before = set(flags.FLAGS)
    runpy.run_module(f"experiments.{name}")
    os.write(write, json.dumps(sorted(set(flags.FLAGS) - before)).encode())
    os._exit(0)
  os.wait()
  return json.loads(os.read(read, 1 << 16))

fields = {field.name: field for field in dataclasses.fields(config.Config)}
known = {name: defined(name) for name in sys.argv[1:]}
found = {
  name: [flags, attempt(name, "--help"), attempt(name, f"--{flags[0]}x=1"), {}]
  for name, flags in known.items()
}
# Each flag in the binary, of those that know it, whose turn it is.
for flag in sorted(set().union(*known.values())):
  owners = [name for name in known if flag in known[name]]
  if flag == "dataset":
    owners = ["study"]  # the others read records or ask tensorflow_datasets
  name = min(owners, key=lambda name: len(found[name][-1]))
  value = wrong(fields[flag]) if flag in fields else "x"
  if value:
    found[name][-1][flag] = [value, attempt(name, f"--{flag}={value}")]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def attempts(tmp_path_factory):
  folder = tmp_path_factory.mktemp("attempts")
  code, stdout, stderr = start(folder, "-c", ATTEMPTS, *BINARIES)
  assert code == 0, stderr
  assert not list(folder.iterdir())
  return json.loads(stdout)


@pytest.mark.parametrize("name", BINARIES)
def test_help_lists_every_flag(attempts, name):
  known, (_, stdout, _), _, _ = attempts[name]
  text = " ".join(stdout.split())
  fields = {field.name: field for field in dataclasses.fields(Config)}
  assert known
  for flag in known:
    first = ""
    if flag in fields and (name, flag) != ("recommend", "dataset"):
      first = " ".join(fields[flag].metadata["help"].split()[:3])
    assert f"--{flag}: {first}" in text or f"--[no]{flag}: {first}" in text


@pytest.mark.parametrize("name", BINARIES)
def test_a_typo_in_any_flag_ends_with_one_message(attempts, name):
  known, _, unknown, typos = attempts[name]
  assert_one_message(*unknown)
  assert f"Unknown command line flag '{known[0]}x'" in unknown[2]
  for flag, (value, outcome) in typos.items():
    assert_one_message(*outcome)
    assert flag in outcome[2] and value in outcome[2], outcome[2]


def test_every_flag_was_mistyped(attempts):
  every = {flag for known, *_ in attempts.values() for flag in known}
  mistyped = {flag for *_, typos in attempts.values() for flag in typos}
  # These may be any text: places that need not exist, or that Ray knows.
  texts = {"data_dir", "compilation_cache_dir", "ray_address"}
  assert every - mistyped == texts
  assert len(every) > 60 and all(attempts[name][-1] for name in attempts)


# --- end to end --------------------------------------------------------------

FLAGS = (
  "--dataset=synthetic:easy",
  "--architectures=dnn:3,cnn:2,dnn:8",
  "--num_seeds=2",
  "--num_epochs=2",
  "--sparsities=0.5",
  "--scopes=global",
  "--quant_granularities=channel",
  "--finetune=all",
  "--finetune_share=0.5",
  "--num_bootstrap=100",
  "--design=sweep",
)


def words_of(name, out):
  """Names a binary and gives its flags."""
  trains = name in ("study", "sweep", "prune", "quantize")
  return f"experiments.{name}", f"--out={out}", *(FLAGS if trains else ())


@pytest.fixture(scope="module")
def command(starter):
  """Runs a binary, started as a user does, and returns what it printed."""

  def command(folder, name, *flags, out="out"):
    ended = starter.run(*words_of(name, out), *flags, cwd=folder)
    return printed(*ended)

  return command


def printed(code, stdout, stderr):
  assert code == 0, stderr
  assert "Traceback" not in stderr
  return stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A study that is started as a user does."""
  folder = tmp_path_factory.mktemp("study")
  return folder, printed(*start(folder, "-m", *words_of("study", "out")))


def tables(folder):
  return ma.read_records(str(folder))


def written(folder):
  return {
    path.relative_to(folder): path.stat().st_mtime_ns
    for path in folder.rglob("*")
    if path.is_file() and "report" not in path.parts
  }


def test_a_study_leaves_its_files_and_says_where(finished):
  folder, stdout = finished
  out = folder / "out"
  assert [path.name for path in folder.iterdir()] == ["out"]
  assert (out / "report" / "index.html").stat().st_size > 10_000
  assert list((out / "report" / "figures").glob("*.svg"))
  names = {path.name for path in (out / "report" / "tables").iterdir()}
  assert names >= {
    *("regimes.csv", "minimal_parameters.csv", "pruning_phases.csv"),
    *("quantization.csv", "claims.csv", "guidance.csv"),
  }
  found = tables(out)
  assert len(found.networks) == 6 and len(found.curves) == 12
  assert records.read_json(str(out / "study.json"))["config"]["num_seeds"] == 2
  for where in ("out/records", "out/report/index.html"):
    assert where in stdout
  assert not list(out.rglob("*.tmp"))


def everything(folder):
  return {
    path: path.stat().st_mtime_ns
    for path in folder.rglob("*")
    if path.is_file()
  }


def answer(stdout):
  """What a study printed, but for the time it took."""
  return [line for line in stdout.splitlines() if "took" not in line]


def test_the_same_again_answers_and_writes_nothing(finished, command):
  folder, stdout = finished
  before = everything(folder)
  assert answer(command(folder, "study")) == answer(stdout)
  assert everything(folder) == before


def test_a_report_made_anew_stays_that_of_its_study(finished, command):
  """The study answers from it; it does not look whether all is there."""
  folder, stdout = finished
  page = folder / "out" / "report" / "index.html"
  before = page.stat().st_mtime_ns
  thresholds = [f for f in FLAGS if f.split("=")[0][2:] in THRESHOLDS]
  command(folder, "report", *thresholds)
  assert page.stat().st_mtime_ns > before
  before = everything(folder)
  assert answer(command(folder, "study")) == answer(stdout)
  assert everything(folder) == before


def test_tables_fit_a_terminal(finished, command):
  folder, _ = finished
  lines = command(folder, "convergence").splitlines()
  assert max(map(len, lines)) <= 100
  (heads,) = (line for line in lines if "mean_accuracy" in line)
  assert "| architecture " in heads and heads.rstrip().endswith("|")
  assert sum(line.startswith("| dnn:8 ") for line in lines) == 2
  (rest,) = {line for line in lines if "regimes.csv" in line}
  path = folder / "out" / "report" / "tables" / "regimes.csv"
  more = len(path.read_text().splitlines()[0].split(","))
  assert int(rest.split()[0]) < more and "<out>/report/tables" in rest


# Long enough to be told to end in the middle.
LONG = (
  *("experiments.sweep", *FLAGS, "--architectures=cnn:2", "--num_epochs=300"),
  "--checkpoint_minutes=0",
)


@pytest.fixture(scope="module")
def undisturbed(starter, tmp_path_factory):
  out = tmp_path_factory.mktemp("undisturbed")
  printed(*starter.run(*LONG, f"--out={out}"))
  return tables(out)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_told_to_end_goes_on_by_the_same_command(
  undisturbed, starter, tmp_path, number
):
  told = [*LONG, f"--out={tmp_path / 'out'}"]
  running = starter.start(*told)
  kept = tmp_path / "out" / "checkpoints" / "unfinished"
  deadline = time.monotonic() + 300
  while running.poll() is None and not kept.is_dir():
    assert time.monotonic() < deadline
    time.sleep(0.02)
  running.send_signal(number)
  code, _, said = ended(running)
  assert code == os.EX_TEMPFAIL, said
  assert f"{shlex.join(told)}" in said and "Traceback" not in said
  printed(*starter.run(*told))
  for one, other in zip(tables(tmp_path / "out"), undisturbed, strict=True):
    pl.testing.assert_frame_equal(
      one.drop("seconds", strict=False),
      other.drop("seconds", strict=False),
      check_exact=True,
    )
  assert not kept.exists()


def test_another_threshold_only_writes_the_report(finished, command):
  folder, _ = finished
  before = written(folder / "out")
  command(folder, "report", "--eps_accuracy=0.05", "--num_bootstrap=100")
  assert written(folder / "out") == before


def test_damage_is_one_message_and_made_good(
  finished, starter, command, tmp_path
):
  folder, stdout = finished
  out = shutil.copytree(folder / "out", tmp_path / "out")
  path = sorted((out / "records" / "curves").iterdir())[0]
  path.write_bytes(path.read_bytes()[:-30])
  code, _, stderr = starter.run(*words_of("study", "out"), cwd=tmp_path)
  assert code == 1 and "Traceback" not in stderr
  assert path.name in stderr and "--repair" in stderr
  said = answer(command(tmp_path, "study", "--repair"))
  assert said == answer(stdout)
  assert (out / "damaged" / "records" / "curves" / path.name).exists()


def test_stages_on_their_own_make_the_same_tables(finished, command, tmp_path):
  """Of some of its networks: the rest must not matter to them."""
  some = "--architectures=dnn:3,dnn:8"
  command(tmp_path, "sweep", some)
  found = tables(tmp_path / "out")
  dnns = pl.col("architecture").str.starts_with("dnn")
  expected = [table.filter(dnns) for table in tables(finished[0] / "out")]
  for one, other in zip(found[:2], expected[:2], strict=True):
    assert len(one)
    pl.testing.assert_frame_equal(
      one.drop("seconds", strict=False),
      other.drop("seconds", strict=False),
      check_exact=True,
    )
  assert found.compression.is_empty()
  command(tmp_path, "prune", some)
  command(tmp_path, "quantize", some)
  found, expected = tables(tmp_path / "out").compression, expected[2]
  keys = expected.select(
    *("architecture", "seed", "schedule", "criterion", "sparsity", "bits")
  )
  # Bits are crossed with sparsity only where both stages run together.
  assert len(found.join(keys, on=keys.columns, how="anti")) == 0
  pl.testing.assert_frame_equal(
    found,
    expected.join(found, on=keys.columns, how="semi", maintain_order="left"),
    check_exact=True,
  )
  assert set(found["bits"]) == {32, 8, 4, 3, 2}
  assert set(found["schedule"]) == {"oneshot", "finetune"}


@pytest.mark.parametrize(
  "name, part",
  [("convergence", "minimal parameters"), ("report", "index.html")],
)
def test_analyses_run_on_what_a_study_left(finished, command, name, part):
  folder, _ = finished
  before = written(folder / "out")
  stdout = command(folder, name, "--num_bootstrap=100")
  assert part in stdout and "dnn" in stdout
  assert written(folder / "out") == before


@pytest.mark.parametrize(
  ("binary", "phase", "expected"),
  [
    ("sweep", "one", "428 architectures x 30 seeds on digits"),
    ("study", "two", "architectures x 5 seeds on digits:blurred"),
  ],
)
def test_the_phases_of_the_paper_are_planned(
  starter, tmp_path, binary, phase, expected
):
  flags = ROOT / "experiments" / "paper" / f"phase_{phase}.flags"
  sets = {"one": "--dataset=digits", "two": "--datasets=digits,digits:blurred"}
  ended = starter.run(
    f"experiments.{binary}",
    f"--flagfile={flags}",
    *(sets[phase], "--dry_run", "--out=out"),
    cwd=tmp_path,
  )
  assert expected in printed(*ended)
  assert not list(tmp_path.iterdir())


def test_a_dry_run_prints_the_plan_and_writes_nothing(command, tmp_path):
  stdout = command(tmp_path, "study", "--dry_run")
  assert "3 architectures x 2 seeds on synthetic:easy" in stdout
  assert not list(tmp_path.iterdir())


def test_several_data_sets_are_one_study_with_one_page(command, tmp_path):
  names = ("synthetic:easy", "synthetic:easy:noisy")
  words = ("--dataset=digits", f"--datasets={','.join(names)}")
  words += ("--architectures=dnn:3,dnn:8",)
  stdout = command(tmp_path, "study", *words)
  out = tmp_path / "out"
  assert set(tables(out).compression["dataset"]) == set(names)
  described = records.read_json(str(out / "study.json"))
  assert described["config"]["datasets"] == list(names)
  notes = {n: each["test_note"] for n, each in described["datasets"].items()}
  assert not notes[names[0]] and "noisy: gives a tenth" in notes[names[1]]
  page = (out / "report" / "index.html").read_text()
  assert f"Test split of {names[1]}: {notes[names[1]]}" in page
  before = everything(tmp_path)
  assert answer(command(tmp_path, "study", *words)) == answer(stdout)
  assert everything(tmp_path) == before
