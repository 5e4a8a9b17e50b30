"""Measures `affjax.predict` on videos: frames a second, what each stage takes, whether it stays so.

  python scripts/benchmark_video.py --checkpoint=runs/x
  python scripts/benchmark_video.py --checkpoint=runs/x --tables=speed --frames=100

  speed    a clip of rendered people who walk through a photograph, and scikit-image's astronaut,
           panned (where scikit-image is installed): the table of `affjax.predict`, and the floors:
           decoding alone, and the model alone on as many faces
  between  faces looked for in every n-th frame only, in place of every frame: how far the points
           are from where they truly are, in eye distances, and how much the outputs change
  length   the rendered clip, ten times as long: ms/frame and memory by tenths of it

Clips are 640x480, H.264, 25 frames a second. The model is compiled before the clock starts.
"""

import argparse
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import av
import cv2
import numpy as np
import simplejpeg
from sklearn import datasets

from affjax import compiled, faces, inference, media, predict, stages, stream, tables
from tfds_builders.synthetic_faces import knobs, renderer

WIDTH, HEIGHT, FPS = 640, 480, 25
TIMES = 10  # a long clip is so many times as long as a short one
TILE, HEAD = 112, 150  # pixels of a rendered head, and of one in the clip
LENGTH = 32  # frames of a person that are rendered; played forwards and backwards
# Of iBUG's 68 landmarks, those of the five points.
FIVE = ([*range(36, 42)], [*range(42, 48)], [30], [48], [54])

Scene = Callable[[int], tuple[np.ndarray, np.ndarray]]


def main() -> None:
  """Prints the tables."""
  options = parse()
  compiled.keep()
  predictor = inference.load(options.checkpoint)
  warm(predictor)
  print(f"{options.checkpoint}, {predictor.image_size} px; {os.cpu_count()} cores")
  walk = rendered(options.people)
  with tempfile.TemporaryDirectory() as folder:
    clip = write(Path(folder) / "walk.mp4", walk, options.frames)
    if "speed" in options.tables:
      speed(f"{options.people} rendered people", clip, predictor, options)
      if pan := panned():
        path = write(Path(folder) / "pan.mp4", pan, options.frames)
        speed("astronaut, panned", path, predictor, options)
    if "between" in options.tables:
      between(clip, walk, predictor)
    if "length" in options.tables:
      path = write(Path(folder) / "long.mp4", walk, TIMES * options.frames)
      length(path, TIMES * options.frames, predictor, options)


# Clips.


def rendered(people: int) -> Scene:
  """Number of a frame -> [height, width, 3] uint8, and [people, 5, 2] where their points are."""
  setting = knobs.Knobs(clips=knobs.Clips(frames=LENGTH))
  cast = [
    [renderer.render_face("1.0.0", 0, "video", person, k, setting) for k in range(LENGTH)]
    for person in range(people)
  ]
  ground = datasets.load_sample_image("china.jpg")
  ground = cv2.resize(ground, (WIDTH + 200, HEIGHT + 150), interpolation=cv2.INTER_CUBIC)
  edge = np.hypot(*np.indices((HEAD, HEAD)) - (HEAD - 1) / 2) / (HEAD / 2)
  opaque = np.clip((1 - edge) / 0.1, 0, 1)[..., None]

  def scene(frame: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = round(100 + 99 * np.sin(frame / 90)), round(75 + 74 * np.cos(frame / 70))
    picture, points = ground[y : y + HEIGHT, x : x + WIDTH].copy(), []
    for number, its in enumerate(cast):
      face = its[LENGTH - 1 - abs(LENGTH - 1 - frame % (2 * LENGTH - 2))]
      head = cv2.resize(simplejpeg.decode_jpeg(face.jpeg), (HEAD, HEAD))
      turn = np.array([frame / 50 + 2.0 * number, frame / 63 + 1.3 * number])
      left, top = ((0.5 + 0.5 * np.sin(turn)) * [WIDTH - HEAD, HEIGHT - HEAD]).astype(int)
      place = picture[top : top + HEAD, left : left + HEAD]
      place[:] = place * (1 - opaque) + head * opaque
      five = np.stack([face.picture.landmarks[some].mean(0) for some in FIVE])
      points.append(five * HEAD / TILE + [left, top])
    return picture, np.array(points)

  return scene


def panned() -> Scene | None:
  """A window that moves over the photograph of an astronaut; None: there is no scikit-image."""
  try:
    from skimage import data
  except ImportError:
    return None
  photograph = cv2.resize(data.astronaut(), (1000, 1000), interpolation=cv2.INTER_CUBIC)

  def scene(frame: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = round(180 + 150 * np.sin(frame / 40)), round(60 + 55 * np.cos(frame / 30))
    return photograph[y : y + HEIGHT, x : x + WIDTH], np.zeros((0, 5, 2))

  return scene


def write(path: Path, scene: Scene, count: int) -> Path:
  """Writes a clip of so many frames."""
  with av.open(str(path), "w") as container:
    video = container.add_stream("libx264", rate=FPS)
    video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    video.options = {"preset": "veryfast"}
    for frame in range(count):
      picture = np.ascontiguousarray(scene(frame)[0])
      container.mux(video.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
    container.mux(video.encode())
  return path


# Measurements.


def warm(predictor: inference.Predictor) -> None:
  """Compiles what the clips need."""
  size = predictor.image_size
  for count in (predict.BATCH, *inference.BUCKETS[:2]):
    predictor.outputs(np.zeros((count, size, size, 3), np.uint8))


@dataclasses.dataclass
class Ran:
  """How a clip went.

  Attributes:
    clock: of the stages.
    count: of faces.
    rows: if they are kept; without their crops.
    times: [frames] seconds from the start, when their rows were there.
    work: [frames] seconds of processor time until then, of all threads.
    memory: [frames] MB of the process then.
  """

  clock: stages.Clock
  count: int
  rows: list[stream.Row]
  times: np.ndarray
  work: np.ndarray
  memory: np.ndarray


def run(
  clip: Path, predictor: inference.Predictor, options: predict.Options, keep: bool = False
) -> Ran:
  """What `python -m affjax.predict` does, on one clip; the rows are kept if that is asked for."""
  clock, found, count, marks = stages.Clock(), [], 0, {}
  kinds = predict.kinds(predictor, False)
  with tempfile.TemporaryDirectory() as folder:
    start, before = time.perf_counter(), time.process_time()
    with tables.Table(f"{folder}/rows.csv", kinds) as table:
      for row in predict.rows([clip], predictor, options, clock):
        with clock("write", 1):
          table.write(predict.columns([row], predictor, kinds))
        count += row.track > 0
        found += [row] if keep else []
        now = time.perf_counter() - start, time.process_time() - before
        marks[row.frame] = *now, resident()
  clock.seconds["predict"] += clock.seconds.pop("compile", 0.0)  # which it was before
  clock.count["predict"] += clock.count.pop("compile", 0)
  return Ran(clock, count, found, *np.array(list(marks.values())).T)


def resident() -> float:
  """MB of memory that this process has."""
  pages = int(Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def speed(
  name: str, clip: Path, predictor: inference.Predictor, options: argparse.Namespace
) -> None:
  """Prints the table of the stages, and the floors."""
  ran = run(clip, predictor, predict.Options(detect_every=options.detect_every))
  frames, count = len(ran.times), ran.count
  print(f"\n{name}: {count / frames:.2f} faces a frame, looked for every {options.detect_every}")
  print(ran.clock.table(predict.devices(), ran.times[-1], frames))
  print(f"processor time of all threads: {1e3 * ran.work[-1] / frames:.1f} ms/frame")
  start = time.perf_counter()
  decoded = sum(1 for _ in media.shots(clip))
  print(f"floor, decoding alone: {1e3 * (time.perf_counter() - start) / decoded:.2f} ms/frame")
  size = predictor.image_size
  crops = np.zeros((predict.BATCH, size, size, 3), np.uint8)
  start = time.perf_counter()
  for _ in range(4):
    predictor.outputs(crops)
  each = (time.perf_counter() - start) / 4 / len(crops)
  print(
    f"floor, the model alone: {1e3 * each:.2f} ms/face, {1e3 * each * count / frames:.2f} /frame"
  )


def between(clip: Path, scene: Scene, predictor: inference.Predictor) -> None:
  """Prints what it costs to look for faces in every n-th frame only."""
  print("\nlooked for  frames/s  faces found  tracks  error of points  change of valence")
  known: dict[tuple[int, int], float] = {}
  for every in (1, 2, 3, 4, 6, 8):
    options = predict.Options(detect_every=every)
    ran = run(clip, predictor, options, keep=True)
    values = {key: row.values["va"][0] for key, row in keyed(ran.rows, scene).items()}
    known = known or values
    change = [abs(values[key] - known[key]) for key in values.keys() & known.keys()]
    error, share = errors(clip, scene, predictor, options)
    tracks = len({row.track for row in ran.rows} - {0})
    print(
      f"every {every:<4}  {len(ran.times) / ran.times[-1]:8.1f}  {share:11.1%}  {tracks:6}"
      f"  {error:15.3f}  {np.mean(change):17.4f}"
    )


def keyed(rows: Iterable[stream.Row], scene: Scene) -> dict[tuple[int, int], stream.Row]:
  """(frame, person) -> the row of the face whose box has its nose."""
  found = {}
  for row in rows:
    for person, points in enumerate(scene(row.frame - 1)[1] if row.track else ()):
      left, top, right, bottom = row.box
      if left < points[2, 0] < right and top < points[2, 1] < bottom:
        found[row.frame, person] = row
  return found


def errors(
  clip: Path, scene: Scene, predictor: inference.Predictor, options: predict.Options
) -> tuple[float, float]:
  """Mean distance of the points from the true ones, in eye distances; share of faces found."""
  clock, detector = stages.Clock(), faces.Detector()
  pictures = stream.batches(stream.shots([clip], False, 1, clock))
  found = stream.find(pictures, detector, options.detect_every, clock)
  off, total = [], 0
  for shot, seen in stream.follow(found, None, options.patience, clock):
    for true in scene(shot.frame - 1)[1]:
      total += 1
      eyes = np.linalg.norm(true[1] - true[0])
      distances = np.linalg.norm(seen.found.points - true, axis=-1).mean(-1) / eyes
      off += [distances.min()] if len(distances) and distances.min() < 0.5 else []
  return float(np.mean(off)), len(off) / total


def length(
  clip: Path, count: int, predictor: inference.Predictor, options: argparse.Namespace
) -> None:
  """Prints what a frame takes, by tenths of a long clip."""
  ran = run(clip, predictor, predict.Options(detect_every=options.detect_every))
  ends = np.arange(1, 11) * (count // 10) - 1
  print(f"\n{count:,} frames, by tenths")
  of_frame = lambda seconds: 1e3 * np.diff(seconds[ends], prepend=0) / (count // 10)
  rows = {
    "ms/frame": of_frame(ran.times),
    "processor ms/frame": of_frame(ran.work),
    "memory MB": ran.memory[ends],
  }
  for name, values in rows.items():
    numbers = " ".join(f"{value:7.1f}" for value in values)
    print(f"{name:18} {numbers}   last/first {values[-1] / values[0]:.2f}")


def parse() -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  known = ("speed", "between", "length")
  parser.add_argument("--checkpoint", required=True, metavar="RUN", help="a run, or an export")
  parser.add_argument("--tables", default=",".join(known), help="default all")
  parser.add_argument("--frames", type=int, default=300, help="of a short clip; default 300")
  parser.add_argument("--people", type=int, default=2, help="in the rendered clip; default 2")
  parser.add_argument("--detect_every", type=int, default=predict.DETECT_EVERY)
  return parser.parse_args()


if __name__ == "__main__":
  main()
