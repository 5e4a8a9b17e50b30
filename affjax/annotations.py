"""The official text formats of the ABAW challenges, read and written.

Line 1 is a header and says which format it is. A *list* names an image on each line; in
a *per-video file* data line k is frame k, counted from 1, of the video that the file is named
after. Formats as seen in public code and notebooks of ABAW1 to ABAW11; not all of them were ever
specified in public.

Reading is strict: a line either has exactly one meaning or is refused with its file, its number and
what was expected there. A label that is missing in the file (-5, -1) is NaN or -1 here.
"""

import collections
import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from affjax import labels

# Digits fit in one way only: where they could be split in several, a long line would take hours.
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_NAME = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"
_FRAME = re.compile(rf"{_NAME}/(?!00000)\d{{5}}\.jpg", re.ASCII)
_FILE = re.compile(rf"{_NAME}\.jpg", re.ASCII)
_VIDEO = re.compile(_NAME, re.ASCII)
_MOST_FRAMES = 99_999  # what five digits can name


@dataclasses.dataclass(frozen=True)
class Format:
  """One of the text formats.

  Attributes:
    name: for messages.
    header: line 1, to the letter.
    image: what stands first on a line: "frame" (`video/00001.jpg`), "file" (`0.jpg`) or, in
      per-video files, "" (nothing: the number of the line is the frame).
    va: whether valence and arousal follow.
    classes: names of the expressions, if an expression follows: its index is in the file.
    units: names of the action units that follow.
    marked: whether the format has markers for missing labels.
  """

  name: str
  header: str
  image: str
  va: bool = False
  classes: tuple[str, ...] = ()
  units: tuple[str, ...] = ()
  marked: bool = True

  @property
  def fields(self) -> tuple[str, ...]:
    """Names of what stands on a data line."""
    return (
      *(("image",) if self.image else ()),
      *(labels.VA if self.va else ()),
      *(("expression",) if self.classes else ()),
      *self.units,
    )


def _title(names: Sequence[str]) -> str:
  return ",".join("_".join(word.title() for word in name.split()) for name in names)


_MTL = dict(va=True, classes=labels.EXPRESSION_MTL, units=labels.AU_MTL)
_EIGHT, _SEVEN = _title(labels.EXPRESSION_MTL), _title(labels.EXPRESSION_SEVEN)
_UNITS, _UNITS_ABAW1 = ",".join(labels.AU_MTL), ",".join(labels.AU_ABAW1)

# What each task's labels and predictions may be written in; the first is what is written today.
# fmt: off
FORMATS: dict[str, tuple[Format, ...]] = {
  "mtl": (Format("MTL list", "image,valence,arousal,expression,aus", "frame", **_MTL),),
  "va": (
    Format("VA list", "image_location,valence,arousal", "frame", va=True),
    Format("per-video VA file", "valence,arousal", "", va=True),
  ),
  "expression": (
    Format("EXPR list", f"image_location,{_EIGHT}", "frame", classes=labels.EXPRESSION_MTL),
    Format("per-video EXPR file", _EIGHT, "", classes=labels.EXPRESSION_MTL),
    Format("per-video EXPR file of ABAW1-2", _SEVEN, "", classes=labels.EXPRESSION_SEVEN),
  ),
  "au": (
    Format("AU list", f"image_location,{_UNITS}", "frame", units=labels.AU_MTL),
    Format("per-video AU file", _UNITS, "", units=labels.AU_MTL),
    Format("per-video AU file of ABAW1", _UNITS_ABAW1, "", units=labels.AU_ABAW1),
  ),
  "lsd": (
    Format("LSD list", "image,expression", "file", classes=labels.EXPRESSION_LSD, marked=False),
  ),
  "ce": (
    Format("CE list", f"image_location,{_title(labels.EXPRESSION_COMPOUND)}", "frame",
           classes=labels.EXPRESSION_COMPOUND, marked=False),
  ),
}
# fmt: on


def _handed_in(task: str, *formats: tuple[int, tuple[int, ...]]) -> dict[int, Format]:
  """Edition -> its format, from (which of the task's formats, the editions that had it)."""
  return {edition: FORMATS[task][k] for k, editions in formats for edition in editions}


_LISTED = 5, 6, 8, 10  # editions that had one list for all videos of VA, EXPR and AU
# Task -> edition of ABAW that posed it -> what predictions were handed in as. (Formats as far as
# public code shows them.)
SUBMISSIONS: dict[str, dict[int, Format]] = {
  "mtl": _handed_in("mtl", (0, (3, 4, 7, 11))),
  "va": _handed_in("va", (1, (1, 2, 3)), (0, _LISTED)),
  "expression": _handed_in("expression", (2, (1, 2)), (1, (3,)), (0, _LISTED)),
  "au": _handed_in("au", (2, (1,)), (1, (2, 3)), (0, _LISTED)),
  "lsd": _handed_in("lsd", (0, (4,))),
  "ce": _handed_in("ce", (0, (6, 7, 8))),
}
# The anger folder is misspelt in the official archives.
_LSD_FOLDERS = {name: (name.upper(),) for name in labels.EXPRESSION_LSD}
_LSD_FOLDERS["anger"] = ("ANGRER", "ANGERE", "ANGER")


@dataclasses.dataclass(frozen=True)
class Annotations:
  """Labels or predictions of one file or folder, row by row in its order; duplicates are kept.

  Attributes:
    images: [rows] `video/00001.jpg`, or `0.jpg` in LSD.
    va: [rows, 2] float64 in [-1, 1], NaN where missing; None: not in this format.
    expression: [rows] int64 index of `classes`, -1 where missing; None: not in this format.
    au: [rows, units] int64 0 or 1, -1 where missing; None: not in this format.
    classes: names of the expressions.
    units: names of the action units.
  """

  images: tuple[str, ...]
  va: np.ndarray | None = None
  expression: np.ndarray | None = None
  au: np.ndarray | None = None
  classes: tuple[str, ...] = ()
  units: tuple[str, ...] = ()

  def __len__(self) -> int:
    return len(self.images)


def read(path: str | Path, task: str, *, predictions: bool = False) -> Annotations:
  """Reads a file, a folder of per-video files, or (task "lsd") a tree of the six class folders.

  Args:
    path: file or folder.
    task: a key of `FORMATS`.
    predictions: refuse the markers of missing labels.

  Raises:
    ValueError: names the file, the line, what stands there and what was expected.
  """
  path = Path(path)
  if os.path.isdir(path):  # of names that are too long Path.is_dir would raise
    return _read_lsd_tree(path) if task == "lsd" else _read_folder(path, task, predictions)[1]
  return _read_file(path, task, predictions)[1]


def read_names(path: str | Path, task: str) -> tuple[str, ...]:
  """Reads a release list: the images to predict, in order, duplicates kept.

  A line is an image alone, with or without a comma after it, or a whole data line (the samples of
  ABAW6 hold dummy values, which are ignored).

  Raises:
    ValueError: as `read`.
  """
  lines, path = _text(Path(path)).split("\n"), _shown(path)
  form = _format(lines[0], task, path)
  if not form.image:
    raise ValueError(f"{path}:1: a {form.name} names no images; expected a list of them")
  names = []
  for number, line in _data_lines(lines, path):
    name, comma, rest = line.partition(",")
    try:
      _check_image(name, form) if not (comma and rest) else _row(line, form, predictions=False)
    except _Illegal as e:
      raise ValueError(f"{path}:{number}: {e}") from None
    names.append(name)
  return tuple(names)


def read_videos(path: str | Path, task: str) -> tuple[str, ...]:
  """Reads a list of video names, one a line and no header, in order.

  Raises:
    ValueError: a line is not a name alone, or names a video that an earlier one does.
  """
  text, path = _text(Path(path)), _shown(path)
  lines = [line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n")]
  while lines and not lines[-1]:
    lines.pop()
  found: dict[str, int] = {}
  for number, line in enumerate(lines, 1):
    if not _VIDEO.fullmatch(line):
      headers = " or ".join(repr(form.header) for form in FORMATS[task])
      raise ValueError(
        f"{path}:{number}: {_short(line)}; expected the name of a video, or on line 1 the header"
        f" {headers} of a list"
      )
    if line in found:
      raise ValueError(f"{path}:{number}: video {line!r} again, after line {found[line]}")
    found[line] = number
  return tuple(found)


def has_header(path: str | Path, task: str) -> bool:
  """Whether line 1 of a file is the header of one of the task's formats.

  Raises:
    ValueError: the file cannot be read.
  """
  first = _text(Path(path)).partition("\n")[0].removeprefix("\ufeff").removesuffix("\r")
  return first in [form.header for form in FORMATS[task]]


def submission(task: str, edition: int) -> Format:
  """The format in which an edition of ABAW took predictions for a task.

  Raises:
    ValueError: the edition did not pose the task; says which did.
  """
  if task not in SUBMISSIONS:
    raise ValueError(f"task {task!r}: use one of {', '.join(SUBMISSIONS)}")
  if edition not in SUBMISSIONS[task]:
    posed = ", ".join(map(str, sorted(SUBMISSIONS[task])))
    raise ValueError(f"--edition={edition}: task {task} was posed by ABAW {posed}")
  return SUBMISSIONS[task][edition]


def read_submission(
  path: str | Path, task: str, edition: int, images: Sequence[str]
) -> Annotations:
  """Reads predictions as an edition of ABAW takes them: its format, and the images it asks for.

  Args:
    path: a list or, of the editions with one file for each video, the folder of them.
    task: a key of `SUBMISSIONS`.
    edition: of ABAW.
    images: of the test list, in its order, duplicates kept; of per-video files frames 1, 2, ... of
      each video.

  Returns:
    The rows, of per-video files by the names of the files.

  Raises:
    ValueError: names the file, the line and what was expected there.
  """
  wanted, path = submission(task, edition), Path(path)
  if os.path.isdir(path) == bool(wanted.image):
    kind = "one file" if wanted.image else "a folder of them"
    raise ValueError(f"{_shown(path)}: ABAW{edition} takes {kind}: a {wanted.name}")
  form, found = (_read_file if wanted.image else _read_folder)(path, task, True)
  if form != wanted:
    file = path if wanted.image else min(path.glob("*.txt"))
    raise ValueError(
      f"{_shown(file)}:1: header of a {form.name}; ABAW{edition} takes a {wanted.name}:"
      f" {wanted.header!r}"
    )
  if wanted.image:
    _check_order(_shown(path), found.images, images)
  else:
    _check_videos(_shown(path), found.images, images)
  return found


def _check_order(path: str, found: Sequence[str], images: Sequence[str]) -> None:
  """Raises ValueError, naming the line, unless a list names the images in their order."""
  for number, (image, expected) in enumerate(zip(found, images, strict=False), 2):
    if image != expected:
      raise ValueError(f"{path}:{number}: image {image!r}; the test list has {expected!r} here")
  if len(found) != len(images):
    raise ValueError(
      f"{path}:{min(len(found), len(images)) + 2}: {len(found)} rows; the test list has"
      f" {len(images)}"
    )


def _check_videos(folder: str, found: Sequence[str], images: Sequence[str]) -> None:
  """Raises ValueError unless per-video files hold as many frames of each video as there are."""
  have, need = (collections.Counter(i.partition("/")[0] for i in n) for n in (found, images))
  for video in dict.fromkeys((*need, *have)):
    if have[video] != need[video]:
      raise ValueError(
        f"{folder}/{video}.txt:{min(have[video], need[video]) + 2}: {have[video]} frames; the test"
        f" list has {need[video]}"
      )


def parse(
  text: str, task: str, name: str, *, video: str = "", predictions: bool = False
) -> Annotations:
  """Reads the text of one file.

  Args:
    text: all of it.
    task: a key of `FORMATS`.
    name: of the file, for messages.
    video: whose frames the lines of a per-video file are.
    predictions: refuse the markers of missing labels.

  Raises:
    ValueError: as `read`.
  """
  return _parse(text, task, name, video, predictions)[1]


def _parse(
  text: str, task: str, name: str, video: str, predictions: bool
) -> tuple[Format, Annotations]:
  lines, name = text.split("\n"), _shown(name)
  form = _format(lines[0], task, name)
  if not form.image and not _VIDEO.fullmatch(video):
    raise ValueError(
      f"{name}: a {form.name} is named after its video, of letters, digits, '_', '-' and '.',"
      f" not {video!r}"
    )
  rows = []
  for number, line in _data_lines(lines, name):
    if not form.image and len(rows) == _MOST_FRAMES:
      raise ValueError(f"{name}:{number}: more than {_MOST_FRAMES:,} frames in one video")
    try:
      rows.append(_row(line, form, predictions))
    except _Illegal as e:
      raise ValueError(f"{name}:{number}: {e}") from None
  images = [row[0] for row in rows] if form.image else frames(video, len(rows))
  return form, _annotations(form, images, rows)


def _read_file(path: Path, task: str, predictions: bool) -> tuple[Format, Annotations]:
  return _parse(_text(path), task, str(path), path.stem, predictions)


def write(path: str | Path, task: str, rows: Annotations, header: str = "") -> None:
  """Writes a list, or the per-video file of one video; what is illegal is refused, not written.

  Args:
    path: file; its folder must be there.
    task: a key of `FORMATS`.
    rows: what to write. Missing labels get the format's marker. Numbers are written so that reading
      gives the same float64.
    header: which of the task's formats, by its line 1; empty: the list that is used today.

  Raises:
    ValueError: the rows do not fit the format.
  """
  form = _format(header or FORMATS[task][0].header, task, "header")
  path = Path(path)
  text = "".join(f"{line}\n" for line in (form.header, *_lines(rows, form)))
  again = parse(text, task, str(path), video=path.stem)
  if again.images != tuple(rows.images):
    raise ValueError(
      f"{_shown(path)}: a {form.name} holds frames 1, 2, 3, ... of its video {path.stem!r}, not"
      " other rows"
    )
  path.write_text(text, encoding="ascii", newline="\n")


def frames(video: str, count: int) -> list[str]:
  """Names of a video's first `count` frames: `video/00001.jpg` and so on.

  Raises:
    ValueError: more than five digits can name.
  """
  if count > _MOST_FRAMES:
    raise ValueError(f"video {video!r} has {count:,} frames; names are for {_MOST_FRAMES:,}")
  return [f"{video}/{k:05d}.jpg" for k in range(1, count + 1)]


def lsd_folders(root: str | Path) -> dict[str, Path]:
  """The six class folders of an LSD tree: class -> folder. ANGRER, ANGERE and ANGER are anger.

  Raises:
    ValueError: one is missing, or there are two for one class.
  """
  found = {}
  for name, spellings in _LSD_FOLDERS.items():
    there = [Path(root) / spelling for spelling in spellings if (Path(root) / spelling).is_dir()]
    if len(there) != 1:
      what = f"has {' and '.join(p.name for p in there)}" if there else "has none"
      raise ValueError(f"{_shown(root)}: expected one folder {' or '.join(spellings)}; it {what}")
    found[name] = there[0]
  return found


class _Illegal(ValueError):
  """What is wrong with a line; file and number are added above."""


def _shown(path: str | Path) -> str:
  """A path as messages have it: line breaks and bytes that are no text are escaped."""
  text = str(path)
  return text if text.isprintable() else repr(text)[1:-1]


def _text(path: Path) -> str:
  name = _shown(path)
  if not os.path.isfile(path):
    raise ValueError(f"{name}: no such file or folder")
  try:
    content = path.read_bytes()
    return content.decode()
  except OSError as e:
    raise ValueError(f"{name}: cannot be read ({e.strerror})") from None
  except UnicodeDecodeError as e:
    number = content.count(b"\n", 0, e.start) + 1
    raise ValueError(f"{name}:{number}: not a text file (byte {content[e.start]:#04x})") from None


def _format(first: str, task: str, name: str) -> Format:
  if task not in FORMATS:
    raise ValueError(f"task {task!r}: use one of {', '.join(FORMATS)}")
  header = first.removeprefix("\ufeff").removesuffix("\r")
  for form in FORMATS[task]:
    if form.header == header:
      return form
  known = " or ".join(repr(form.header) for form in FORMATS[task])
  raise ValueError(f"{name}:1: header {_short(header)}; expected {known} (task {task})")


def _data_lines(lines: Sequence[str], name: str) -> list[tuple[int, str]]:
  """(number, line) of the lines below the header; empty ones at the end are none."""
  data = [line.removesuffix("\r") for line in lines[1:]]
  while data and not data[-1]:
    data.pop()
  if "" in data:
    # Skipping it would move every later frame of a per-video file.
    raise ValueError(f"{name}:{data.index('') + 2}: an empty line between data lines")
  return list(enumerate(data, start=2))


def _row(line: str, form: Format, predictions: bool) -> list:
  """One data line -> [image], valence, arousal, expression, units as the format has them."""
  if form.image:
    line = line.removesuffix(",")
  parts = line.split(",")
  fields = form.fields
  if len(parts) != len(fields):
    raise _Illegal(
      f"{len(parts)} fields in {_short(line)}; a {form.name} has {len(fields)}:"
      f" {', '.join(fields[:6])}{', ...' if len(fields) > 6 else ''}"
    )
  marked = form.marked and not predictions
  row: list = []
  if form.image:
    row.append(_check_image(parts[0], form))
  if form.va:
    row += [_number(parts[len(row) + i], labels.VA[i], marked) for i in range(2)]
  if form.classes:
    row.append(_index(parts[len(row)], "expression", len(form.classes), marked))
  for unit in form.units:
    row.append(_index(parts[len(row)], unit, 2, marked))
  return row


def _check_image(text: str, form: Format) -> str:
  pattern, example = (_FRAME, "video/00001.jpg") if form.image == "frame" else (_FILE, "0.jpg")
  if not pattern.fullmatch(text):
    raise _Illegal(f"image {_short(text)}; expected a name like {example}")
  return text


def _number(text: str, name: str, marked: bool) -> float:
  value = float(text) if _NUMBER.fullmatch(text) else np.nan
  if -1 <= value <= 1:
    return value
  if marked and value == labels.VA_UNLABELLED:
    return np.nan
  raise _Illegal(f"{name} {_short(text)}; expected a number from -1 to 1" + ", or -5" * marked)


# Looked up rather than converted: int() also takes "+1", " 1", "1_0" and digits of other scripts.
_INTEGERS = {str(i): i for i in range(-1, 10)}


def _index(text: str, name: str, count: int, marked: bool) -> int:
  value = _INTEGERS.get(text, count)
  if 0 <= value < count or (marked and value == labels.UNLABELLED):
    return value
  what = "0 or 1" if count == 2 else f"an integer from 0 to {count - 1}"
  raise _Illegal(f"{name} {_short(text)}; expected {what}" + ", or -1" * marked)


def _short(text: str) -> str:
  return repr(text if len(text) <= 60 else text[:57] + "...")


def _annotations(form: Format, images: Sequence[str], rows: Sequence[list]) -> Annotations:
  start = 1 if form.image else 0
  after = start + 2 * form.va
  integers = lambda columns: np.array(columns, np.int64)
  return Annotations(
    images=tuple(images),
    va=np.array([r[start:after] for r in rows]).reshape(-1, 2) if form.va else None,
    expression=integers([r[after] for r in rows]) if form.classes else None,
    au=integers([r[-len(form.units) :] for r in rows]).reshape(-1, len(form.units))
    if form.units
    else None,
    classes=form.classes,
    units=form.units,
  )


def _lines(rows: Annotations, form: Format) -> list[str]:
  """The data lines, legal or not."""
  for name, needed in (("va", form.va), ("expression", form.classes), ("au", form.units)):
    if needed and getattr(rows, name) is None:
      raise ValueError(f"a {form.name} needs {name}, which the rows lack")
  for needed, given in ((form.classes, rows.classes), (form.units, rows.units)):
    if needed and needed != given:
      raise ValueError(f"a {form.name} holds {', '.join(needed)}; the rows hold {', '.join(given)}")
  columns: list[Sequence[str]] = [rows.images] if form.image else []
  if form.va:
    columns += [[repr(v) if v == v else "-5" for v in column] for column in rows.va.T.tolist()]
  if form.classes:
    columns.append([str(v) for v in rows.expression.tolist()])
  if form.units:
    columns += [[str(v) for v in column] for column in rows.au.T.tolist()]
  return [",".join(fields) for fields in zip(*columns, strict=True)]


def _read_folder(folder: Path, task: str, predictions: bool) -> tuple[Format, Annotations]:
  """All per-video files of a folder, by name, and the format that they have in common."""
  files = sorted(folder.glob("*.txt"))
  if not files:
    raise ValueError(f"{_shown(folder)}: no per-video files (*.txt) in this folder")
  formats, parts = zip(*(_read_file(file, task, predictions) for file in files), strict=True)
  first = parts[0]
  for file, form in zip(files, formats, strict=True):
    if form.image:
      raise ValueError(f"{_shown(file)}:1: a list of images among per-video files: give it alone")
    if form != formats[0]:
      raise ValueError(
        f"{_shown(file)}:1: another header than in {_shown(files[0])}: one edition in one folder"
      )
  join = lambda name: (
    None
    if getattr(first, name) is None
    else np.concatenate([getattr(part, name) for part in parts])
  )
  return formats[0], Annotations(
    images=tuple(image for part in parts for image in part.images),
    va=join("va"),
    expression=join("expression"),
    au=join("au"),
    classes=first.classes,
    units=first.units,
  )


def _read_lsd_tree(root: Path) -> Annotations:
  """The labels that the six class folders of an LSD tree are, images by file name."""
  form = FORMATS["lsd"][0]
  pairs = []
  for name, folder in lsd_folders(root).items():
    for path in sorted(folder.glob("*.jpg")):
      try:
        pairs.append((_check_image(path.name, form), labels.EXPRESSION_LSD.index(name)))
      except _Illegal as e:
        raise ValueError(f"{_shown(folder)}: {e}, or no list could name it") from None
  names = [name for name, _ in pairs]
  twice = [name for name, count in collections.Counter(names).items() if count > 1]
  if twice:
    raise ValueError(
      f"{_shown(root)}: {len(twice)} file names occur in two class folders ({twice[0]}), and"
      " predictions name no folder: give the labels as a list (header 'image,expression')"
    )
  return Annotations(
    images=tuple(names),
    expression=np.array([index for _, index in pairs], np.int64),
    classes=labels.EXPRESSION_LSD,
  )
