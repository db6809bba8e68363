"""Keeps a results directory to networks that may stand in one table.

A study grows by seeds, architectures, sparsities and data sets. Networks of one
data set that were trained by another recipe, on other bytes or by another
version of this package are another study's: they are not added, unless
--allow_mixed insists.
"""

import os
from typing import Any

import minarch_jax
from minarch_jax import records
from minarch_jax.config import Config, ConfigError, RETRAINING
from minarch_jax.engine.session import Session
from minarch_jax.stages import provenance, setup


def check(session: Session, out: str) -> None:
  """Refuses to add a session's networks to others, before anything is written.

  Args:
    session: what is going to train or compress.
    out: the results directory.

  Raises:
    ConfigError: they would be mixed; the message shows the difference.
  """
  _check_retraining(out, session.config)
  if session.config.allow_mixed:
    return
  own, noted = setup.recipe_id(session), provenance.recipes(out)
  there = records.read_table(out, "networks").filter(
    arm=records.MAIN, dataset=session.dataset.name
  )
  now = facts(session)
  for run_id in there["run_id"].unique().sort():
    row = there.filter(run_id=run_id).row(0, named=True)
    different = _differences(noted.get(run_id, {}), row, now)
    if run_id != own or different:
      raise ConfigError(
        f"--out={out} holds networks of {session.dataset.name} that are "
        f"another study's ({'; '.join(different) or 'their flags are unknown'})"
        "; choose another --out, give the same flags, or insist with "
        "--allow_mixed"
      )


def facts(session: Session) -> dict[str, Any]:
  """What the networks of one table have in common, to be noted and compared."""
  return {
    "version": minarch_jax.__version__,
    "fingerprint": session.dataset.fingerprint,
    **session.config.recipe(),
  }


def agreed(session: Session, out: str) -> Session:
  """Leaves the facts of a session, by its recipe; plans as others there do."""
  recipe = setup.recipe_id(session)
  return provenance.agreed(session, out, recipe, facts(session))


def _differences(
  noted: dict[str, Any], row: dict[str, Any], now: dict[str, Any]
) -> list[str]:
  """Says how networks differ, by what was noted or else by a row of theirs."""
  known = {"fingerprint": "fingerprint", "init": "init", "epochs": "num_epochs"}
  before = {name: row[column] for column, name in known.items()} | noted
  found = []
  for name, value in now.items():
    if name in before and before[name] != value:
      found.append(_difference(name, before[name], value))
  return found


def _difference(name: str, before: Any, now: Any) -> str:
  if name == "version":
    return f"by version {before} of this package, this is {now}"
  if name == "fingerprint":
    return (
      f"of data with fingerprint {before[:12]}, now {now[:12]}: other images, "
      "folds or splits"
    )
  return f"--{name}={before}, now {now}"


def _check_retraining(out: str, config: Config) -> None:
  """Keeps two kinds of retraining out of one directory: no column of a table
  shows them, so that one would stand for the other."""
  before = records.read_json(os.path.join(out, "study.json")).get("config", {})
  if not os.path.isdir(os.path.join(out, "records", "compression")):
    return
  for name in RETRAINING:
    value = getattr(config, name)
    if name in before and before[name] != value:
      raise ConfigError(
        f"--{name}={value}, but {out} holds retraining with "
        f"{name}={before[name]}; use that value or another --out"
      )
