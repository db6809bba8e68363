"""Maps one network's functions over members, seeds and devices.

The only user of `jit`, `vmap`, `shard_map`, `pmap`, meshes and donation. A
*program* is a pure function of one network, mapped over the members of a pack
(axis A) and its seeds (axis S) and split over devices. Its arguments are of
five kinds: `network` [S, A, ...], `seed` [S, ...] (shared by the members),
`order` [S, E, T, B] (the minibatches, whose images may be split over devices),
`member` [A, ...] (shared by the seeds: the true sizes) and `shared` (the data).
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import json
import os
import threading
import time
from typing import Any

import jax
import numpy as np

from minarch_jax import registries
from minarch_jax.architectures import Family
from minarch_jax.config import Config, ConfigError
from minarch_jax.engine import kept_programs, planning

AXIS = "devices"


@dataclasses.dataclass(frozen=True)
class Mapping:
  """How a program is laid out; every choice gives the same numbers.

  `seeds` and `members` are "map" (one after another inside the program) or
  "vmap"; `split` is the axis cut over the devices: "seed", "member" or "batch";
  `microbatch` is that of `training.make_step`, `level` LLVM's on CPU: above the
  family's it unrolls loops that are shorter than that pays.
  """

  devices: tuple[Any, ...]
  device_map: str = "shard_map"
  seeds: str = "map"
  members: str = "vmap"
  convolution: str = "stock"
  split: str = "seed"
  microbatch: int | None = None
  level: int = 2


def cache_directory() -> str:
  """Names the user's directory for what can be made again."""
  base = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
  return os.path.join(base, "minarch_jax")


def table_path() -> str:
  """Names the file of measured layouts: {"dnn/cpu": [seeds, members, form]}."""
  return os.path.join(cache_directory(), "mapping.json")


@functools.cache
def _measured(path: str) -> dict[str, tuple[str, str, str]]:
  """Reads measured layouts; none when there is no file."""
  if not os.path.exists(path):
    return {}
  allowed = [("map", "vmap"), ("map", "vmap"), tuple(registries.CONVOLUTIONS)]
  try:
    with open(path) as file:
      found = {key: tuple(value) for key, value in json.load(file).items()}
    for value in found.values():
      if any(v not in a for v, a in zip(value, allowed, strict=True)):
        raise ValueError(value)
  except (ValueError, TypeError, AttributeError) as error:
    raise ConfigError(
      f"{path} is no table of measured layouts ({error}); delete it, or write "
      "it anew with `python -m experiments.benchmarks.mapping --write`"
    ) from None
  return found


def platform(devices: Sequence[Any]) -> str:
  """Names what a process computes on: cpu, gpu or tpu."""
  return devices[0].platform


def on_devices(config: Config) -> Mapping:
  """Lays out what is the same for all networks: the data, the first draws."""
  return Mapping(tuple(jax.local_devices()), config.device_map)


def mapping(
  config: Config,
  family: str,
  slots: int = 1,
  num_seeds: int = 1,
  *,
  large: bool = False,
) -> Mapping:
  """Resolves a family's layout from its own, what was measured, and the flags.

  What `experiments/benchmarks/mapping.py --write` measured on this machine
  goes before the family's own, and the flags before both.

  Args:
    config: the flags.
    family: a name of `registries.FAMILIES`.
    slots, num_seeds: networks of the pack.
    large: whether a minibatch is worth splitting over the devices.
  """
  devices = tuple(jax.local_devices())
  backend = platform(devices)
  traits: Family = registries.FAMILIES[family]
  own = traits.layouts.get(backend, traits.layouts["other"])
  measured = _measured(table_path())
  seeds, members, convolution = measured.get(f"{family}/{backend}", own)

  def choose(flag, default):
    return default if flag == "auto" else flag

  return Mapping(
    devices,
    config.device_map,
    choose(config.seed_mapping, seeds),
    choose(config.member_mapping, members),
    choose(config.convolution, convolution),
    planning.split_axis(
      slots, num_seeds, len(devices), config.batch_size if large else 0
    ),
    level=traits.level,
  )


def _over(function: Callable, axes: Sequence[int | None], how: str) -> Callable:
  """Maps over the arguments whose axis is 0; the others are shared."""
  if all(axis is None for axis in axes):
    return function
  if how == "vmap":
    return jax.vmap(function, in_axes=tuple(axes))
  moving = [i for i, axis in enumerate(axes) if axis == 0]

  def mapped(*arguments):
    def body(parts):
      complete = list(arguments)
      for i, part in zip(moving, parts, strict=True):
        complete[i] = part
      return function(*complete)

    return jax.lax.map(body, tuple(arguments[i] for i in moving))

  return mapped


def in_full(function: Callable, devices: Sequence[Any]) -> Callable:
  """Has float32 products computed in float32, as a CPU always does.

  Unless told otherwise XLA shortens their factors, to 19 bits on a GPU and to
  bfloat16 on a TPU: not what --compute_dtype=float32 says.
  """
  if platform(devices) == "cpu":
    return function

  def full(*arguments):
    with jax.default_matmul_precision("float32"):
      return function(*arguments)

  return full


def spread(
  function: Callable, kinds: Sequence[str], mapping: Mapping
) -> Callable:
  """Maps a function of one network over members, seeds and devices.

  Args:
    function: pure; returns a tree of arrays.
    kinds: for each argument network, seed, order, member or shared.
    mapping: the layout.

  Returns:
    A function of stacked arguments whose results are [S, A, ...]. Seeds (or
    members, by `mapping.split`) must divide by the number of devices.
  """
  over_members = _over(
    in_full(function, mapping.devices),
    [0 if kind in ("network", "member") else None for kind in kinds],
    mapping.members,
  )
  over_seeds = _over(
    over_members,
    [0 if kind in ("network", "seed", "order") else None for kind in kinds],
    mapping.seeds,
  )
  if len(mapping.devices) == 1:
    return over_seeds
  split = _shard if mapping.device_map == "shard_map" else _pmap
  return split(over_seeds, kinds, mapping)


# Which axis of an argument of each kind is cut into one part per device.
_CUTS: dict[str, dict[str, int]] = {
  "seed": {"network": 0, "seed": 0, "order": 0},
  "member": {"network": 1, "member": 0},
  "batch": {"order": 3},
}


def _split_axes(kinds: Sequence[str], split: str) -> list[int | None]:
  """The axis of each argument that is cut into one part per device."""
  return [_CUTS[split].get(kind) for kind in kinds]


def _mesh(devices: tuple[Any, ...]) -> jax.sharding.Mesh:
  return jax.sharding.Mesh(np.array(devices), (AXIS,))


def _spec(axis: int | None) -> jax.sharding.PartitionSpec:
  if axis is None:
    return jax.sharding.PartitionSpec()
  return jax.sharding.PartitionSpec(*[None] * axis, AXIS)


def _shard(function, kinds, mapping):
  in_specs = tuple(_spec(a) for a in _split_axes(kinds, mapping.split))
  out_specs = _spec(_split_axes(["network"], mapping.split)[0])
  return jax.shard_map(
    function,
    mesh=_mesh(mapping.devices),
    in_specs=in_specs,
    out_specs=out_specs,
    # Values are equal on all devices by construction; the check rejects
    # custom gradients of replicated inputs.
    check_vma=False,
  )


def _pmap(function, kinds, mapping):
  axes = _split_axes(kinds, mapping.split)
  (out_axis,) = _split_axes(["network"], mapping.split)
  count = len(mapping.devices)

  def cut(value, axis):
    shape = value.shape
    return value.reshape(
      *shape[:axis], count, shape[axis] // count, *shape[axis + 1 :]
    )

  def join(value):
    if out_axis is None:  # equal on all devices
      return value
    shape = value.shape
    return value.reshape(
      *shape[:out_axis],
      shape[out_axis] * shape[out_axis + 1],
      *shape[out_axis + 2 :],
    )

  mapped = jax.pmap(
    function,
    axis_name=AXIS,
    in_axes=tuple(axes),
    out_axes=out_axis,
    devices=mapping.devices,
  )

  @jax.jit  # one program, not one for every shape of a leaf
  def cut_all(arguments):
    return [
      argument
      if axis is None
      else jax.tree.map(functools.partial(cut, axis=axis), argument)
      for argument, axis in zip(arguments, axes, strict=True)
    ]

  join_all = jax.jit(lambda found: jax.tree.map(join, found))

  def call(*arguments):
    return join_all(mapped(*cut_all(arguments)))

  return call


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A compiled program.

  Attributes:
    call: runs it.
    compile_seconds: what it took to get.
    loaded: whether an earlier run had compiled it.
  """

  call: Callable
  compile_seconds: float
  loaded: bool = False


def trace(
  function: Callable,
  kinds: Sequence[str],
  mapping: Mapping,
  arguments: Sequence[Any],
  donate: tuple[int, ...] = (),
) -> jax.stages.Traced:
  """Traces a spread function for the shapes of `arguments`, as `compile`."""
  jitted = jax.jit(spread(function, kinds, mapping), donate_argnums=donate)
  shapes = jax.tree.map(
    lambda value: jax.ShapeDtypeStruct(
      value.shape, value.dtype, sharding=getattr(value, "sharding", None)
    ),
    tuple(arguments),
  )
  return jitted.trace(*shapes)


def compile(
  function: Callable,
  kinds: Sequence[str],
  mapping: Mapping,
  arguments: Sequence[Any],
  donate: tuple[int, ...] = (),
  *,
  hot: bool = True,
) -> Compiled:
  """Compiles a spread function for the shapes of `arguments`.

  Args:
    donate: the arguments whose buffers the results may overwrite.
    hot: whether the program's speed matters more than compiling it; others
      are compiled with little optimisation, which on CPU takes a third of the
      time or, where `_direct_emitters` has an effect, half of that.
  """
  start = time.perf_counter()
  if mapping.device_map == "pmap" and len(mapping.devices) > 1:
    # pmap compiles at its first call
    return Compiled(spread(function, kinds, mapping), 0.0)
  traced = trace(function, kinds, mapping, arguments, donate)
  before = _loaded.count
  compiled = traced.lower().compile(compiler_options=_options(mapping, hot))
  seconds = time.perf_counter() - start
  return Compiled(compiled, seconds, _loaded.count > before)


class _Loaded(threading.local):
  """How many programs this thread took from the cache of an earlier run."""

  count = 0

  def hear(self, event: str, **unused: Any) -> None:
    if event == "/jax/compilation_cache/cache_hits":
      self.count += 1


_loaded = _Loaded()
jax.monitoring.register_event_listener(_loaded.hear)


def _options(mapping: Mapping, hot: bool) -> Any:
  """XLA's options: those of its CPU compiler, which no other knows."""
  if platform(mapping.devices) != "cpu":
    return None
  quick = not hot or jax.config.read("jax_disable_most_optimizations")
  level = 0 if quick else mapping.level
  options = {"xla_backend_optimization_level": level}
  return options | _direct_emitters() if quick else options


@functools.cache
def _direct_emitters() -> dict[str, Any]:
  """Makes XLA:CPU write LLVM's code itself, where it still can (jaxlib 0.10).

  Otherwise every fusion passes through MLIR, which is most of compiling.
  """
  options: Any = {"xla_cpu_use_fusion_emitters": False}
  try:
    jax.jit(lambda: 0).lower().compile(compiler_options=options)
  except jax.errors.JaxRuntimeError:
    return {}
  return options


def place(value: Any, kind: str, mapping: Mapping) -> Any:
  """Puts a tree of host arrays where a program expects that kind.

  Arrays that are on the devices already stay where they are.
  """
  (axis,) = _split_axes([kind], mapping.split)
  sharding = jax.sharding.NamedSharding(_mesh(mapping.devices), _spec(axis))

  leaves, structure = jax.tree.flatten(value)
  away = [
    i
    for i, leaf in enumerate(leaves)
    if not (isinstance(leaf, jax.Array) and leaf.sharding == sharding)
  ]
  # At once: each call takes as long as copying many small arrays.
  put = jax.device_put([leaves[i] for i in away], sharding) if away else []
  for i, leaf in zip(away, put, strict=True):
    leaves[i] = leaf
  return jax.tree.unflatten(structure, leaves)


def use_cores() -> None:
  """Gives CPU one XLA device per core unless the user chose otherwise.

  Faster than one device with threads inside operations. Has no effect once
  JAX has started, or when XLA_FLAGS or jax_num_cpu_devices is already set.
  """
  chosen = "xla_force_host_platform_device_count"
  if chosen in os.environ.get("XLA_FLAGS", ""):
    return
  if jax.config.jax_num_cpu_devices > 0:  # pyright: ignore
    return
  try:
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
  except (RuntimeError, AttributeError):
    pass


def use_cache(directory: str) -> None:
  """Keeps compiled programs between runs.

  Args:
    directory: "default" is the user's cache directory, "" turns it off.
  """
  if not directory:
    return
  if directory == "default":
    directory = os.path.join(cache_directory(), "programs")
  kept_programs.check(directory)
  jax.config.update("jax_compilation_cache_dir", directory)
  # The default keeps only what took a second; ours are many and small.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
