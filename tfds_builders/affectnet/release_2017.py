"""The release of 2017: lists in CSV, photographs as they were found, a box around each face."""

import csv
import io
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfds_builders import lists, tables
from tfds_builders.affectnet import codes

SPLITS = {"train": "training.csv", "validation": "validation.csv"}
# Where the lists and the images may lie in --source.
_OUTER = "Manually_Annotated"
LISTS = ("", f"{_OUTER}_file_lists", f"{_OUTER}/{_OUTER}_file_lists", _OUTER)
IMAGES = (f"{_OUTER}_Images", f"{_OUTER}/{_OUTER}_Images", _OUTER, "")
COLUMNS = (
  "subDirectory_filePath", "face_x", "face_y", "face_width", "face_height", "facial_landmarks",
  "expression", "valence", "arousal",
)  # fmt: skip
_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
_WHOLE = re.compile(r"-?\d{1,6}", re.ASCII)
NO_BOX = "NULL"


class Face(NamedTuple):
  """A line of a list; `box` is left, top, right, bottom, as `Table` has it."""

  line: int
  image: str
  box: tuple[int, int, int, int]
  expression: int
  va: tuple[float, float]


def read(source: Path, hint: str = "") -> dict[str, tables.Table]:
  """Reads the lists, finds their photographs and looks at each of them; `hint` ends an error."""
  paths = {split: lists.need(source, LISTS, name, hint) for split, name in SPLITS.items()}
  listed = {split: parse(path) for split, path in paths.items()}
  return {split: _table(split, source, *found) for split, found in listed.items()}


def _table(split: str, source: Path, faces: list[Face], left_out: list[int]) -> tables.Table:
  names = [face.image for face in faces]
  table = tables.Table(
    source=source,
    folder=lists.folder(source, IMAGES, names),
    images=names,
    keys=[f"{split}/{face.line:06d}" for face in faces],
    labels=codes.labels([face.expression for face in faces], [face.va for face in faces]),
    fields={"image_path": names},
    boxes=np.array([face.box for face in faces]),
    notes=codes.notes(left_out),
  )
  return table.on_disk().with_faces()


def parse(path: Path) -> tuple[list[Face], list[int]]:
  """Reads a list; the header may lack, as it does above some copies of `validation.csv`.

  Returns:
    The faces that have an expression; the codes of the others, of which no more is read.

  Raises:
    ValueError: names the file, the line and what is wrong.
  """
  reader = csv.reader(io.StringIO(lists.text(path), newline=""), strict=True)
  faces: list[Face] = []
  left_out: list[int] = []
  try:
    for cells in reader:
      if not cells or (reader.line_num == 1 and tuple(cells) == COLUMNS):
        continue
      code = _code(cells)
      if code in codes.NO_EXPRESSION:
        left_out.append(code)
      else:
        faces.append(_face(reader.line_num, code, cells))
  except (csv.Error, ValueError) as e:
    raise ValueError(f"{path}:{reader.line_num}: {e}") from None
  if not faces:
    raise ValueError(f"{path}: it lists no face that has an expression")
  return faces, left_out


def _code(cells: list[str]) -> int:
  if len(cells) != len(COLUMNS):
    raise ValueError(f"{len(cells)} fields; expected {len(COLUMNS)}: {', '.join(COLUMNS)}")
  return codes.expression(cells[6].strip())


def _face(line: int, code: int, cells: list[str]) -> Face:
  image, *box = (cell.strip() for cell in cells[:5])
  if not _NAME.fullmatch(image):
    raise ValueError(f"image {image!r}: expected a path such as 689/737db2.jpg")
  for name, side in zip(COLUMNS[1:5], box, strict=True):
    if side != NO_BOX and not _WHOLE.fullmatch(side):
      raise ValueError(f"{name} {side!r}: use a whole number of pixels")
  # Without a box the face is left out, as where the box is outside the image.
  left, top, width, height = (0, 0, 0, 0) if NO_BOX in box else map(int, box)
  valence, arousal = (
    codes.affect(name, cell.strip()) for name, cell in zip(COLUMNS[7:], cells[7:], strict=True)
  )
  return Face(line, image, (left, top, left + width, top + height), code, (valence, arousal))
