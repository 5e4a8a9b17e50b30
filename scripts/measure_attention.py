"""Whether the tokens of action units look at the part of the face where their unit is.

  for seed in 0 1 2 3; do
    python -m affjax.main --config=configs/vit_mtl.py:data=synthetic_faces/independent,steps=6000 \
      --config.model.decoder.layout=elementary --config.model.decoder.position=decoder \
      --config.model.decoder.readout=0 --config.seed=$seed --workdir=runs/attention-$seed
  done
  python -m scripts.measure_attention --runs runs/attention-0 runs/attention-1 ... \
    --picture=attention.png

Of runs with a token for each unit, on test faces that no run has learnt from. A face's number for a
unit is the share of its token's attention that falls on the unit's region, divided by the region's
share of the face's area: 1 is what attention would have that is spread over the face alone. It is
the attention of the last layer (mean over the heads), from which the unit is read; in the first no
token has seen the image yet, so that its queries are the same for every face (`--layers=all` is the
mean over both). A unit's number is the mean over the faces and runs; its interval, Student's 95 %
over the runs, is of the mean over the faces in each. Beside it stands what the tokens of the other
eleven units have there.

Faces and runs are of `independent`: where units come together, as in `natural`, a token may know
its unit by the company that it keeps.

Regions are polygons of the 68 landmarks (`REGIONS`), which come with each face, after the table of
units in `tfds_builders/synthetic_faces`; the face's area is its mask's. How far a polygon is grown
beyond its landmarks is our choice (INFERRED).
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import affjax
from affjax import report
from affjax.data import records
from scripts import sweep

PIXELS = 112
EYES = (slice(36, 42), slice(42, 48))
MOUTH = slice(48, 60)
# Unit -> polygons: landmarks (of iBUG), how far they are drawn up, with a copy left where they are,
# and how far all is grown; in distances of the eyes. Below 0 is down.
REGIONS = {
  "AU1": [((20, 21, 22, 23), 0.35, 0.08)],
  "AU2": [((17, 18, 19), 0.3, 0.08), ((24, 25, 26), 0.3, 0.08)],
  "AU4": [((17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27), 0.0, 0.12)],
  # Cheeks and lower lids: from the face's contour to the wings of the nose.
  "AU6": [((1, 2, 31, 36, 39, 40, 41), 0.0, 0.05), ((14, 15, 35, 42, 45, 46, 47), 0.0, 0.05)],
  "AU7": [(tuple(range(36, 42)), 0.0, 0.12), (tuple(range(42, 48)), 0.0, 0.12)],
  "AU10": [((31, 32, 33, 34, 35, 48, 49, 50, 51, 52, 53, 54), 0.0, 0.08)],
  "AU12": [((48,), 0.3, 0.2), ((54,), 0.3, 0.2)],
  "AU15": [((48,), 0.0, 0.25), ((54,), 0.0, 0.25)],
  "AU23": [(tuple(range(48, 60)), 0.0, 0.1)],
  "AU24": [(tuple(range(48, 60)), 0.0, 0.1)],
  "AU25": [(tuple(range(48, 60)), 0.0, 0.1)],
  "AU26": [((*range(48, 60), 6, 7, 8, 9, 10), 0.0, 0.05)],
}


def region(unit: str, landmarks: np.ndarray) -> np.ndarray:
  """Where a unit is seen.

  Args:
    unit: its name.
    landmarks: [68, 2] x, y in pixels of a face of `PIXELS`.

  Returns:
    [PIXELS, PIXELS] 0 or 1, float32.
  """
  eyes = [landmarks[eye].mean(0) for eye in EYES]
  distance = np.linalg.norm(eyes[1] - eyes[0])
  up = np.mean(eyes, 0) - landmarks[MOUTH].mean(0)
  up *= distance / np.linalg.norm(up)
  drawn = np.zeros((PIXELS, PIXELS), np.uint8)
  for numbers, rise, growth in REGIONS[unit]:
    points = landmarks[list(numbers)]
    points = np.concatenate([points, points + rise * up])
    hull = cv2.convexHull(points.astype(np.float32)).round().astype(np.int32)
    cv2.fillConvexPoly(drawn, hull, 1)
    width = max(round(2 * growth * distance), 1)
    cv2.polylines(drawn, [hull], True, 1, width)
  return drawn.astype(np.float32)


def patches(area: np.ndarray, side: int) -> np.ndarray:
  """[side, side] share of each patch that belongs to an area of [pixels, pixels]."""
  return cv2.resize(area, (side, side), interpolation=cv2.INTER_AREA)


def share_of_face(attention: np.ndarray, part: np.ndarray, face: np.ndarray) -> float:
  """Attention on a region, over the region's share of the face.

  Args:
    attention: [side, side], summing to at most 1.
    part: [PIXELS, PIXELS] the region.
    face: [PIXELS, PIXELS] how much of each pixel is face.

  Returns:
    1 where attention has spread over the face alone, evenly; NaN where the region is not in it.
  """
  side = len(attention)
  part = part * face
  if not part.sum():
    return math.nan
  # What falls on a patch falls on each of its pixels alike.
  on_region = (attention * patches(part, side)).sum()
  return float(on_region / (part.sum() / face.sum()))


def faces(data: str, data_dir: str | None, count: int) -> dict[str, np.ndarray]:
  """Pictures, landmarks and masks of test faces, spread evenly over the split."""
  build = records.builder("synthetic_faces", data, data_dir)
  source = build.as_data_source("test")
  rows = [source[int(i)] for i in np.linspace(0, len(source) - 1, count)]
  grow = lambda mask: cv2.resize(mask[..., 0].astype(np.float32) / 255, (PIXELS, PIXELS))
  return {
    "image": np.stack([row["image"] for row in rows]),
    "landmarks": np.stack([row["landmarks"] for row in rows]),
    "face": np.stack([grow(row["face_mask"]) for row in rows]),
  }


def measure(
  predictor: Any, found: dict[str, np.ndarray], layers: str = "last"
) -> tuple[np.ndarray, np.ndarray]:
  """What a run's tokens look at.

  Args:
    predictor: of the run.
    found: see `faces`.
    layers: "last", or "all" for the mean over them.

  Returns:
    [tokens, units, faces] the number of each unit's token on each unit's region, tokens in the
    order of the units; and [tokens, faces, rows, columns] their attention.

  Raises:
    ValueError: the units have no tokens of their own.
  """
  maps = predictor.attention(found["image"])
  if missing := [unit for unit in REGIONS if unit not in maps.names]:
    raise ValueError(
      f"{', '.join(missing)} have no token of their own: train with"
      " --config.model.decoder.layout=elementary or mixed"
    )
  mean = (maps.image[-1:] if layers == "last" else maps.image).mean((0, 2))
  attention = np.stack([mean[:, maps.names.index(unit)] for unit in REGIONS])
  numbers = np.empty((len(REGIONS), len(REGIONS), len(mean)))
  for row, (landmarks, face) in enumerate(zip(found["landmarks"], found["face"], strict=True)):
    for column, unit in enumerate(REGIONS):
      part = region(unit, landmarks)
      numbers[:, column, row] = [share_of_face(one, part, face) for one in attention[:, row]]
  return numbers, attention


def table(numbers: np.ndarray) -> str:
  """Text, a line a unit, of [runs, tokens, units, faces]."""
  of_runs = np.nanmean(numbers, axis=3)
  own = np.diagonal(of_runs, axis1=1, axis2=2)
  others = (of_runs.sum(1) - own) / (len(REGIONS) - 1)
  title = f"{'unit':6}{'on its region':>14}  {'95 % interval':16}{'':10}{'other tokens there':>18}"
  lines = [f"{title}  each run"]
  rows = zip([*REGIONS, "mean"], [*own.T, own.mean(1)], [*others.T, others.mean(1)], strict=True)
  for unit, values, elsewhere in rows:
    mean, half = sweep.interval(values)
    low, high = mean - half, mean + half
    verdict = "above 1" if low > 1 else "below 1" if high < 1 else "undecided"
    each = " ".join(f"{v:.2f}" for v in values)
    interval = f"[{low:5.2f} {high:5.2f}]"
    lines.append(f"{unit:6}{mean:14.2f}  {interval:16}{verdict:10}{elsewhere.mean():18.2f}  {each}")
  return "\n".join(lines)


def draw(
  path: Path, found: dict[str, np.ndarray], attention: np.ndarray, numbers: np.ndarray
) -> None:
  """The mean face, a unit a panel: attention in red, the mean region's outline in white.

  Args:
    path: of the PNG.
    found: see `faces`.
    attention: [tokens, faces, rows, columns], mean over the runs.
    numbers: [units] the unit's number.
  """
  scale = 2
  size = (PIXELS * scale, PIXELS * scale)
  grey = cv2.resize(found["image"].mean(0).mean(-1), size, interpolation=cv2.INTER_CUBIC)
  panels, captions = [], []
  for unit, looks, number in zip(REGIONS, attention, numbers, strict=True):
    heat = cv2.resize(looks.mean(0), size, interpolation=cv2.INTER_CUBIC).clip(0)
    heat = heat / heat.max()
    panel = np.stack([grey] * 3, -1) * (1 - 0.55 * heat[..., None])
    panel += 0.55 * heat[..., None] * np.array([255.0, 40.0, 0.0])
    where = np.mean([region(unit, points) for points in found["landmarks"]], 0)
    outline = (cv2.resize(where, size) > 0.5).astype(np.uint8)
    edges, _ = cv2.findContours(outline, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    panel = np.ascontiguousarray(panel.clip(0, 255).astype(np.uint8))
    cv2.drawContours(panel, edges, -1, (255, 255, 255), 1, cv2.LINE_AA)
    panels.append(panel)
    captions.append([f"{unit}: {number:.2f}"])
  page = report.sheet(np.stack(panels), captions, columns=4)
  cv2.imwrite(str(path), page[..., ::-1])


def main(argv: Sequence[str] | None = None) -> None:
  """Measures the runs and prints the table."""
  options = parse(argv)
  found = faces(options.data, options.data_dir, options.faces)
  measured = [measure(affjax.load(run), found, options.layers) for run in options.runs]
  numbers = np.stack([of_run for of_run, _ in measured])
  print(f"{len(options.runs)} run(s), {options.faces} faces, {options.layers} layer(s)")
  print(table(numbers))
  if options.picture:
    attention = np.mean([of_run for _, of_run in measured], 0)
    draw(options.picture, found, attention, np.diagonal(np.nanmean(numbers, (0, 3))))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--runs", nargs="+", required=True, help="folders of runs with a token for each unit")
  add("--faces", type=int, default=512, help="how many test faces")
  add("--data", default="independent", help="config of synthetic_faces")
  add("--layers", default="last", choices=("last", "all"), help="whose attention")
  add("--data_dir", help="where prepared data lives; TFDS's folder unless given")
  add("--picture", type=Path, help="where to draw it")
  return parser.parse_args(argv)


if __name__ == "__main__":
  main()
