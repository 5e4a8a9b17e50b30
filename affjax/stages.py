"""Stages of a pipeline that run at the same time, each in a thread, and what each costs."""

import collections
import contextlib
import time
from collections.abc import Generator, Iterator
from concurrent import futures
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Generator[T, None, None], size: int = 2) -> Iterator[T]:
  """Yields what a generator does, which runs in a thread of its own, at most `size` items ahead.

  Its errors are raised here. It is closed when this is, or at its end.
  """
  pool, end = futures.ThreadPoolExecutor(1), object()
  try:
    flying = collections.deque(pool.submit(next, items, end) for _ in range(size))
    while (item := flying.popleft().result()) is not end:
      flying.append(pool.submit(next, items, end))
      yield item
  finally:
    pool.shutdown(cancel_futures=True)
    items.close()


class Clock:
  """Seconds that each stage was at work; what it waits for others does not count."""

  def __init__(self) -> None:
    self.seconds: dict[str, float] = collections.defaultdict(float)
    self.count: dict[str, int] = collections.defaultdict(int)

  @contextlib.contextmanager
  def __call__(self, stage: str, count: int = 0) -> Iterator[None]:
    """Times a `with` block of a stage, in which so many things were done."""
    start = time.perf_counter()
    try:
      yield
    finally:
      self.seconds[stage] += time.perf_counter() - start
      self.count[stage] += count

  def iterate(self, stage: str, items: Iterator[T]) -> Iterator[T]:
    """Yields what an iterator does; each item is one thing that was done."""
    while True:
      with self(stage):
        item = next(items, None)
      if item is None:
        return
      self.count[stage] += 1
      yield item

  def table(self, devices: dict[str, str], total: float, frames: int) -> str:
    """A line for each stage, and what they did together in `total` seconds.

    Args:
      devices: stage -> where it ran; those that did nothing are not shown.
      total: seconds.
      frames: that were looked at.
    """
    devices = {stage: device for stage, device in devices.items() if stage in self.seconds}
    busy = sum(self.seconds[stage] for stage in devices) or 1.0
    lines = [("stage", "count", "ms each", "ms/frame", "share", "on")]
    for stage, device in devices.items():
      seconds, count = self.seconds[stage], self.count[stage]
      lines.append(
        (
          stage,
          f"{count:,}",
          f"{1e3 * seconds / max(count, 1):.2f}",
          f"{1e3 * seconds / max(frames, 1):.2f}",
          f"{seconds / busy:.0%}",
          device,
        )
      )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
      "  ".join([first.ljust(widths[0]), *map(str.rjust, numbers, widths[1:-1]), device])
      for first, *numbers, device in lines
    ]
    rate = (
      f"{frames:,} frames in {total:.1f} s: {frames / max(total, 1e-9):.1f} frames/s end to end"
    )
    return "\n".join([*text, rate])
