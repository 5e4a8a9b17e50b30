"""Pictures of a run."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

# Okabe and Ito's colours, which colour-blind readers can tell apart; black for text.
COLOURS = [
  (0, 114, 178),
  (213, 94, 0),
  (0, 158, 115),
  (204, 121, 167),
  (230, 159, 0),
  (86, 180, 233),
]
# Logarithmic from this ratio of the largest to the smallest value on.
LOG_RATIO = 8.0

Curve = tuple[np.ndarray, np.ndarray]  # [points] steps, [points] values


def caption(
  labels: Mapping[str, Any], mask: Mapping[str, Any], names: Mapping[str, Sequence[str]]
) -> list[str]:
  """The labels of one image in words, a line a task; "-" where a task is not annotated.

  Args:
    labels: task -> label of the image.
    mask: task -> its mask.
    names: task -> names of its labels.
  """
  lines = []
  for task, known in names.items():
    label, given = np.asarray(labels[task]), np.asarray(mask[task])
    if not given.any():
      lines.append(f"{task} -")
    elif task == "va":
      shown = [f"{v:+.2f}" if m else "-" for v, m in zip(label, given, strict=True)]
      lines.append("V {} A {}".format(*shown))
    elif task == "expression":
      top = np.argsort(-label, kind="stable")[:2]
      lines.append(" ".join(f"{known[i]} {label[i]:.1f}" for i in top if label[i] > 0.05))
    else:
      on = [
        n.removeprefix("AU") for n, v, m in zip(known, label, given, strict=True) if m and v >= 0.5
      ]
      lines.append("AU " + (" ".join(on) or "none"))
  return lines


def sheet(images: np.ndarray, captions: Sequence[Sequence[str]], columns: int = 8) -> np.ndarray:
  """Images with their captions below, on one page.

  Args:
    images: [count, height, width, 3] uint8 RGB.
    captions: lines for each image.
    columns: images in a row.

  Returns:
    [height, width, 3] uint8 RGB.
  """
  cell, line = 144, 13
  below = line * max(map(len, captions)) + 8
  rows = -(-len(images) // columns)
  page = np.full((rows * (cell + below), columns * (cell + 6), 3), 255, np.uint8)
  for i, (image, lines) in enumerate(zip(images, captions, strict=True)):
    y, x = (i // columns) * (cell + below), (i % columns) * (cell + 6)
    page[y : y + cell, x : x + cell] = cv2.resize(
      image, (cell, cell), interpolation=cv2.INTER_CUBIC
    )
    for j, text in enumerate(lines):
      at = (x + 1, y + cell + line * (j + 1) - 2)
      cv2.putText(page, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1, cv2.LINE_AA)
  return page


def save_batch(
  path: Path,
  images: np.ndarray,
  labels: Mapping[str, Any],
  mask: Mapping[str, Any],
  names: Mapping[str, Sequence[str]],
  limit: int = 64,
) -> None:
  """Writes a PNG of what the network sees: augmented images with the labels they are trained on.

  Args:
    path: of the file.
    images: [batch, height, width, 3] float32 in [-1, 1]; of clips [batch, time, height, width, 3],
      of which each line is one: frames from its first to its last.
    labels: task -> [batch, ...], of clips [batch, time, ...].
    mask: task -> likewise.
    names: task -> names of its labels.
    limit: images shown at most.
  """
  columns = 8
  if images.ndim == 5:
    columns = min(columns, images.shape[1])
    shown = np.linspace(0, images.shape[1] - 1, columns).round().astype(int)
    frames = lambda x: np.asarray(x)[:limit, shown].reshape(-1, *np.shape(x)[2:])
    labels, mask = ({task: frames(tree[task]) for task in names} for tree in (labels, mask))
    images = frames(images)
  count = min(limit, len(images))
  row = lambda tree, i: {task: np.asarray(tree[task])[i] for task in names}
  captions = [caption(row(labels, i), row(mask, i), names) for i in range(count)]
  pixels = np.clip((np.asarray(images[:count]) + 1) * 127.5, 0, 255).astype(np.uint8)
  cv2.imwrite(str(path), sheet(pixels, captions, columns)[..., ::-1])


def save_weights(path: Path, log: Path) -> None:
  """Writes a PNG of what was learned about the tasks' uncertainty, against the step.

  The factor that each task's loss (or each dimension's) had, and where the model predicts standard
  deviations their means. Without anything of either, no file is written.

  Args:
    path: of the picture.
    log: of a run, `metrics.jsonl`.
  """
  charts = []
  for kind, title in (
    ("weight", "weight of each loss"),
    ("sigma", "predicted standard deviation, mean of the batch"),
  ):
    curves = _curves(log, kind)
    curves = {name: c for name, c in curves.items() if (c[1] != 1).any()}  # 1: not learned
    if curves:
      charts.append(line_chart(curves, title, "step"))
  if charts:
    cv2.imwrite(str(path), np.concatenate(charts)[..., ::-1])


def _curves(log: Path, kind: str) -> dict[str, Curve]:
  """Name -> curve of the numbers `kind/name` in a log; 0 is no value: there were no labels.

  Where dimensions have curves of their own, their task has none.
  """
  points: dict[str, list[tuple[int, float]]] = {}
  for line in log.read_text().splitlines():
    entry = json.loads(line)
    for name, value in entry.items():
      if entry["kind"] == "train" and name.startswith(f"{kind}/") and value:
        points.setdefault(name.removeprefix(f"{kind}/"), []).append((entry["step"], value))
  whole = {name.rpartition("/")[0] for name in points}
  return {
    name: tuple(np.array(xy, np.float64).T) for name, xy in points.items() if name not in whole
  }


def line_chart(curves: Mapping[str, Curve], title: str, x_label: str) -> np.ndarray:
  """Curves in one pair of axes, each with its name and last value beside it.

  The vertical axis is logarithmic where the values ask for it.

  Args:
    curves: name -> positions and values, at least one of each.
    title: what the values are.
    x_label: what the positions are.

  Returns:
    [360, 720, 3] uint8 RGB.
  """
  scale, height, width = 2, 360, 720  # drawn larger and reduced: smooth text
  left, right, top, bottom = 62, 560, 40, 312
  page = np.full((height * scale, width * scale, 3), 255, np.uint8)

  def write(text: str, x: float, y: float, align: float = 0.0, size: float = 0.42) -> None:
    (wide, tall), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size * scale, scale)
    at = (round(x * scale - align * wide), round(y * scale + tall / 2))
    cv2.putText(page, text, at, cv2.FONT_HERSHEY_SIMPLEX, size * scale, (0, 0, 0), 1, cv2.LINE_AA)

  def line(points: np.ndarray, colour: tuple[int, int, int], thickness: float) -> None:
    fixed = np.round(np.asarray(points) * scale * 16).astype(np.int32)  # in 16ths of a pixel
    thick = max(round(thickness * scale), 1)
    cv2.polylines(page, [fixed[:, None]], False, colour, thick, cv2.LINE_AA, shift=4)

  values = np.concatenate([curve[1] for curve in curves.values()])
  steps = np.concatenate([curve[0] for curve in curves.values()])
  log = values.min() > 0 and values.max() / values.min() >= LOG_RATIO
  y_ticks = _ticks(values.min(), values.max(), log)
  x_ticks = _ticks(steps.min(), steps.max(), False)
  of = np.log if log else np.asarray
  low, high = of(min(values.min(), y_ticks[0])), of(max(values.max(), y_ticks[-1]))
  first, last = min(steps.min(), x_ticks[0]), max(steps.max(), x_ticks[-1])
  to_x = lambda x: left + (right - left) * (x - first) / max(last - first, 1e-12)
  to_y = lambda y: bottom - (bottom - top) * (of(y) - low) / max(high - low, 1e-12)

  write(title + (", logarithmic" if log else ""), left, 20, size=0.5)
  write(x_label, (left + right) / 2, 346, align=0.5)
  for tick in y_ticks:
    line([(left, to_y(tick)), (right, to_y(tick))], (225, 225, 225), 0.5)
    write(f"{tick:g}", left - 8, to_y(tick), align=1.0)
  for tick in x_ticks:
    line([(to_x(tick), bottom), (to_x(tick), bottom + 4)], (0, 0, 0), 0.5)
    write(f"{tick:g}", to_x(tick), bottom + 15, align=0.5)
  line([(left, top), (left, bottom), (right, bottom)], (0, 0, 0), 0.5)

  order = sorted(curves, key=lambda name: -curves[name][1][-1])  # names do not cross the curves
  free = top
  for name in order:
    x, y = curves[name]
    colour = COLOURS[list(curves).index(name) % len(COLOURS)]
    line(np.stack([to_x(x), to_y(y)], 1), colour, 1.5)
    end = np.array([to_x(x[-1]), to_y(y[-1])])
    cv2.circle(page, tuple(np.round(end * scale).astype(int)), 3 * scale, colour, -1, cv2.LINE_AA)
    below = bottom - 18 * (len(order) - 1 - order.index(name))  # what is left for those after it
    at = min(max(end[1], free), below)
    line([(right + 14, at), (right + 30, at)], colour, 2)
    write(f"{name} {y[-1]:.3g}", right + 36, at)
    free = at + 18
  return cv2.resize(page, (width, height), interpolation=cv2.INTER_AREA)


def _ticks(low: float, high: float, log: bool) -> np.ndarray:
  """Round numbers that cover a range: 1, 2 and 5 times powers of ten, or evenly spaced."""
  if log:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = np.array([m * 10.0**d for d in decades for m in (1, 2, 5)])
    tight = 1 + 1e-9  # 10.0**-2 and 0.01 may differ in their last bit
    fine = fine[fine.searchsorted(low * tight) - 1 : fine.searchsorted(high / tight) + 1]
    return fine if len(fine) <= 12 else 10.0 ** np.array(decades)
  span = max(high - low, abs(high) * 0.1, 1e-9)
  power = 10.0 ** math.floor(math.log10(span / 4))
  step = next(m * power for m in (1, 2, 5, 10) if span / (m * power) <= 5)
  first = math.floor(low / step)
  return np.arange(first, max(math.ceil(high / step), first + 1) + 1) * step
