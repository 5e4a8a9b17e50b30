"""The s-Aff-Wild2 builder, on trees in the official formats that `affwild_tree` makes up."""

import shutil

import affwild_tree
import cv2
import numpy as np
import pytest
from affwild_tree import ABAW3, MTL, counts, number_in, prepared, shuffle_folders, stored, write_mtl

from affjax.data import records
from tfds_builders import shards
from tfds_builders.s_aff_wild2 import s_aff_wild2_dataset_builder as builder

TRAIN, VALIDATION = MTL["train"], MTL["validation"]


def expected(split, row):
  """What the record of a row should hold, but for its image."""
  video, name = row.image.split("/")
  one_hot = [float(k == row.expression) for k in range(8)]
  return {
    "key": [f"{split}/{row.line:06d}".encode()],
    "labels/va": [np.float32(v or 0) for v in row.va],
    "mask/va": [float(v is not None) for v in row.va],
    "labels/expression": one_hot,
    "mask/expression": [float(row.expression is not None)],
    "labels/au": [float(unit or 0) for unit in row.units],
    "mask/au": [float(unit is not None) for unit in row.units],
    "video": [video.encode()],
    "frame": [int(name.removesuffix(".jpg"))],
    "line": [row.line],
    "image_path": [row.image.encode()],
  }


def assert_holds(build, truth, images):
  for split, rows in truth.items():
    rows = [row for row in rows if not row.missing]
    found = stored(build, split)
    assert len(found) == len(rows)
    for record, row in zip(found, rows, strict=True):
      (encoded,) = record.pop("image")
      assert number_in(encoded) == row.number
      assert encoded == (images / row.image).read_bytes()
      assert record == expected(split, row)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
  """A tree and its truth; not to be written to."""
  folder = tmp_path_factory.mktemp("tree")
  return folder, write_mtl(folder)


@pytest.fixture(scope="module")
def built(tree, tmp_path_factory):
  """The tree's builder and summary."""
  return prepared("s_aff_wild2", tree[0], tmp_path_factory.mktemp("data"))


@pytest.fixture
def source(tree, tmp_path):
  """A copy of the tree that a test may spoil."""
  return shutil.copytree(tree[0], tmp_path / "source")


def edit(path, change):
  lines = path.read_text().split("\n")
  path.write_text("\n".join(change(lines)))


# The tree itself.


@pytest.mark.parametrize("number", [0, 1, 2**24 - 1, 0b101100111000111100001111])
def test_a_number_is_read_back_from_pixels_after_jpeg(number):
  for seed in range(5):
    assert number_in(affwild_tree.draw(number, np.random.default_rng(seed))) == number


def test_pixels_without_a_number_are_not_read_as_one():
  noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
  with pytest.raises(AssertionError, match="no number"):
    affwild_tree.number_of(noise)


def test_the_tree_has_every_quirk_of_the_formats(tree):
  folder, truth = tree
  rows = truth["train"]
  text = (folder / TRAIN).read_text()
  assert text.startswith("image,valence,arousal,expression,aus\n")
  assert all(len(line.split(",")) == 16 for line in text.splitlines()[1:])
  assert ",-5," in text
  assert ",-5.0," in text
  assert {tuple(v is None for v in row.va) for row in rows} == {
    (False, False), (True, False), (False, True), (True, True),
  }  # fmt: skip
  assert any(0 < sum(u is None for u in row.units) < 12 for row in rows)
  bare = lambda row: (row.va, row.expression, row.units)
  pairs = list(zip(rows, rows[1:], strict=False))
  twice = [(a, b) for a, b in pairs if a.image == b.image and not a.missing]
  assert any(bare(a) == bare(b) for a, b in twice)
  assert any(bare(a) != bare(b) for a, b in twice)
  assert any(bare(row) == ([None] * 2, None, [None] * 12) for row in rows)
  assert any(row.missing for row in rows)
  on_disk = {str(p.relative_to(folder / "cropped_aligned")) for p in folder.rglob("*.jpg")}
  assert on_disk - {row.image for part in truth.values() for row in part}


# What is built.


@pytest.mark.parametrize(
  ("seed", "newline"), [(1, "\n"), (2, "\r\n"), (3, "\n"), (4, "\r\n"), (5, "\n")]
)
def test_every_label_sits_on_its_own_image_however_folders_are_listed(
  tmp_path, monkeypatch, seed, newline
):
  truth = write_mtl(tmp_path / "source", seed, newline=newline)
  with monkeypatch.context() as patch:
    shuffle_folders(patch, seed)
    build, summary = prepared("s_aff_wild2", tmp_path / "source", tmp_path / "data")
  assert_holds(build, truth, tmp_path / "source" / "cropped_aligned")
  assert {split: counts(rows) for split, rows in truth.items()} == summary["splits"]


def test_records_are_in_list_order_over_several_files(tree, tmp_path, monkeypatch):
  monkeypatch.setattr(shards, "RECORDS", 20)
  build, summary = prepared("s_aff_wild2", tree[0], tmp_path)
  assert len(records.shards(build, "train").paths) > 2
  assert_holds(build, tree[1], tree[0] / "cropped_aligned")
  once, whole = prepared("s_aff_wild2", tree[0], tmp_path / "once")
  monkeypatch.undo()
  assert summary == whole


def test_batches_hold_the_labels_of_the_rows_in_list_order(tree, built):
  build, _ = built
  rows = [row for row in tree[1]["train"] if not row.missing]
  wants = {"va": ("arousal", "valence"), "expression": ("other", "anger"), "au": ("AU12", "AU1")}
  batch = records.records(build, "train", wants, 112).batch(np.arange(len(rows)))
  assert [affwild_tree.number_of(image) for image in batch["image"]] == [r.number for r in rows]
  assert batch["labels"]["va"].tolist() == [[np.float32(v or 0) for v in r.va[::-1]] for r in rows]
  assert batch["mask"]["va"].tolist() == [[v is not None for v in r.va[::-1]] for r in rows]
  classes = [(7, 1).index(r.expression) if r.expression in (7, 1) else None for r in rows]
  assert batch["mask"]["expression"].tolist() == [c is not None for c in classes]
  assert batch["labels"]["expression"].argmax(1).tolist() == [c or 0 for c in classes]
  units = [(r.units[6], r.units[0]) for r in rows]
  assert batch["labels"]["au"].tolist() == [[u or 0 for u in pair] for pair in units]
  assert batch["mask"]["au"].tolist() == [[u is not None for u in pair] for pair in units]


def test_images_that_are_listed_twice_are_there_twice(tree, built):
  rows = [row.image for row in tree[1]["validation"] if not row.missing]
  found = [record["image_path"][0].decode() for record in stored(built[0], "validation")]
  assert found == rows
  assert len(set(rows)) < len(rows)


def test_rows_without_an_image_are_left_out_counted_and_named(tree, built):
  missing = records.metadata(built[0])["missing"]
  for split, rows in tree[1].items():
    gone = [row.image for row in rows if row.missing]
    assert missing[split] == {"count": len(gone), "examples": gone[:5]}


def test_rows_without_any_label_are_kept_and_counted(tree, built):
  unlabelled = records.metadata(built[0])["unlabelled"]
  for split, rows in tree[1].items():
    nothing = lambda r: {*r.va, r.expression, *r.units} == {None}
    assert unlabelled[split] == sum(nothing(row) and not row.missing for row in rows)
  assert unlabelled["train"]
  assert unlabelled["test"] == built[1]["splits"]["test"]["images"]


def test_without_its_list_there_is_no_test_split(source, tmp_path):
  (source / MTL["test"]).unlink()
  build, _ = prepared("s_aff_wild2", source, tmp_path)
  assert set(build.info.splits) == {"train", "validation"}


@pytest.mark.parametrize("folder", ["cropped_aligned", "cropped_aligned_images", ""])
def test_images_are_found_in_any_of_the_folders_and_it_is_said_in_which(tmp_path, capsys, folder):
  truth = write_mtl(tmp_path / "source", 1, images=folder)
  build, _ = prepared("s_aff_wild2", tmp_path / "source", tmp_path / "data")
  assert_holds(build, truth, tmp_path / "source" / folder)
  assert f"images {tmp_path / 'source' / folder}\n" in capsys.readouterr().err


def test_an_empty_image_folder_beside_the_real_one_is_passed_over(tmp_path):
  truth = write_mtl(tmp_path / "source", 1, images="cropped_aligned_images")
  (tmp_path / "source" / "cropped_aligned" / "other").mkdir(parents=True)
  build, _ = prepared("s_aff_wild2", tmp_path / "source", tmp_path / "data")
  assert_holds(build, truth, tmp_path / "source" / "cropped_aligned_images")


def test_the_lists_of_abaw3_are_a_config_of_their_own(tmp_path):
  truth = write_mtl(tmp_path / "source", 1, lists=ABAW3)
  build, summary = prepared("s_aff_wild2", tmp_path / "source", tmp_path / "data", "abaw3")
  assert_holds(build, truth, tmp_path / "source" / "cropped_aligned")
  assert {split: counts(rows) for split, rows in truth.items()} == summary["splits"]
  assert not build.published
  assert records.builder("s_aff_wild2", "mtl", str(tmp_path / "data")).data_dir != build.data_dir


def test_a_list_may_lie_in_both_places_if_it_is_the_same(source, tmp_path):
  (source / "MTL_Challenge").mkdir()
  shutil.copy(source / TRAIN, source / "MTL_Challenge" / TRAIN)
  build, _ = prepared("s_aff_wild2", source, tmp_path / "data")
  assert records.is_prepared(build)


# Published counts.


def test_published_counts_add_up():
  for rows, va, expression, au, split in (
    (142_382, 103_917, 90_645, 103_316, builder.PUBLISHED["train"]),
    (26_876, 26_876, 15_440, 26_876, builder.PUBLISHED["validation"]),
  ):
    assert split["images"] == rows
    assert set(split["va"]["labelled"].values()) == {va}
    assert split["expression"]["labelled"] == sum(split["expression"]["votes"].values())
    assert split["expression"]["labelled"] == expression
    assert set(split["au"]["labelled"].values()) == {au}
    assert all(0 < on < au for on in split["au"]["positive"].values())


# What is wrong is named.


def cut(source):
  for path in source.glob("cropped_aligned/426/*"):
    path.write_bytes(path.read_bytes()[:-300])


def spoil(pattern, content):
  def change(source):
    for path in source.glob(pattern):
      path.write_bytes(content)

  return change


def line(number, text):
  return lambda source: edit(
    source / TRAIN, lambda lines: [*lines[: number - 1], text, *lines[number:]]
  )


def another_list(source):
  (source / "MTL_Challenge").mkdir()
  (source / "MTL_Challenge" / TRAIN).write_text("image,valence,arousal,expression,aus\n")


JPEG = cv2.imencode(".jpg", np.zeros((96, 112, 3), np.uint8))[1].tobytes()


@pytest.mark.parametrize(
  ("spoil", "says"),
  [
    (cut, r"426/\d+.jpg: not an image.*Premature end"),
    (spoil("cropped_aligned/426/*", b""), r"426/\d+.jpg: not an image.*0 bytes"),
    (spoil("cropped_aligned/video2/*", b"text"), r"video2/\d+.jpg: not an image.*neither JPEG"),
    (spoil("cropped_aligned/426/*", JPEG), r"426/\d+.jpg: 112x96 pixels; expected 112x112"),
    (lambda s: (s / VALIDATION).unlink(), f"no {VALIDATION} in .*source or .*MTL_Challenge"),
    (lambda s: shutil.rmtree(s / "cropped_aligned"), "no folder of a listed video.*'426'.*aligned"),
    (line(1, "image,valence,arousal"), f"{TRAIN}:1: header 'image,valence,arousal'"),
    (line(5, "426/00001.jpg,0,0,8" + ",0" * 12), f"{TRAIN}:5: expression '8'; expected .*0 to 7"),
    (line(6, "426/00001.jpg,1.5,0,1" + ",0" * 12), f"{TRAIN}:6: valence '1.5'"),
    (line(7, "426/00001.jpg,0,0,1" + ",0" * 11), f"{TRAIN}:7: 15 fields"),
    (line(8, "426/1.jpg,0,0,1" + ",0" * 12), f"{TRAIN}:8: image '426/1.jpg'"),
    (another_list, f"source/{TRAIN} and .*MTL_Challenge/{TRAIN} differ"),
  ],
)
def test_what_is_wrong_is_named_and_mended_it_builds(source, tree, tmp_path, spoil, says):
  spoil(source)
  build = records.builder("s_aff_wild2", "", str(tmp_path / "data"))
  with pytest.raises(ValueError, match=says):
    prepared("s_aff_wild2", source, tmp_path / "data")
  assert not records.is_prepared(build)
  left = [path.name for path in (tmp_path / "data").rglob("*")]
  assert not [name for name in left if "array_record" in name or "incomplete" in name]
  shutil.rmtree(source)
  shutil.copytree(tree[0], source)
  build, _ = prepared("s_aff_wild2", source, tmp_path / "data")
  assert_holds(build, tree[1], tree[0] / "cropped_aligned")


def test_all_broken_images_are_named_at_once(source, tree, tmp_path):
  listed = {row.image for row in tree[1]["train"] if not row.missing}
  spoilt = [source / "cropped_aligned" / image for image in sorted(listed)[:12:4]]
  for path in spoilt:
    path.write_bytes(b"")
  with pytest.raises(ValueError) as error:
    prepared("s_aff_wild2", source, tmp_path / "data")
  assert all(str(path) in str(error.value) for path in spoilt)
  assert "\n" not in str(error.value)


def test_lists_of_the_other_config_are_recognised(tmp_path):
  write_mtl(tmp_path / "source", 1, lists=ABAW3)
  with pytest.raises(ValueError, match="no training_set_annotations.txt .*add --config=abaw3"):
    prepared("s_aff_wild2", tmp_path / "source", tmp_path / "data")


def test_a_split_without_any_of_its_images_is_named(source, tmp_path):
  for video in affwild_tree.VIDEOS["test"]:
    shutil.rmtree(source / "cropped_aligned" / video)
  with pytest.raises(ValueError, match="none of the 30 listed images.*video45_1/0"):
    prepared("s_aff_wild2", source, tmp_path / "data")
