"""Files of records, written in several processes; what is whole outlives the build that wrote it.

A *part* is one file, such as all frames of a video. Parts are written into a folder beside the data
set's. A build that ends before its time leaves there those that are whole, and the next one takes
them, if their fingerprint is that of what it would write itself.

Plain subprocesses rather than `multiprocessing`: see `synthetic_faces.workers`.
"""

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

import cv2
from array_record.python import array_record_module

from tfds_builders import progress

PREFIX = ".stage-"  # of the name of a stage
# Fewer records than this are written here: starting processes would take longer.
WORTH_WORKERS = 4000
OPTIONS = "group_size:1"  # of ArrayRecord: a record is read without others
TELL = 128  # records, after which a process says how far it is
BROKEN = 10  # things that are wrong named in one error

# What makes the records of a part: it is given its `job` and what it calls with each record, and
# returns what else is to be known of the part, as JSON has it.
Task = Callable[[Any, Callable[[bytes], None]], Mapping[str, Any]]


class Broken(Exception):
  """What a part is made from is damaged: what is wrong, one text a thing."""

  def __init__(self, wrong: Sequence[str]) -> None:
    super().__init__(wrong)
    self.wrong = list(wrong)


@dataclasses.dataclass(frozen=True)
class Part:
  """A file that is to be written.

  Attributes:
    name: of the file in the stage, without suffix; a folder may stand before it.
    fingerprint: of all that its records depend on.
    records: how many there will be, or about; for progress and for the order of work.
    job: what the task is given; it can be pickled.
  """

  name: str
  fingerprint: str
  records: int
  job: Any


@dataclasses.dataclass(frozen=True)
class Written:
  """A file that is whole.

  Attributes:
    fingerprint: of its part.
    records: how many it holds.
    record_bytes: of all records together.
    file_bytes: of the file.
    facts: what the task has returned.
  """

  fingerprint: str
  records: int
  record_bytes: int
  file_bytes: int
  facts: Mapping[str, Any]


class Stage:
  """A folder of parts. Only one process at a time may use it.

  Args:
    folder: it need not be there; its name begins with `PREFIX`, and others beside it that do are
      removed.
  """

  def __init__(self, folder: Path) -> None:
    self.folder = folder

  def path(self, part: Part) -> Path:
    """The file of a part."""
    return self.folder / f"{part.name}.array_record"

  def known(self, part: Part) -> Written | None:
    """What is known of a part that is whole and of the same fingerprint; None: there is none."""
    try:
      found = Written(**json.loads(_note(self.path(part)).read_bytes()))
      size = self.path(part).stat().st_size
    except (OSError, ValueError, TypeError):
      return None
    return found if (found.fingerprint, found.file_bytes) == (part.fingerprint, size) else None

  def count(self) -> int:
    """How many parts are there."""
    return sum(1 for path in self.folder.rglob("*.json"))

  def write(
    self, parts: Sequence[Part], task: Task, what: str, workers: int | None = None
  ) -> list[Written]:
    """Writes the parts that are not there yet.

    Args:
      parts: all of the data set, in any order.
      task: a function at the top of a module.
      what: a part is, for messages.
      workers: how many processes; one per core that this process may use, unless said. What is
        written does not depend on it.

    Returns:
      For each part what is known of it.

    Raises:
      ValueError: names what is broken, after all parts have been gone through; the others are kept.
      OSError, RuntimeError: a file cannot be written.
    """
    self._sweep(parts)
    missing = [part for part in parts if not self.known(part)]
    if len(missing) < len(parts):
      print(
        f"{len(parts) - len(missing)} of {len(parts)} {what}s are there, of a build that ended",
        file=sys.stderr,
      )
    # The largest first, so that none of them is left to one process at the end.
    missing.sort(key=lambda part: -part.records)
    try:
      self._write(missing, task, what, workers)
    except BaseException:
      self._sweep(parts)
      raise
    return [self.known(part) for part in parts]

  def _write(self, parts: Sequence[Part], task: Task, what: str, workers: int | None) -> None:
    records, broken = sum(part.records for part in parts), []
    workers = workers or (_cores() if records >= WORTH_WORKERS else 1)
    orders = [(part, self.path(part), task) for part in parts]
    with progress.bar(range(records), f"writing {what}s", "frames") as bar:

      def hear(kind: str, value: Any) -> None:
        if kind == "records":
          bar.update(value)
        elif kind == "broken":
          broken.extend(value)
        else:
          raise value

      if workers == 1:
        for order in orders:
          _make(*order, hear)
      else:
        _share(orders, min(workers, len(orders)), hear)
    if broken:
      named = list(dict.fromkeys(broken))  # some things are wrong for all parts
      more = f"; and {len(named) - BROKEN} more" if len(named) > BROKEN else ""
      raise ValueError(
        f"{'; '.join(named[:BROKEN])}{more} (the other {what}s are kept: the next build goes on)"
      )

  def _sweep(self, parts: Sequence[Part]) -> None:
    """Removes what is no whole part, or of another fingerprint, and stages of other versions."""
    for other in self.folder.parent.glob(f"{PREFIX}*"):
      if other != self.folder:
        shutil.rmtree(other)
    whole = [self.path(part) for part in parts if self.known(part)]
    stay = {*whole, *map(_note, whole)}
    for path in self.folder.rglob("*"):
      if path not in stay and not path.is_dir():
        path.unlink()

  def take(self, part: Part, path: Path) -> None:
    """Gives a part a second name, outside the stage, by which it stays when the stage goes."""
    try:
      os.link(self.path(part), path)
    except OSError:  # a file system without hard links
      self.path(part).replace(path)

  def remove(self) -> None:
    """Removes the folder."""
    shutil.rmtree(self.folder, ignore_errors=True)


def _note(path: Path) -> Path:
  """The file that says that a part is whole, written after it."""
  return path.with_suffix(".json")


def _cores() -> int:
  """How many this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _make(part: Part, path: Path, task: Task, tell: Callable[[str, Any], None]) -> None:
  """Writes a part: all of it, or nothing and what is broken is told."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix(f".{os.getpid()}")
  _note(path).unlink(missing_ok=True)
  count = size = told = 0

  def write(record: bytes) -> None:
    nonlocal count, size, told
    writer.write(record)
    count, size = count + 1, size + len(record)
    if count - told == TELL:
      tell("records", TELL)
      told = count

  try:
    with contextlib.closing(
      array_record_module.ArrayRecordWriter(os.fspath(partial), OPTIONS)
    ) as writer:
      facts = task(part.job, write)
    _confirm(partial, count)
    partial.replace(path)
  except Broken as e:
    tell("broken", e.wrong)
  else:
    written = Written(part.fingerprint, count, size, path.stat().st_size, facts)
    _note(path).write_text(json.dumps(dataclasses.asdict(written)))
  finally:
    partial.unlink(missing_ok=True)
  tell("records", part.records - told)


def _confirm(path: Path, count: int) -> None:
  """Raises OSError unless a file holds so many records: not every failure to write is an error."""
  reader = array_record_module.ArrayRecordReader(os.fspath(path), "readahead_buffer_size:0")
  if not reader.ok() or reader.num_records() != count:
    raise OSError(errno.EIO, "not all that was written is there", os.fspath(path))


def _share(
  orders: Sequence[tuple[Part, Path, Task]], workers: int, hear: Callable[[str, Any], None]
) -> None:
  """Gives each process an order, and the next one when it is done."""
  waiting = iter(orders)
  with contextlib.ExitStack() as stack:
    busy = {stack.enter_context(_started()): order for order in itertools.islice(waiting, workers)}
    for pipe, order in busy.items():
      pipe.send(order)
    while busy:
      for pipe in connection.wait(list(busy)):
        try:
          kind, value = pipe.recv()
          if kind != "done":
            hear(kind, value)
          elif order := next(waiting, None):
            busy[pipe] = order
            pipe.send(order)
          else:
            del busy[pipe]
        except (EOFError, ConnectionError) as e:
          name = busy[pipe][0].name
          raise RuntimeError(f"the process that writes {name} died: see above") from e


@contextlib.contextmanager
def _started() -> Iterator[connection.Connection]:
  """Starts a process that takes orders; gives the pipe to it."""
  here, there = connection.Pipe()
  process = subprocess.Popen(
    [sys.executable, "-c", f"from {__name__} import serve; serve({there.fileno()})"],
    pass_fds=[there.fileno()],
    env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
  )
  there.close()
  try:
    yield here
  finally:
    process.kill()
    process.wait()
    here.close()


def serve(pipe: int) -> None:
  """What a process does: one order after another, until there is nobody who gives them.

  Args:
    pipe: its file descriptor.
  """
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it is for who started this to end
  cv2.setNumThreads(1)  # there is a process for every core already
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # stdout is for who started this
  orders = connection.Connection(pipe)
  tell = lambda kind, value=None: orders.send((kind, value))
  with contextlib.suppress(EOFError, ConnectionError):
    while True:
      part, path, task = orders.recv()
      try:
        _make(part, path, task, tell)
        tell("done")
      except ConnectionError:
        raise
      except (OSError, RuntimeError) as e:
        tell("failed", e)
