"""Compiled programs, kept between runs: the second start of a run compiles nothing.

JAX's persistent compilation cache, switched on, in a folder of its own for each kind of CPU. Bad
entries are deleted. (JAX 0.10.2 warns of an entry that it cannot read, compiles, and leaves the
entry there, to be warned of at every start.)
"""

import hashlib
import os
import platform
import re
import sys
import warnings
from pathlib import Path

# Megabytes that entries may take before the oldest are deleted.
LIMIT = 2000
# Programs that compile more quickly (seconds) are not worth a file.
SECONDS = 0.5

_UNREADABLE = re.compile(r"Error reading persistent compilation cache entry for '(\w+)'")


def folder() -> Path:
  """Where entries are kept: below $XDG_CACHE_HOME, or ~/.cache.

  Code that was compiled for one CPU may use instructions that another lacks, and a home directory
  may be mounted on both.
  """
  cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return Path(cache).expanduser() / "affjax" / "compiled" / _cpu()


def keep(where: Path | None = None, limit: int = LIMIT) -> Path | None:
  """Has JAX keep what it compiles from now on, and use what was kept.

  What JAX_COMPILATION_CACHE_DIR and JAX_ENABLE_COMPILATION_CACHE say holds. Where the folder cannot
  be written, nothing is kept.

  Args:
    where: the folder; None: `folder()`.
    limit: megabytes; the oldest entries beyond it are deleted.

  Returns:
    The folder in use; None: nothing is kept.
  """
  import jax

  if not jax.config.jax_enable_compilation_cache:
    return None
  if jax.config.jax_compilation_cache_dir is None:
    where = where or folder()
    try:
      where.mkdir(parents=True, exist_ok=True)
    except OSError:
      return None
    if not os.access(where, os.W_OK):
      return None
    jax.config.update("jax_compilation_cache_dir", str(where))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS)
    _shrink(where, limit * 1_000_000)
  where = Path(jax.config.jax_compilation_cache_dir)
  _delete_unreadable(where)
  return where


def _delete_unreadable(where: Path) -> None:
  """Hears JAX's warning of an entry that it cannot read and deletes it, before it is written anew.

  The warning names the program and not the entry: all entries of programs of that name go.
  """
  show = warnings.showwarning

  def heard(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: str | None = None,
  ) -> None:
    found = _UNREADABLE.match(str(message))
    if not found:
      return show(message, category, filename, lineno, file, line)
    for entry in where.glob(f"{found[1]}-*-cache"):
      entry.unlink(missing_ok=True)
    print(f"compiled programs: damaged entries of {found[1]} deleted in {where}", file=sys.stderr)
    return None

  warnings.showwarning = heard


def _shrink(where: Path, limit: int) -> None:
  """Deletes the oldest entries until all take `limit` bytes at most."""
  entries = []
  for path in where.glob("*-cache"):
    try:
      entries.append((path.stat().st_mtime, path.stat().st_size, path))
    except FileNotFoundError:  # another run was quicker
      continue
  size = sum(entry[1] for entry in entries)
  for _, own, path in sorted(entries):
    if size <= limit:
      break
    path.unlink(missing_ok=True)
    size -= own


def _cpu() -> str:
  """A name for this kind of CPU: what it is and what it can do."""
  try:
    text = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    can = sorted(
      line for line in text.splitlines() if re.match(r"(flags|Features|model name)", line)
    )
  except OSError:
    can = [platform.processor()]
  digest = hashlib.sha256("\n".join([platform.system(), platform.machine(), *can]).encode())
  return f"{platform.machine()}-{digest.hexdigest()[:12]}"
