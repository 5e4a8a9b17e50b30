"""What a run says while it runs: the terminal, JSON lines, TensorBoard."""

import json
import math
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

LOG = "metrics.jsonl"


def cut_back(path: Path, step: int) -> None:
  """Drops the lines of later steps, and a last line that a kill cut short."""
  if not path.is_file():
    return
  kept = []
  for line in path.read_text().splitlines():
    try:
      entry = json.loads(line)
    except json.JSONDecodeError:
      continue
    if entry["step"] <= step:
      kept.append(line)
  partial = path.with_suffix(".partial")
  partial.write_text("".join(line + "\n" for line in kept))
  partial.rename(path)


class Monitor:
  """Collects the numbers of a run; a context manager.

  Args:
    workdir: gets `metrics.jsonl` and `tensorboard/`.
    tasks: names, in the order in which they are shown.
    steps: of the whole run.
    start: the step that the run continues from; what was logged beyond it is dropped.
    batch_size: of the global batch, for images/s.
    primary: whether this process writes and prints (one of them does).
  """

  def __init__(
    self,
    workdir: Path,
    *,
    tasks: Iterable[str],
    steps: int,
    start: int,
    batch_size: int,
    primary: bool,
  ) -> None:
    self._tasks = tuple(tasks)
    self._primary = primary
    self._steps = steps
    self._batch_size = batch_size
    self._waited = 0.0
    self._paused = 0.0
    self._since = time.perf_counter()
    self._last = start
    if primary:
      cut_back(workdir / LOG, start if start else -1)
      self._log = (workdir / LOG).open("a")
      # Events from `purge_step` on are hidden by TensorBoard: the run writes them anew.
      self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)
    live = primary and sys.stderr.isatty()
    self._bar = tqdm(total=steps, initial=start, unit="step", disable=not live, dynamic_ncols=True)
    self._live = live

  def __enter__(self) -> "Monitor":
    return self

  def __exit__(
    self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
  ) -> None:
    self._bar.close()
    if self._primary:
      self._events.close()
      self._log.close()

  def say(self, text: str) -> None:
    """Prints text above the live line."""
    if self._primary:
      with self._bar.external_write_mode(sys.stdout):
        print(text, flush=True)

  class _Clock:
    def __init__(self, monitor: "Monitor", attribute: str) -> None:
      self._monitor, self._attribute = monitor, attribute

    def __enter__(self) -> None:
      self._start = time.perf_counter()

    def __exit__(self, *unused: object) -> None:
      spent = getattr(self._monitor, self._attribute) + time.perf_counter() - self._start
      setattr(self._monitor, self._attribute, spent)

  def waiting(self) -> "Monitor._Clock":
    """Times a block in which the run waits for data."""
    return self._Clock(self, "_waited")

  def pausing(self) -> "Monitor._Clock":
    """Times a block that is not training (evaluation, saving), left out of images/s."""
    return self._Clock(self, "_paused")

  def advance(self) -> None:
    """One step was dispatched."""
    self._bar.update()

  def train(self, step: int, values: Mapping[str, Any]) -> None:
    """Logs a step's numbers with speed and waiting since the last call.

    Raises:
      FloatingPointError: the loss is not finite.
    """
    values = {name: float(value) for name, value in values.items()}
    now = time.perf_counter()
    busy = max(now - self._since - self._paused, 1e-9)
    speed = {
      "images_per_second": (step - self._last) * self._batch_size / busy,
      "waiting_for_data": self._waited / busy,
    }
    self._since, self._last, self._waited, self._paused = now, step, 0.0, 0.0
    self.write(step, "train", values | speed)
    line = describe(self._tasks, values, speed)
    self._bar.set_postfix_str(line)
    if not self._live:
      left = self._batch_size * (self._steps - step) / max(speed["images_per_second"], 1e-9)
      self.say(f"step {step}/{self._steps}  {line}  ETA {tqdm.format_interval(left)}")
    for name in (n for n in values if n.startswith("loss")):
      if not math.isfinite(values[name]):
        raise FloatingPointError(f"step {step}: {name} is {values[name]}")

  def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
    """Adds a line to the JSON log and the same numbers to TensorBoard."""
    if not self._primary:
      return
    self._log.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
    self._log.flush()
    for name, value in values.items():
      self._events.add_scalar(f"{kind}/{name}", value, step)


def describe(tasks: Iterable[str], values: Mapping[str, float], speed: Mapping[str, float]) -> str:
  """One line: losses per task with the weights that they have, speed, waiting."""
  parts = [f"loss {values['loss']:.3f}"]
  for task in tasks:
    weight = values[f"weight/{task}"]
    loss = values[f"loss/{task}"]
    parts.append(f"{task} {loss:.3f} x{weight:.2f}" if weight else f"{task} unlabelled")
  parts.append(f"{speed['images_per_second']:.0f} img/s")
  parts.append(f"data {speed['waiting_for_data']:.0%}")
  return "  ".join(parts)
