"""What every experiment does: flags, errors without tracebacks, the end."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import os
import shlex
import shutil
import signal
import sys
import textwrap
import time
import typing
from typing import Any

from absl import app, logging

from minarch_jax import config as config_lib
from minarch_jax import flags as config_flags

if typing.TYPE_CHECKING:
  import polars as pl

  from minarch_jax import report

Stage = Callable[[config_lib.Config], None]


def run(stage: Stage, *, trains: bool = True) -> None:
  """Runs a stage on the flags.

  A value that cannot be used ends the program before JAX is imported, with
  one message and nothing written. Ctrl-C and SIGTERM keep what is finished.
  """

  def main(argv: Sequence[str]) -> None:
    listen()
    # Orbax reports every save; errors reach the user as ours.
    logging.set_verbosity(logging.FATAL)
    with messages():
      if len(argv) > 1:
        raise config_lib.ConfigError(
          f"unexpected argument {argv[1]!r}; options look like --name=value"
        )
      config, hosts = config_flags.read(), config_flags.hosts()
      if trains:
        _prepare(config, hosts)
      if not hosts or config.dry_run:
        stage(config)
        return
      from minarch_jax.executors import hosts as several  # imports JAX

      with several.joined(hosts, config.out), messages():
        stage(config)

  if "--helpshort" in sys.argv[1:]:  # absl's has four lines for every flag
    doc = sys.modules["__main__"].__doc__ or ""
    print(doc.strip(), config_flags.briefly(), sep="\n\n")
    print("\n--help explains every flag.")
    sys.exit()
  app.run(main)


def _prepare(
  config: config_lib.Config, hosts: config_flags.Hosts | None
) -> None:
  """Checks what a stage that trains needs, and repairs where asked to."""
  from minarch_jax import data  # imports numpy, after flags are checked

  config.on_each(lambda c: data.check(c.dataset, c.data_dir or None))
  config_lib.check_writable(config.out)
  if hosts and config.executor != "local":
    raise config_lib.ConfigError(
      f"--distributed runs packs in the processes there are; leave out "
      f"--executor={config.executor}"
    )
  if config.repair and hosts:
    raise config_lib.ConfigError(
      "--repair is for one process; repair first, without --distributed"
    )
  if config.repair and not config.dry_run:
    from minarch_jax.stages import repair  # imports JAX

    repair.set_aside(config.out)


@contextlib.contextmanager
def messages() -> Iterator[None]:
  """Ends the process with one message for what is no error of ours."""
  try:
    yield
  except KeyboardInterrupt:
    command = shlex.join(sys.orig_argv)
    print(
      f"\ninterrupted; what is finished is kept. Go on with: {command}",
      file=sys.stderr,
    )
    sys.exit(os.EX_TEMPFAIL)
  except config_lib.ConfigError as error:
    sys.exit(f"error: {error}")
  except BrokenPipeError:  # whoever read the output has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except OSError as error:
    sys.exit(f"error: {error}; what is finished is kept")
  except Exception as error:
    if not _is_full(error):
      raise
    sys.exit(
      f"error: out of memory ({str(error).partition(chr(10))[0]}); what is "
      "finished is kept; give packs less with --memory_limit (GiB) or "
      "--packs_at_once=1"
    )


def _is_full(error: Exception) -> bool:
  """Says whether the host or a device had no more memory to give."""
  return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


SIGNALS = (signal.SIGINT, signal.SIGTERM)


def listen() -> None:
  """Ends the stage at the first signal, the process at the second.

  The first lets what is computing end and be kept, which takes seconds. What
  is being written when the second comes has no name yet, so nobody reads it.
  """

  def hear(number: int, frame: Any) -> None:
    del number, frame
    for each in SIGNALS:
      signal.signal(each, signal.SIG_DFL)
    # Not print: the signal may have come in the middle of one.
    os.write(2, b"\nkeeping what there is; once more ends at once\n")
    raise KeyboardInterrupt

  for each in SIGNALS:
    if signal.getsignal(each) != signal.SIG_IGN:  # as nohup asks for
      signal.signal(each, hear)


def line(**stages: bool) -> Stage:
  """Makes the stage that runs stages of a study, then builds the report.

  Args:
    **stages: as for `study.run`; with training, --dry_run prints the plan.
  """
  start = time.monotonic()

  def stage(config: config_lib.Config) -> None:
    if config.dry_run and stages.get("train", True):
      dry_run(config, whole=not stages)
      return
    built = _ended(config, stages)
    if built:
      show_report(config, built, start)

  return stage


def _ended(
  config: config_lib.Config, stages: Mapping[str, bool]
) -> "report.Built | None":
  """Runs what is missing of a study, and returns its report.

  Of several processes that are one program the first builds it, the others
  return None.
  """
  from minarch_jax import data, report  # numpy and polars

  found = report.find(config.out, config)
  if found:  # so far nothing changed; the data are read last
    fingerprints = [data.fingerprint_of(part) for part in config.each()]
    if found.run == report.run_of(config, fingerprints, stages):
      return found
  from minarch_jax import study  # imports what trains and what draws

  fingerprints = study.run(config, **stages)
  if not study.is_first():
    return None
  run = report.run_of(config, fingerprints, stages)
  return report.build(config.out, config, run)


def dry_run(config: config_lib.Config, *, whole: bool = False) -> None:
  """Prints the plan: packs, padding, predicted memory and time.

  Args:
    config: every choice.
    whole: whether a study is planned, or a sweep.
  """
  from minarch_jax.stages import forecast  # imports JAX

  print(forecast.describe(config, whole=whole))


def show_report(
  config: config_lib.Config, built: "report.Built", start: float
) -> None:
  """Prints the summary of a report and where everything lies."""
  print()
  say(built.summary)
  print(f"\n  records  {os.path.join(config.out, 'records')}")
  print(f"  report   {built.page}")
  print(f"  took     {time.monotonic() - start:.0f} s")


def say(answers: Sequence[tuple[str, str]]) -> None:
  """Prints what each answer is to, and the answer beside it."""
  margin = max((len(head) for head, _ in answers), default=0) + 2
  width = min(shutil.get_terminal_size((WIDTH, 0)).columns, WIDTH)
  for head, text in answers:
    lines = textwrap.wrap(text, max(width - margin - 2, 40))
    for start, line in zip([head, *[""] * len(lines)], lines, strict=False):
      print(f"  {start:{margin}}{line}")


WIDTH = 100  # characters of a printed table, as terminals have them


def show(
  frame: "pl.DataFrame", columns: Sequence[str] = (), rest: str = ""
) -> None:
  """Prints a table for a terminal, one line a row.

  Args:
    frame: the table; columns that repeat the thresholds are left out.
    columns: those that answer; () = all. `dataset` is added where there are
      several.
    rest: the file of the report that holds the others.
  """
  import polars as pl  # not before flags are checked

  frame = frame.drop(config_lib.THRESHOLDS, strict=False)
  shown = frame
  if columns:
    several = "dataset" in frame.columns and frame["dataset"].n_unique() > 1
    shown = frame.select(*["dataset"] * several, *columns)
  shown = shown.with_columns(map(_whole, shown.select(pl.col(pl.Float64))))
  with pl.Config(
    tbl_rows=-1,
    tbl_cols=-1,
    tbl_width_chars=WIDTH if columns else 160,
    float_precision=4,
    fmt_str_lengths=WIDTH,
    tbl_formatting="ASCII_MARKDOWN",  # can be pasted into a note
    tbl_hide_column_data_types=True,
    tbl_hide_dataframe_shape=True,
    tbl_cell_numeric_alignment="RIGHT",
    thousands_separator=",",
  ):
    print(shown)
  left = len(frame.columns) - len(shown.columns)
  if left and rest:
    print(f"{left} more columns in <out>/report/{rest}")


def _whole(values: "pl.Series") -> "pl.Series":
  """Rounds estimated counts; leaves shares as they are."""
  import polars as pl  # not before flags are checked

  known = values.set(~values.is_finite(), None)
  if not (known.abs() >= 100).any():
    return values
  return known.round().cast(pl.Int64)
