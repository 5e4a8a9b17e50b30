"""Writes a tree as Aff-Wild2 is released, of any size, its quirks as frequent as in the real one.

  python -m scripts.make_aff_wild2_tree FOLDER                     # 50 videos, 200,000 lines
  python -m scripts.make_aff_wild2_tree FOLDER --videos=594 --frames=2800000

Nothing of Aff-Wild2 is in it: labels and pictures are made up from a seed. The rates are those that
teams have measured. Of 100 lines 94 have a crop; those without come in runs. Of 100 videos 83 have
such gaps, 85 a first crop and 78 a last one. Of 100 lines of expressions 63 are labelled; of 100
labelled frames one or two have no crop. The pixels of each crop say of which video and frame it is:
see `number_of`.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from tfds_builders import progress

SIZE = 112  # pixels of a crop
BLOCK, BITS, FRAME_BITS = 7, 32, 17  # of the number in a crop: 8 x 8 blocks with its complement
QUALITY = 82  # gives 3 to 4 kB
POOL = 300  # different pictures

CLASSES = "Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise"
UNITS = "AU1,AU2,AU4,AU6,AU7,AU10,AU12,AU15,AU23,AU24,AU25,AU26"
# Edition group -> task -> its folder.
NEW = {"va": "VA_Estimation_Challenge", "au": "AU_Detection_Challenge"}
GROUPS = {
  "1-2": {"va": "VA_Set", "expression": "EXPR_Set", "au": "AU_Set"},
  "3-5": NEW | {"expression": "EXPR_Classification_Challenge"},
  "6-10": NEW | {"expression": "EXPR_Recognition_Challenge"},
}
SPLITS = {"train": "Train_Set", "validation": "Validation_Set"}
# Task -> share of the videos that are annotated with it, of their lines that have a label, and of
# these labels that have no crop.
RATES = {"va": (1.0, 0.97, 0.016), "expression": (0.74, 0.627, 0.018), "au": (0.93, 0.95, 0.002)}
VALIDATION = 0.18  # of the videos
ELSEWHERE = 0.05  # of a task's videos are in another split than for the others
TWO_PEOPLE = 0.08  # of the videos, two of which are one file
SECOND_ARCHIVE = 0.05
WITHOUT_LABELS = 0.05  # videos with nothing but markers
GAPS, LATE, SHORT = 0.83, 0.15, 0.22  # videos: with gaps, without a first crop, without a last one
MISSING = 0.062  # lines without a crop
RUN = 30  # frames without a crop in one piece, on average


@dataclasses.dataclass(frozen=True)
class Video:
  """A video: its number, name and length, and which of its frames have a crop, [lines] bool."""

  number: int
  name: str
  lines: int
  there: np.ndarray


def main() -> None:
  """Writes the tree."""
  options = parse()
  if any(options.folder.glob("*")):
    raise SystemExit(f"error: {options.folder} is not empty: name another folder")
  rng = np.random.default_rng(options.seed)
  videos = plan(rng, options.videos, options.frames)
  write_annotations(rng, options.folder, GROUPS[options.edition_group], videos)
  write_crops(rng, options.folder, videos)


def plan(rng: np.random.Generator, count: int, lines: int) -> list[Video]:
  """Draws names, lengths and gaps."""
  shares = rng.lognormal(0, 0.8, count)
  lengths = np.maximum(1, np.round(shares / shares.sum() * lines)).astype(int)
  names = draw_names(rng, count)
  return [
    Video(i, name, length, draw_gaps(rng, length))
    for i, (name, length) in enumerate(zip(names, lengths.tolist(), strict=True))
  ]


def draw_names(rng: np.random.Generator, count: int) -> list[str]:
  """Names of the three kinds that there are, some of them with both people of a video."""
  names: list[str] = []
  for number in rng.permutation(10 * count).tolist():
    width, height = [(640, 360), (1280, 720), (1920, 1080), (484, 360)][rng.integers(4)]
    kinds = [
      f"{number}-{rng.choice([24, 25, 30, 60])}-{width}x{height}",
      f"video{number}",
      f"{number}",
    ]
    name = kinds[rng.choice(3, p=[0.6, 0.2, 0.2])]
    pair = rng.random() < TWO_PEOPLE / 2
    names += [f"{name}_left", f"{name}_right"] if pair else [name]
    if len(names) >= count:
      break
  return names[:count]


def draw_gaps(rng: np.random.Generator, lines: int) -> np.ndarray:
  """[lines] bool, false in runs."""
  there = np.ones(lines, bool)
  if rng.random() < GAPS:
    # Videos without gaps leave more of them to the others.
    for start in rng.integers(0, lines, rng.poisson(MISSING / GAPS * lines / RUN)):
      there[start : start + rng.geometric(1 / RUN)] = False
  there[0], there[-1] = rng.random() >= LATE, rng.random() >= SHORT
  return there


def write_annotations(
  rng: np.random.Generator, folder: Path, folders: dict[str, str], videos: Sequence[Video]
) -> None:
  """Writes the files of all tasks."""
  old = "VA_Set" in folders.values()
  header = {"va": "valence,arousal", "expression": CLASSES + ",Other" * (not old), "au": UNITS}
  split = {video.number: "validation" if rng.random() < VALIDATION else "train" for video in videos}
  if len(set(split.values())) == 1:
    split[videos[0].number] = "validation"
    split[videos[-1].number] = "train"
  for task, inner in folders.items():
    for video in progress.bar(videos, f"writing {task}", "videos"):
      if task != "va" and rng.random() > RATES[task][0]:
        continue
      of = split[video.number]
      if task != "va" and rng.random() < ELSEWHERE:
        of = next(other for other in SPLITS if other != of)
      place = folder / "ABAW Annotations" / inner / SPLITS[of] / f"{video.name}.txt"
      place.parent.mkdir(parents=True, exist_ok=True)
      rows = draw_labels(rng, task, video, 7 if old else 8)
      place.write_text("\n".join([header[task], *rows]) + "\n")


def draw_labels(rng: np.random.Generator, task: str, video: Video, classes: int) -> list[str]:
  """The lines of a file, in runs of some seconds."""
  _, labelled, without = RATES[task]
  # So that of all labels the wanted share has no crop.
  missing, there = labelled * without / MISSING, labelled * (1 - without) / (1 - MISSING)
  dice = np.repeat(rng.random(video.lines // RUN + 1), RUN)[: video.lines]
  known = dice < np.where(video.there, min(there, 1), min(missing, 1))
  known &= rng.random() >= WITHOUT_LABELS
  if task == "va":
    walk = np.clip(np.cumsum(rng.normal(0, 0.02, (video.lines, 2)), 0), -1, 1)
    walk = walk.round(3 if rng.random() < 0.75 else 13).tolist()
    return [
      f"{v!r},{a!r}" if k else "-5,-5" for (v, a), k in zip(walk, known.tolist(), strict=True)
    ]
  if task == "expression":
    values = np.repeat(rng.integers(0, classes, video.lines // RUN + 1), RUN)[: video.lines]
    return np.where(known, values, -1).astype(str).tolist()
  units = np.repeat(rng.random((video.lines // RUN + 1, 12)) < 0.2, RUN, 0)[: video.lines]
  values = np.where(known[:, None], units, -1)
  return [",".join(map(str, row)) for row in values.tolist()]


def write_crops(rng: np.random.Generator, folder: Path, videos: Sequence[Video]) -> None:
  """Writes all crops, and those of a video that is not annotated."""
  pool = [draw(rng) for _ in range(POOL)]
  test = Video(len(videos), "video_of_the_test_set", 20, np.ones(20, bool))
  crops = sum(int(video.there.sum()) for video in videos)
  with progress.bar(range(crops), "writing crops") as bar:
    for video in (*videos, test):
      second = rng.random() < SECOND_ARCHIVE
      archive = "cropped_aligned_new_50_vids" if second else "cropped_aligned"
      place = folder / archive / video.name
      place.mkdir(parents=True)
      frames = (np.flatnonzero(video.there) + 1).tolist()
      for frame in frames:
        crop = stamp(pool[frame % POOL], video.number << FRAME_BITS | frame)
        encoded = simplejpeg.encode_jpeg(crop, quality=QUALITY, colorsubsampling="420")
        (place / f"{frame:05d}.jpg").write_bytes(encoded)
      bar.update(len(frames))


def draw(rng: np.random.Generator) -> np.ndarray:
  """[SIZE, SIZE, 3] uint8: something that takes as many bytes as a face does."""
  coarse = cv2.resize(rng.integers(30, 226, (5, 5, 3), np.uint8), (SIZE, SIZE))
  noise = cv2.GaussianBlur(rng.normal(0, 40, (SIZE, SIZE, 3)), (0, 0), 1.5)
  cv2.ellipse(coarse, (56, 60), (36, 48), 0, 0, 360, rng.integers(60, 200, 3).tolist(), -1)
  return np.clip(coarse + noise, 0, 255).astype(np.uint8)


def stamp(picture: np.ndarray, number: int) -> np.ndarray:
  """A copy of a picture with a number in it."""
  bits = number >> np.arange(BITS) & 1
  blocks = np.concatenate([bits, 1 - bits]).reshape(8, 8).astype(np.uint8)
  picture = picture.copy()
  picture[: 8 * BLOCK, : 8 * BLOCK] = cv2.resize(
    blocks * 170 + 40, (8 * BLOCK, 8 * BLOCK), interpolation=cv2.INTER_NEAREST
  )[..., None]
  return picture


def number_of(picture: np.ndarray) -> tuple[int, int]:
  """The number of the video, in the order of writing, and of the frame that a crop is of.

  Args:
    picture: [SIZE, SIZE, 3] uint8.

  Raises:
    ValueError: these pixels hold none.
  """
  blocks = picture[: 8 * BLOCK, : 8 * BLOCK].reshape(8, BLOCK, 8, BLOCK, 3)
  bits = (blocks[:, 2:5, :, 2:5].mean((1, 3, 4)) > 125).ravel()
  if (bits[:BITS] == bits[BITS:]).any():
    raise ValueError("these pixels hold no number")
  number = int((bits[:BITS] << np.arange(BITS)).sum())
  return number >> FRAME_BITS, number & (1 << FRAME_BITS) - 1


def parse() -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("folder", type=Path, metavar="FOLDER", help="which is made; nothing may be in it")
  add("--videos", type=int, default=50, help="that are annotated; default 50")
  add("--frames", type=int, default=200_000, help="lines of all of them; default 200,000")
  add("--seed", type=int, default=0, help="of everything; default 0")
  add("--edition-group", choices=list(GROUPS), default="6-10", help="how folders are called")
  return parser.parse_args()


if __name__ == "__main__":
  main()
