"""ExpW, expressions in the wild: faces in photographs from web searches, seven expressions.

Zhang, Luo, Loy & Tang, 2018, arXiv:1609.06426.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from tfds_builders import lists, tables
from tfds_builders.image_folder import table

# Where the list and the images may lie in --source.
LIST, LISTS = "label.lst", ("label", "")
IMAGES = ("image/origin", "image", "origin", "")
# Its numbers 0 to 6.
EXPRESSIONS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
SPLITS = ("train", "validation", "test")
FIELDS = ("image", "face", "top", "left", "right", "bottom", "confidence", "expression")
_WHOLE = re.compile(r"-?\d{1,6}", re.ASCII)


class Face(NamedTuple):
  """A line of the list; `box` is left, top, right, bottom, as `Table` has it."""

  image: str
  face: int
  box: tuple[int, int, int, int]
  confidence: float
  expression: int


def row_of(fields: list[str]) -> Face:
  """The face of a line."""
  if len(fields) != len(FIELDS):
    raise ValueError(f"{len(fields)} fields; expected {len(FIELDS)}: {', '.join(FIELDS)}")
  given = dict(zip(FIELDS, fields, strict=True))
  if "/" in given["image"] or "\\" in given["image"] or not given["image"].isprintable():
    raise ValueError(f"image {given['image']!r}: expected the name of a file")
  for name in FIELDS[1:6]:
    if not _WHOLE.fullmatch(given[name]):
      raise ValueError(f"{name} {given[name]!r}: use a whole number")
  number = table.NUMBER.fullmatch(given["confidence"])
  if not number or not np.isfinite(float(number[0])):
    raise ValueError(f"confidence {given['confidence']!r}: use a number")
  if given["expression"] not in map(str, range(7)):
    raise ValueError(f"expression {given['expression']!r}: use 0 to 6, {', '.join(EXPRESSIONS)}")
  box = tuple(int(given[side]) for side in ("left", "top", "right", "bottom"))
  return Face(
    given["image"], int(given["face"]), box, float(given["confidence"]), int(given["expression"])
  )


class Builder(tables.Builder):
  """Splits `train`, `validation`, `test`: .8, .1, .1 by a hash of the image; the list's order."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "Faces cut out by their boxes."}
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  A folder with `label/label.lst` and the photographs in `image/origin`. Then:
    python -m affjax.data.prepare expw --source=FOLDER
  """
  total = 91_793

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tables.features(
        None,
        {"expression": len(EXPRESSIONS)},
        face=tfds.features.Scalar(np.int64),
        confidence=tfds.features.Scalar(np.float32),
        line=tfds.features.Scalar(np.int64),
        image_path=tfds.features.Text(),
      ),
      metadata=tfds.core.MetadataDict({"labels": {"expression": list(EXPRESSIONS)}}),
      disable_shuffling=True,
    )

  def read(self, source: Path) -> dict[str, tables.Table]:
    """Reads the list, finds its photographs and looks at each of them."""
    path = lists.need(source, LISTS, LIST)
    lines, faces = lists.read(path, row_of)
    names = [face.image for face in faces]
    of = np.array(table.splits(table.Rows({"path": names}, lines)))
    whole = tables.Table(
      source=source,
      folder=lists.folder(source, IMAGES, names),
      images=names,
      keys=[f"{split}/{line:06d}" for split, line in zip(of, lines, strict=True)],
      labels={
        "expression": tables.one_hot(np.array([f.expression for f in faces]), len(EXPRESSIONS))
      },
      fields={
        "face": [face.face for face in faces],
        "confidence": [face.confidence for face in faces],
        "line": lines,
        "image_path": names,
      },
      boxes=np.array([face.box for face in faces]),
    )
    parts = {split: whole.take(of == split) for split in SPLITS if (of == split).any()}
    return {split: part.on_disk().with_faces() for split, part in parts.items()}
