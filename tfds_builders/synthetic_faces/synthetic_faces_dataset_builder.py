"""The TFDS builder of `synthetic_faces`: rendered faces whose action units are exactly known."""

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from affjax import labels
from tfds_builders import progress, shards
from tfds_builders.synthetic_faces import (
  camera,
  ceiling,
  knobs,
  label_model,
  occluders,
  renderer,
  workers,
)

SPLITS = ("train", "validation", "test")
# Units of a lid's, a cheek's or a lip's fine movement: lost where a picture resolves fewer pixels
# across than `FINE_PIXELS`; INFERRED from looking at reduced pictures.
FINE_UNITS = (6, 7, 23, 24)
FINE_PIXELS = 52
# A head turned further than this (degrees) hides the units of its far side.
HIDING_YAW = 45
# A face with a unit between these strengths is one whose label could as well be the other.
BORDER = (0.15, 0.25)
MEGABYTES = 8e-3  # of a record


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
  """What is rendered.

  Attributes:
    identities: how many people are in train, validation and test. None is in two of them.
    images: pictures of each. To see one identity with many expressions ask for one person, many
      pictures and `knobs.Labels(walk=True)`: they go through all classes in turn. In clips, the
      frames of all clips of a person.
    seed: other seeds give other people and other pictures.
    setting: the distributions that everything is drawn from.
  """

  identities: tuple[int, int, int] = (1024, 256, 256)
  images: int = 8
  seed: int = 0
  setting: knobs.Knobs = knobs.Knobs()

  @property
  def classes(self) -> tuple[str, ...]:
    """The expressions that are shown: those of the labels."""
    return label_model.shown_classes(self.setting.labels)

  def describe(self) -> dict[str, str]:
    """Everything that the data depends on, besides the version: name -> value."""
    own = {name: repr(getattr(self, name)) for name in ("identities", "images", "seed")}
    return own | knobs.describe(self.setting)


class Builder(tfds.core.GeneratorBasedBuilder):
  """Renders `synthetic_faces`. Needs neither TensorFlow nor a download.

  Records are written as they are rendered, person by person: TFDS's own writer would hold the
  split in memory, and from 1 GB on need TensorFlow.
  """

  VERSION = tfds.core.Version("0.3.0")
  RELEASE_NOTES = {
    "0.3.0": "Recipes, folds, teeth and eyes that are seen more clearly; a posed mode; glasses,"
    " hair over an eye, spoofs and clips as knobs, each with a config; a faster renderer.",
    "0.2.0": "Landmarks, light, camera and face mask in every record; strong and LSD configs; hands"
    " as a knob; the ceiling of the expressions; records in the order of people.",
    "0.1.0": "First version: natural mode, clean labels, every task labelled.",
  }
  BUILDER_CONFIGS = [
    Config(
      name="natural",
      description="Classes and unit rates of s-Aff-Wild2: mostly mild faces, much speech.",
    ),
    Config(
      name="strong",
      description="All eight classes alike, mostly textbook expressions.",
      setting=knobs.Knobs(labels=knobs.Labels("strong")),
    ),
    Config(
      name="large",
      description="Natural, with 200,000 training pictures.",
      identities=(25_000, 256, 256),
    ),
    Config(
      name="lsd",
      description="Strong, the six expressions of ABAW4's learning from synthetic data, alike.",
      setting=knobs.Knobs(labels=knobs.Labels("strong", prior=knobs.SIX)),
    ),
    Config(
      name="lsd7",
      description="The six and neutral, posed; grey and framed as FER+ is.",
      setting=knobs.Knobs(
        labels=knobs.Labels("posed", prior=knobs.SEVEN),
        view=knobs.FERPLUS_VIEW,
        camera=knobs.FERPLUS_CAMERA,
        occluders=knobs.OCCLUDED,
      ),
    ),
    Config(
      name="independent",
      description="Strong units, independent of each other; no emotions, all faces are other.",
      setting=knobs.Knobs(labels=knobs.Labels("independent")),
    ),
    Config(
      name="occluded",
      description="Natural, with hands, glasses, and hair over an eye.",
      setting=knobs.Knobs(occluders=knobs.OCCLUDED),
    ),
    Config(
      name="spoof",
      description="Natural; two faces in five are only shown, on paper, a screen or a mask.",
      setting=knobs.Knobs(spoof=knobs.SPOOFS),
    ),
    Config(
      name="clips",
      description="Natural, as clips of 8 seconds at 8 pictures a second, one of each person.",
      identities=(64, 16, 16),
      images=64,
      setting=knobs.Knobs(clips=knobs.Clips(frames=64)),
    ),
    Config(
      name="clips_large",
      description="The same of six times as many people, for models of time to learn from.",
      identities=(384, 64, 64),
      images=64,
      setting=knobs.Knobs(clips=knobs.Clips(frames=64)),
    ),
    Config(
      name="tiny",
      description="Natural with few pictures, for tests.",
      identities=(48, 16, 16),
      images=2,
    ),
    Config(
      name="tiny_clips",
      description="Clips of a second and a half, of few people, for tests.",
      identities=(4, 2, 2),
      images=12,
      setting=knobs.Knobs(clips=knobs.Clips(frames=12)),
    ),
  ]

  draws_progress = True  # its own bars have an estimate of the time left

  def __init__(self, **kwargs: Any) -> None:
    """Arguments as of TFDS.

    Raises:
      ValueError: the data of this config were rendered with other knobs.
    """
    super().__init__(**kwargs)
    kept = Path(self.data_dir) / "metadata.json"
    if kept.is_file():
      differ = _differences(
        json.loads(kept.read_text()).get("knobs", {}), self.builder_config.describe()
      )
      if differ:
        raise ValueError(
          f"{self.name}/{self.builder_config.name} in {self.data_dir} was rendered with other knobs"
          f" ({differ}): give the config another name, or delete that folder to render it again"
        )

  def megabytes(self, source: Path | None) -> float:
    """About what a build takes on disk, in 1e6 bytes."""
    return round(sum(self.builder_config.identities) * self.builder_config.images * MEGABYTES, 1)

  def _info(self) -> tfds.core.DatasetInfo:
    config = self.builder_config
    return self.dataset_info_from_configs(
      features=_features(len(config.classes)),
      metadata=tfds.core.MetadataDict(
        {
          "labels": {
            "va": list(labels.VA),
            "expression": list(config.classes),
            "au": list(labels.AU_MTL),
          },
          "units": [f"AU{unit}" for unit in label_model.UNITS],
          "distribution": list(label_model.CLASSES),
          "landmarks": "iBUG 68, pixels",
          "light": list(camera.LIGHT),
          "camera": list(camera.FAULTS),
          "knobs": config.describe(),
          "ceiling": {},  # of the splits, once they are rendered
        }
      ),
      supervised_keys=None,
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[dict[str, Any]]]:
    del dl_manager  # nothing is downloaded
    return {split: self._generate_examples(split) for split in SPLITS}

  def _generate_examples(self, split: str) -> Iterator[dict[str, Any]]:
    config = self.builder_config
    people = config.identities[SPLITS.index(split)]
    bar = progress.bar(range(people * config.images), f"rendering {split}", "faces")
    rendered = workers.faces(
      str(self.version), config.seed, split, people, config.images, config.setting
    )
    distributions, intended = [], []
    with bar:
      for identity, faces in enumerate(rendered):
        for image, face in enumerate(faces):
          record = example(split, identity, image, face, config.classes)
          distributions.append(record["distribution"])
          intended.append(face.expression)
          yield record
        bar.update(len(faces))
    self.info.metadata["ceiling"][split] = ceiling.scores(
      distributions, intended, config.setting.labels
    )

  def _generate_splits(self, dl_manager: Any, download_config: Any) -> list[tfds.core.SplitInfo]:
    """Instead of TFDS's, see the class."""
    images = self.builder_config.images
    counts = {s: n * images for s, n in zip(SPLITS, self.builder_config.identities, strict=True)}
    return [
      # Its end is where the ceiling is worked out.
      shards.write(self, split, examples, counts[split])
      for split, examples in self._split_generators(dl_manager).items()
    ]


def _differences(kept: dict[str, str], wanted: dict[str, str]) -> str:
  """Names what differs, with both values."""
  return ", ".join(
    f"{name}: {kept.get(name, 'none')} there, {wanted.get(name, 'none')} here"
    for name in [*wanted, *(kept.keys() - wanted.keys())]
    if kept.get(name) != wanted.get(name)
  )


def _features(classes: int) -> tfds.features.FeaturesDict:
  feature, units = tfds.features, len(labels.AU_MTL)
  tensor = lambda *shape: feature.Tensor(shape=shape, dtype=np.float32)
  return feature.FeaturesDict(
    {
      "image": feature.Image(shape=(renderer.SIZE, renderer.SIZE, 3), encoding_format="jpeg"),
      "key": feature.Text(),
      "labels": {"va": tensor(2), "expression": tensor(classes), "au": tensor(units)},
      "mask": {"va": tensor(2), "expression": tensor(), "au": tensor(units)},
      "person": feature.Text(),
      "pattern": feature.Text(),
      "distribution": tensor(len(label_model.CLASSES)),
      "unit_intensity": tensor(len(label_model.UNITS), 2),
      "visible": tensor(units),
      "borderline": tensor(),
      "head": tensor(3),
      "eyes": tensor(2),
      "landmarks": tensor(68, 2),
      "landmark_visible": tensor(68),
      "face_mask": feature.Image(shape=(28, 28, 1), encoding_format="png"),
      "light": tensor(len(camera.LIGHT)),
      "camera": tensor(len(camera.FAULTS)),
      "occluder": feature.Text(),
      "spoof": feature.Text(),
      "clip": feature.Text(),
      "frame": feature.Scalar(np.int64),
      "blink": tensor(),
      "age": tensor(),
      "ancestry": feature.Scalar(np.int64),
      "sex": feature.Scalar(np.int64),
      "age_group": feature.Scalar(np.int64),
    }
  )


def example(
  split: str, identity: int, image: int, face: renderer.Face, classes: tuple[str, ...]
) -> dict[str, Any]:
  """Makes a record of a face.

  Args:
    split: its split.
    identity: number of the person in the split.
    image: number of the picture of that person.
    face: the face.
    classes: names of the expressions that the data set has.

  Returns:
    The record. Its key is unique in the data set.
  """
  single = np.float32
  strongest = face.intensity.max(1)
  units = len(labels.AU_MTL)
  own = classes.index(label_model.CLASSES[face.expression])
  return {
    "image": io.BytesIO(face.jpeg),
    "key": f"{split}/{identity:06d}/{image}",
    "labels": {
      "va": face.va.astype(single),
      "expression": np.eye(len(classes), dtype=single)[own],
      "au": (strongest[:units] >= label_model.PRESENT).astype(single),
    },
    "mask": {"va": np.ones(2, single), "expression": single(1), "au": np.ones(units, single)},
    "person": f"{split}/{identity:06d}",
    "pattern": face.pattern,
    "distribution": face.distribution.astype(single),
    "unit_intensity": face.intensity.astype(single),
    "visible": visible(face),
    "borderline": single(((strongest >= BORDER[0]) & (strongest <= BORDER[1])).any()),
    "head": face.scene.framing.head.astype(single),
    "eyes": face.scene.eyes.astype(single),
    "landmarks": face.picture.landmarks,
    "landmark_visible": face.picture.landmark_seen.astype(single),
    "face_mask": io.BytesIO(cv2.imencode(".png", face.picture.face)[1].tobytes()),
    "light": face.scene.light.astype(single),
    "camera": np.array(dataclasses.astuple(face.faults), single),
    "occluder": ", ".join(thing.name for thing in _before(face.scene)),
    "spoof": face.scene.spoof.kind if face.scene.spoof else "",
    "clip": f"{split}/{identity:06d}/{face.clip}" if face.clip >= 0 else "",
    "frame": face.frame,
    "blink": single(face.blink),
    **{name: face.attributes[name] for name in ("ancestry", "sex", "age_group")},
    "age": single(face.attributes["age"]),
  }


def _before(scene: renderer.Scene) -> list[Any]:
  """What stands before a face."""
  return [thing for thing in (scene.hand, scene.glasses, scene.lock) if thing]


def visible(face: renderer.Face) -> np.ndarray:
  """Which labelled units can be seen: [12] float32, 0 where pose, blur or an occluder hides one.

  The edge of paper or of a screen hides what it cuts off.
  """
  shown = np.ones(len(label_model.LABELLED), np.float32)
  lost = FINE_UNITS if face.faults.sharpness < FINE_PIXELS else ()
  if _before(face.scene) or face.scene.spoof:
    lost += occluders.hidden(face.picture.landmark_open)
  shown[[label_model.LABELLED.index(unit) for unit in lost]] = 0
  # A head turned to the right of the picture shows the face's right side, column 1.
  yaw = face.scene.framing.head[0]
  near = face.intensity[: len(shown), 1 if yaw > 0 else 0]
  one_sided = (face.intensity[: len(shown)].max(1) >= label_model.PRESENT) & (near == 0)
  if abs(yaw) > HIDING_YAW:
    shown[one_sided] = 0
  return shown
