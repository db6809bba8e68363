"""What a traced program of JAX calls: the programs within it."""

from typing import Any

# Steps that call a program, by the parameter that holds it.
_CALLS = {
  "jit": "jaxpr",
  "pjit": "jaxpr",
  "remat2": "jaxpr",
  "checkpoint": "jaxpr",
  "closed_call": "call_jaxpr",
  "custom_jvp_call": "call_jaxpr",
  "custom_vjp_call": "call_jaxpr",
}


def called(step: Any) -> tuple[Any, Any] | None:
  """The program that a step calls once on its own inputs, and its constants;
  None where it is no such call: an operation, a loop or a branch."""
  name = step.primitive.name
  if name not in _CALLS:
    return None
  inner = step.params[_CALLS[name]]
  return getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())


def operations(jaxpr: Any) -> list[Any]:
  """Lists the operations of a program and of those it calls."""
  return [
    found for step in jaxpr.eqns for found in (step, *operations_within(step))
  ]


def operations_within(step: Any) -> list[Any]:
  """Lists the operations of the programs among the parameters of a step."""
  inner = _jaxprs(tuple(step.params.values()))
  return [found for each in inner for found in operations(each)]


def _jaxprs(value: Any) -> list[Any]:
  if isinstance(value, tuple | list):
    return [found for each in value for found in _jaxprs(each)]
  value = getattr(value, "jaxpr", value)
  return [value] if hasattr(value, "eqns") else []
