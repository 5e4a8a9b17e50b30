"""Pictures of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np


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
    images: [batch, height, width, 3] float32 in [-1, 1].
    labels: task -> [batch, ...].
    mask: task -> [batch, ...].
    names: task -> names of its labels.
    limit: images shown at most.
  """
  count = min(limit, len(images))
  row = lambda tree, i: {task: np.asarray(tree[task])[i] for task in names}
  captions = [caption(row(labels, i), row(mask, i), names) for i in range(count)]
  pixels = np.clip((np.asarray(images[:count]) + 1) * 127.5, 0, 255).astype(np.uint8)
  cv2.imwrite(str(path), sheet(pixels, captions)[..., ::-1])
