"""s-Aff-Wild2, of the ABAW multi-task challenges: 112 px faces with all three tasks, licensed.

Kollias, 2022, arXiv:2202.10659 (ABAW3) and arXiv:2207.01138 (ABAW4).
"""

import sys
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from affjax import annotations
from affjax.labels import AU_MTL, EXPRESSION_MTL, VA
from tfds_builders import images, tables

# Config -> split -> its list. A test list names images only, and need not be there.
LISTS = {
  "mtl": {
    "train": "training_set_annotations.txt",
    "validation": "validation_set_annotations.txt",
    "test": "MTL_Challenge_test_set_release.txt",
  },
  "abaw3": {
    "train": "train_set.txt",
    "validation": "validation_set.txt",
    "test": "Multi_Task_Learning_Challenge_test_set_release.txt",
  },
}
LIST_FOLDERS = ("", "MTL_Challenge")  # of --source, where lists are looked for
IMAGE_FOLDERS = ("cropped_aligned", "cropped_aligned_images", "")  # the first that holds a video


def _published(
  rows: int, unlabelled: int, va: int, expression: list[int], labelled: int, units: list[int]
) -> dict:
  """The counts of one split in the structure of a summary; see README.md for their sources."""
  return {
    "images": rows,
    "unlabelled": unlabelled,
    "va": {"labelled": dict.fromkeys(VA, va)},
    "expression": {
      "labelled": sum(expression),
      "votes": dict(zip(EXPRESSION_MTL, expression, strict=True)),
    },
    "au": {
      "labelled": dict.fromkeys(AU_MTL, labelled),
      "positive": dict(zip(AU_MTL, units, strict=True)),
    },
  }


# fmt: off
PUBLISHED = {
  "train": _published(
    142_382, 49, 103_917, [23976, 4555, 3168, 3122, 18135, 7609, 5228, 24852],
    103_316, [18713, 8745, 20342, 30605, 41337, 38286, 26783, 2460, 2980, 5003, 70584, 10756],
  ),
  "validation": _published(
    26_876, 0, 26_876, [1886, 487, 565, 1254, 3751, 1893, 1003, 4601],
    26_876, [5531, 2554, 5442, 8818, 13224, 11421, 8319, 782, 757, 808, 20427, 2934],
  ),
  "test": {"images": 51_159},
}
# fmt: on


def find_list(source: Path, name: str) -> Path | None:
  """Finds a list by its name; None: it is not there.

  Raises:
    ValueError: there are two that differ, or a link leads out of the source.
  """
  there = [source / folder / name for folder in LIST_FOLDERS if (source / folder / name).is_file()]
  there = [images.inside(source, path) for path in there]
  if len({path.read_bytes() for path in there}) > 1:
    raise ValueError(
      f"{' and '.join(map(str, there))} differ: remove the one that is not of this edition"
    )
  return there[0] if there else None


def find_lists(source: Path, config: str) -> dict[str, Path]:
  """Split -> list.

  Raises:
    ValueError: the list of train or validation is not there.
  """
  names = LISTS[config]
  found = {split: find_list(source, name) for split, name in names.items()}
  for split in ("train", "validation"):
    if not found[split]:
      others = [c for c in LISTS if c != config and find_list(source, LISTS[c][split])]
      hint = f"; the lists of config {others[0]} are: add --config={others[0]}" if others else ""
      places = " or ".join(str(source / folder) for folder in LIST_FOLDERS)
      raise ValueError(f"no {names[split]} in {places} (config {config}){hint}")
  return {split: path for split, path in found.items() if path}


def find_images(source: Path, listed: list[str]) -> Path:
  """The folder in which the videos' folders lie.

  Args:
    source: --source.
    listed: images, `video/00001.jpg`.

  Raises:
    ValueError: there is none.
  """
  videos = dict.fromkeys(image.partition("/")[0] for image in listed)
  for folder in IMAGE_FOLDERS:
    if any((source / folder / video).is_dir() for video in videos):
      return source / folder
  places = ", ".join(str(source / folder) for folder in IMAGE_FOLDERS)
  raise ValueError(
    f"no folder of a listed video, such as {next(iter(videos), 'none')!r}, in any of {places}"
  )


def labels_of(rows: annotations.Annotations) -> dict[str, np.ndarray]:
  """Labels as a `Table` has them; all NaN where the list is of names alone."""
  nothing = lambda count: np.full((len(rows), count), np.nan, np.float32)
  if rows.va is None:
    return {"va": nothing(2), "expression": nothing(len(EXPRESSION_MTL)), "au": nothing(12)}
  return {
    "va": rows.va.astype(np.float32),
    "expression": tables.one_hot(rows.expression, len(EXPRESSION_MTL)),
    "au": np.where(rows.au < 0, np.nan, rows.au).astype(np.float32),
  }


class Builder(tables.Builder):
  """Splits `train`, `validation` and, where its list is, `test` (unlabelled), in list order."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "Rows as listed, a mask for every label."}
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name="mtl", description="The lists of ABAW4, ABAW7 and ABAW11."),
    tfds.core.BuilderConfig(name="abaw3", description="The lists of ABAW3; other images."),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  A folder with the lists (`training_set_annotations.txt`, ...), or with them in `MTL_Challenge`,
  and the images in `cropped_aligned`. Then:
    python -m affjax.data.prepare s_aff_wild2 --source=FOLDER
  """
  image_size = (112, 112)

  @property
  def published(self) -> dict:
    """Counts of the lists of ABAW4, ABAW7 and ABAW11; of ABAW3's none are known."""
    return PUBLISHED if self.builder_config.name == "mtl" else {}

  def _info(self) -> tfds.core.DatasetInfo:
    names = {"va": VA, "expression": EXPRESSION_MTL, "au": AU_MTL}
    return self.dataset_info_from_configs(
      features=tables.features(
        self.image_size,
        {task: len(of_task) for task, of_task in names.items()},
        video=tfds.features.Text(),
        frame=tfds.features.Scalar(np.int64),
        line=tfds.features.Scalar(np.int64),
        image_path=tfds.features.Text(),
      ),
      metadata=tfds.core.MetadataDict({"labels": {t: list(n) for t, n in names.items()}}),
      disable_shuffling=True,
    )

  def read(self, source: Path) -> dict[str, tables.Table]:
    """Reads the lists and finds their images; says on stderr which were used."""
    lists = find_lists(source, self.builder_config.name)
    rows = {}
    for split, path in lists.items():
      if split == "test":
        rows[split] = annotations.Annotations(annotations.read_names(path, "mtl"))
      else:
        rows[split] = annotations.read(path, "mtl")
    folder = find_images(source, [image for part in rows.values() for image in part.images])
    print(f"lists {', '.join(map(str, lists.values()))}; images {folder}", file=sys.stderr)
    return {split: self._table(split, part, source, folder) for split, part in rows.items()}

  def _table(
    self, split: str, rows: annotations.Annotations, source: Path, folder: Path
  ) -> tables.Table:
    lines = range(2, len(rows) + 2)  # line 1 is the header
    parts = [image.partition("/") for image in rows.images]
    return tables.Table(
      source=source,
      folder=folder,
      images=rows.images,
      keys=[f"{split}/{line:06d}" for line in lines],
      labels=labels_of(rows),
      fields={
        "video": [video for video, _, _ in parts],
        "frame": [int(Path(name).stem) for _, _, name in parts],
        "line": lines,
        "image_path": rows.images,
      },
    ).on_disk()
