"""Aff-Wild2, of the ABAW video challenges: valence-arousal, expressions, action units; licensed.

Kollias and Zafeiriou, 2018, arXiv:1811.07770; Kollias, 2022, arXiv:2202.10659 (ABAW3).
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from affjax.labels import TASKS
from tfds_builders import stage, tables
from tfds_builders.aff_wild2 import layout, report, rows

CONFIGS = {task: (task,) for task in TASKS} | {"all": TASKS}
FULL = "_full"  # ends the name of a config whose images are whole frames


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is to be written, and of what.

  Attributes:
    edition: see `layout.edition`.
    labels: task -> its labels.
    pictures: video -> its pictures.
    further: names of videos that have pictures and no annotation.
    videos: those that have both, in the order of their records.
  """

  edition: str
  labels: Mapping[str, layout.Labels]
  pictures: Mapping[str, layout.Pictures]
  further: Sequence[str]
  videos: Sequence[rows.Video]


class Builder(tfds.core.GeneratorBasedBuilder):
  """Splits `train` and `validation`: frames that have a line and a picture, by video and number.

  Each video is written to a file of its own, in several processes. Those that are whole outlive a
  build that is killed: see `stage`.

  Attributes:
    kept_in: the folder below which they are kept; None: that of the data set's versions.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "A file for each video, a mask for every label."}
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name=f"{name}{end}", description=f"{', '.join(of)}{what}")
    for end, what in (("", "; crops"), (FULL, "; whole frames of the videos"))
    for name, of in CONFIGS.items()
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  A folder with the annotations (`VA_Estimation_Challenge`, `EXPR_Recognition_Challenge`,
  `AU_Detection_Challenge`, or as earlier editions call them), and the crops in `cropped_aligned`
  or, for a config that ends in _full, the videos. Then:
    python -m affjax.data.prepare aff_wild2 --config=va --source=FOLDER
  """
  draws_progress = True
  kept_in: Path | None = None
  _plan: Plan | None = None

  @property
  def tasks(self) -> tuple[str, ...]:
    """Those of the config."""
    return CONFIGS[self.builder_config.name.removesuffix(FULL)]

  @property
  def full(self) -> bool:
    """Whether images are whole frames."""
    return self.builder_config.name.endswith(FULL)

  @property
  def picture(self) -> str:
    """What an image is."""
    return "frame" if self.full else "crop"

  @property
  def published(self) -> dict[str, Any]:
    """Counts of the edition that was built."""
    return {} if self.full else report.published(self.info.metadata["edition"], self.tasks)

  def _info(self) -> tfds.core.DatasetInfo:
    text, integer = tfds.features.Text(), tfds.features.Scalar(np.int64)
    return self.dataset_info_from_configs(
      features=tables.features(
        None if self.full else rows.IMAGE_SIZE,
        dict.fromkeys(TASKS),
        person=text,
        video=text,
        frame=integer,
        line=integer,
        image_path=text,
        **({"time": tfds.features.Scalar(np.float32)} if self.full else {}),
      ),
      # Of the files, once they are read.
      metadata=tfds.core.MetadataDict({"labels": {}, "edition": layout.OLD}),
      disable_shuffling=True,
    )

  def read(self, source: Path) -> Plan:
    """Reads the annotations and finds the pictures; says on stderr what was found.

    Raises:
      ValueError: the files are not as they should be.
    """
    found = layout.find(source, self.tasks)
    labels = layout.read(found)
    names = {name for of in labels.values() for part in of.splits.values() for name in part}
    edition = layout.edition(found, labels)
    used = found.tasks.values() if self.full else [*found.tasks.values(), *found.archives]
    print(f"edition {edition}: {', '.join(map(str, used))}", file=sys.stderr)
    look = layout.read_videos if self.full else layout.read_crops
    pictures, further = look(found, names)
    planned = [
      video
      for split in layout.SPLITS
      for name in sorted(names)
      if (video := rows.of(split, name, labels, pictures[name]))
    ]
    for split in layout.SPLITS.keys() - {video.split for video in planned}:
      raise ValueError(f"{source}: no annotated video of {split} has a {self.picture} there")
    return Plan(edition, labels, pictures, further, planned)

  def megabytes(self, source: Path) -> float:
    """About what is still to be written, in 1e6 bytes; reads annotations, but no picture."""
    self._plan = self.read(source)
    size = 0
    for video, part in zip(self._plan.videos, self._parts(self._plan), strict=True):
      if not self._stage.known(part):
        pixels = rows.FULL_BYTES * part.records if self.full else video.sizes.sum()
        size += pixels + part.records * tables.ROW_BYTES
    return size / 1e6

  def kept(self) -> int:
    """How many videos a build that ended has left, which the next one need not write."""
    return self._stage.count()

  @property
  def _stage(self) -> stage.Stage:
    folder = self.kept_in or Path(self.data_dir).parent
    return stage.Stage(folder / f"{stage.PREFIX}{self.version}")

  def _parts(self, plan: Plan) -> list[stage.Part]:
    return [
      stage.Part(
        f"{video.split}/{video.name}",
        video.fingerprint(f"{self.name}/{self.builder_config.name}/{self.version}"),
        len(video.frames),
        video,
      )
      for video in plan.videos
    ]

  def download_and_prepare(self, **options: Any) -> None:
    """As of TFDS. What was kept for the next build is not needed after it."""
    super().download_and_prepare(**options)
    self._stage.remove()

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> Plan:
    # Not kept: it is large, and the files may be mended before the next attempt.
    plan, self._plan = self._plan, None
    return plan or self.read(Path(dl_manager.manual_dir))

  def _generate_examples(self, plan: Plan) -> list[tuple[stage.Part, stage.Written]]:
    parts = self._parts(plan)
    task = rows.full if self.full else rows.crops
    return list(zip(parts, self._stage.write(parts, task, "video"), strict=True))

  def _generate_splits(self, dl_manager: Any, download_config: Any) -> list[tfds.core.SplitInfo]:
    """Instead of TFDS's, which goes on where it was killed for no data set."""
    plan = self._split_generators(dl_manager)
    written = self._generate_examples(plan)
    self._describe(plan, written)
    return [
      self._split(split, [(p, w) for p, w in written if p.job.split == split])
      for split in layout.SPLITS
    ]

  def _split(
    self, split: str, written: Sequence[tuple[stage.Part, stage.Written]]
  ) -> tfds.core.SplitInfo:
    """Gives the files of a split their places in the data set."""
    template = self._get_filename_template(split_name=split)
    for shard, (part, _) in enumerate(written):
      path = template.sharded_filepath(shard_index=shard, num_shards=len(written))
      self._stage.take(part, Path(path))
    return tfds.core.SplitInfo(
      name=split,
      shard_lengths=[of.records for _, of in written],
      num_bytes=sum(of.record_bytes for _, of in written),
      filename_template=template,
    )

  def _describe(self, plan: Plan, written: Sequence[tuple[stage.Part, stage.Written]]) -> None:
    """Sets the metadata."""
    decoded = {p.job.name: of.facts["decoded"] for p, of in written if self.full}
    pictured = {
      name: np.arange(1, decoded.get(name, 0) + 1) if found.frames is None else found.frames
      for name, found in plan.pictures.items()
    }
    counts = report.count(plan.labels, pictured, self.picture)
    lines = report.table(counts, "" if self.full else plan.edition)
    lines += report.notes(plan.labels, plan.pictures, plan.further, self.picture)
    self.info.metadata.update(
      labels={task: list(of_task.names) for task, of_task in plan.labels.items()},
      edition=plan.edition,
      counts=counts,
      in_both_splits=report.in_both(plan.labels),
      unlabelled={
        split: sum(of.facts["unlabelled"] for p, of in written if p.job.split == split)
        for split in layout.SPLITS
      },
      report=[*lines, *([report.histogram(plan.labels, decoded)] if self.full else [])],
    )
