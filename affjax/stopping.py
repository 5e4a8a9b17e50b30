"""Signals that end a run: nothing is lost, and the exit code says which signal it was."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import NoReturn, TextIO

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def code(number: int) -> int:
  """The exit code of a process that a signal ended, as a shell has it."""
  return 128 + number


class Stop:
  """Hears SIGINT and SIGTERM; a context manager.

  While the run holds updates that are on no disk (`holds`), a signal waits for the loop to ask, to
  save and to leave. At all other times nothing would be lost, and waiting might be long: whatever
  the main thread is in, a compilation or an evaluation, the process ends as soon as the save that
  is under way is whole. A second signal ends it at once.

  Args:
    owns_process: whether the process is the run's, and may be ended by a thread. In a notebook it
      is not: where nothing is held, a signal raises KeyboardInterrupt there.
    cluster: whether there are other processes. Then JAX's preemption service hears SIGTERM, of
      whichever process, and all leave after the same step.

  Attributes:
    signal: the first signal that came; None: none did.
    holds: whether the run has updates that are not on disk.
    saved: what is called before the process ends: waits for a save.
    where: what the run is doing, for the message.
  """

  def __init__(self, *, owns_process: bool = False, cluster: bool = False) -> None:
    self.signal: int | None = None
    self.holds = False
    self.saved: Callable[[], None] = lambda: None
    self.where = "starting"
    self._owns_process, self._cluster = owns_process, cluster
    self._before: dict[int, object] = {}

  def __enter__(self) -> "Stop":
    if threading.current_thread() is not threading.main_thread():
      return self  # only the main thread may say who hears signals
    if self._owns_process and not self._cluster:
      # A handler in Python waits for the main thread, which may be in a compiler for minutes. What
      # is written to this pipe by C is not.
      self._pipe = os.pipe()
      os.set_blocking(self._pipe[1], False)
      signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
      threading.Thread(target=self._watch, name="signals", daemon=True).start()
    # Of a cluster's processes SIGTERM is JAX's.
    own = SIGNALS[:1] if self._cluster else SIGNALS
    self._before = {number: signal.signal(number, self._heard) for number in own}
    return self

  def __exit__(
    self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
  ) -> None:
    if hasattr(self, "_pipe"):
      signal.set_wakeup_fd(-1)
      os.close(self._pipe[1])  # ends the thread
      del self._pipe
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}

  def _heard(self, number: int, frame: FrameType | None) -> None:
    """In the main thread, when that comes to it."""
    if self._cluster:
      if self.signal is not None:
        raise KeyboardInterrupt
      self.signal = number
      os.kill(os.getpid(), signal.SIGTERM)  # which JAX tells the other processes
    elif not self._owns_process:
      if self.signal is not None or not self.holds:
        raise KeyboardInterrupt
      self.signal = number

  def _watch(self) -> None:
    """In a thread: hears every signal at once."""
    pipe = self._pipe[0]
    while heard := os.read(pipe, 1):
      number = heard[0]
      if number not in SIGNALS:
        continue
      if self.signal is not None:
        leave(code(number))
      self.signal = number
      threading.Thread(target=self._leave_unless_held, name="leaving", daemon=True).start()
    os.close(pipe)

  def _leave_unless_held(self) -> None:
    if self.holds:
      return
    problem = None
    try:
      self.saved()
    except Exception as e:  # whatever it is that stopped the save, the run ends
      problem = e
    # Meanwhile the loop may have gone on: then it is the loop that saves and leaves.
    if not self.holds:
      # Not to what the main thread may have put in the place of stdout.
      say(self.signal, self.where, sys.__stdout__)
      if problem is not None:
        _print(f"error: {problem}", sys.stderr)
      leave(code(self.signal))

  def asked(self, step: int) -> bool:
    """Whether to save and leave before step `step + 1`; all processes agree."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self.signal is not None


def say(number: int | None, where: str, to: TextIO | None = None) -> None:
  """Tells that a run was stopped, and what to do; on stdout, unless said."""
  name = signal.Signals(number).name if number else "preemption"
  _print(f"stopped by {name} while {where}; the same command continues", to or sys.stdout)


def _print(text: str, where: TextIO) -> None:
  with contextlib.suppress(OSError, ValueError):  # nobody listens any more
    print(text, file=where, flush=True)


def leave(status: int) -> NoReturn:
  """Ends the process and those that it started, whatever its other threads are in."""
  for child in multiprocessing.active_children():
    with contextlib.suppress(OSError):
      child.kill()
  os._exit(status)
