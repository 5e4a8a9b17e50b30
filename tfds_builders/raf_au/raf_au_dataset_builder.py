"""RAF-AU: photographs of faces with blended expressions, coded by action units, licensed.

Yan, Li, Que, Pei & Deng, 2020, arXiv:2008.05196.
"""

import re
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from tfds_builders import lists, tables
from tfds_builders.image_folder import table

LIST, LISTS = "RAFAU_label.txt", ("", "RAF-AU")
IMAGES = ("aligned", "RAF-AU/aligned", "")  # of --source, where the images may lie
SUFFIXES = ("_aligned.jpg", ".jpg")  # of their files, after the number
SPLITS = ("train", "validation", "test")
NOTHING = "null"  # no unit at all
_NAME = re.compile(r"(\d{1,4})\.jpg", re.ASCII)
# FACS: the left or right side alone, the top or bottom lip alone, or an action descriptor; then the
# unit; then how strong it is.
_UNIT = re.compile(
  r"(?P<part>[LRTB]{1,2}|AD|AU)?(?P<unit>[1-9]\d?)[A-E]?", re.ASCII | re.IGNORECASE
)


def row_of(fields: list[str]) -> tuple[str, str, frozenset[int]]:
  """The number of an image in four digits, the code as it stands, the units that are on."""
  if len(fields) != 2:
    raise ValueError(f"{len(fields)} fields; expected two, such as 0001.jpg 4+L10+25")
  name, code = fields
  number = _NAME.fullmatch(name)
  if not number:
    raise ValueError(f"image {name!r}: expected a name such as 0001.jpg")
  found = [_UNIT.fullmatch(unit) for unit in code.split("+") if code != NOTHING]
  if None in found:
    raise ValueError(
      f"units {code!r}: use numbers with + between them, such as 4+L10+25 (before a number L, R, T,"
      f" B: of one side or lip; after it A to E: how strong), or {NOTHING}"
    )
  return number[1].zfill(4), code, frozenset(int(unit["unit"]) for unit in found)


def find_images(source: Path, numbers: list[str]) -> tuple[Path, list[str]]:
  """The folder of the images, and the name of each: that of the first suffix that one has."""
  names = [number + suffix for suffix in SUFFIXES for number in numbers]
  folder = lists.folder(source, IMAGES, names)
  suffix = next(s for s in SUFFIXES if any((folder / f"{n}{s}").is_file() for n in numbers))
  return folder, [number + suffix for number in numbers]


class Builder(tables.Builder):
  """Splits `train`, `validation`, `test`: .8, .1, .1 by a hash of the image; the list's order."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "A unit is on where any part of the face shows it."}
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  A folder with `RAFAU_label.txt` and the images in `aligned`. Then:
    python -m affjax.data.prepare raf_au --source=FOLDER
  """
  total = 4_601

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text()
    return self.dataset_info_from_configs(
      features=tables.features(
        None,
        {"expression": None, "au": None},
        code=text,
        line=tfds.features.Scalar(np.int64),
        image_path=text,
      ),
      metadata=tfds.core.MetadataDict({"labels": {}}),  # of the list, once it is read
      disable_shuffling=True,
    )

  def read(self, source: Path) -> dict[str, tables.Table]:
    """Reads the list and finds its images; the units that occur go into the metadata."""
    path = lists.need(source, LISTS, LIST)
    lines, rows = lists.read(path, row_of)
    numbers = [number for number, _, _ in rows]
    lists.refuse_twice(path, lines, numbers)
    folder, names = find_images(source, numbers)
    units = sorted(set().union(*(on for _, _, on in rows)))
    self.info.metadata["labels"] = {"au": [f"AU{unit}" for unit in units]}
    # By its number, so that it does not change with the file's suffix.
    of = np.array(table.splits(table.Rows({"path": numbers}, lines)))
    whole = tables.Table(
      source=source,
      folder=folder,
      images=names,
      keys=[f"{split}/{number}" for split, number in zip(of, numbers, strict=True)],
      labels={
        "expression": np.zeros((len(rows), 0), np.float32),
        "au": np.array([[unit in on for unit in units] for _, _, on in rows], np.float32),
      },
      fields={"code": [code for _, code, _ in rows], "line": lines, "image_path": names},
    )
    parts = {split: whole.take(of == split) for split in SPLITS if (of == split).any()}
    return {split: part.on_disk() for split, part in parts.items()}
