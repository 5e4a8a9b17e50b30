"""Batches against TFDS's own reading of the same records, on tiny sets that the tests build."""

import errno
import io
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import write_ferplus
from tensorflow_datasets.proto import tf_example_pb2

from affjax import labels
from affjax.data import prepare, records

SIZE = 32
HAS = {
  "va": ["valence", "arousal"],
  "expression": ["anger", "contempt", "neutral"],
  "au": ["AU1", "AU4", "AU99"],
}
WANTS = {
  "va": ("arousal", "valence"),
  "expression": ("neutral", "anger", "other"),
  "au": ("AU4", "AU2", "AU1"),
}


class Toy(tfds.core.GeneratorBasedBuilder):
  """A set with all three tasks, made of the rows that it is given."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("png", "jpeg")]
  PEOPLE = False  # whether rows name who is seen

  def _info(self):
    vector = lambda size: tfds.features.Tensor(shape=(size,), dtype=np.float32)
    image = tfds.features.Image(shape=(None, None, 3), encoding_format=self.builder_config.name)
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "image": image,
          "key": tfds.features.Text(),
          **({"person": tfds.features.Text()} if self.PEOPLE else {}),
          "labels": {"va": vector(2), "expression": vector(3), "au": vector(3)},
          "mask": {
            "va": vector(2),
            "expression": tfds.features.Tensor(shape=(), dtype=np.float32),
            "au": vector(3),
          },
        }
      ),
      metadata=tfds.core.MetadataDict({"labels": HAS}),
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for row in self.rows:
      yield row["key"], {**row, "image": io.BytesIO(row["image"])}


class ToyOfPeople(Toy):
  """The same, of two images a person."""

  PEOPLE = True


def encoded(rng, kind, height=SIZE, width=SIZE):
  smooth = cv2.resize(rng.integers(0, 256, (4, 4, 3), np.uint8), (width, height))
  return cv2.imencode(f".{kind}", smooth)[1].tobytes()


def toy_rows(kind="png", count=12):
  rng = np.random.default_rng(0)
  return [
    {
      "key": f"row{i}",
      "image": encoded(rng, kind),
      "labels": {
        "va": rng.uniform(-1, 1, 2).astype(np.float32),
        "expression": rng.dirichlet([1, 1, 1]).astype(np.float32),
        "au": rng.integers(0, 2, 3).astype(np.float32),
      },
      "mask": {
        "va": rng.integers(0, 2, 2).astype(np.float32),
        "expression": np.float32(rng.integers(0, 2)),
        "au": rng.integers(0, 2, 3).astype(np.float32),
      },
    }
    for i in range(count)
  ]


def build(folder, rows, kind="png", shards=None):
  cls = ToyOfPeople if "person" in rows[0] else Toy
  toy = cls(data_dir=str(folder), config=kind)
  toy.rows = rows
  if shards:
    download = tfds.download.DownloadConfig(num_shards=shards)
    toy.download_and_prepare(file_format="array_record", download_config=download)
  prepare.prepare(toy)
  return toy


def position(toy, key):
  """Where TFDS, which shuffles, put the row of this key; no image is decoded."""
  found = records.shards(toy, "train")
  for row, record in enumerate(found.read(range(len(found)))):
    feature = tf_example_pb2.Example.FromString(record).features.feature
    if feature["key"].bytes_list.value[0] == key.encode():
      return row
  raise AssertionError(key)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
  return build(tmp_path_factory.mktemp("toy"), toy_rows(), shards=3)


def everything(build, split, wants, size):
  opened = records.records(build, split, wants, size)
  return opened.batch(np.arange(len(opened)))


# What a batch holds.


def test_a_batch_is_what_tfds_reads(toy):
  assert len(records.shards(toy, "train").paths) == 3
  theirs = list(toy.as_data_source("train"))
  rows = np.array([7, 0, 11, 7, 3])  # any order, with a repetition, over several shards
  ours = records.records(toy, "train", HAS, SIZE).batch(rows)
  np.testing.assert_array_equal(ours["index"], rows)
  np.testing.assert_array_equal(ours["image"], [theirs[r]["image"] for r in rows])
  for task in HAS:
    mask = np.array([theirs[r]["mask"][task] for r in rows])
    expected = np.array([theirs[r]["labels"][task] for r in rows])
    np.testing.assert_allclose(ours["labels"][task], expected, rtol=1e-6)
    np.testing.assert_array_equal(ours["mask"][task], mask)


def test_dtypes_are_those_that_go_to_the_device(toy):
  batch = everything(toy, "train", WANTS, SIZE)
  assert batch["image"].dtype == np.uint8
  assert batch["index"].dtype == np.int32
  for kind in ("labels", "mask"):
    assert {array.dtype for array in batch[kind].values()} == {np.dtype(np.float32)}


def test_jpeg_is_read_to_within_the_difference_of_two_decoders(tmp_path):
  toy = build(tmp_path, toy_rows("jpeg"), "jpeg")
  ours = everything(toy, "train", HAS, SIZE)["image"].astype(int)
  theirs = np.array([row["image"] for row in toy.as_data_source("train")]).astype(int)
  assert np.abs(ours - theirs).max() <= 4
  assert np.abs(ours - theirs).mean() < 0.5
  swapped = np.abs(ours - theirs[..., ::-1]).mean()
  assert swapped > 10  # so BGR would be noticed


def test_grey_images_have_three_equal_channels(tiny_ferplus):
  batch = everything(tiny_ferplus, "validation", {"expression": labels.EXPRESSION_MTL}, 48)
  theirs = np.array([row["image"] for row in tiny_ferplus.as_data_source("validation")])
  np.testing.assert_array_equal(batch["image"], np.repeat(theirs, 3, axis=-1))


def test_labels_and_masks_are_moved_by_name(toy):
  batch = everything(toy, "train", WANTS, SIZE)
  for i, row in enumerate(toy.as_data_source("train")):
    np.testing.assert_array_equal(batch["labels"]["va"][i], row["labels"]["va"][::-1])
    np.testing.assert_array_equal(batch["mask"]["va"][i], row["mask"]["va"][::-1])
    anger, contempt, neutral = row["labels"]["expression"]
    np.testing.assert_allclose(
      batch["labels"]["expression"][i], [neutral, anger, contempt], rtol=1e-6
    )
    (au1, au4, _), (mask1, mask4, _) = row["labels"]["au"], row["mask"]["au"]
    np.testing.assert_array_equal(batch["labels"]["au"][i], [au4, 0, au1])
    np.testing.assert_array_equal(batch["mask"]["au"][i], [mask4, 0, mask1])


def test_tasks_that_a_set_lacks_come_with_mask_0(tiny_ferplus):
  wants = {"va": labels.VA, "expression": labels.EXPRESSION_MTL, "au": labels.AU_MTL}
  batch = everything(tiny_ferplus, "train", wants, 48)
  assert batch["labels"]["au"].shape == batch["mask"]["au"].shape == (37, 12)
  assert not batch["mask"]["va"].any()
  assert not batch["mask"]["au"].any()
  assert batch["mask"]["expression"].any()


def test_votes_for_classes_that_the_model_lacks_are_left_out(toy):
  batch = everything(toy, "train", {"expression": ("anger", "neutral")}, SIZE)
  for i, row in enumerate(toy.as_data_source("train")):
    anger, _, neutral = row["labels"]["expression"]
    expected = np.array([anger, neutral]) / (anger + neutral)
    np.testing.assert_allclose(batch["labels"]["expression"][i], expected, rtol=1e-5)


def test_an_image_all_of_whose_votes_are_left_out_is_unlabelled(tmp_path):
  rows = toy_rows(count=2)
  for row, distribution in zip(rows, ([0, 1, 0], [1, 0, 0]), strict=True):
    row["labels"]["expression"] = np.array(distribution, np.float32)
    row["mask"]["expression"] = np.float32(1)
  toy = build(tmp_path, rows)
  batch = everything(toy, "train", {"expression": ("anger", "neutral")}, SIZE)
  contempt = position(toy, "row0")
  assert batch["mask"]["expression"][contempt] == 0
  assert not batch["labels"]["expression"][contempt].any()
  assert batch["mask"]["expression"][1 - contempt] == 1


def test_hard_labels_count_only_where_the_model_has_the_class_that_won(tiny_ferplus):
  opened = lambda names: everything(tiny_ferplus, "train", {"expression": names}, 48)
  whole, part = opened(labels.EXPRESSION_MTL), opened(("disgust", "neutral", "anger"))
  won = np.array(labels.EXPRESSION_MTL)[whole["labels"]["expression"].argmax(1)]
  hard = whole["mask"]["expression_strict"]
  kept = np.isin(won, ["disgust", "neutral", "anger"])
  assert (hard * kept).any()
  assert (hard * ~kept).any()
  np.testing.assert_array_equal(part["mask"]["expression_strict"], hard * kept)


def test_padding_rows_are_zeros_with_mask_0(tiny_ferplus):
  opened = records.records(tiny_ferplus, "train", {"expression": labels.EXPRESSION_MTL}, 48)
  batch = opened.batch(np.array([5, -1, 6, -1]))
  np.testing.assert_array_equal(batch["index"], [5, -1, 6, -1])
  assert not batch["image"][[1, 3]].any()
  assert set(batch["mask"]) == {"expression", "expression_strict", "expression_official"}
  for array in (*batch["labels"].values(), *batch["mask"].values()):
    assert not array[[1, 3]].any()
  alone = opened.batch(np.array([5, 6]))
  np.testing.assert_array_equal(batch["image"][[0, 2]], alone["image"])
  np.testing.assert_array_equal(batch["mask"]["expression"][[0, 2]], alone["mask"]["expression"])


def test_each_batch_has_buffers_of_its_own(tiny_ferplus):
  opened = records.records(tiny_ferplus, "train", {"expression": labels.EXPRESSION_MTL}, 48)
  first = opened.batch(np.array([0, 1]))
  kept = first["image"].copy()
  opened.batch(np.array([2, 3]))
  np.testing.assert_array_equal(first["image"], kept)


def test_images_of_another_size_are_resized(tmp_path):
  rows = toy_rows(count=2)
  rng = np.random.default_rng(1)
  large = rng.integers(0, 256, (2 * SIZE, 2 * SIZE, 3), np.uint8)
  rows[0]["image"] = cv2.imencode(".png", large[..., ::-1])[1].tobytes()
  rows[1]["image"] = cv2.imencode(".png", np.full((20, 24, 3), 77, np.uint8))[1].tobytes()
  toy = build(tmp_path, rows)
  images = everything(toy, "train", HAS, SIZE)["image"]
  assert images.shape == (2, SIZE, SIZE, 3)
  halved = large.reshape(SIZE, 2, SIZE, 2, 3).mean((1, 3))  # averaged, so nothing is aliased
  np.testing.assert_allclose(images[position(toy, "row0")], halved, atol=1)
  np.testing.assert_array_equal(images[position(toy, "row1")], 77)


# Reading single images.


def test_an_image_file_is_read_as_rgb(tmp_path):
  pixels = np.zeros((8, 6, 3), np.uint8)
  pixels[..., 0] = 200  # red
  for kind in ("png", "jpg"):
    cv2.imwrite(str(tmp_path / f"red.{kind}"), pixels[..., ::-1])
    np.testing.assert_allclose(records.read_image(tmp_path / f"red.{kind}"), pixels, atol=3)


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8 not a JPEG"])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
  (tmp_path / "notes.png").write_bytes(content)
  with pytest.raises(ValueError, match="notes.png: the image cannot be decoded"):
    records.read_image(tmp_path / "notes.png")


@pytest.mark.parametrize(
  "image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros(4, np.uint8)]
)
def test_arrays_that_are_no_rgb_images_are_refused(image):
  with pytest.raises(ValueError, match="expected .height, width, 3. uint8"):
    records.fit(image, (4, 4))


# Damage, pickling, fingerprints.


@pytest.mark.parametrize("content", [b"no image", b"", b"\xff\xd8\xff no JPEG"])
def test_a_record_whose_image_is_broken_is_named(tmp_path, content):
  rows = toy_rows()
  rows[4]["image"] = content
  toy = build(tmp_path, rows)
  row = position(toy, "row4")
  opened = records.records(toy, "train", HAS, SIZE)
  opened.batch(np.array([r for r in range(len(opened)) if r != row]))
  with pytest.raises(ValueError, match=f"record {row} of .*toy-train.array_record-00000.*decoded"):
    opened.batch(np.array([row]))


def test_a_row_is_named_by_its_shard_and_its_record():
  shards = records.Shards(("a", "b", "c"), (3, 0, 2))
  names = [shards.where(row) for row in range(5)]
  assert names == [f"record {r} of {s}" for r, s in zip((0, 1, 2, 0, 1), "aaacc", strict=True)]


def test_records_survive_pickling_before_and_after_reading(toy):
  opened = records.records(toy, "train", WANTS, SIZE)
  fresh = pickle.loads(pickle.dumps(opened))
  expected = opened.batch(np.array([2, 9]))
  used = pickle.loads(pickle.dumps(opened))
  for copy in (fresh, used):
    assert len(copy) == 12
    np.testing.assert_array_equal(copy.batch(np.array([2, 9]))["image"], expected["image"])


def test_equal_content_has_one_fingerprint_wherever_it_is_built(toy, tmp_path):
  again = build(tmp_path / "elsewhere", toy_rows()[::-1])  # one shard, in another order
  assert records.summary(again) == records.summary(toy)


def change_label(rows):
  rows[3]["labels"]["au"][0] = 1 - rows[3]["labels"]["au"][0]


def change_mask(rows):
  rows[3]["mask"]["va"][1] = 1 - rows[3]["mask"]["va"][1]


def change_key(rows):
  rows[3]["key"] = "another"


def drop_row(rows):
  del rows[3]


@pytest.mark.parametrize("change", [change_label, change_mask, change_key, drop_row])
def test_the_fingerprint_tells_other_content(toy, tmp_path, change):
  rows = toy_rows()
  change(rows)
  other = records.summary(build(tmp_path, rows))
  assert other["fingerprint"] != records.summary(toy)["fingerprint"]


def test_the_summary_counts_labels(toy):
  counts = records.summary(toy)["splits"]["train"]
  rows = toy_rows()
  assert counts["images"] == 12
  tally = lambda task: sum(row["mask"][task] for row in rows)
  assert list(counts["va"]["labelled"].values()) == tally("va").tolist()
  assert counts["au"]["labelled"] == dict(zip(HAS["au"], tally("au").tolist(), strict=True))
  positive = sum(row["mask"]["au"] * row["labels"]["au"] for row in rows)
  assert list(counts["au"]["positive"].values()) == positive.tolist()
  assert counts["expression"]["labelled"] == sum(row["mask"]["expression"] for row in rows)


def test_the_summary_is_kept_beside_the_data(tmp_path):
  toy = build(tmp_path, toy_rows())
  kept = Path(toy.data_dir) / "affjax.json"
  assert json.loads(kept.read_text()) == records.summary(toy)
  kept.unlink()  # as in a copy of the shards alone
  assert json.loads(json.dumps(records.summary(toy))) == json.loads(kept.read_text())


def test_the_labels_of_a_split_are_those_of_its_batches(toy, tiny_ferplus):
  for build, wants in ((toy, WANTS), (tiny_ferplus, {"expression": labels.EXPRESSION_SEVEN})):
    expected = everything(build, "train", wants, SIZE)
    found = records.labels(build, "train", wants)
    for kind, values in zip(("labels", "mask"), found, strict=True):
      assert set(values) == set(expected[kind])  # masks: of the rules for hard labels too
      for name in values:
        np.testing.assert_allclose(values[name], expected[kind][name], atol=1e-6)


def test_tasks_that_the_data_or_the_model_lack_have_no_labels(tiny_ferplus):
  wants = {"va": ("valence",), "expression": labels.EXPRESSION_MTL}
  assert set(records.labels(tiny_ferplus, "train", wants)[0]) == {"expression"}


def test_the_labels_are_kept_beside_the_data(tmp_path, monkeypatch):
  toy = build(tmp_path, toy_rows())
  kept = Path(toy.data_dir) / "affjax_train.npz"
  found = records.label_table(toy, "train")
  assert sorted(found["key"].tolist()) == sorted(f"row{i}".encode() for i in range(12))
  walked = []
  monkeypatch.setattr(
    records, "_walk", lambda found, walk=records._walk: walked.append(1) or walk(found)
  )
  same = lambda other: [np.testing.assert_array_equal(other[name], found[name]) for name in found]
  same(records.label_table(toy, "train"))
  assert not walked
  kept.unlink()  # as in a copy of the shards alone
  same(records.label_table(toy, "train"))
  assert walked
  assert kept.is_file()


def people(name="person {}"):
  return [row | {"person": name.format(i // 2)} for i, row in enumerate(toy_rows())]


def test_a_table_that_was_kept_without_the_people_is_made_anew(tmp_path):
  toy = build(tmp_path, people())
  kept = Path(toy.data_dir) / "affjax_train.npz"
  found = records.label_table(toy, "train")
  pairs = sorted(zip(found["key"].tolist(), found["person"].tolist(), strict=True))
  assert pairs == sorted((f"row{i}".encode(), f"person {i // 2}".encode()) for i in range(12))
  np.savez(kept, **{name: column for name, column in found.items() if name != "person"})
  np.testing.assert_array_equal(records.label_table(toy, "train")["person"], found["person"])
  assert "person" in np.load(kept)


def test_the_fingerprint_is_that_of_earlier_versions_which_kept_no_people(tmp_path):
  fingerprints = {
    records.summary(build(tmp_path / str(i), people(name)))["fingerprint"]
    for i, name in enumerate(("person {}", "somebody else {}", ""))
  }
  assert len(fingerprints) == 1


@pytest.mark.parametrize("kind", [errno.EACCES, errno.EROFS])
def test_a_read_only_place_is_counted_anew_each_time(tmp_path, monkeypatch, kind):
  toy = build(tmp_path, toy_rows())
  expected = records.summary(toy)
  for path in Path(toy.data_dir).glob("affjax*"):
    path.unlink()

  def refuse(path, content):
    raise OSError(kind, "no")

  monkeypatch.setattr(Path, "write_bytes", refuse)
  assert records.summary(toy) == expected
  assert not list(Path(toy.data_dir).glob("affjax*"))


# Errors.


def one_line(error):
  text = str(error.value)
  assert "\n" not in text
  return text


def test_an_unknown_data_set_is_answered_with_the_known_ones():
  with pytest.raises(ValueError) as error:
    records.builder("fer")
  assert "'fer'" in one_line(error)
  assert "ferplus" in one_line(error)


def test_an_unknown_config_is_named():
  with pytest.raises(ValueError) as error:
    records.builder("ferplus", "large")
  assert "'large'" in one_line(error)


def test_an_unknown_split_is_answered_with_the_known_ones(tiny_ferplus):
  with pytest.raises(ValueError) as error:
    records.records(tiny_ferplus, "val", {}, 48)
  assert "'val'" in one_line(error)
  assert all(split in one_line(error) for split in ("train", "dev", "validation"))


def test_a_set_that_is_not_prepared_is_answered_with_the_command_to_run(tmp_path):
  with pytest.raises(ValueError) as error:
    records.shards(records.builder("ferplus", "", str(tmp_path)), "train")
  assert "python -m affjax.data.prepare ferplus --source=FOLDER" in one_line(error)
  assert str(tmp_path) in one_line(error)


# Two processes.

PREPARE = """
import sys
from affjax.data import prepare, records
build = records.builder("ferplus", "", sys.argv[1])
print("ready", flush=True)
input()
print("images", prepare.prepare(build, sys.argv[2])["splits"]["train"]["images"])
"""


def test_two_processes_that_prepare_at_once_build_once(tmp_path):
  source = write_ferplus(tmp_path / "source")
  start = lambda: subprocess.Popen(
    [sys.executable, "-c", PREPARE, str(tmp_path / "data"), str(source)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  processes = [start(), start()]
  for process in processes:  # all imports are done: both begin within a millisecond
    assert process.stdout.readline() == "ready\n"
  for process in processes:
    process.stdin.write("\n")
    process.stdin.flush()
  results = [process.communicate(timeout=120) for process in processes]
  assert [process.returncode for process in processes] == [0, 0], results
  assert all("images 37" in out for out, _ in results)
  assert sum("building in" in err for _, err in results) == 1


def test_a_lock_is_given_on_when_the_block_ends(tmp_path):
  with pytest.raises(RuntimeError), records.lock(tmp_path / "new" / "lock"):
    raise RuntimeError
  with records.lock(tmp_path / "new" / "lock"):
    pass


def test_a_build_that_failed_can_be_repeated(tmp_path):
  source = write_ferplus(tmp_path / "source")
  shutil.move(source / "FER2013Valid", tmp_path / "aside")
  build = records.builder("ferplus", "", str(tmp_path / "data"))
  with pytest.raises(ValueError, match="FER2013Valid"):
    prepare.prepare(build, str(source))
  shutil.move(tmp_path / "aside", source / "FER2013Valid")
  assert prepare.prepare(build, str(source))["splits"]["validation"]["images"] == 12


def test_a_batch_of_padding_alone_is_zeros(tiny_ferplus):
  build = tiny_ferplus
  split = records.records(build, "validation", {"expression": labels.EXPRESSION_MTL}, 48)
  batch = split.batch(np.full(4, -1))
  assert not batch["image"].any()
  assert not batch["mask"]["expression"].any()
  assert (batch["index"] == -1).all()
