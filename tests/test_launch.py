"""launch.sh against a gcloud that is a folder on this machine."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = ROOT / "launch.sh"
VERBS = [
  *("create", "push", "setup", "run", "status", "logs", "watch", "pull"),
  "delete",
]
AWKWARD = [
  "--out=results/a b",
  "--x='q' \"r\" $HOME `ls`; \\ *",
  "--y=ä\nz",
  "--z=$(touch pwned); touch pwned & ${HOME} !! *",
  "",
]

# Runs what ssh would run with the fake home, copies what scp would copy. What
# "describe" answers stands line by line in "states"; a VM that is made has an
# empty disk and runs nothing.
GCLOUD = """#!{python}
import os, pathlib, shutil, signal, subprocess, sys
home, verb = pathlib.Path(os.environ["FAKE_HOME"]), sys.argv[4]
with open(home / "calls", "a") as file: print(*sys.argv[1:], file=file)
there = home / "minarch_jax"
if verb == "describe":
  first, *rest = (home / "states").read_text().splitlines() or [""]
  if rest: (home / "states").write_text("\\n".join(rest))
  if "ERROR" in first: sys.exit(first)
  print(first)
if verb == "create":
  try: os.kill(int((there / "pid").read_text()), signal.SIGKILL)
  except (OSError, ValueError): pass
  shutil.rmtree(there, ignore_errors=True)
if verb == "ssh":
  (command,) = [a[10:] for a in sys.argv if a.startswith("--command=")]
  sys.exit(subprocess.call(
    ["bash", "-c", command], cwd=home, env=os.environ | {{"HOME": str(home)}}))
if verb == "scp":
  a, b = [x for x in sys.argv[5:] if not x.startswith("--")]
  if ":" in b and os.path.isdir(a): shutil.copytree(a, there / "results")
  elif ":" in b: shutil.copy(a, home / b.partition(":")[2])
  else: shutil.copytree(
    home / a.partition(":")[2], pathlib.Path(b) / "results", dirs_exist_ok=True)
"""
# The interpreter that push would install: writes down how it was called.
PYTHON = """#!{python}
import json, os, pathlib, sys, time
print("hello from the run")
time.sleep(float(os.environ.get("FAKE_SECONDS", 0)))
os.makedirs("results", exist_ok=True)
with open("results/call.json", "w") as file:
  json.dump([sys.argv[1:], os.environ["PYTHONPATH"]], file)
with open("results/runs", "a") as file: print("run", file=file)
exits = pathlib.Path(os.environ.get("FAKE_HOME", ".")) / "exits"
how, *rest = exits.read_text().split() if exits.exists() else ["3"]
if rest: exits.write_text(" ".join(rest))
if how == "hangs": time.sleep(20)
sys.exit(int(how))
"""
UV = """#!/bin/sh
[ "$1" = venv ] || exit 0
mkdir -p venv/bin
cp "$HOME/fake_python" venv/bin/python
"""


def _executable(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text.format(python=sys.executable))
  path.chmod(0o755)


@pytest.fixture
def cloud(tmp_path):
  """A checkout, a fake gcloud and the home directory behind it."""
  checkout, home, bin = (tmp_path / d for d in ("check out", "home", "bin"))
  for path in ("code.py", "results/old.txt", "pkg/results/kept.py", ".git/x"):
    (checkout / path).parent.mkdir(parents=True, exist_ok=True)
    (checkout / path).write_text("x")
  shutil.copy(SCRIPT, checkout)
  _executable(bin / "gcloud", GCLOUD)
  _executable(bin / "python3", "#!/bin/sh\n")  # pip install --user uv
  _executable(home / ".local" / "bin" / "uv", UV)
  _executable(home / "fake_python", PYTHON)
  (home / "states").write_text("READY")
  return checkout, home, bin


def _launch(cloud, *arguments, **environment):
  checkout, home, bin = cloud
  return subprocess.run(
    [str(checkout / "launch.sh"), *arguments],
    capture_output=True,
    text=True,
    cwd=checkout.parent,
    env=os.environ
    | {"PATH": f"{bin}:{os.environ['PATH']}", "FAKE_HOME": str(home)}
    | environment,
    start_new_session=True,
    timeout=60,
  )


def _wait_for(path):
  for _ in range(200):
    if path.exists() and path.read_text():
      return path.read_text().strip()
    time.sleep(0.05)
  raise AssertionError(f"{path} did not appear")


def test_the_shell_accepts_the_script():
  subprocess.run(["bash", "-n", SCRIPT], check=True)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck")
def test_shellcheck_finds_nothing():
  done = subprocess.run(
    ["shellcheck", SCRIPT, ROOT / ".ci" / "run"], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("verb", [*VERBS, "local"])
def test_a_dry_run_prints_commands_and_runs_none(cloud, verb):
  done = _launch(cloud, verb, DRY_RUN="1", PYTHON="/no/such/python")
  assert done.returncode == 0, done.stderr
  assert ("python" if verb == "local" else "gcloud compute tpus") in done.stdout
  assert not (cloud[1] / "calls").exists()


def test_what_a_dry_run_prints_can_be_pasted(cloud):
  printed = _launch(cloud, "run", "pkg.module", *AWKWARD, DRY_RUN="1").stdout
  words = subprocess.run(
    ["bash", "-c", f"set -- {printed}\nprintf '%s\\0' \"$@\""],
    capture_output=True,
    text=True,
    check=True,
  ).stdout.split("\0")
  assert words[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh"]
  assert "--worker=all" in words


@pytest.mark.parametrize(
  "environment, expected",
  [
    ({}, ["--zone=us-west4-a", "--accelerator-type=v5litepod-8"]),
    ({"PREEMPTIBLE": "1"}, ["--spot"]),
    ({"PROJECT": "p", "ZONE": "z"}, ["--project=p", "--zone=z"]),
    ({"TPU_NAME": "n", "RUNTIME_VERSION": "r"}, ["create n", "--version=r"]),
  ],
)
def test_create_is_set_by_the_environment(cloud, environment, expected):
  printed = _launch(cloud, "create", "--x=y", DRY_RUN="1", **environment).stdout
  for word in [*expected, "--x=y"]:
    assert word in printed
  assert ("--spot" in printed) == ("PREEMPTIBLE" in environment)
  assert ("--project" in printed) == ("PROJECT" in environment)


@pytest.mark.parametrize(
  ("kind", "image"),
  [
    ("v4-8", "tpu-ubuntu2204-base"),
    ("v5litepod-16", "v2-alpha-tpuv5-lite"),
    ("v5p-8", "v2-alpha-tpuv5"),
    ("v6e-8", "v2-alpha-tpuv6e"),
  ],
)
def test_every_generation_has_its_image(cloud, kind, image):
  done = _launch(cloud, "create", DRY_RUN="1", ACCELERATOR_TYPE=kind)
  assert f"--version={image} " in done.stdout


def test_a_generation_that_is_not_known_is_told(cloud):
  done = _launch(cloud, "create", DRY_RUN="1", ACCELERATOR_TYPE="v9-8")
  assert done.returncode == 2 and "ACCELERATOR_TYPE=v9-8" in done.stderr
  named = {"ACCELERATOR_TYPE": "v9-8", "RUNTIME_VERSION": "r"}
  done = _launch(cloud, "create", DRY_RUN="1", **named)
  assert "--version=r" in done.stdout


def _calls(cloud, *kinds):
  """The verbs of the calls that were made, in order."""
  lines = (cloud[1] / "calls").read_text().splitlines()
  verbs = [" ".join(line.split()[2:4]) for line in lines if "tpus" in line]
  return [verb for verb in verbs if verb.split()[1] in kinds]


QUICK = {"WATCH_SECONDS": "0.05"}


def test_a_queued_resource_is_waited_for(cloud):
  (cloud[1] / "states").write_text("ACCEPTED\nPROVISIONING\nACTIVE")
  done = _launch(cloud, "create", QUEUED="1", PREEMPTIBLE="1", **QUICK)
  assert done.returncode == 0, done.stderr
  first, *looks = (cloud[1] / "calls").read_text().splitlines()
  for word in ("queued-resources create", "--node-id=minarch-jax", "--spot"):
    assert word in first
  assert "--runtime-version=v2-alpha-tpuv5-lite" in first and len(looks) == 3
  (cloud[1] / "states").write_text("FAILED")
  done = _launch(cloud, "create", QUEUED="1", **QUICK)
  assert done.returncode == 1 and "FAILED" in done.stderr


def test_watch_makes_a_lost_vm_anew_and_runs_on(cloud):
  checkout, home, _ = cloud
  gone = "ERROR: NOT_FOUND: no node"
  (home / "states").write_text(
    f"{gone}\nREADY\nERROR: the network\nREADY\nREADY\nPREEMPTED\nREADY"
  )
  (home / "exits").write_text("hangs 75 0")
  done = _launch(cloud, "watch", "pkg.module", *AWKWARD, **QUICK)
  assert done.returncode == 0, done.stderr
  for text in ("is GONE", "the network", "is PREEMPTED", "(75); running on"):
    assert text in done.stderr
  # What does not answer is not lost, and what is lost was there.
  made = _calls(cloud, "create", "delete")
  assert made == ["tpu-vm create", "tpu-vm delete", "tpu-vm create"]
  pulled = checkout.parent / "results"
  words = ["-m", "pkg.module", *AWKWARD]
  assert json.loads((pulled / "call.json").read_text()) == [words, "source"]
  # The second VM was given what the first one had done.
  assert (pulled / "runs").read_text().split() == ["run"] * 3


def test_watch_ends_where_running_on_is_no_use(cloud):
  done = _launch(cloud, "watch", "pkg.module", **QUICK)
  assert done.returncode == 1 and "ended with 3" in done.stderr
  assert not _calls(cloud, "create", "delete")
  assert (cloud[0].parent / "results" / "call.json").exists()


def test_logs_follow_the_log(cloud):
  printed = _launch(cloud, "logs", DRY_RUN="1").stdout
  assert "tail" in printed and "minarch_jax/log" in printed


def test_push_brings_the_code_and_keeps_results(cloud):
  checkout, home, _ = cloud
  there = home / "minarch_jax"
  (there / "source").mkdir(parents=True)
  (there / "source" / "deleted.py").touch()
  (there / "results").mkdir()
  done = _launch(cloud, "push")
  assert done.returncode == 0, done.stderr
  pushed = {p.name for p in (there / "source").iterdir()}
  assert pushed == {"code.py", "pkg", "launch.sh"}
  assert (there / "source" / "pkg" / "results" / "kept.py").exists()
  assert (there / "results").exists()
  assert not list(home.glob("*.tar.gz"))


@pytest.mark.parametrize("module", ["pkg.module", None])
def test_arguments_survive_the_way_to_the_host_and_back(cloud, module):
  checkout, home, _ = cloud
  assert _launch(cloud, "push").returncode == 0
  given = AWKWARD if module is None else [module, *AWKWARD]
  done = _launch(cloud, "run", *given)
  assert done.returncode == 0, done.stderr
  assert _wait_for(home / "minarch_jax" / "status") == "3"
  shown = _launch(cloud, "status").stdout
  assert "ended with 3" in shown and "hello from the run" in shown
  assert _launch(cloud, "pull", PULL_TO="pulled here").returncode == 0
  call = checkout.parent / "pulled here" / "results" / "call.json"
  words = ["-m", module or "experiments.study", *AWKWARD]
  assert json.loads(call.read_text()) == [words, "source"]
  assert not list(checkout.parent.rglob("pwned"))  # ran nothing on the way


def test_a_run_goes_on_without_its_connection_and_alone(cloud):
  home = cloud[1]
  assert _launch(cloud, "push").returncode == 0
  assert _launch(cloud, "run", FAKE_SECONDS="1.5").returncode == 0
  pid = int(_wait_for(home / "minarch_jax" / "pid"))
  os.killpg(os.getpgid(pid), signal.SIGHUP)  # what a lost connection sends
  assert "running" in _launch(cloud, "status").stdout
  second = _launch(cloud, "run")
  assert second.returncode != 0 and "is going on" in second.stderr
  assert _wait_for(home / "minarch_jax" / "status") == "3"


def test_local_runs_the_same_command_here(cloud):
  _executable(cloud[1] / "python here", PYTHON)
  done = _launch(
    cloud,
    "local",
    *AWKWARD,
    PYTHON=str(cloud[1] / "python here"),
    PYTHONPATH="",
  )
  assert done.returncode == 3
  call = json.loads((cloud[0] / "results" / "call.json").read_text())
  assert call[0] == ["-m", "experiments.study", *AWKWARD]


@pytest.mark.parametrize(
  "arguments", [["crate"], ["push", "x"], ["delete", "x"]]
)
def test_a_wrong_verb_or_argument_is_refused(cloud, arguments):
  done = _launch(cloud, *arguments)
  assert done.returncode == 2 and arguments[-1] in done.stderr
  assert not (cloud[1] / "calls").exists()


def test_help_lists_every_verb_and_variable(cloud):
  text = _launch(cloud, "help").stdout
  assert text == _launch(cloud).stdout
  for verb in [*VERBS, "local"]:
    assert f"\n  {verb} " in text
  for line in SCRIPT.read_text().splitlines():
    name, assigned, _ = line.partition("=${")
    if assigned and name.isupper():
      assert f"\n  {name} " in text
