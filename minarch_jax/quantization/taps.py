"""Shows a tap what the kernels of anybody's model are multiplied with.

A model of Flax (Linen, NNX) or Equinox is traced with a mark on the input of
every layer that has a weight; then the trace is run step by step, and a mark
calls the tap. So a tap sees whole batches, also where layers run inside
`jax.vmap`, `jax.jit` or `jax.checkpoint`.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import inspect
import sys
import threading
from typing import Any

from flax import linen, nnx
import jax
from jax.extend import core
from jax.interpreters import ad, batching, mlir
import jax.numpy as jnp

from minarch_jax import leaves, types
from minarch_jax.quantization import jaxprs

Windows = dict[str, types.Window]  # of convolutions, by leaf name


@dataclasses.dataclass(frozen=True, eq=False)
class Tapped:
  """A model as a pure function `apply(params, x, tap=None)`.

  Attributes:
    plain: `plain(params, x)`, the model as it is.
    marked: the same with marks.
    windows: of the convolutions, by leaf name, known once the model has run.
  """

  plain: Callable[[types.Params, Any], Any]
  marked: Callable[[types.Params, Any], Any]
  windows: Windows

  def __call__(
    self, params: types.Params, x: Any, tap: types.Tap | None = None
  ) -> Any:
    if tap is None:
      return self.plain(params, x)
    numbers, whole = leaves.split(params)
    traced = jax.make_jaxpr(
      lambda numbers, x: self.marked(whole(numbers), x), return_shape=True
    )
    program, shapes = traced(numbers, x)
    given = jax.tree.leaves((numbers, x))
    found = _run(program.jaxpr, program.consts, given, tap)
    return jax.tree.unflatten(jax.tree.structure(shapes), found)


def tapped(
  model: Any,
  variables: Mapping[str, Any] | None = None,
  **arguments: Any,
) -> Tapped:
  """Makes a function that shows taps the inputs of any model's layers.

  >>> import flax.linen as nn
  >>> net = nn.Sequential([nn.Dense(6), nn.relu, nn.Dense(3)])
  >>> images = x.reshape(9, 16)
  >>> weights = net.init(jax.random.key(0), images)["params"]
  >>> apply = ma.tapped(net)
  >>> quantized = ma.gptq(apply, weights, images, bits=3)
  >>> ranges = ma.calibrate_activations(apply, weights, images, bits=8)
  >>> tap = ma.activation_tap(ranges, bits=8)
  >>> apply(ma.dequantize(quantized), images, tap=tap).shape
  (9, 3)
  >>> _, inputs = ma.record_inputs(apply, weights, images)
  >>> masks = ma.prune(weights, 0.5, "wanda", activations=inputs)

  Names are those of the leaves of the parameters. Layers inside `nn.scan` or a
  loop of JAX, and those whose weight is not multiplied with what they are
  called on (the cells of Flax' optimized LSTM), show nothing.

  Args:
    model: a Linen module; an NNX module, as it computes now (`model.eval()`);
      an Equinox module, which is mapped over the images.
    variables: of Linen, collections beside the parameters, as batch_stats.
    **arguments: of every call of the model beside the images.

  Returns:
    `apply(params, x, tap=None) -> outputs`. `params` are those of a Linen
    module, with or without the collection "params" around them, the
    `nnx.state(model, nnx.Param)` of an NNX module, or the Equinox module.

  Raises:
    ValueError: a model of another kind.
  """
  if isinstance(model, linen.Module):
    return _linen(model, dict(variables or {}), arguments)
  if variables is not None:
    raise ValueError("variables are collections of Linen modules")
  if isinstance(model, nnx.Module):
    return _nnx(model, arguments)
  equinox = sys.modules.get("equinox")
  if equinox is not None and isinstance(model, equinox.Module):
    return _equinox(equinox, model, arguments)
  raise ValueError(
    f"{model!r} is no module of Flax (Linen, NNX) or Equinox; write "
    "apply(params, x, tap=None), which calls y = tap(name, y) on what each "
    "kernel is multiplied with, named as its leaf"
  )


# --- marks -------------------------------------------------------------------

_MARK = core.Primitive("minarch_layer_input")
_MARK.def_impl(lambda x, *, name: x)
_MARK.def_abstract_eval(lambda x, *, name: x)
mlir.register_lowering(_MARK, lambda context, x, *, name: [x])


def _batched(arguments, axes, *, name):
  """Of a mapped layer the whole batch is marked, its axis first."""
  return _MARK.bind(jnp.moveaxis(arguments[0], axes[0], 0), name=name), 0


def _derived(primals, tangents, *, name):
  return _MARK.bind(*primals, name=name), tangents[0]


batching.primitive_batchers[_MARK] = _batched
ad.primitive_jvps[_MARK] = _derived


def _run(jaxpr: Any, consts: Any, inputs: list[Any], tap: types.Tap):
  """Runs a program; a mark whose value is used calls the tap."""
  known: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
  known.update(zip(jaxpr.invars, inputs, strict=True))

  def read(atom: Any) -> Any:
    return atom.val if isinstance(atom, core.Literal) else known[atom]

  read_atoms = [a for step in jaxpr.eqns for a in step.invars]
  used = {a for a in (*read_atoms, *jaxpr.outvars) if not _literal(a)}
  for step in jaxpr.eqns:
    name, values = step.primitive.name, list(map(read, step.invars))
    if step.primitive is _MARK:
      wanted = step.outvars[0] in used
      found = [tap(step.params["name"], *values) if wanted else values[0]]
    elif marks := _marks_within(step):
      inner = jaxprs.called(step)
      if inner is None:
        raise ValueError(
          f"{marks[0]!r} is used inside a {name} (a loop of JAX, as nn.scan "
          "makes), where no input can be shown; call the layers from a loop of "
          "Python"
        )
      found = _run(*inner, values, tap)
    else:
      given = step.primitive.get_bind_params(step.params)
      found = step.primitive.bind(*values, **given)
      found = found if step.primitive.multiple_results else [found]
    known.update(zip(step.outvars, found, strict=True))
  return list(map(read, jaxpr.outvars))


def _literal(atom: Any) -> bool:
  return isinstance(atom, core.Literal)


def _marks_within(step: Any) -> list[str]:
  """Lists the marks of the programs that a step calls."""
  return [
    each.params["name"]
    for each in jaxprs.operations_within(step)
    if each.primitive is _MARK
  ]


# --- models ------------------------------------------------------------------


def _linen(model: linen.Module, variables: dict, arguments: dict) -> Tapped:
  windows: Windows = {}

  def plain(params, x):
    whole = params if "params" in params else {"params": params}
    return model.apply({**variables, **whole}, x, **arguments)

  def marked(params, x):
    above = ("params",) if "params" in params else ()

    def show(call, args, kwargs, context):
      layer = context.module
      if context.method_name == "__call__" and args:
        if layer.has_variable("params", "kernel"):
          name = "/".join((*above, *layer.path, "kernel"))
          args = (_mark(layer, name, args[0], windows), *args[1:])
      return call(*args, **kwargs)

    with linen.intercept_methods(show):
      return plain(params, x)

  return Tapped(plain, marked, windows)


def _as_it_is(module: Any, params: types.Params) -> Any:
  return contextlib.nullcontext()


def _nnx(model: nnx.Module, arguments: dict) -> Tapped:
  graph, _, rest = nnx.split(model, nnx.Param, ...)

  def call(params, x, show=_as_it_is):
    module: Any = nnx.merge(graph, params, rest)
    with show(module, params):
      return module(x, **arguments)

  return _of_objects(call)


def _equinox(equinox: Any, model: Any, arguments: dict) -> Tapped:
  def call(params, x, show=_as_it_is):
    module = equinox.combine(params, model)
    with show(module, module):
      return jax.vmap(lambda image: module(image, **arguments))(x)

  return _of_objects(call)


def _of_objects(call: Callable) -> Tapped:
  """Marks layers that are called as objects which hold their weights."""
  windows: Windows = {}

  def show(module, params):
    owners = {}
    for path in leaves.weights(params):
      if path[-1] in ("kernel", "weight"):
        owners["/".join(path)] = functools.reduce(_member, path[:-1], module)
    return _shown(owners, windows)

  return Tapped(call, functools.partial(call, show=show), windows)


def _member(node: Any, name: str) -> Any:
  if hasattr(node, name):
    return getattr(node, name)
  return node[name] if isinstance(node, Mapping) else node[int(name)]


_lock = threading.RLock()  # classes are changed while a model is traced


@contextlib.contextmanager
def _shown(owners: dict[str, Any], windows: Windows) -> Iterator[None]:
  """Marks, as long as it lasts, what these layers are called on."""
  names = {id(owner): name for name, owner in owners.items()}
  with _lock, contextlib.ExitStack() as stack:
    for kind in {type(o) for o in owners.values() if callable(o)}:
      stack.enter_context(_replaced(kind, names, windows))
    yield


@contextlib.contextmanager
def _replaced(kind: Any, names: dict[int, str], windows) -> Iterator[None]:
  """Exchanges the `__call__` of a class for one that marks."""
  own = "__call__" in vars(kind)
  before = inspect.getattr_static(kind, "__call__")

  def call(self, x, *args, **kwargs):
    if id(self) in names:
      x = _mark(self, names[id(self)], x, windows)
    return before.__get__(self, kind)(x, *args, **kwargs)

  kind.__call__ = call
  try:
    yield
  finally:
    if own:
      kind.__call__ = before
    else:
      del kind.__call__


def _mark(layer: Any, name: str, x: Any, windows: Windows) -> Any:
  if hasattr(layer, "kernel_size"):
    windows[name] = _window(layer)
  # Embeddings are called on whole numbers, cells on a carry.
  real = leaves.is_array(x) and jnp.issubdtype(x.dtype, jnp.floating)
  return _MARK.bind(x, name=name) if real else x


def _window(layer: Any) -> types.Window:
  """Reads the window of a convolution of Linen, NNX or Equinox."""
  size = layer.kernel_size
  count = 1 if isinstance(size, int) else len(size)

  def each(*names):
    found = next((getattr(layer, n) for n in names if hasattr(layer, n)), None)
    found = 1 if found is None else found
    return (found,) * count if isinstance(found, int) else tuple(found)

  padding = layer.padding
  if isinstance(padding, int):
    padding = [(padding, padding)] * count
  elif not isinstance(padding, str):
    padding = [(p, p) if isinstance(p, int) else tuple(p) for p in padding]
  elif padding not in ("SAME", "VALID"):
    padding = None
  if (
    "Transpose" in type(layer).__name__
    or getattr(layer, "padding_mode", "ZEROS") != "ZEROS"
  ):
    padding = None
  groups = getattr(layer, "feature_group_count", getattr(layer, "groups", 1))
  return types.Window(
    each("strides", "stride"),
    each("kernel_dilation", "dilation"),
    padding,
    groups,
    hasattr(layer, "weight"),
  )
