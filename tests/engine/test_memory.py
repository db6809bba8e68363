"""Memory: the flag, or a share of what the devices or the machine have."""

import types

import jax
import pytest

from minarch_jax.config import Config
from minarch_jax.engine import costs, memory, packs
from minarch_jax.engine import session as sessions
from tests.engine import small_packs

GIB = 2**30
PHYSICAL = memory.machine("/nowhere")


def accelerator(**stats):
  return types.SimpleNamespace(platform="gpu", memory_stats=lambda: stats)


def on(monkeypatch, *devices):
  monkeypatch.setattr(jax, "local_devices", lambda: list(devices))


def test_the_flag_says_it():
  assert memory.limit(Config(memory_limit=2.5)) == 2.5 * GIB


def test_cpu_devices_share_the_machine(monkeypatch):
  monkeypatch.setattr(memory, "machine", lambda: 16 * GIB)
  assert len(jax.local_devices()) == 8
  assert memory.limit(Config()) == 4 * GIB
  assert memory.limit(Config(packs_at_once=1)) == 8 * GIB


def test_accelerators_have_their_own(monkeypatch):
  monkeypatch.setattr(memory, "machine", lambda: 1)
  on(monkeypatch, accelerator(bytes_limit=60 * GIB, bytes_in_use=GIB))
  assert memory.limit(Config()) == 15 * GIB
  on(monkeypatch, *[accelerator(bytes_limit=60 * GIB)] * 4)
  assert memory.limit(Config()) == 60 * GIB


@pytest.mark.parametrize("stats", [None, {}])
def test_an_accelerator_may_keep_its_size_to_itself(monkeypatch, stats):
  device = types.SimpleNamespace(platform="tpu", memory_stats=lambda: stats)
  on(monkeypatch, device, device)
  assert memory.limit(Config()) == memory.ASSUMED / 2


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"
MAX, LIMIT = "memory.max", "memory.limit_in_bytes"


@pytest.mark.parametrize(
  "groups, files, expected",
  [
    ("0::/a/b\n", {f"{V2}/a/b/{MAX}": "max", f"{V2}/a/{MAX}": "77\n"}, 77),
    ("0::/a/b\n", {f"{V2}/a/b/{MAX}": "76", f"{V2}/a/{MAX}": "77"}, 76),
    ("0::/\n", {f"{V2}/{MAX}": "max\n"}, PHYSICAL),
    # A container sees its own group as the root, by the name it has outside.
    ("0::/outside\n", {f"{V2}/{MAX}": "78"}, 78),
    ("0::/../up\n", {f"{V2}/{MAX}": "79"}, 79),
    (
      "5:cpu,cpuacct:/x\n4:memory:/docker/1\n0::/\n",
      {f"{V1}/{LIMIT}": "80", f"{V2}/{MAX}": "max"},
      80,
    ),
    ("4:memory:/\n", {f"{V1}/{LIMIT}": "9223372036854771712"}, PHYSICAL),
    ("5:cpu:/x\n", {f"{V1}/{LIMIT}": "80"}, PHYSICAL),
    (None, {f"{V2}/{MAX}": "81"}, PHYSICAL),
  ],
)
def test_a_container_has_what_its_control_group_allows(
  tmp_path, groups, files, expected
):
  if groups is not None:
    files = files | {"proc/self/cgroup": groups}
  for name, text in files.items():
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  assert memory.machine(str(tmp_path)) == expected


def test_this_machine_has_some():
  assert GIB / 4 < memory.machine() <= PHYSICAL


def test_a_plan_keeps_to_it(monkeypatch):
  session = sessions.open_session(small_packs.CONFIG, small_packs.dataset())
  members = [small_packs.parse(f"dnn:{width}") for width in (2, 3, 4, 5)]
  (whole,) = packs.plan(session, members, range(8))
  need = costs.memory(whole.parent, whole.slots, 8, session.work, 8)
  monkeypatch.setattr(memory, "machine", lambda: 4 * need - 1)
  parts = packs.plan(session, members, range(8))
  assert len(parts) > 1 and {part.parent for part in parts} == {whole.parent}
