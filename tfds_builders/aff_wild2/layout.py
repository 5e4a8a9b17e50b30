"""Where in the official folders of Aff-Wild2 what lies: annotations and crops, of which edition.

The archives are unpacked by hand, so each of these folders may lie at the top of the source or up
to two folders deeper. What could mean two things is refused.
"""

import dataclasses
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from affjax import annotations
from affjax.labels import AU_ABAW1, EXPRESSION_SEVEN, TASKS, VA
from tfds_builders import images, progress
from tfds_builders.aff_wild2 import videos

# Groups of editions that the names of folders tell apart; the last where none of expressions does.
OLD, MIDDLE, NEW, EITHER = "ABAW1-2", "ABAW3-5", "ABAW6-10", "ABAW3-10"
# Task -> what its folder is called -> by which editions.
FOLDERS = {
  "va": {"VA_Estimation_Challenge": EITHER, "VA_Set": OLD},
  "expression": {
    "EXPR_Classification_Challenge": MIDDLE,
    "EXPR_Recognition_Challenge": NEW,
    "EXPR_Set": OLD,
  },
  "au": {"AU_Detection_Challenge": EITHER, "AU_Set": OLD},
}
SPLITS = {"train": "Train_Set", "validation": "Validation_Set"}
CROPS = "cropped_aligned"  # what the names of all archives of crops begin with
DEPTH = 2  # folders, at most, between the source and these

_CROP = re.compile(r"(\d{5})\.jpg", re.ASCII)
_NOT_DATA = ("__MACOSX", ".")  # what archivers and file managers leave begins so


@dataclasses.dataclass(frozen=True)
class Layout:
  """What is where.

  Attributes:
    source: what the user named.
    tasks: task -> its folder, of the tasks that were asked for.
    edition: which group of editions the folders are of, by their names.
    archives: folders of crops, in each of which videos have their folders.
  """

  source: Path
  tasks: Mapping[str, Path]
  edition: str
  archives: Sequence[Path]


@dataclasses.dataclass(frozen=True)
class Labels:
  """What the files of one task say.

  Attributes:
    names: of the labels.
    splits: split -> video -> its lines: of "va" [lines, 2] float32, NaN where there is no label; of
      "expression" [lines] int8 indices and of "au" [lines, names] int8, -1 where there is none.
  """

  names: tuple[str, ...]
  splits: Mapping[str, Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Pictures:
  """Where the pictures of a video are.

  Attributes:
    place: folder of its crops, or file of the video; None: there is none.
    frames: [pictures] int32 ascending, numbers of the frames that have one; None: of a file that is
      not known before it is decoded.
    sizes: [pictures] int64 bytes of each crop, or [1] of the file; -1: it cannot be told.
    others: names of files among the crops that are none.
  """

  place: Path | None
  frames: np.ndarray | None
  sizes: np.ndarray
  others: Sequence[str] = ()


NOWHERE = Pictures(None, np.zeros(0, np.int32), np.zeros(0, np.int64))


def find(source: Path, tasks: Sequence[str]) -> Layout:
  """Finds the folders of tasks and of crops.

  Raises:
    ValueError: a task has no folder, or several that differ; one is of ABAW1-2 and another is not;
      a link leads out of the source.
  """
  found = sorted(_folders(source))
  named = {task: [path for path in found if path.name in FOLDERS[task]] for task in TASKS}
  chosen = {task: _choose(source, task, named[task]) for task in tasks}
  if len({FOLDERS[task][path.name] == OLD for task, path in chosen.items()}) > 1:
    raise ValueError(
      f"{' and '.join(map(str, chosen.values()))} are of {OLD} and of later editions"
    )
  archives = [images.inside(source, path) for path in found if path.name.startswith(CROPS)]
  return Layout(source, chosen, _edition(chosen, named["expression"]), archives)


def _folders(source: Path) -> Iterator[Path]:
  """The folders of tasks and of crops in the source."""
  known = {name for names in FOLDERS.values() for name in names}
  level = [source]
  for _ in range(DEPTH + 1):
    below = [path for folder in level for path in _inner(folder)]
    level = []
    for path in below:
      if path.name.startswith(CROPS):
        yield path
        # It may have been unpacked into a folder of its own name.
        yield from (inner for inner in _inner(path) if inner.name.startswith(CROPS))
      elif path.name in known:
        yield path
      else:
        level.append(path)


def _inner(folder: Path) -> list[Path]:
  """The folders in a folder."""
  with os.scandir(folder) as entries:
    return [
      Path(entry.path)
      for entry in entries
      if not entry.name.startswith(_NOT_DATA) and entry.is_dir()
    ]


def _choose(source: Path, task: str, found: Sequence[Path]) -> Path:
  """The folder of a task.

  Raises:
    ValueError: there is none, or there are several that are not alike.
  """
  if not found:
    raise ValueError(
      f"{source}: no folder {' or '.join(FOLDERS[task])} in it or up to {DEPTH} folders deeper: the"
      f" annotations of task {task} are looked for there; --config chooses the tasks"
    )
  found = [images.inside(source, path) for path in found]
  old = [FOLDERS[task][path.name] == OLD for path in found]
  contents = [_contents(source, path) for path in found] if len(found) > 1 else []
  if len(set(old)) > 1 or any(content != contents[0] for content in contents):
    raise ValueError(
      f"{' and '.join(map(str, found))} differ: labels change from edition to edition, so leave the"
      " folder of one edition there"
    )
  return found[0]


def _contents(source: Path, task: Path) -> dict[Path, bytes]:
  """Path in the folder of a task -> what is in that file."""
  files = [path for folder in SPLITS.values() for path in _files(source, task / folder)]
  return {path.relative_to(task): path.read_bytes() for path in files}


def _files(source: Path, folder: Path) -> list[Path]:
  """The annotation files of a split, by name."""
  if not folder.is_dir():
    return []
  found = [path for path in sorted(folder.glob("*.txt")) if not path.is_dir()]
  return [images.inside(source, path) for path in found if not path.name.startswith(_NOT_DATA)]


def _edition(chosen: Mapping[str, Path], expressions: Sequence[Path]) -> str:
  if any(FOLDERS[task][path.name] == OLD for task, path in chosen.items()):
    return OLD
  told = {FOLDERS["expression"][path.name] for path in expressions} - {OLD}
  return told.pop() if len(told) == 1 else EITHER


def read(layout: Layout) -> dict[str, Labels]:
  """Reads all annotations: task -> labels.

  Raises:
    ValueError: names the file and the line, or a video that is in both splits of a task.
  """
  files = [
    (task, split, path)
    for task, folder in layout.tasks.items()
    for split, inner in SPLITS.items()
    for path in _split(layout.source, folder / inner)
  ]
  names: dict[str, tuple[str, ...]] = {}
  first: dict[str, Path] = {}
  found: dict[str, dict[str, dict[str, np.ndarray]]] = {
    task: {split: {} for split in SPLITS} for task in layout.tasks
  }
  for task, split, path in progress.bar(files, "reading annotations", "files"):
    of_file, lines = _read(path, task)
    if names.setdefault(task, of_file) != of_file:
      raise ValueError(f"{path}:1: another header than in {first[task]}: one edition in one folder")
    first.setdefault(task, path)
    found[task][split][path.stem] = lines
  for task, splits in found.items():
    for video in sorted(splits["train"].keys() & splits["validation"].keys()):
      raise ValueError(
        f"{layout.tasks[task]}: video {video!r} is in both splits; leave one file there"
      )
  return {task: Labels(names[task], splits) for task, splits in found.items()}


def _split(source: Path, folder: Path) -> list[Path]:
  if files := _files(source, folder):
    return files
  raise ValueError(f"{folder}: no annotation files, VIDEO.txt, in it")


def _read(path: Path, task: str) -> tuple[tuple[str, ...], np.ndarray]:
  """A per-video file: names of its labels, and its lines."""
  rows = annotations.read(path, task)
  # A list of images has headers that are understood too, but its line k need not be frame k.
  if rows.images != tuple(annotations.frames(path.stem, len(rows))):
    raise ValueError(f"{path}:1: a list of images; expected the annotations of one video")
  if task == "va":
    return VA, rows.va.astype(np.float32)
  if task == "expression":
    return rows.classes, rows.expression.astype(np.int8)
  return rows.units, rows.au.astype(np.int8)


def edition(layout: Layout, labels: Mapping[str, Labels]) -> str:
  """Which group of editions the files are of, by the names of the folders and by their headers."""
  old = {EXPRESSION_SEVEN, AU_ABAW1} & {of_task.names for of_task in labels.values()}
  return OLD if old else layout.edition


def read_crops(layout: Layout, names: Collection[str]) -> tuple[dict[str, Pictures], list[str]]:
  """Looks up the crops of videos.

  Returns:
    Video -> its crops; and the names of further videos that have crops.

  Raises:
    ValueError: there are no crops at all, a video has others in one archive than in another, they
      are counted from 0, or a link leads out of the source.
  """
  if not layout.archives:
    raise ValueError(
      f"{layout.source}: no folder of crops, {CROPS} or {CROPS}_..., in it or up to {DEPTH} folders"
      " deeper"
    )
  there: dict[str, list[Path]] = {}
  for archive in layout.archives:
    for folder in _inner(archive):
      if not folder.name.startswith(CROPS):
        there.setdefault(folder.name, []).append(folder)
  found = {}
  for name in progress.bar(sorted(names), "looking for crops", "videos"):
    found[name] = _one([_listing(layout.source, folder) for folder in sorted(there.get(name, ()))])
  return found, sorted(there.keys() - found.keys())


def read_videos(layout: Layout, names: Collection[str]) -> tuple[dict[str, Pictures], list[str]]:
  """Looks up the files of videos; both people of a video share one.

  Returns:
    Video -> its file; and the names of further files.

  Raises:
    ValueError: there are no videos at all, two have one name, or a link leads out of the source.
  """
  files = videos.find(layout.source)
  if not files:
    raise ValueError(f"{layout.source}: no videos ({', '.join(videos.SUFFIXES)}) anywhere in it")
  size = lambda path: np.array([path.stat().st_size], np.int64)
  found = {}
  for name in sorted(names):
    path = files.get(videos.base(name))
    found[name] = Pictures(path, None, size(path)) if path else NOWHERE
  return found, sorted(files.keys() - set(map(videos.base, names)))


def _one(found: Sequence[Pictures]) -> Pictures:
  """The crops of a video, which may lie twice if they are the same."""
  for other in found[1:]:
    same = [np.array_equal(getattr(found[0], n), getattr(other, n)) for n in ("frames", "sizes")]
    if not all(same):
      raise ValueError(
        f"{found[0].place} and {other.place} hold different crops of one video: leave one there"
      )
  return found[0] if found else NOWHERE


def _listing(source: Path, folder: Path) -> Pictures:
  """What lies in the folder of a video."""
  images.inside(source, folder)
  crops, others = {}, []
  with os.scandir(folder) as entries:
    for entry in entries:
      name = _CROP.fullmatch(entry.name)
      if name:
        crops[int(name[1])] = _size(source, entry)
      elif not entry.name.startswith(_NOT_DATA):
        others.append(entry.name)
  if 0 in crops:
    raise ValueError(
      f"{folder}/00000.jpg: official crops are counted from 1, so these are others, and each would"
      " get the label of another frame"
    )
  frames = np.array(sorted(crops), np.int32)
  return Pictures(folder, frames, np.array([crops[k] for k in frames.tolist()], np.int64), others)


def _size(source: Path, entry: os.DirEntry) -> int:
  """Bytes of a file; -1 where that cannot be told, which reading it will name."""
  if entry.is_symlink():
    images.inside(source, Path(entry.path))
  try:
    return entry.stat().st_size
  except OSError:
    return -1
