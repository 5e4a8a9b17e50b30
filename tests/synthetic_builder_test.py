"""The records of the synthetic faces: the same for everyone, whole, and labelled as configured."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import simplejpeg

from affjax import labels
from tfds_builders.synthetic_faces import camera, ceiling, knobs, label_model, renderer, workers
from tfds_builders.synthetic_faces import synthetic_faces_dataset_builder as builders

SETTING, VERSION = knobs.Knobs(), "0.3.0"


def digest(face):
  """Of all that is recorded of a face.

  By value: pickled bytes also depend on which objects are one and the same.
  """
  record = builders.example("t", 0, 0, face, label_model.CLASSES)
  hashed = hashlib.sha256()

  def add(name, value):
    if isinstance(value, dict):
      for key in sorted(value):
        add(f"{name}/{key}", value[key])
    else:
      value = value.getvalue() if hasattr(value, "getvalue") else value
      array = np.asarray(value)
      hashed.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())

  add("", record)
  return hashed.hexdigest()


def render(identity, image, split="train", seed=0, version=VERSION, setting=SETTING):
  return renderer.render_face(version, seed, split, identity, image, setting)


# Determinism.


def test_a_face_has_the_same_bytes_twice_and_in_another_order():
  places = [(i, j) for i in range(3) for j in range(2)]
  first = {place: digest(render(*place)) for place in places}
  renderer.draw_person.cache_clear()
  assert {place: digest(render(*place)) for place in reversed(places)} == first
  assert len(set(first.values())) == len(places)


def test_a_face_changes_with_version_seed_and_split():
  faces = [
    render(0, 0),
    render(0, 0, version="0.3.1"),
    render(0, 0, seed=1),
    render(0, 0, split="validation"),
  ]
  assert len({digest(face) for face in faces}) == len(faces)


def test_two_processes_render_what_one_does():
  one, two = (
    [[digest(face) for face in faces] for faces in workers.faces(VERSION, 0, "t", 3, 2, SETTING, n)]
    for n in (1, 2)
  )
  assert one == two
  assert [digest(render(i, j, split="t")) for i in range(3) for j in range(2)] == sum(one, [])


@pytest.mark.slow
def test_kernels_compiled_just_now_render_what_kept_ones_do(tmp_path):
  render(0, 0)  # so that a kept one exists
  code = (
    "import hashlib; from tfds_builders.synthetic_faces import knobs, renderer\n"
    f"jpegs = [renderer.render_face({VERSION!r}, 0, 'train', i, 0, knobs.Knobs()).jpeg"
    " for i in range(3)]\n"
    "print(hashlib.sha256(b''.join(jpegs)).hexdigest())"
  )
  digests = []
  for folder in (tmp_path, tmp_path):  # compiles, then finds what was compiled
    environment = os.environ | {
      "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
      "NUMBA_CACHE_DIR": str(folder),
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    digests.append(done.stdout.strip())
  assert any(tmp_path.rglob("*.nbi"))
  here = hashlib.sha256(b"".join(render(i, 0).jpeg for i in range(3))).hexdigest()
  assert digests == [here, here]


def test_a_dead_process_is_an_error_and_not_a_short_split():
  broken = knobs.Knobs(labels=knobs.Labels("no such mode"))
  with pytest.raises((RuntimeError, KeyError)):
    list(workers.faces(VERSION, 0, "t", 3, 1, broken, 2))


# The records.


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """The tiny data set, written to ArrayRecord and opened again."""
  builder = builders.Builder(data_dir=tmp_path_factory.mktemp("data"), config="tiny")
  builder.download_and_prepare(file_format="array_record")
  return builder, {
    split: [
      builder.as_data_source(split)[i] for i in range(builder.info.splits[split].num_examples)
    ]
    for split in builders.SPLITS
  }


def test_the_builder_writes_all_splits_without_tensorflow(built):
  builder, records = built
  assert "tensorflow" not in sys.modules
  assert {split: len(rows) for split, rows in records.items()} == {
    "train": 96,
    "validation": 32,
    "test": 32,
  }
  names = builder.info.metadata["labels"]
  assert tuple(names["va"]) == labels.VA
  assert tuple(names["expression"]) == labels.EXPRESSION_MTL
  assert tuple(names["au"]) == labels.AU_MTL


def test_records_hold_what_was_rendered(built):
  _, records = built
  rows = {row["key"].decode(): row for row in records["train"]}
  for identity, image in ((0, 0), (17, 1), (47, 0)):
    face, row = render(identity, image), rows[f"train/{identity:06d}/{image}"]
    np.testing.assert_array_equal(row["image"], simplejpeg.decode_jpeg(face.jpeg))
    np.testing.assert_array_equal(row["labels"]["va"], face.va.astype(np.float32))
    assert row["labels"]["expression"].argmax() == face.expression
    np.testing.assert_array_equal(row["unit_intensity"], face.intensity.astype(np.float32))
    assert row["pattern"].decode() == face.pattern


def test_labels_are_valid(built):
  _, records = built
  for row in sum(records.values(), []):
    assert row["image"].shape == (112, 112, 3)
    assert np.abs(row["labels"]["va"]).max() <= 1
    assert sorted(row["labels"]["expression"]) == [0] * 7 + [1]
    np.testing.assert_array_equal(
      row["labels"]["au"], row["unit_intensity"][:12].max(1) >= label_model.PRESENT
    )
    assert row["distribution"].sum() == pytest.approx(1, abs=1e-5)
    for mask in row["mask"].values():
      assert (np.asarray(mask) == 1).all()
  assert np.mean([row["image"].std() > 15 for row in records["train"]]) > 0.95


def test_records_tell_the_truth_about_the_picture(built):
  builder, records = built
  rows = {row["key"].decode(): row for row in records["test"]}
  assert builder.info.metadata["light"] == list(camera.LIGHT)
  assert builder.info.metadata["camera"] == list(camera.FAULTS)
  for identity, image in ((0, 1), (9, 0)):
    face, row = render(identity, image, "test"), rows[f"test/{identity:06d}/{image}"]
    np.testing.assert_array_equal(row["landmarks"], face.picture.landmarks)
    np.testing.assert_array_equal(row["face_mask"][..., 0], face.picture.face)
    np.testing.assert_array_equal(row["light"], face.scene.light.astype(np.float32))
    faults = dict(zip(builder.info.metadata["camera"], row["camera"], strict=True))
    assert faults["noise"] == np.float32(face.faults.noise)
    assert faults["jpeg"] == np.float32(face.faults.jpeg)
    np.testing.assert_array_equal(row["head"], face.scene.framing.head.astype(np.float32))
  for row in sum(records.values(), []):
    assert row["landmarks"].shape == (68, 2)
    assert np.isfinite(row["landmarks"]).all()
    inside = ((row["landmarks"] >= 0) & (row["landmarks"] < 112)).all(1)
    assert not row["landmark_visible"][~inside].any()
    assert row["landmark_visible"].sum() > 20
    assert row["face_mask"].shape == (28, 28, 1)
    assert 0.2 < row["face_mask"].mean() / 255 < 0.95


def test_records_come_person_by_person(built):
  _, records = built
  keys = [row["key"].decode() for row in records["train"]]
  assert keys == sorted(keys)


def test_the_ceiling_in_the_metadata_is_that_of_the_records(built):
  builder, records = built
  kept = json.loads((builder.data_path / "metadata.json").read_text())["ceiling"]
  assert set(kept) == set(builders.SPLITS)
  for split, rows in records.items():
    intended = [row["labels"]["expression"].argmax() for row in rows]
    again = ceiling.scores([row["distribution"] for row in rows], intended, SETTING.labels)
    assert kept[split] == again
    assert 0.5 < kept[split]["expression/accuracy"] <= 1


def test_every_knob_shows_in_the_description():
  def turns(part):
    for field in dataclasses.fields(part):
      value = getattr(part, field.name)
      if dataclasses.is_dataclass(value):
        for other in turns(value):
          yield dataclasses.replace(part, **{field.name: other})
      else:
        yield dataclasses.replace(part, **{field.name: "turned"})

  plain = knobs.describe(SETTING)
  different = [knobs.describe(turned) for turned in turns(SETTING)]
  assert len(different) > 40
  for description in different:
    assert sum(description[name] != plain[name] for name in plain) == 1
  # Equal numbers are one setting, however they are written.
  assert knobs.describe(knobs.Normal(0, 1)) == knobs.describe(knobs.Normal(0.0, 1.0))


def test_configs_have_the_sizes_and_classes_that_they_promise():
  configs = {config.name: config for config in builders.Builder.BUILDER_CONFIGS}
  assert configs["natural"].identities == configs["lsd"].identities == (1024, 256, 256)
  assert configs["large"].identities[0] * configs["large"].images == 200_000
  assert configs["natural"].classes == configs["strong"].classes == labels.EXPRESSION_MTL
  assert configs["lsd"].classes == labels.EXPRESSION_LSD
  assert configs["lsd7"].classes == labels.EXPRESSION_SEVEN


@pytest.fixture(scope="module")
def six(tmp_path_factory):
  """A few pictures as in `lsd`."""
  config = dataclasses.replace(
    next(c for c in builders.Builder.BUILDER_CONFIGS if c.name == "lsd"),
    name="few",
    identities=(12, 1, 1),
  )
  builder = builders.Builder(data_dir=tmp_path_factory.mktemp("lsd"), config=config)
  builder.download_and_prepare(file_format="array_record")
  source = builder.as_data_source("train")
  return builder, [source[i] for i in range(len(source))]


def test_lsd_has_six_classes_in_labels_and_names(six):
  builder, rows = six
  assert tuple(builder.info.metadata["labels"]["expression"]) == labels.EXPRESSION_LSD
  classes = np.array([row["labels"]["expression"] for row in rows])
  assert classes.shape == (96, 6)
  assert (classes.sum(1) == 1).all()
  assert (classes.sum(0) > 96 / 6 * 0.4).all()
  for row, label in zip(rows, classes, strict=True):
    name = labels.EXPRESSION_LSD[label.argmax()]
    assert row["pattern"].decode().startswith(f"{name}/")
    assert row["distribution"].shape == (8,)


def test_data_rendered_with_other_knobs_are_refused(six):
  builder, rows = six
  config, place = builder.builder_config, builder.data_dir_root
  opened = builders.Builder(data_dir=place, config=dataclasses.replace(config))
  assert opened.info.splits["train"].num_examples == len(rows)
  turned = dataclasses.replace(config.setting, view=knobs.View(yaw=knobs.Normal(0, 5, -45, 45)))
  with pytest.raises(ValueError, match=r"other knobs \(view.yaw.sd: 18.0 there, 5.0 here\)"):
    builders.Builder(data_dir=place, config=dataclasses.replace(config, setting=turned))
  with pytest.raises(ValueError, match="seed: 0 there, 1 here"):
    builders.Builder(data_dir=place, config=dataclasses.replace(config, seed=1))
  builders.Builder(data_dir=place, config=dataclasses.replace(config, name="b", setting=turned))


def test_a_config_of_the_catalogue_cannot_be_turned_under_its_own_name(tmp_path):
  natural = builders.Builder.BUILDER_CONFIGS[0]
  with pytest.raises(ValueError, match="Change the name"):
    builders.Builder(data_dir=tmp_path, config=dataclasses.replace(natural, seed=1))


def test_lsd7_is_grey_and_loosely_framed():
  setting = next(c.setting for c in builders.Builder.BUILDER_CONFIGS if c.name == "lsd7")
  faces = [render(i, 0, setting=setting) for i in range(24)]
  for face in faces:
    pixels = simplejpeg.decode_jpeg(face.jpeg).astype(int)
    assert np.abs(pixels - pixels.mean(-1, keepdims=True)).max() <= 2
    assert face.faults.resolution == 48
  centres = {
    name: np.array([f.picture.landmarks[27:31].mean(0) for f in some])
    for name, some in (("loose", faces), ("usual", [render(i, 0) for i in range(24)]))
  }
  assert centres["loose"].std(0).mean() > 1.3 * centres["usual"].std(0).mean()


def test_people_and_keys_do_not_cross_splits(built):
  _, records = built
  people = {split: {row["person"] for row in rows} for split, rows in records.items()}
  assert [len(people[split]) for split in people] == [48, 16, 16]
  assert not people["train"] & people["validation"] | people["train"] & people["test"]
  keys = [row["key"] for row in sum(records.values(), [])]
  assert len(set(keys)) == len(keys)
  heads = [
    renderer.draw_person(VERSION, 0, split, i, SETTING.person).vertices.tobytes()
    for split in ("train", "validation", "test")
    for i in range(4)
  ]
  assert len(set(heads)) == len(heads)


def test_pictures_are_stored_with_full_colour_resolution():
  height, width, _, subsampling = simplejpeg.decode_jpeg_header(render(0, 0).jpeg)
  assert (height, width, subsampling) == (112, 112, "444")


def test_the_renderer_needs_neither_jax_nor_tfds():
  code = (
    "import sys; from tfds_builders.synthetic_faces import workers;"
    "assert not {'jax', 'tensorflow_datasets', 'tensorflow'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
