"""Renders many people in several processes, and hands them over in order.

Plain subprocesses rather than `multiprocessing`: they need no guard in the caller's script, inherit
no lock of a library that runs threads, and never import the caller's module. Threads do not help:
between its compiled parts a picture needs Python's lock too often.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator

import cv2

from tfds_builders.synthetic_faces import knobs, renderer

# Fewer pictures than this are rendered here: starting processes would take longer.
WORTH_WORKERS = 400


def faces(
  version: str,
  seed: int,
  split: str,
  people: int,
  images: int,
  setting: knobs.Knobs,
  workers: int | None = None,
) -> Iterator[list[renderer.Face]]:
  """Renders all people of a split.

  Args:
    version: of the data set.
    seed: of the data set.
    split: its name.
    people: how many people are in the split.
    images: how many pictures of each.
    setting: all distributions.
    workers: how many processes; one per core that this process may use, unless said. The faces do
      not depend on it.

  Yields:
    The faces of person 0, of person 1, and so on.
  """
  if workers is None:
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = workers if people * images >= WORTH_WORKERS else 1
  # The first picture compiles the kernels, once for all processes: the others find them cached.
  renderer.render_face(version, seed, split, 0, 0, setting)
  if workers == 1:
    for identity in range(people):
      yield render_person(version, seed, split, identity, images, setting)
    return
  with contextlib.ExitStack() as stack:
    pipes = []
    for worker in range(workers):
      task = (version, seed, split, range(worker, people, workers), images, setting)
      pipes.append(stack.enter_context(_start(task)))
    for identity in range(people):
      try:
        yield pickle.load(pipes[identity % workers])
      except EOFError as e:
        raise RuntimeError(f"the process that renders {split} {identity} died: see above") from e


def render_person(
  version: str, seed: int, split: str, identity: int, images: int, setting: knobs.Knobs
) -> list[renderer.Face]:
  """Renders all pictures of one person; arguments as in `faces`."""
  return [
    renderer.render_face(version, seed, split, identity, image, setting) for image in range(images)
  ]


@contextlib.contextmanager
def _start(task: tuple) -> Iterator:
  """Starts a process on a task; gives the pipe that its results come through."""
  environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
  process = subprocess.Popen(
    [sys.executable, "-m", __name__],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    env=environment,
  )
  try:
    pickle.dump(task, process.stdin)
    process.stdin.close()
    yield process.stdout
  finally:
    process.kill()
    process.wait()
    process.stdout.close()


def main() -> None:
  """What a process does: reads a task, writes the faces of one person after another."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it is for who started this to end
  cv2.setNumThreads(1)  # there is a process for every core already
  results = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever prints must not mix with results
  version, seed, split, identities, images, setting = pickle.load(sys.stdin.buffer)
  try:
    for identity in identities:
      pickle.dump(render_person(version, seed, split, identity, images, setting), results)
      results.flush()
  except BrokenPipeError:
    os._exit(1)  # nobody waits for the faces any more


if __name__ == "__main__":
  main()
