"""Aff-Wild2 as its video challenges release it, made up from a seed: every quirk, and the truth.

The pixels of each crop carry a number of its own, so that a test can tell from a record's image
alone which video and frame it is of. Annotations are written by code of its own.
"""

import dataclasses
import random
from pathlib import Path

import numpy as np
from affwild_tree import BITS, draw, write_files

VA, EXPRESSION, AU = "va", "expression", "au"
EIGHT = ["neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise", "other"]
TWELVE = ["AU1", "AU2", "AU4", "AU6", "AU7", "AU10", "AU12", "AU15", "AU23", "AU24", "AU25", "AU26"]
ABAW1 = ["AU1", "AU2", "AU4", "AU6", "AU12", "AU15", "AU20", "AU25"]
# Edition -> task -> folder; expressions; units.
EDITIONS = {
  "ABAW1-2": ({VA: "VA_Set", EXPRESSION: "EXPR_Set", AU: "AU_Set"}, EIGHT[:7], ABAW1),
  "ABAW3-5": (
    {
      VA: "VA_Estimation_Challenge",
      EXPRESSION: "EXPR_Classification_Challenge",
      AU: "AU_Detection_Challenge",
    },
    EIGHT,
    TWELVE,
  ),
  "ABAW6-10": (
    {
      VA: "VA_Estimation_Challenge",
      EXPRESSION: "EXPR_Recognition_Challenge",
      AU: "AU_Detection_Challenge",
    },
    EIGHT,
    TWELVE,
  ),
}
FOLDERS = {"train": "Train_Set", "validation": "Validation_Set"}
ARCHIVES = ["cropped_aligned", "cropped_aligned_new_50_vids", "cropped_aligned_images"]
TRAIN, VALIDATION = "train", "validation"


@dataclasses.dataclass
class Film:
  """A video: task -> split; task -> how many lines more than `frames`; which frames have a crop."""

  splits: dict[str, str]
  frames: int
  crops: set[int]
  more: dict[str, int] = dataclasses.field(default_factory=dict)
  archive: int = 0
  labelled: bool = True


def films(frames: int = 24) -> dict[str, Film]:
  """What the tree holds, by name; the names of these videos are invented."""
  everywhere = lambda split: dict.fromkeys((VA, EXPRESSION, AU), split)
  all_of, n = set(range(1, frames + 1)), frames
  return {
    "12-30-640x360": Film(everywhere(TRAIN), n, all_of),
    # Gaps: crops are found by name, not by place.
    "300": Film(everywhere(TRAIN), n, all_of - {2, 3, 4, 9, 15, 16}),
    # No first frame, and the last line has no crop.
    "video90": Film({VA: TRAIN, AU: TRAIN}, n, all_of - {1, 2, 3, 4, 5, n}),
    # More crops than lines.
    "77-25-1280x720": Film({EXPRESSION: TRAIN}, n, all_of | {n + 1, n + 2, 99999}),
    # One line, one crop.
    "5": Film({VA: TRAIN}, 1, {1}),
    # More lines for one task than for another; crops as far as the longest and beyond.
    "video3": Film(everywhere(TRAIN), n, all_of | {n + 1, n + 2, n + 3}, {VA: 2, AU: -7}),
    # Two people, of whom one is in training and one in validation.
    "88-30-1920x1080_left": Film({VA: TRAIN, EXPRESSION: TRAIN}, n, all_of - {6, 7}),
    "88-30-1920x1080_right": Film({VA: VALIDATION, EXPRESSION: VALIDATION}, n, all_of - {1, 8}),
    # The main person without a suffix beside another with one.
    "video9": Film({VA: VALIDATION}, n, all_of),
    "video9_right": Film({VA: VALIDATION}, n, {4, 5, 6}),
    # Training for one task, validation for another.
    "41-24-1280x720": Film({VA: TRAIN, AU: VALIDATION, EXPRESSION: VALIDATION}, n, all_of - {5}),
    # In further archives.
    "510": Film({VA: TRAIN, EXPRESSION: TRAIN}, n, all_of - {1}, archive=1),
    "video81": Film({VA: VALIDATION, AU: VALIDATION}, n, all_of - {n}, archive=2),
    # Not a single label.
    "video64": Film({EXPRESSION: TRAIN, AU: TRAIN}, n, all_of, labelled=False),
    # Annotated, but not a single crop; crops, but not annotated, as videos of the test set are.
    "video70": Film({VA: TRAIN, EXPRESSION: VALIDATION, AU: TRAIN}, n, set()),
    "video99": Film({}, n, all_of),
  }


@dataclasses.dataclass
class Tree:
  """What was written.

  Attributes:
    folder: of it.
    edition: that it is like.
    films: by name.
    lines: task -> split -> video -> [lines] labels, None where there is none: of va [2], of
      expression an index, of au one a unit.
    numbers: video -> frame -> the number in the pixels of its crop.
  """

  folder: Path
  edition: str
  films: dict[str, Film]
  lines: dict[str, dict[str, dict[str, list]]]
  numbers: dict[str, dict[int, int]]

  @property
  def classes(self) -> list[str]:
    return EDITIONS[self.edition][1]

  @property
  def units(self) -> list[str]:
    return EDITIONS[self.edition][2]

  def annotation(self, task: str, split: str, video: str) -> Path:
    """The file of a video's annotation, for a tree without folders in between."""
    return self.folder / EDITIONS[self.edition][0][task] / FOLDERS[split] / f"{video}.txt"

  def crop(self, video: str, frame: int) -> Path:
    return self.folder / ARCHIVES[self.films[video].archive] / video / f"{frame:05d}.jpg"

  def label(self, task: str, split: str, video: str, frame: int):
    """What is known of a frame; None: nothing, be it for want of a line or of a file."""
    lines = self.lines[task][split].get(video, [])
    return lines[frame - 1] if frame <= len(lines) else None

  def rows(self, split: str, tasks: list[str]) -> list[tuple[str, int]]:
    """The (video, frame) that records should be of, in order: those with a line and a crop."""
    longest = {
      video: max((len(self.lines[task][split].get(video, [])) for task in tasks), default=0)
      for video in self.films
    }
    return [
      (video, frame)
      for video in sorted(self.films)
      for frame in sorted(self.films[video].crops)
      if frame <= longest[video]
    ]

  def record(self, split: str, tasks: list[str], video: str, frame: int) -> dict[str, list]:
    """What the record of a frame should hold, but for its image."""
    label = {
      t: self.label(t, split, video, frame) if t in tasks else None for t in (VA, EXPRESSION, AU)
    }
    va = (label[VA] or [None, None]) if VA in tasks else []
    units = (label[AU] or [None] * len(self.units)) if AU in tasks else []
    classes = self.classes if EXPRESSION in tasks else []
    text = f"{video}/{frame:05d}"
    return {
      "key": [f"{split}/{text}".encode()],
      "labels/va": [np.float32(0 if v is None else v) for v in va],
      "mask/va": [float(v is not None) for v in va],
      "labels/expression": [float(k == label[EXPRESSION]) for k in range(len(classes))],
      "mask/expression": [float(label[EXPRESSION] is not None)],
      "labels/au": [float(v or 0) for v in units],
      "mask/au": [float(v is not None) for v in units],
      "person": [video.encode()],
      "video": [video.encode()],
      "frame": [frame],
      "line": [frame + 1],
      "image_path": [f"{text}.jpg".encode()],
    }

  def counts(self, split: str, task: str) -> dict[str, int]:
    """What the report should say of a task in a split."""
    found = dict.fromkeys(
      ("videos", "videos without a crop", "lines", "lines without a crop", "crops without a line",
       "labelled lines", "labelled in part", "labelled, with a crop", "labelled, without a crop"), 0
    )  # fmt: skip
    for video, lines in self.lines[task][split].items():
      crops = self.films[video].crops
      found["videos"] += 1
      found["videos without a crop"] += not crops
      found["lines"] += len(lines)
      found["crops without a line"] += sum(frame > len(lines) for frame in crops)
      for frame, line in enumerate(lines, 1):
        values = [line] if task == EXPRESSION else line
        some, every = any(v is not None for v in values), all(v is not None for v in values)
        found["lines without a crop"] += frame not in crops
        found["labelled lines"] += some
        found["labelled in part"] += some and not every
        found["labelled, with a crop"] += some and frame in crops
        found["labelled, without a crop"] += some and frame not in crops
    return found


def write(
  folder: Path,
  seed: int = 0,
  edition: str = "ABAW6-10",
  annotations: str = "",
  crops: str = "",
  made: dict[str, Film] | None = None,
) -> Tree:
  """Writes a tree.

  Args:
    folder: where.
    seed: of labels, pixels, and the order in which files are created.
    edition: a key of `EDITIONS`.
    annotations: path between the folder and the annotations.
    crops: path between the folder and the archives of crops.
    made: what it holds; default `films()`.
  """
  shuffle, rng = random.Random(seed), np.random.default_rng(seed)
  names, classes, units = EDITIONS[edition]
  made = films() if made is None else made
  tree = Tree(folder, edition, made, {task: {s: {} for s in FOLDERS} for task in names}, {})
  files: dict[Path, bytes] = {}
  label = {
    VA: lambda: _va(shuffle),
    EXPRESSION: lambda: shuffle.randrange(len(classes)) if shuffle.random() < 0.6 else None,
    AU: lambda: _units(shuffle, len(units)),
  }
  nothing = {VA: [None, None], EXPRESSION: None, AU: [None] * len(units)}
  header = {
    VA: "valence,arousal",
    EXPRESSION: ",".join(name.title() for name in classes),
    AU: ",".join(units),
  }
  for video, film in made.items():
    for task, split in film.splits.items():
      count = film.frames + film.more.get(task, 0)
      lines = [label[task]() if film.labelled else nothing[task] for _ in range(count)]
      tree.lines[task][split][video] = lines
      text = [header[task], *(_text(task, line, shuffle) for line in lines)]
      place = folder / annotations / names[task] / FOLDERS[split] / f"{video}.txt"
      files[place] = _encoded(text, shuffle)
    numbers = {frame: shuffle.getrandbits(BITS) for frame in sorted(film.crops)}
    tree.numbers[video] = numbers
    for frame, number in numbers.items():
      path = folder / crops / ARCHIVES[film.archive] / video / f"{frame:05d}.jpg"
      files[path] = draw(number, rng)
  write_files(files, shuffle)
  return tree


def _va(shuffle: random.Random) -> list[float | None]:
  """Both, one, the other, none."""
  value = lambda: round(shuffle.uniform(-1, 1), shuffle.choice([1, 3, 13]))
  kind = shuffle.choice([0, 0, 0, 1, 2, 3])
  return [value() if kind in (0, 1) else None, value() if kind in (0, 2) else None]


def _units(shuffle: random.Random, count: int) -> list[int | None]:
  kind = shuffle.choice(["all", "all", "part", "none"])
  share = {"all": 1, "part": 0.5, "none": 0}[kind]
  return [shuffle.randrange(2) if shuffle.random() < share else None for _ in range(count)]


def _text(task: str, line, shuffle: random.Random) -> str:
  if task == VA:
    return ",".join(shuffle.choice(["-5", "-5.0"]) if v is None else repr(v) for v in line)
  values = [line] if task == EXPRESSION else line
  return ",".join(str(-1 if v is None else v) for v in values)


def _encoded(text: list[str], shuffle: random.Random) -> bytes:
  """With either end of line, with and without a byte order mark and an end of the last line."""
  end = shuffle.choice(["\n", "\r\n"])
  start = shuffle.choice(["", "", "\ufeff"])
  return (start + end.join(text) + end * shuffle.randrange(3)).encode()
