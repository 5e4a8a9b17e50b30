"""RAF-DB, basic expressions: aligned 100 px photographs of faces, seven expressions, licensed.

Li, Deng & Du, 2017 (CVPR).
"""

import re
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from tfds_builders import lists, tables

# Where the list and the images may lie in --source.
LIST, LISTS = "list_patition_label.txt", ("EmoLabel", "", "basic/EmoLabel")  # spelt so
IMAGES = ("Image/aligned", "aligned", "basic/Image/aligned", "")
# Its numbers 1 to 7.
EXPRESSIONS = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
SPLITS = ("train", "test")  # what an image's name begins with
_NAME = re.compile(r"(train|test)_\d{1,6}\.jpg", re.ASCII)


def _published(counts: list[int]) -> dict:
  votes = dict(zip(EXPRESSIONS, counts, strict=True))
  return {"images": sum(counts), "expression": {"labelled": sum(counts), "votes": votes}}


PUBLISHED = {
  "train": _published([1290, 281, 717, 4772, 1982, 705, 2524]),
  "test": _published([329, 74, 160, 1185, 478, 162, 680]),
}


def row_of(fields: list[str]) -> tuple[str, int]:
  """The name of an image and an index of `EXPRESSIONS`, from the fields of a line."""
  if len(fields) != 2:
    raise ValueError(f"{len(fields)} fields; expected two, such as train_00001.jpg 5")
  name, number = fields
  if not _NAME.fullmatch(name):
    raise ValueError(f"image {name!r}: expected a name such as train_00001.jpg or test_0001.jpg")
  if number not in map(str, range(1, 8)):
    raise ValueError(
      f"expression {number!r}: use 1 to 7, {', '.join(EXPRESSIONS)}; the list of the compound"
      " expressions, which has the same name, has others"
    )
  return name, int(number) - 1


class Builder(tables.Builder):
  """Splits `train` and `test`, in the order of the list."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "The basic expressions, aligned images."}
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  The folder `basic` of RAF-DB, with `EmoLabel/list_patition_label.txt` and `Image/aligned`. Then:
    python -m affjax.data.prepare raf_db --source=FOLDER
  """
  image_size = (100, 100)
  published = PUBLISHED

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tables.features(
        self.image_size,
        {"expression": len(EXPRESSIONS)},
        line=tfds.features.Scalar(np.int64),
        image_path=tfds.features.Text(),
      ),
      metadata=tfds.core.MetadataDict({"labels": {"expression": list(EXPRESSIONS)}}),
      disable_shuffling=True,
    )

  def read(self, source: Path) -> dict[str, tables.Table]:
    """Reads the list and finds its images."""
    path = lists.need(source, LISTS, LIST)
    lines, rows = lists.read(path, row_of)
    lists.refuse_twice(path, lines, [name for name, _ in rows])
    names = [name.replace(".jpg", "_aligned.jpg") for name, _ in rows]
    whole = tables.Table(
      source=source,
      folder=lists.folder(source, IMAGES, names),
      images=names,
      keys=[f"{n.partition('_')[0]}/{line:06d}" for n, line in zip(names, lines, strict=True)],
      labels={
        "expression": tables.one_hot(np.array([index for _, index in rows]), len(EXPRESSIONS))
      },
      fields={"line": lines, "image_path": names},
    )
    of = np.array([name.partition("_")[0] for name in names])
    return {split: whole.take(of == split).on_disk() for split in SPLITS if (of == split).any()}
