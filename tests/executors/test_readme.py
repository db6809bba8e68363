"""The commands of README for more than one machine, run as they are written.

Python is the real one with flags that make the study small, `localhost` the
first of the hosts; what would need a cloud prints its commands.
"""

import os
import subprocess
import sys

import jax
import pytest

from tests import tiny_study
from tests.test_documentation import blocks, ROOT, section

SMALL = (
  "--dataset=synthetic:easy --architectures=dnn:2,cnn:2 --num_seeds=2 "
  "--num_epochs=2 --batch_size=32 --design=sweep --sparsities=0,0.8 "
  "--finetune_share=0 --bits=32,4 --dense_bits= --controls= --figures= "
  "--num_bootstrap=100"
)
PYTHON = f"""#!/bin/sh
exec '{sys.executable}' "$@" {SMALL}
"""


@pytest.fixture
def run(tmp_path):
  """Runs a block of commands; returns what it prints."""
  for name, text in {"python": PYTHON, "pip": "#!/bin/sh\n"}.items():
    path = tmp_path / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
  cache = jax.config.jax_compilation_cache_dir  # pyright: ignore
  variables = {
    "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    "SHARED": str(tmp_path),
    "FIRST": "localhost",
    "DRY_RUN": "1",
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": cache,
  }

  def in_a_shell(block):
    done = subprocess.run(
      ["bash", "-euo", "pipefail", "-c", block],
      cwd=ROOT,
      env=os.environ | variables,
      capture_output=True,
      text=True,
      timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

  return in_a_shell


def test_the_commands_run(run, tmp_path):
  together, hosts, cluster, cloud = blocks(
    section("More than one machine"), "bash"
  )
  report = f"report   {tmp_path}/digits/report/index.html"
  assert run(together).count(report) == 2
  lines = tiny_study.packs(tmp_path / "digits")
  ran = [(line["stage"], line["parent"]) for line in lines]
  assert len(ran) == len(set(ran)) == 4
  # The study is finished, so these answer at once.
  assert run(hosts).count(report) == 1
  assert run(cluster).count(report) == 2
  assert tiny_study.packs(tmp_path / "digits") == lines
  printed = run(cloud)
  for word in ("tpu-vm create", "queued-resources create", "--spot", "v6e-8"):
    assert word in printed
