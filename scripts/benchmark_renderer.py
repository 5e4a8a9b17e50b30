"""Measures how fast synthetic faces are rendered: pictures a second, and where the time goes.

  python scripts/benchmark_renderer.py --people=40

Three settings: the default data set; everything on as the config `occluded` has it (a hand before
some faces in ten, glasses before one, hair over some eyes) with all camera faults at once; and the
worst case, a hand and glasses before every face. One core, then every process that the machine has
room for. One core means this process, held to one core where the system allows it; time is the
processor's, so that other work on the machine counts little. Stages are those of the worst case,
and take in all that they call.
"""

import argparse
import collections
import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator

from tfds_builders.synthetic_faces import (
  camera,
  canvas,
  expression,
  glasses,
  knobs,
  label_model,
  occluders,
  raster,
  renderer,
  spoof,
  workers,
)

VERSION, SPLIT = "0.3.0", "benchmark"
FAULTS = knobs.Camera(rate=1, reduced_rate=1)
WORST = knobs.Knobs(
  occluders=knobs.Occluders(hand_often=1, hand_seldom=1, glasses=1, lock=0.05), camera=FAULTS
)
SETTINGS = {
  "natural": knobs.Knobs(),
  "everything on": knobs.Knobs(occluders=knobs.OCCLUDED, camera=FAULTS),
  "a hand and glasses on every face": WORST,
}
# What a line of the table stands for: module or class, and its functions.
STAGES = {
  "person (once for all of its pictures)": (renderer, "draw_person"),
  "classes and units": (label_model, "draw", "draw_intensity"),
  "head, light, background": (renderer, "draw_scene"),
  "mesh moved by the units": (expression, "express"),
  "opaque parts: visibility": (canvas, "begin"),
  "opaque parts: colour": (canvas.Canvas, "colour"),
  "folds of the skin": (raster, "fold_skin"),
  "hair, brows, lashes, frames": (canvas.Canvas, "lay", "block"),
  "hand": (occluders, "bones", "paint"),
  "glasses and lock: their meshes": (glasses, "build"),
  "hair over an eye: its mesh": (occluders, "strands"),
  "paper and screens": (spoof, "show"),
  "halving": (raster, "halve"),
  "camera faults": (camera, "spoil"),
  "JPEG": (renderer.simplejpeg, "encode_jpeg"),
}


@contextlib.contextmanager
def stopwatches(spent: dict[str, float]) -> Iterator[None]:
  """Adds up the seconds that each stage takes in `spent` while it is entered."""

  def timed(stage: str, function: Callable) -> Callable:
    @functools.wraps(function)
    def call(*args: object, **kwargs: object) -> object:
      begin = time.process_time()
      try:
        return function(*args, **kwargs)
      finally:
        spent[stage] += time.process_time() - begin

    return call

  kept = [
    (owner, name, getattr(owner, name)) for owner, *names in STAGES.values() for name in names
  ]
  for stage, (owner, *names) in STAGES.items():
    for name in names:
      setattr(owner, name, timed(stage, getattr(owner, name)))
  try:
    yield
  finally:
    for owner, name, function in kept:
      setattr(owner, name, function)


def render(setting: knobs.Knobs, first: int, people: int, images: int) -> float:
  """Renders people one after another; seconds of the processor's time per picture."""
  begin = time.process_time()
  for identity in range(first, first + people):
    workers.render_person(VERSION, 0, SPLIT, identity, images, setting)
  return (time.process_time() - begin) / (people * images)


def main() -> None:
  """Prints the table."""
  options = parse()
  people, images = options.people, options.images
  everywhere = None
  if hasattr(os, "sched_setaffinity"):
    everywhere = os.sched_getaffinity(0)
    core = max(everywhere) if options.core is None else options.core
    os.sched_setaffinity(0, {core})
  spent = collections.Counter()
  for name, setting in SETTINGS.items():
    render(setting, 0, 2, images)
    seconds = render(setting, 2, people, images)
    print(f"{name:38s} one core {1 / seconds:7.1f} images/s {1e3 * seconds:7.2f} ms")
  with stopwatches(spent):
    whole = render(WORST, 2 + people, people, images)
  for stage in STAGES:
    if spent[stage]:
      print(f"  {stage:54s} {1e3 * spent[stage] / (people * images):7.2f} ms")
  rest = whole - sum(spent.values()) / (people * images)
  print(f"  {'the rest (Python between the stages)':54s} {1e3 * rest:7.2f} ms")
  if options.processes:
    if everywhere:
      os.sched_setaffinity(0, everywhere)
    processes = len(everywhere) if everywhere else os.cpu_count()
    task = (VERSION, 0, SPLIT, 4 * people, images)
    for name, setting in SETTINGS.items():
      faces = workers.faces(*task, setting, processes)
      next(faces)  # the processes are up
      begin = time.perf_counter()
      count = sum(len(some) for some in faces)
      rate = count / (time.perf_counter() - begin)
      print(f"{name:38s} {processes} processes {rate:7.1f} images/s")


def parse() -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--people", type=int, default=40, help="people to render, after two to warm up")
  add("--images", type=int, default=8, help="pictures of each; the data sets have eight")
  add("--core", type=int, help="which core to measure on; the last one unless given")
  add(
    "--processes",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="whether to measure all cores together, too",
  )
  return parser.parse_args()


if __name__ == "__main__":
  main()
