"""Measures the face detector and the alignment, on faces of which it is known where they are.

  python scripts/benchmark_faces.py                      # all tables
  python scripts/benchmark_faces.py --people=200 --tables=found,aligned
  python scripts/benchmark_faces.py --sheet=faces.png    # aligned faces to look at
  python scripts/benchmark_faces.py --tables=template --ferplus=FOLDER

  found     rendered heads pasted into photographs without people: recall, boxes that are no face,
            error of the points in eye distances; by the side of the face and by its turn
  aligned   found, then cut out: how far the true points lie from the template, in pixels of 112
  template  where the detector sees the points in the crops of a data set, as fractions: what
            `affjax.faces.TEMPLATES` holds
  time      milliseconds of the processor's time per frame, and per face that is cut out

The photographs are the two of scikit-learn (a palace, a flower); they are looked at without faces,
too. A face's side is two and a half eye distances, which is about the box that detectors give.
"""

import argparse
import dataclasses
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from sklearn import datasets

from affjax import faces
from tfds_builders.synthetic_faces import knobs, pose, renderer

VERSION, SPLIT = "1.0.0", "scene"
SIZE = 112  # pixels of a render
WIDTH, HEIGHT = 640, 480
SIDE = 2.5  # eye distances
# The head with its hair, upright, and no camera fault.
ZOOM = 0.6
VIEW = knobs.View(
  roll=knobs.Normal(0, 0, 0, 0), turn=knobs.Normal(0, 0), zoom=knobs.Normal(ZOOM, 0)
)
SETTING = knobs.Knobs(view=VIEW, camera=knobs.Camera(rate=0, reduced_rate=0))
FIRST_ALIGNED = 10_000  # number of a person
# iBUG's numbers of what the five points lie between.
FIVE = (range(36, 42), range(42, 48), (30,), (48,), (54,))


@dataclasses.dataclass(frozen=True)
class Scene:
  """A photograph with a head in it.

  Attributes:
    image: [height, width, 3] uint8.
    points: [5, 2] where the points of the face are.
    side: pixels of the face.
    frame: [2, 3] from its pixels to those of the crop that `synthetic_faces` would have shown.
  """

  image: np.ndarray
  points: np.ndarray
  side: float
  frame: np.ndarray


def five(landmarks: np.ndarray) -> np.ndarray:
  """[5, 2] of [68, 2] landmarks of iBUG."""
  return np.stack([landmarks[list(some)].mean(0) for some in FIVE])


def photographs() -> list[np.ndarray]:
  """Photographs without people, [480, 640, 3] uint8 each."""
  return [
    np.ascontiguousarray(cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))
    for image in datasets.load_sample_images().images
  ]


def scene(
  person: int, side: float, turn: float, rng: np.random.Generator, background: np.ndarray
) -> Scene:
  """Renders someone and pastes the head into a photograph, its edge blended.

  Args:
    person: number of the person.
    side: pixels of the face.
    turn: degrees, clockwise, that it is turned in the picture.
    rng: draws the place.
    background: [height, width, 3] uint8.
  """
  face = renderer.render_face(VERSION, 0, SPLIT, person, 0, SETTING)
  tile, points = simplejpeg.decode_jpeg(face.jpeg), five(face.picture.landmarks)
  scale = side / (SIDE * np.linalg.norm(points[1] - points[0]))
  reach = scale * SIZE / 2
  height, width = background.shape[:2]
  corner = np.minimum(reach, [width / 2, height / 2])
  place = rng.uniform(corner, np.array([width, height]) - corner)
  spin = scale * np.exp(1j * np.deg2rad(turn))
  matrix = np.array([[spin.real, -spin.imag, 0], [spin.imag, spin.real, 0]])
  matrix[:, 2] = place - matrix[:, :2] @ (SIZE / 2, SIZE / 2)
  edge = np.hypot(*np.indices((SIZE, SIZE)) - (SIZE - 1) / 2) / (SIZE / 2)
  opaque = np.clip((1 - edge) / 0.1, 0, 1).astype(np.float32)
  by_middle = matrix.copy()
  by_middle[:, 2] += matrix[:, :2].sum(1) / 2 - 0.5
  # Smaller first, by averaging: warps alone would alias.
  warp = lambda image: cv2.warpAffine(
    image, by_middle, (width, height), flags=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
  )
  share = warp(opaque)[..., None]
  image = background * (1 - share) + warp(tile).astype(np.float32) * share
  # The render's crop, before it was zoomed out of.
  middle = pose.TEMPLATE.mean(0)
  frame = cv2.invertAffineTransform(matrix)
  frame[:, 2] -= middle
  frame /= ZOOM
  frame[:, 2] += middle
  return Scene(image.clip(0, 255).astype(np.uint8), move(points, matrix), side, frame)


def scenes(people: int, sides: tuple[float, float], turn: float, first: int = 0) -> Iterator[Scene]:
  """Scenes of people, from a first one on, whose faces have any side and turn within bounds."""
  rng, pictures = np.random.default_rng(first), photographs()
  for person in range(first, first + people):
    side = np.exp(rng.uniform(*np.log(sides)))
    yield scene(person, side, rng.uniform(-turn, turn), rng, pictures[person % len(pictures)])


def move(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
  """Points [..., 2] moved by a matrix [2, 3]."""
  return points @ matrix[:, :2].T + matrix[:, 2]


def find(found: faces.Faces, true: Scene) -> int | None:
  """The number of the face that is the scene's: its points' middle lies within half a side."""
  for number, points in enumerate(found.points):
    if np.linalg.norm(points.mean(0) - true.points.mean(0)) < true.side / 4:
      return number
  return None


def found_table(people: int) -> None:
  """Prints recall, false alarms and errors, by the side of the face and by its turn."""
  detector = faces.Detector()
  print("side, pixels  turned up to  recall  no face  error of the points (mean, and 95 of 100)")
  for sides, turn in (
    ((40, 56), 10), ((56, 80), 10), ((80, 160), 10), ((160, 320), 10),
    ((80, 160), 30), ((80, 160), 45),
  ):  # fmt: skip
    errors, others = [], 0
    for true in scenes(people, sides, turn):
      (found,) = detector([true.image])
      number = find(found, true)
      others += len(found) - (number is not None)
      if number is not None:
        eyes = np.linalg.norm(true.points[1] - true.points[0])
        errors.append(np.linalg.norm(found.points[number] - true.points, axis=1).mean() / eyes)
    print(
      f"{sides[0]:4d} to {sides[1]:3d}  {turn:8d} deg  {len(errors) / people:6.3f}  {others:7d}"
      f"  {np.mean(errors):.3f}  {np.quantile(errors, 0.95):.3f}"
    )
  alone = sum(map(len, detector(photographs())))
  print(f"in the photographs without faces: {alone}")


def aligned_table(people: int, sheet: Path | None) -> None:
  """Prints how far aligned faces are from how the data set would have cut them out."""
  detector = faces.Detector()
  print("template         error of the true points, pixels of 112  scale   turn, degrees (sd)")
  for template in ("synthetic_faces", "arcface"):
    crop, errors, ratios, cut = faces.Crop(template, SIZE), [], [], []
    # Others than those that the template was measured on.
    for true in scenes(people, (60, 200), 30, first=FIRST_ALIGNED):
      (found,) = detector([true.image])
      number = find(found, true)
      if number is None:
        continue
      matrix = crop.matrix(found.points[number])
      gap = move(true.points, matrix) - move(true.points, true.frame)
      errors.append(np.linalg.norm(gap, axis=1).mean())
      spin = complex(*matrix[:, 0]) / complex(*true.frame[:, 0])
      ratios.append((abs(spin), np.rad2deg(np.angle(spin))))
      cut.append(crop.align(true.image, found.points[number]))
    scale, turn = np.transpose(ratios)
    print(
      f"{template:16s} {np.mean(errors):.2f} (95 of 100: {np.quantile(errors, 0.95):.2f})"
      f"{scale.mean():24.3f}   {turn.mean():.2f} ({turn.std():.2f})"
    )
    if sheet and template == "synthetic_faces":
      rows = [np.hstack(cut[i : i + 10]) for i in range(0, len(cut) - 9, 10)]
      cv2.imwrite(str(sheet), np.vstack(rows[:6])[..., ::-1])


def template_table(people: int, ferplus: Path | None) -> None:
  """Prints where the detector sees the points in crops of the data sets."""
  detector, seen = faces.Detector(), []
  for true in scenes(people, (70, 160), 8):
    (found,) = detector([true.image])
    number = find(found, true)
    if number is not None:
      seen.append(move(found.points[number], true.frame) / SIZE)
  print(f"synthetic_faces: of {len(seen)} of {people}: {template(seen)}")
  if ferplus:
    seen, images = [], ferplus_images(ferplus, 10 * people)
    for start in range(0, len(images), faces.CHUNK):
      some = images[start : start + faces.CHUNK]
      seen += [found.points[0] / 144 - 1 / 3 for found in detector(some) if len(found)]
    print(f"ferplus: of {len(seen)} of {len(images)}: {template(seen)}")


def template(points: list[np.ndarray]) -> list[list[float]]:
  """The template that leaves crops as they are, in the median, when they are aligned to it.

  The median of where points lie would not: faces that differ from it are fitted to it smaller.

  Args:
    points: [5, 2] of each crop, as fractions of its side.

  Returns:
    [5][2], its own mirror image.
  """
  middle, lie = np.array([0.5, 0.5]), np.median(points, 0)
  for _ in range(3):
    lie = (lie + lie[faces.MIRROR] * [-1, 1] + [1, 0]) / 2
    fits = np.stack([faces.similarity(five, lie) for five in points])
    moved = np.median(fits[:, :, :2] @ middle + fits[:, :, 2], 0)
    lie = (lie - moved) / np.median(np.hypot(*fits[:, :, 0].T)) + middle
  return ((lie + lie[faces.MIRROR] * [-1, 1] + [1, 0]) / 2).round(3).tolist()


def ferplus_images(folder: Path, count: int) -> list[np.ndarray]:
  """Training images of FER+, enlarged to 144 pixels, with 48 of their edge around them."""
  with zipfile.ZipFile(folder / "FER2013Train.zip") as archive:
    names = sorted(name for name in archive.namelist() if name.endswith(".png"))
    names = np.random.default_rng(0).permutation(names)[:count]
    encoded = [np.frombuffer(archive.read(name), np.uint8) for name in names]
  images = [cv2.imdecode(some, cv2.IMREAD_GRAYSCALE) for some in encoded]
  images = [cv2.resize(image, (144, 144), interpolation=cv2.INTER_CUBIC) for image in images]
  return [cv2.copyMakeBorder(image, *[48] * 4, cv2.BORDER_REPLICATE) for image in images]


def time_table(rounds: int) -> None:
  """Prints milliseconds per frame, and per face that is aligned."""
  cv2.setNumThreads(1)
  true = next(scenes(1, (120, 120), 10))
  for width, height in ((640, 480), (1280, 720)):
    images = [cv2.resize(true.image, (width, height))] * faces.CHUNK
    for settings in ({}, {"min_face": 60}, {"max_side": 1280}):
      detector = faces.Detector(**settings)
      seconds = least(lambda d=detector, i=images: d(i), rounds) / len(images)
      print(f"{width} x {height}  {str(settings):18s} {1e3 * seconds:6.1f} ms")
  crop = faces.Crop()
  print(
    f"to align a face: {1e3 * least(lambda: crop.align(true.image, true.points), rounds):.2f} ms"
  )


def least(call: Callable[[], object], rounds: int) -> float:
  """Seconds of the processor's time of the quickest of some calls, after one to warm up."""
  call()
  spent = []
  for _ in range(rounds):
    begin = time.process_time()
    call()
    spent.append(time.process_time() - begin)
  return min(spent)


def main() -> None:
  """Prints the tables."""
  options = parse()
  tables = {
    "found": lambda: found_table(options.people),
    "aligned": lambda: aligned_table(options.people, options.sheet),
    "template": lambda: template_table(options.people, options.ferplus),
    "time": lambda: time_table(options.rounds),
  }
  for name in options.tables.split(","):
    if name not in tables:
      raise SystemExit(f"error: --tables={name}: use some of {', '.join(tables)}")
    print(f"== {name}")
    tables[name]()


def parse() -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--tables", default="found,aligned,template,time", help="which of them, see above")
  add("--people", type=int, default=60, help="heads in each row of a table")
  add("--rounds", type=int, default=10, help="times that each thing is timed; the least counts")
  add("--ferplus", type=Path, help="folder of FER+, for its template")
  add("--sheet", type=Path, help="PNG file that aligned renders are drawn to")
  return parser.parse_args()


if __name__ == "__main__":
  main()
