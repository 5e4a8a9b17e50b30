"""AffectNet: photographs from web searches, eight expressions, valence and arousal, licensed.

Mollahosseini, Hasani & Mahoor, 2017, arXiv:1708.03985.
"""

from pathlib import Path

import tensorflow_datasets as tfds

from affjax.labels import EXPRESSION_AFFECTNET, VA
from tfds_builders import tables
from tfds_builders.affectnet import release_2017, release_2021

RELEASES = {"release_2017": release_2017.read, "release_2021": release_2021.read}
# What tells the releases apart: in --source or in a folder of it.
_SIGNS = {"release_2017": "training.csv", "release_2021": "train_set"}


def _published(counts: list[int]) -> dict:
  votes = dict(zip(EXPRESSION_AFFECTNET, counts, strict=True))
  return {"images": sum(counts), "expression": {"labelled": sum(counts), "votes": votes}}


PUBLISHED = {
  "release_2017": {
    "train": _published([74874, 134415, 25459, 14090, 6378, 3803, 24882, 3750]),
    "validation": _published([500] * 8),
  },
  "release_2021": {"train": {"images": 287_651}, "validation": {"images": 3_999}},
}


class Builder(tables.Builder):
  """Splits `train` and `validation`, in the order of the lists, or of the numbers of the images."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "Faces that have one of the eight expressions."}
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(
      name="release_2017", description="Lists in CSV; faces are cut out of the photographs."
    ),
    tfds.core.BuilderConfig(
      name="release_2021", description="Faces as they are, labels in .npy files."
    ),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Of the release of 2017 a folder with `training.csv`, `validation.csv` and
  `Manually_Annotated_Images`; of that of 2021 (--config=release_2021) one with `train_set` and
  `val_set`. Then:
    python -m affjax.data.prepare affectnet --source=FOLDER
  """

  @property
  def published(self) -> dict:
    """Counts of the release."""
    return PUBLISHED[self.builder_config.name]

  def _info(self) -> tfds.core.DatasetInfo:
    names = {"va": VA, "expression": EXPRESSION_AFFECTNET}
    return self.dataset_info_from_configs(
      features=tables.features(
        None,
        {task: len(of_task) for task, of_task in names.items()},
        image_path=tfds.features.Text(),
      ),
      metadata=tfds.core.MetadataDict({"labels": {t: list(n) for t, n in names.items()}}),
      disable_shuffling=True,
    )

  def read(self, source: Path) -> dict[str, tables.Table]:
    """Reads the labels of the release and finds its images."""
    name = self.builder_config.name
    other = next(release for release in RELEASES if release != name)
    there = any(source.glob(_SIGNS[other])) or any(source.glob(f"*/{_SIGNS[other]}"))
    hint = f"; the other release is here: add --config={other}" if there else ""
    return RELEASES[name](source, hint)
