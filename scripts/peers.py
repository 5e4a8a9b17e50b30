"""Peers of a benchmark: processes that work when they are told to and sleep while others do."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from types import TracebackType


class Peer:
  """A process that says "ready" and then answers each line with a number; a context manager.

  Args:
    module: of the process, for `python -m`.
    arguments: of its command line.

  Raises:
    RuntimeError: it ended before it was ready; why is on standard error.
  """

  def __init__(self, module: str, arguments: Sequence[str]) -> None:
    self._name = " ".join([module, *arguments])
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    self._process = subprocess.Popen([sys.executable, "-m", module, *arguments], **pipes)
    if self._process.stdout.readline().strip() != "ready":
      self.close()
      raise RuntimeError(f"{self._name} did not start: see above")

  def __call__(self, told: object = "") -> float:
    """What it answers."""
    self._process.stdin.write(f"{told}\n")
    self._process.stdin.flush()
    if not (answer := self._process.stdout.readline()):
      raise RuntimeError(f"{self._name} ended: see above")
    return float(answer)

  def close(self) -> None:
    """Ends the process, and with it what it started."""
    self._process.kill()
    self._process.wait()

  def __enter__(self) -> "Peer":
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self.close()


def serve(work: Callable[[str], float]) -> None:
  """What such a process does once it is ready: answers each line of standard input."""
  print("ready", flush=True)
  for line in sys.stdin:
    print(work(line), flush=True)
