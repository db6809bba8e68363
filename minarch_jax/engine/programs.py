"""Compiled programs: each declared once, compiled once for what it depends on.

A `Program` says by name what its arguments are. What its function closes over
(rules, roundings, optimizer, types) is passed to `make` as static values, which
are part of the key of the compiled program: two configurations in one process
cannot be given each other's program.
"""

from collections.abc import Callable, Mapping
import concurrent.futures
import dataclasses
import inspect
import threading
from typing import Any

import jax

from minarch_jax.engine import population


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
  """Declares a program; equal to itself only.

  Attributes:
    make: a function of a module that takes the static values as keywords and
      returns the function of one network, whose arguments are those of `kinds`
      in order. It must depend on nothing else.
    kinds: name -> kind (see `population`) of every argument, a tree of arrays.
    donated: names of the arguments whose buffers the results may overwrite.

  Raises:
    ValueError: `make` remembers values of its own, which no key would show.
  """

  make: Callable[..., Callable]
  kinds: Mapping[str, str]
  donated: tuple[str, ...] = ()

  def __post_init__(self):
    if not inspect.isfunction(self.make):  # a method, a partial: both hold some
      raise ValueError(f"{self.make} is not a function of a module")
    closed = self.make.__code__.co_freevars
    if closed:
      raise ValueError(
        f"{self.make.__qualname__} closes over {', '.join(closed)}; make it a "
        "function of a module that takes them as static values"
      )

  def ordered(self, arguments: Mapping[str, Any]) -> tuple[Any, ...]:
    """Puts arguments in the order of `kinds`.

    Raises:
      TypeError: one is missing or unknown.
    """
    if arguments.keys() != self.kinds.keys():
      wrong = sorted(arguments.keys() ^ self.kinds.keys())
      raise TypeError(
        f"{self.make.__name__} takes {', '.join(self.kinds)}; wrong or "
        f"missing: {', '.join(wrong)}"
      )
    return tuple(arguments[name] for name in self.kinds)

  def placed(
    self, arguments: Mapping[str, Any], layout: population.Mapping
  ) -> tuple[Any, ...]:
    """Orders arguments, and places those on the host as their kinds say."""
    return tuple(
      population.place(value, kind, layout)
      for value, kind in zip(
        self.ordered(arguments), self.kinds.values(), strict=True
      )
    )


class Table:
  """The programs compiled so far; threads that run packs share it.

  It only ever grows: a cache, not a state.
  """

  def __init__(self):
    self._compiled: dict[Any, concurrent.futures.Future] = {}
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self._compiled)

  def compiled(self, program: Program) -> list[tuple[dict, float]]:
    """Lists the static values of what was compiled, not loaded, and seconds."""
    with self._lock:
      found = list(self._compiled.items())
    return [
      (dict(key[1]), future.result().compile_seconds)
      for key, future in found
      if key[0] is program and future.done() and not future.exception()
      if not future.result().loaded
    ]

  def find(
    self,
    program: Program,
    static: Mapping[str, Any],
    layout: population.Mapping,
    arguments: tuple[Any, ...],
    hot: bool,
  ) -> tuple[Callable, float]:
    """Returns a compiled program and the seconds spent compiling it now.

    Of several threads that need a program one compiles it and the others wait.

    Args:
      program: the declaration.
      static: hashable values for `program.make`.
      layout: how it is mapped over members, seeds and devices.
      arguments: in the order of `program.kinds`; their shapes count.
      hot: as for `population.compile`; the first that asks decides, because it
        changes how fast the program is and not what it computes.

    Raises:
      TypeError: a static value cannot be hashed.
    """
    key = _key(program, static, layout, arguments)
    # A future stands in the table before the program does, so compiling holds
    # no lock: other programs compile and run meanwhile, and only threads that
    # need this one wait for it.
    with self._lock:
      found = self._compiled.get(key)
      ours = found is None
      if found is None:
        found = self._compiled[key] = concurrent.futures.Future()
    if not ours:
      return found.result().call, 0.0
    try:
      compiled = population.compile(
        program.make(**static),
        tuple(program.kinds.values()),
        layout,
        arguments,
        tuple(list(program.kinds).index(name) for name in program.donated),
        hot=hot,
      )
    except BaseException as error:
      with self._lock:
        del self._compiled[key]  # the next that asks tries again
      found.set_exception(error)  # those that wait fail as this one does
      raise
    found.set_result(compiled)
    return compiled.call, compiled.compile_seconds


def _key(
  program: Program,
  static: Mapping[str, Any],
  layout: population.Mapping,
  arguments: tuple[Any, ...],
) -> tuple:
  """Everything that the compiled code depends on.

  The structure of the arguments counts beside their shapes: what a tree holds
  besides arrays (the plan of a ranking) is part of it.
  """
  for name, value in static.items():
    try:
      hash(value)
    except TypeError:
      raise TypeError(
        f"{program.make.__name__}: static value {name}={value!r} cannot be "
        "hashed; make it a tuple or a frozen dataclass, or an argument"
      ) from None
  leaves, structure = jax.tree.flatten(arguments)
  shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
  values = tuple(sorted(static.items()))
  return program, values, layout, shapes, structure
