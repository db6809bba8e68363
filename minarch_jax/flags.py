"""The absl flags of a Config: one flag per field, of the same name.

With all of them come those that say of which processes this is one: they differ
between processes, so they are no part of what a study is.
"""

from collections.abc import Sequence
import dataclasses
import sys
import textwrap
import typing
from typing import Any, NamedTuple

from absl import flags

from minarch_jax import config


class Hosts(NamedTuple):
  """Which processes are one program, and which of them this is.

  Attributes:
    coordinator: HOST:PORT of the first; "" = told by where they run.
    num_processes, process_id: how many, and this one's number.
  """

  coordinator: str
  num_processes: int
  process_id: int


def define(*names: str) -> None:
  """Defines the absl flags of the named fields (all when none is named).

  They count as the program's own, so that its --help explains them.
  """
  if not names:
    _define_hosts()
  for field in dataclasses.fields(config.Config):
    if names and field.name not in names:
      continue
    default: Any = field.default
    help = field.metadata["help"]
    choices = config.choices_of(field.metadata["rules"])
    if choices:
      help += f" One of: {', '.join(choices)}."
    endings = field.metadata["rules"].get("endings", ())
    if endings:
      help += f" May end in: :{', :'.join(endings)}."
    if isinstance(default, bool):
      flags.DEFINE_boolean(field.name, default, help)
    elif isinstance(default, int):
      flags.DEFINE_integer(field.name, default, help)
    elif isinstance(default, float):
      flags.DEFINE_float(field.name, default, help)
    elif isinstance(default, tuple):
      flags.DEFINE_list(field.name, [str(item) for item in default], help)
    else:
      flags.DEFINE_string(field.name, default, help)
    flag = flags.FLAGS[field.name]
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def _define_hosts() -> None:
  flags.DEFINE_boolean(
    "distributed",
    False,
    "Whether this is one of several processes of one program, on the hosts of "
    "a TPU slice or elsewhere. They share the packs; --out must be one "
    "directory for all.",
  )
  flags.DEFINE_string(
    "coordinator",
    "",
    "HOST:PORT at which the first process meets the others ('' = as a TPU "
    "slice, Slurm or Open MPI say).",
  )
  flags.DEFINE_integer("num_processes", 0, "How many, with --coordinator.")
  flags.DEFINE_integer(
    "process_id", -1, "Which of them this is, from 0, with --coordinator."
  )
  for name in ("distributed", *Hosts._fields):
    flag = flags.FLAGS[name]
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def hosts() -> Hosts | None:
  """Reads of which processes this is one; None = it is alone.

  Raises:
    ConfigError: the flags do not fit each other.
  """
  if "distributed" not in flags.FLAGS:
    return None
  found = Hosts(*(getattr(flags.FLAGS, name) for name in Hosts._fields))
  host, _, port = found.coordinator.rpartition(":")
  if not flags.FLAGS.distributed:
    for name in Hosts._fields:
      if getattr(flags.FLAGS, name) != flags.FLAGS[name].default:
        raise config.ConfigError(
          f"--{name}={getattr(flags.FLAGS, name)} is for --distributed; add it"
        )
    return None
  if not found.coordinator:
    return found
  if not (host and port.isdigit()):
    raise config.ConfigError(
      f"--coordinator={found.coordinator} is not HOST:PORT"
    )
  if not 0 <= found.process_id < found.num_processes:
    raise config.ConfigError(
      f"--process_id={found.process_id} is not one of the --num_processes="
      f"{found.num_processes}, counted from 0"
    )
  return found


# What the flags from this field on are about, in the order of the fields.
GROUPS = {
  "dataset": "studied",
  "folds": "data",
  "num_epochs": "training",
  "criteria": "pruning",
  "bits": "rounding",
  "eps_accuracy": "thresholds",
  "out": "running",
}


_SHORT = 16  # characters of a default that stands beside its flag


def briefly(width: int = 79) -> str:
  """Lists the flags of the program with their defaults, a group at a time."""
  own = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
  groups = {"this command": []} | {group: [] for group in GROUPS.values()}
  defined = {flag.name: flag for flag in own}
  group = ""
  for field in dataclasses.fields(config.Config):
    group = GROUPS.get(field.name, group)
    if field.name in defined:
      groups[group].append(_brief(defined.pop(field.name)))
  groups["this command"] = [_brief(flag) for flag in defined.values()]
  margin = max(map(len, groups)) + 2
  return "\n".join(
    textwrap.fill(
      " ".join(texts),
      width,
      initial_indent=f"{group:{margin}}",
      subsequent_indent=" " * margin,
      break_on_hyphens=False,
    )
    for group, texts in groups.items()
    if texts
  )


def _brief(flag: flags.Flag) -> str:
  value = (flag.default_as_str or "").strip("'")
  if flag.boolean or not 0 < len(value) <= _SHORT:
    return f"--{flag.name}"
  return f"--{flag.name}={value}"


def read() -> config.Config:
  """Reads the defined flags into a checked Config.

  Raises:
    ConfigError: a value cannot be used.
  """
  values = {}
  for field in dataclasses.fields(config.Config):
    if field.name in flags.FLAGS:
      value = getattr(flags.FLAGS, field.name)
      if isinstance(field.default, tuple):
        value = _parse_items(field, value)
      values[field.name] = value
  return config.Config(**values).check()


def _parse_items(field: dataclasses.Field, texts: Sequence[str]) -> tuple:
  """Reads a list as what the field holds, tuple[int, ...] for example."""
  convert, _ = typing.get_args(field.type)
  try:
    return tuple(convert(text) for text in texts if text != "")
  except ValueError:
    raise config.ConfigError(
      f"--{field.name}={','.join(map(str, texts))} is not a list of "
      f"{'numbers' if convert is float else 'integers'}"
    ) from None
