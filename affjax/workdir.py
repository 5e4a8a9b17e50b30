"""What a run leaves in its folder, and when a folder may be used again."""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CONFIG = "config.json"
STARTS = "starts.jsonl"
CHECKPOINTS = "checkpoints"
IN_USE = ".in_use"
LARGEST = 2**24  # bytes of a config

# Fields that may change between starts of one run: they do not change a single bit of it. (What to
# do about the first update that is not finite, or record that cannot be read, is asked only there.)
FREE = re.compile(
  r"log_every|profile|nonfinite|draw_report|wandb|evaluate\.(every|probe)|checkpoint\.every"
  r"|data\.(workers|threads|placement|records|unreadable)|mesh\.\w+"
)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "affjax")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """{"a": {"b": 1}} -> {"a.b": 1}."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[prefix + key] = value
  return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Says in which fields two configs differ, other than those that may change on resume."""
  old, new = flatten(old), flatten(new)
  return [
    f"{name} was {old.get(name, 'absent')!r}, is {new.get(name, 'absent')!r}"
    for name in sorted(set(old) | set(new))
    if old.get(name) != new.get(name) and not FREE.fullmatch(name)
  ]


def read_config(workdir: Path) -> dict[str, Any]:
  """The config of the run in `workdir`.

  Raises:
    ValueError: there is none.
  """
  path = workdir / CONFIG
  if not path.is_file():
    raise ValueError(f"{workdir} holds no run ({CONFIG} is missing): check --workdir")
  try:
    if path.stat().st_size > LARGEST:
      raise ValueError(f"it has {path.stat().st_size:,} bytes")
    config = json.loads(path.read_bytes())
  except (ValueError, RecursionError) as e:
    raise ValueError(f"{path} is not the config of a run: {e}") from None
  if not isinstance(config, dict) or not config:
    raise ValueError(f"{path} is not the config of a run: it holds no fields")
  return config


@contextlib.contextmanager
def claim(workdir: Path) -> Iterator[None]:
  """Keeps a folder for the run in this process until the block, or the process, ends.

  Raises:
    ValueError: another process has it.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir / IN_USE).open("a+") as f:
    try:
      # The process's own: data workers that outlive it do not hold it.
      fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      f.seek(0)
      raise ValueError(
        f"{workdir} is in use by {f.read().strip() or 'another run'}: wait for it, stop it, or use"
        " another --workdir"
      ) from None
    f.truncate(0)
    f.write(f"process {os.getpid()} on {socket.gethostname()}, {time.strftime('%F %T %z')}")
    f.flush()
    yield


def check(workdir: Path, config: Mapping[str, Any]) -> None:
  """Raises ValueError if the folder holds a run with another config."""
  if (workdir / CONFIG).is_file() and (found := differences(read_config(workdir), config)):
    raise ValueError(
      f"{workdir} holds a run with another config ({'; '.join(found)}): use another --workdir, or"
      " the same config to continue it"
    )


def write(path: Path, text: str) -> None:
  """Writes a file so that it is there whole or not at all."""
  partial = path.with_name(f".{path.name}")
  partial.write_text(text)
  partial.rename(path)


def record(workdir: Path, config: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
  """Writes the config (once) and who started what when, with which code (every start).

  Returns:
    What was written of this start.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  if not (workdir / CONFIG).is_file():
    write(workdir / CONFIG, json.dumps(config, indent=1))
  start = {
    "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    "command": [sys.executable, *sys.orig_argv[1:]],
    "git": _git(),
    "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    "python": sys.version.split()[0],
    **facts,
  }
  with (workdir / STARTS).open("a") as f:
    f.write(json.dumps(start) + "\n")
  return start


def entries(path: Path) -> list[dict[str, Any]]:
  """The lines of a JSON log, less a last one that a kill cut short; [] if there is no log.

  Raises:
    ValueError: it cannot be read.
  """
  try:
    *lines, last = path.read_text().split("\n") if path.is_file() else [""]
    found = list(map(json.loads, lines))
  except (OSError, ValueError, RecursionError) as e:
    raise ValueError(f"{path} cannot be read: {e}") from e
  with contextlib.suppress(ValueError):
    found += [json.loads(last)] if last else []
  if not all(isinstance(entry, dict) for entry in found):
    raise ValueError(f"{path} cannot be read: not every line is a JSON object")
  return found


def _git() -> str | None:
  """The commit of the code, with "+" if it has uncommitted changes; None outside a checkout."""
  here = Path(__file__).resolve().parent
  try:
    run = lambda *args: subprocess.run(
      ["git", *args], cwd=here, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()
    if Path(run("rev-parse", "--show-toplevel")) != here.parent:
      return None  # installed somewhere inside another project
    return run("rev-parse", "HEAD") + ("+" if run("status", "--porcelain") else "")
  except (OSError, subprocess.SubprocessError):
    return None
