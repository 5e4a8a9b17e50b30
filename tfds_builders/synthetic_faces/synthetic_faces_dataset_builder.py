"""The TFDS builder of `synthetic_faces`: rendered faces whose action units are exactly known."""

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from affjax import labels
from tfds_builders import progress
from tfds_builders.synthetic_faces import knobs, label_model, renderer, workers

SPLITS = ("train", "validation", "test")
# Units of a lid's, a cheek's or a lip's fine movement: lost where a picture resolves fewer pixels
# across than `FINE_PIXELS`; INFERRED from looking at reduced pictures.
FINE_UNITS = (6, 7, 23, 24)
FINE_PIXELS = 52
# A head turned further than this (degrees) hides the units of its far side.
HIDING_YAW = 45
# A face with a unit between these strengths is one whose label could as well be the other.
BORDER = (0.15, 0.25)


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
  """What is rendered.

  Attributes:
    identities: how many people are in train, validation and test. None is in two of them.
    images: pictures of each.
    seed: other seeds give other people and other pictures.
    setting: the distributions that everything is drawn from.
  """

  identities: tuple[int, int, int] = (1024, 256, 256)
  images: int = 8
  seed: int = 0
  setting: knobs.Knobs = knobs.Knobs()


class Builder(tfds.core.GeneratorBasedBuilder):
  """Renders `synthetic_faces`. Needs neither TensorFlow nor a download."""

  VERSION = tfds.core.Version("0.1.0")
  RELEASE_NOTES = {"0.1.0": "First version: natural mode, clean labels, every task labelled."}
  BUILDER_CONFIGS = [
    Config(
      name="natural",
      description="Classes and unit rates of s-Aff-Wild2: mostly mild faces, much speech.",
    ),
    Config(
      name="tiny",
      description="The same with few pictures, for tests.",
      identities=(48, 16, 16),
      images=2,
    ),
  ]

  draws_progress = True  # its own bars have an estimate of the time left

  def megabytes(self, source: Path | None) -> float:
    """About what a build takes on disk, in 1e6 bytes: 7 kB a picture."""
    return round(sum(self.builder_config.identities) * self.builder_config.images * 7e-3, 1)

  def _info(self) -> tfds.core.DatasetInfo:
    feature = tfds.features
    tensor = lambda *shape: feature.Tensor(shape=shape, dtype=np.float32)
    units = len(labels.AU_MTL)
    return self.dataset_info_from_configs(
      features=feature.FeaturesDict(
        {
          "image": feature.Image(shape=(renderer.SIZE, renderer.SIZE, 3), encoding_format="jpeg"),
          "key": feature.Text(),
          "labels": {
            "va": tensor(2),
            "expression": tensor(len(labels.EXPRESSION_MTL)),
            "au": tensor(units),
          },
          "mask": {"va": tensor(2), "expression": tensor(), "au": tensor(units)},
          "person": feature.Text(),
          "pattern": feature.Text(),
          "distribution": tensor(len(labels.EXPRESSION_MTL)),
          "unit_intensity": tensor(len(label_model.UNITS), 2),
          "visible": tensor(units),
          "borderline": tensor(),
          "head": tensor(3),
          "eyes": tensor(2),
          "age": tensor(),
          "ancestry": feature.Scalar(np.int64),
          "sex": feature.Scalar(np.int64),
          "age_group": feature.Scalar(np.int64),
        }
      ),
      metadata=tfds.core.MetadataDict(
        {
          "labels": {
            "va": list(labels.VA),
            "expression": list(labels.EXPRESSION_MTL),
            "au": list(labels.AU_MTL),
          },
          "units": [f"AU{unit}" for unit in label_model.UNITS],
        }
      ),
      supervised_keys=None,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
    del dl_manager  # nothing is downloaded
    return {split: self._generate_examples(split) for split in SPLITS}

  def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    config = self.builder_config
    people = config.identities[SPLITS.index(split)]

    bar = progress.bar(range(people * config.images), f"rendering {split}", "faces")
    rendered = workers.faces(
      str(self.version), config.seed, split, people, config.images, config.setting
    )
    with bar:
      for identity, faces in enumerate(rendered):
        for image, face in enumerate(faces):
          yield example(split, identity, image, face)
        bar.update(len(faces))


def example(
  split: str, identity: int, image: int, face: renderer.Face
) -> tuple[str, dict[str, Any]]:
  """Makes a record of a face.

  Args:
    split: its split.
    identity: number of the person in the split.
    image: number of the picture of that person.
    face: the face.

  Returns:
    The record's key, unique in the data set, and the record.
  """
  key = f"{split}/{identity:06d}/{image}"
  intensity = face.intensity.astype(np.float32)
  strongest = face.intensity.max(1)
  units = len(labels.AU_MTL)
  record = {
    "image": io.BytesIO(face.jpeg),
    "key": key,
    "labels": {
      "va": face.va.astype(np.float32),
      "expression": np.eye(len(labels.EXPRESSION_MTL), dtype=np.float32)[face.expression],
      "au": (strongest[:units] >= label_model.PRESENT).astype(np.float32),
    },
    "mask": {
      "va": np.ones(2, np.float32),
      "expression": np.float32(1),
      "au": np.ones(units, np.float32),
    },
    "person": f"{split}/{identity:06d}",
    "pattern": face.pattern,
    "distribution": face.distribution.astype(np.float32),
    "unit_intensity": intensity,
    "visible": visible(face),
    "borderline": np.float32(((strongest >= BORDER[0]) & (strongest <= BORDER[1])).any()),
    "head": face.head.astype(np.float32),
    "eyes": face.eyes.astype(np.float32),
    **{name: face.attributes[name] for name in ("ancestry", "sex", "age_group")},
    "age": np.float32(face.attributes["age"]),
  }
  return key, record


def visible(face: renderer.Face) -> np.ndarray:
  """Which labelled units could be seen: [12] float32, 0 where pose or blur hides one."""
  shown = np.ones(len(label_model.LABELLED), np.float32)
  if face.sharpness < FINE_PIXELS:
    shown[[label_model.LABELLED.index(unit) for unit in FINE_UNITS]] = 0
  # A head turned to the right of the picture shows the face's right side, column 1.
  near = face.intensity[: len(shown), 1 if face.head[0] > 0 else 0]
  one_sided = (face.intensity[: len(shown)].max(1) >= label_model.PRESENT) & (near == 0)
  if abs(face.head[0]) > HIDING_YAW:
    shown[one_sided] = 0
  return shown
