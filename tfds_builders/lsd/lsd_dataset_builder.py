"""Learning from synthetic data, of ABAW4: six expressions, trained on synthetic faces, licensed.

Kollias, 2022, arXiv:2207.01138.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from affjax import annotations
from affjax.labels import EXPRESSION_LSD
from tfds_builders import images, tables

FOLDERS = {"train": "training_set_synthetic_images", "validation": "validation_set_real_images"}
TEST_LIST = "LSD_Challenge_test_set_release.txt"
SUFFIXES = (".jpg", ".jpeg", ".png")


def _published(counts: list[int]) -> dict:
  votes = dict(zip(EXPRESSION_LSD, counts, strict=True))
  return {"images": sum(counts), "expression": {"labelled": sum(counts), "votes": votes}}


PUBLISHED = {
  "train": _published([18286, 15150, 10923, 73285, 144631, 14976]),
  "validation": _published([804, 252, 523, 1714, 774, 603]),
  "test": {"images": 106_120},
}


def read_folders(root: Path) -> tuple[list[str], list[str], np.ndarray]:
  """Reads a tree of class folders.

  Returns:
    Paths of the images in `root`, sorted in each class; keys, in which a class goes by its name
    however its folder is spelt; indices of `EXPRESSION_LSD`.
  """
  if not root.is_dir():
    raise ValueError(f"{root}: no such folder; it holds a folder for each of the six expressions")
  paths, keys, indices = [], [], []
  for name, folder in annotations.lsd_folders(root).items():
    files = sorted(f.name for f in folder.iterdir() if f.suffix.lower() in SUFFIXES)
    paths += [f"{folder.name}/{file}" for file in files]
    keys += [f"{name}/{file}" for file in files]
    indices += [EXPRESSION_LSD.index(name)] * len(files)
  return paths, keys, np.array(indices, np.int64)


def find_test_images(source: Path, names: tuple[str, ...]) -> Path:
  """The folder directly below `source`, whatever it is called, that holds the listed images.

  Raises:
    ValueError: there is none, or there are several.
  """
  folders = [f for f in sorted(source.iterdir()) if f.is_dir() and f.name not in FOLDERS.values()]
  found = [folder for folder in folders if images.present(folder, names, source).any()]
  if len(found) != 1:
    what = f"{' and '.join(f.name for f in found)} do" if found else "none does"
    raise ValueError(
      f"{source}: one folder in it should hold the images of {TEST_LIST} ({names[0]}, ...); {what}"
    )
  return found[0]


class Builder(tables.Builder):
  """Splits `train` (synthetic), `validation` (real) and, where its list is, `test` (unlabelled)."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "Images by class folder; the test images by their list."}
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  A folder with `training_set_synthetic_images` and `validation_set_real_images`, each with the six
  class folders. Then:
    python -m affjax.data.prepare lsd --source=FOLDER
  """
  published = PUBLISHED

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tables.features(
        None, {"expression": len(EXPRESSION_LSD)}, image_path=tfds.features.Text()
      ),
      metadata=tfds.core.MetadataDict({"labels": {"expression": list(EXPRESSION_LSD)}}),
      disable_shuffling=True,
    )

  def read(self, source: Path) -> dict[str, tables.Table]:
    """Lists the class folders, and finds the test images by their list."""
    found = {}
    for split, folder in FOLDERS.items():
      paths, keys, indices = read_folders(source / folder)
      found[split] = self._table(split, source, folder, paths, keys, indices)
    if (source / TEST_LIST).is_file():
      names = annotations.read_names(images.inside(source, source / TEST_LIST), "lsd")
      folder = find_test_images(source, names)
      print(f"test images {folder}", file=sys.stderr)
      keys = [f"{line:06d}" for line in range(2, len(names) + 2)]  # line 1 is the header
      indices = np.full(len(names), -1)
      found["test"] = self._table("test", source, folder.name, names, keys, indices)
    return found

  def _table(
    self,
    split: str,
    source: Path,
    folder: str,
    paths: Sequence[str],
    keys: list[str],
    indices: np.ndarray,
  ) -> tables.Table:
    return tables.Table(
      source=source,
      folder=source / folder,
      images=paths,
      keys=[f"{split}/{key}" for key in keys],
      labels={"expression": tables.one_hot(indices, len(EXPRESSION_LSD))},
      fields={"image_path": paths},
    ).on_disk()
