"""What of the annotations of Aff-Wild2 has a picture and what has not: counted, never guessed."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from affjax.labels import AU_MTL, EXPRESSION_MTL, VA
from tfds_builders.aff_wild2 import layout, rows

NAMED = 5  # videos named in one line
Counts = Mapping[str, Mapping[str, Mapping[str, int]]]  # split -> task -> what -> how many

# Task -> split -> labelled frames with a crop (of expressions: each) and without, as others have
# printed them; README.md says who.
_EXPRESSION = {
  "train": ([177198, 16573, 10771, 9080, 95463, 78751, 31615, 165866], 12_044),
  "validation": ([82258, 6126, 5296, 8408, 34511, 25157, 12332, 106444], 3_698),
}
_AU = {"train": (1_356_861, 2_829), "validation": (445_836, 9)}
# The crops of the videos that only valence and arousal have are not quite the same since ABAW6.
_VA = {
  layout.MIDDLE: {"train": (1_653_757, 26_387), "validation": (376_323, 5_698)},
  layout.NEW: {"validation": (376_332, 5_689)},
}


def _known(edition: str) -> dict[str, Any]:
  """What has been printed of the files of an edition; nothing of those of ABAW1 and 2."""
  if edition == layout.OLD:
    return {}
  return {"va": _VA.get(edition, {}), "expression": _EXPRESSION, "au": _AU}


def published(edition: str, tasks: Sequence[str]) -> dict[str, Any]:
  """Split -> labelled frames with a crop, in the structure of a summary.

  Args:
    edition: see `layout.edition`.
    tasks: of the data set.
  """
  known, found = _known(edition), {split: {} for split in layout.SPLITS}
  for task in (task for task in tasks if task in known):
    for split, (pictured, _) in known[task].items():
      if task == "va":
        found[split][task] = {"labelled": dict.fromkeys(VA, pictured)}
      elif task == "expression":
        votes = dict(zip(EXPRESSION_MTL, pictured, strict=True))
        found[split][task] = {"labelled": sum(pictured), "votes": votes}
      else:  # how often each unit is on, nobody has printed
        found[split][task] = {"labelled": dict.fromkeys(AU_MTL, pictured), "positive": {}}
  return {split: counts for split, counts in found.items() if counts}


def count(
  labels: Mapping[str, layout.Labels], pictured: Mapping[str, np.ndarray], picture: str
) -> Counts:
  """Counts lines, labels and pictures of each task in each split.

  Args:
    labels: of all tasks.
    pictured: video -> [frames] numbers of its frames that have a picture.
    picture: what a picture is, for the names: crop or frame.
  """
  found: dict[str, dict[str, dict[str, int]]] = {split: {} for split in layout.SPLITS}
  for task, of_task in labels.items():
    for split, videos in of_task.splits.items():
      total: Counter[str] = Counter()
      for video, lines in videos.items():
        total.update(_count(lines, pictured[video], picture))
      found[split][task] = dict(total)
  return found


def _count(lines: np.ndarray, frames: np.ndarray, picture: str) -> dict[str, int]:
  """The counts of one file."""
  there = np.zeros(len(lines), bool)
  there[frames[frames <= len(lines)] - 1] = True
  known = rows.known(lines).reshape(len(lines), -1)
  labelled = known.any(1)
  counts = {
    "videos": 1,
    f"videos without a {picture}": len(frames) == 0,
    "lines": len(lines),
    f"lines without a {picture}": (~there).sum(),
    f"{picture}s without a line": (frames > len(lines)).sum(),
    "labelled lines": labelled.sum(),
    "labelled in part": (labelled & ~known.all(1)).sum(),
    f"labelled, with a {picture}": (labelled & there).sum(),
    f"labelled, without a {picture}": (labelled & ~there).sum(),
  }
  return {what: int(number) for what, number in counts.items()}


def table(counts: Counts, edition: str) -> list[str]:
  """The counts as lines of text, a column for each task of each split.

  Args:
    counts: from `count`.
    edition: whose published counts stand below those with and without a crop; empty: none do.
  """
  columns = [(split, task) for split, tasks in counts.items() for task in tasks]
  first = [split if task == next(iter(counts[split])) else "" for split, task in columns]
  lines = [["", *first], ["", *(task for _, task in columns)]]
  for what in counts[columns[0][0]][columns[0][1]]:
    lines.append([what, *(f"{counts[split][task][what]:,}" for split, task in columns)])
    if what.startswith("labelled, "):
      known = [_printed(edition, split, task, "without" in what) for split, task in columns]
      lines += [["  published", *known]] if any(known) else []
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return [
    "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
    for line in lines
  ]


def _printed(edition: str, split: str, task: str, without: bool) -> str:
  """The published count of labelled frames with or without a crop; empty: none is known."""
  found = _known(edition).get(task, {}).get(split) if edition else None
  return f"{np.sum(found[without]):,}" if found else ""


def in_both(labels: Mapping[str, layout.Labels]) -> list[str]:
  """Videos that are in training for one task and in validation for another."""
  of = {
    split: {video for of_task in labels.values() for video in of_task.splits[split]}
    for split in layout.SPLITS
  }
  return sorted(of["train"] & of["validation"])


def lengths(labels: Mapping[str, layout.Labels]) -> dict[str, set[int]]:
  """Video -> how many lines its files have."""
  found: dict[str, set[int]] = {}
  for of_task in labels.values():
    for videos in of_task.splits.values():
      for video, lines in videos.items():
        found.setdefault(video, set()).add(len(lines))
  return found


def notes(
  labels: Mapping[str, layout.Labels],
  pictures: Mapping[str, layout.Pictures],
  further: Sequence[str],
  picture: str,
) -> Iterator[str]:
  """Lines that name what is not as one may think.

  Args:
    labels: of all tasks.
    pictures: of the videos that have labels.
    further: names of other videos that have pictures.
    picture: what a picture is.
  """
  yield from _named(
    "videos in training for one task and in validation for another, so that a person is in both",
    in_both(labels),
  )
  yield from _named(
    "videos with more lines for one task than for another",
    [video for video, found in lengths(labels).items() if len(found) > 1],
  )
  without = [video for video, found in pictures.items() if not len(found.sizes)]
  yield from _named(f"annotated videos without a {picture}", without)
  yield from _named(f"videos with {picture}s and no annotation", further)
  others = [f"{found.place / name}" for found in pictures.values() for name in found.others]
  yield from _named("files in folders of crops that are not named as crops are, left out", others)


def _named(what: str, things: Sequence[str]) -> Iterator[str]:
  """A line that says of how many things something is true and names some; none if of none."""
  if things:
    more = ", ..." if len(things) > NAMED else ""
    yield f"{what}: {len(things)} ({', '.join(sorted(things)[:NAMED])}{more})"


def histogram(labels: Mapping[str, layout.Labels], decoded: Mapping[str, int]) -> str:
  """A line that says how many videos have so many frames more than lines."""
  longest = {video: max(found) for video, found in lengths(labels).items()}
  found = Counter(frames - longest[video] for video, frames in decoded.items())
  return "frames less lines: " + ", ".join(
    f"{more:+d} in {count} videos" for more, count in sorted(found.items())
  )
