"""Trains, evaluates or checks a config: `python -m affjax.main --config=configs/vit_mtl.py`.

Every leaf of a config can be set from the shell (`--config.optimizer.learning_rate=3e-4`), and its
arguments after a colon (`--config=configs/vit_mtl.py:data=ferplus,variant=S/16`). The same command
again continues the run to the bit.
"""

import errno
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from affjax import host, stopping

# What is wrong with a place that cannot be written to, for the user to mend.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_LONGEST_NAME = 200  # of a flag

_CONFIG = config_flags.DEFINE_config_file("config", None, "Its file, e.g. configs/vit_mtl.py")
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the run; default runs/<config name and its arguments>."
)
_MODE = flags.DEFINE_enum(
  "mode",
  "train",
  ["train", "evaluate", "check"],
  "train: train, then score. evaluate: score a checkpoint of --workdir. check: resolve the config,"
  " open the data, say what the run would be and cost, and stop.",
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where prepared data lives; default: TFDS's.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "To evaluate: best, latest or a step.")
_WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "To evaluate: averaged or not.")
_DATA = flags.DEFINE_string("data", None, "To evaluate on another data set: NAME or NAME/CONFIG.")
_SPLITS = flags.DEFINE_list("splits", [], "To evaluate: which splits; default the run's own.")
_TOPOLOGY = flags.DEFINE_string(
  "topology",
  "",
  "To check: compile for TPUs that are not here, e.g. v5e:2x4; needs the extra tpu-aot.",
)
_COMPILE = flags.DEFINE_boolean(
  "compile", True, "To check: compile the training step, for memory and collectives."
)
_OPEN_DATA = flags.DEFINE_boolean(
  "open_data", True, "To check: open the data; without, shapes are those that the config says."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "host:port of process 0, or `auto` where the cluster is one that JAX recognises (Slurm, Open MPI,"
  " Kubernetes, TPU pods).",
)
_PROCESSES = flags.DEFINE_integer("processes", None, "With --coordinator=host:port: how many.")
_PROCESS = flags.DEFINE_integer("process", None, "With --coordinator=host:port: which one this is.")


def default_workdir(config_file: str) -> Path:
  """configs/vit_mtl.py:data=ferplus,variant=S/16 -> runs/vit_mtl-data=ferplus,variant=S-16."""
  file, _, arguments = config_file.partition(":")
  name = Path(file).stem + (f"-{arguments}" if arguments else "")
  return Path("runs") / re.sub(r"[^\w=,.+-]", "-", name)


def _join_cluster() -> None:
  import jax

  if _COORDINATOR.value is None:
    return
  if jax.config.jax_platforms == "cpu":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
  if _COORDINATOR.value == "auto":
    jax.distributed.initialize()
  else:
    jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)


def _config() -> dict[str, Any]:
  """The config as plain JSON types, so that what is compared on resume is what was saved."""
  try:
    return json.loads(_CONFIG.value.to_json_best_effort())
  except OSError as e:
    raise ValueError(f"--config: {e}") from e


def _run(stop: stopping.Stop) -> None:
  host.keep_memory()
  # Imported here: a mistyped flag is answered at once.
  from affjax import checkpoints, compiled, dry_run, evaluate, train, workdir

  where = _WORKDIR.value and Path(_WORKDIR.value)
  if _MODE.value == "evaluate" and where and not _CONFIG.value:
    config = workdir.read_config(where)
  elif _CONFIG.value is None:
    raise ValueError("--config is missing, e.g. --config=configs/vit_mtl.py")
  else:
    config = _config()
  where = where or default_workdir(config_flags.get_config_filename(flags.FLAGS["config"]))
  _join_cluster()
  compiled.keep()
  checkpoints.quiet()
  if _MODE.value == "train":
    train.run(config, where, _DATA_DIR.value, stop)
  elif _MODE.value == "check":
    dry_run.run(
      config,
      _DATA_DIR.value,
      topology=_TOPOLOGY.value,
      compiles=_COMPILE.value,
      opens=_OPEN_DATA.value,
    )
  else:
    evaluate.run(
      config,
      where,
      _DATA_DIR.value,
      data_set=_DATA.value or "",
      splits=tuple(_SPLITS.value),
      which=_CHECKPOINT.value,
      weights=_WEIGHTS.value,
    )


def _main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise ValueError(f"unexpected argument {argv[1]!r}: flags are written --name=value")
  logging.set_verbosity(
    logging.FATAL
  )  # Orbax warns of what is meant to be, and logs what it raises
  with stopping.Stop(owns_process=True, cluster=_COORDINATOR.value is not None) as stop:
    _run(stop)


def _mendable(error: BaseException) -> bool:
  """Whether the user can mend it: raised by our own checks, not somewhere inside a library."""
  trace = error.__traceback__
  while trace and trace.tb_next:
    trace = trace.tb_next
  file = Path(trace.tb_frame.f_code.co_filename) if trace else Path()
  ours = {"affjax", "configs", "tfds_builders", "ml_collections"}
  return bool(ours & set(file.parts[-4:]))


def _one_line(error: BaseException) -> str:
  # ml_collections wraps what a config raised into the text of a traceback.
  text = re.sub(r"(?s)Error whilst parsing config file.*Traceback.*?\n\w*Error: ", "", str(error))
  # Of a KeyError str() is a repr, and ml_collections may have made another of it.
  text = text.replace("\\n", " ").replace("\\'", "'").replace('\\"', '"')
  if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
    text = text[1:-1]
  text = " ".join(text.split())
  # What was given may hold anything, such as bytes that no terminal can be sent.
  return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _of_field(argv: Sequence[str], said: str) -> str:
  """What ml_collections said of a field that the config lacks, with the flag that names it."""
  for name in (argument.partition("=")[0] for argument in argv):
    if name.startswith("--config.") and any(f"'{p}'" in f"'{said}'" for p in name.split(".")):
      return f"{name}: the config has no such field; --mode=check prints all that it has ({said})"
  return said


def _parse(argv: Sequence[str]) -> list[str]:
  """Parses flags; what is wrong with them is said in one line."""
  for name in (argument.partition("=")[0] for argument in argv):
    # absl would look for flags that are spelt like it, in the square of its length.
    if name.startswith("-") and len(name) > _LONGEST_NAME:
      sys.exit(f"error: {_one_line(ValueError(name[:60]))}...: no flag has so long a name")
  try:
    return flags.FLAGS(list(argv))
  except (AttributeError, KeyError) as e:
    sys.exit(f"error: {_of_field(argv, _one_line(e))}")
  except (flags.Error, TypeError, ValueError, OSError) as e:
    sys.exit(f"error: {_one_line(e)}")
  except SyntaxError as e:
    sys.exit(f"error: --config: {_one_line(ValueError(f'{e.filename}:{e.lineno}: {e.msg}'))}")


def cli() -> None:
  """The command line: errors that the user can mend are one line, all others a traceback."""
  if any(a in ("--help", "-h", "--helpfull", "--helpshort") for a in sys.argv):
    print(f"{__doc__}\n{flags.FLAGS.module_help(sys.modules[__name__])}")
    return
  try:
    app.run(_main, flags_parser=_parse)
  except (ValueError, FloatingPointError) as e:
    if not _mendable(e):
      raise
    _fail(_one_line(e))
  except OSError as e:
    if e.errno not in _DISK:
      raise
    _fail(f"{e.filename or 'writing'}: {e.strerror}: make room or name another place")


def _fail(text: str) -> NoReturn:
  """Ends the process at once: threads that wait for what failed would wait for ever."""
  sys.stdout.flush()
  print(f"error: {text}", file=sys.stderr, flush=True)
  stopping.leave(1)


if __name__ == "__main__":
  cli()
