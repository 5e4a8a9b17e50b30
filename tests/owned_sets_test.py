"""Builders of sets that people own, on trees in their layouts that `owned_trees` makes up."""

import csv
import hashlib
import io
import re
import shutil

import cv2
import numpy as np
import pytest
from affwild_tree import number_in, prepared, shuffle_folders, stored
from hostile import Evil, refuse
from owned_trees import (
  AFFECTNET,
  EXPW,
  HEADER,
  RAF,
  encode,
  npy,
  write_affectnet_2017,
  write_affectnet_2021,
  write_expw,
  write_raf_au,
  write_raf_db,
)

from affjax.data import prepare, records
from configs import vit_mtl
from tfds_builders import lists, photographs
from tfds_builders.affectnet import affectnet_dataset_builder as affectnet
from tfds_builders.affectnet import release_2021
from tfds_builders.expw import expw_dataset_builder as expw
from tfds_builders.raf_au import raf_au_dataset_builder as raf_au
from tfds_builders.raf_db import raf_db_dataset_builder as raf_db

IMAGES_2017 = "Manually_Annotated_Images"
# Name -> data set, config, what writes its tree, folder of a split's images.
SETS = {
  "affectnet of 2017": ("affectnet", "release_2017", write_affectnet_2017, IMAGES_2017),
  "affectnet of 2021": ("affectnet", "release_2021", write_affectnet_2021, "{}_set/images"),
  "raf_db": ("raf_db", "", write_raf_db, "Image/aligned"),
  "expw": ("expw", "", write_expw, "image/origin"),
  "raf_au": ("raf_au", "", write_raf_au, "aligned"),
}


def flat(truth):
  """The faces of a tree that a build keeps, and the others."""
  faces = truth if isinstance(truth, list) else [face for part in truth.values() for face in part]
  return [face for face in faces if not face.gone], [face for face in faces if face.gone]


def assert_holds(build, truth):
  """Each record has the labels of the face that is in its pixels; no face lacks or comes twice."""
  kept, _ = flat(truth)
  by_number = {face.number: face for face in kept}
  units = records.metadata(build)["labels"].get("au", [])
  names = records.metadata(build)["labels"].get("expression", [])
  seen = []
  for split in build.info.splits:
    for record in stored(build, split):
      face = by_number[number_in(record["image"][0])]
      seen.append(face.number)
      assert record["image_path"] == [face.image.encode()]
      if names:
        assert record["labels/expression"] == [float(n == face.expression) for n in names]
        assert record["mask/expression"] == [1]
      if "labels/va" in record:
        known = [value is not None for value in face.va]
        assert record["mask/va"] == known
        np.testing.assert_allclose(
          record["labels/va"], [value or 0 for value in face.va], rtol=1e-6
        )
      if units:
        on = [float(int(unit[2:]) in face.units) for unit in units]
        assert (record["labels/au"], record["mask/au"]) == (on, [1] * len(units))
        assert record["code"] == [face.code.encode()]
      if "confidence" in record:
        assert record["face"] == [face.face]
        np.testing.assert_allclose(record["confidence"], face.confidence, rtol=1e-6)
      if "line" in record:
        assert record["line"] == [face.line]
  assert sorted(seen) == sorted(by_number)


# Every label is on its own image.


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", SETS)
def test_every_face_has_its_labels_however_folders_are_listed(tmp_path, monkeypatch, name, seed):
  data_set, config, write, _ = SETS[name]
  truth = write(tmp_path / "source", seed)
  with monkeypatch.context() as patch:
    shuffle_folders(patch, seed)
    build, summary = prepared(data_set, tmp_path / "source", tmp_path / "data", config)
  assert_holds(build, truth)
  kept, _ = flat(truth)
  splits = summary["splits"].values()
  assert sum(counts["images"] for counts in splits) == len(kept)
  for label in {face.expression for face in kept} - {None}:
    counted = sum(counts["expression"]["votes"][label] for counts in splits)
    assert counted == sum(face.expression == label for face in kept)


@pytest.mark.parametrize("name", ["affectnet of 2021", "raf_db", "raf_au"])
def test_images_that_are_faces_are_kept_byte_by_byte(tmp_path, name):
  data_set, config, write, images = SETS[name]
  write(tmp_path / "source")
  build, _ = prepared(data_set, tmp_path / "source", tmp_path / "data", config)
  for split in build.info.splits:
    folder = tmp_path / "source" / images.format({"validation": "val"}.get(split, split))
    for record in stored(build, split):
      file = folder / record["image_path"][0].decode()
      assert record["image"][0] == file.read_bytes()


@pytest.mark.parametrize("name", ["affectnet of 2017", "expw"])
def test_a_face_is_what_is_in_its_box(tmp_path, name):
  data_set, config, write, images = SETS[name]
  kept, _ = flat(write(tmp_path / "source"))
  boxes = {face.number: face.box for face in kept}
  build, _ = prepared(data_set, tmp_path / "source", tmp_path / "data", config)
  for split in build.info.splits:
    for record in stored(build, split):
      encoded = record["image"][0]
      assert encoded.startswith(b"\xff\xd8\xff")
      found = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
      left, top, right, bottom = boxes[number_in(encoded)]
      path = tmp_path / "source" / images / record["image_path"][0].decode()
      whole = cv2.imread(str(path))[top:bottom, left:right]
      assert found.shape == whole.shape
      assert np.abs(found.astype(int) - whole).mean() < 2


def test_records_are_in_the_order_of_the_lists_and_of_the_numbers(tmp_path):
  for name, (data_set, config, write, _) in SETS.items():
    truth = write(tmp_path / name)
    build, _ = prepared(data_set, tmp_path / name, tmp_path / "data", config)
    order = [face.number for face in flat(truth)[0]]
    for split in build.info.splits:
      found = [order.index(number_in(record["image"][0])) for record in stored(build, split)]
      assert found == sorted(found)


def test_keys_are_lines_of_lists_or_numbers_of_images(tmp_path):
  truth = write_affectnet_2017(tmp_path / "a")
  build, _ = prepared("affectnet", tmp_path / "a", tmp_path / "data")
  lines = (tmp_path / "a" / "training.csv").read_text().split("\n")
  for record in stored(build, "train"):
    line = int(record["key"][0].decode().removeprefix("train/"))
    assert lines[line - 1].startswith(record["image_path"][0].decode() + ",")
  assert len(stored(build, "validation")) == sum(not face.gone for face in truth["validation"])
  write_affectnet_2021(tmp_path / "b")
  build, _ = prepared("affectnet", tmp_path / "b", tmp_path / "data", "release_2021")
  for record in stored(build, "validation"):
    assert record["key"][0] + b".jpg" == b"validation/" + record["image_path"][0]


# Places and forms.


@pytest.mark.parametrize("outer", ["", "Manually_Annotated"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_affectnets_lists_may_lie_deeper_and_lack_a_header(tmp_path, outer, newline):
  truth = write_affectnet_2017(tmp_path / "source", 3, False, newline, outer)
  build, _ = prepared("affectnet", tmp_path / "source", tmp_path / "data")
  assert_holds(build, truth)


def test_a_list_may_begin_with_a_mark_of_byte_order_and_lie_in_several_places(tmp_path):
  truth = write_raf_db(tmp_path / "source", 4, "\r\n")
  path = tmp_path / "source" / "EmoLabel" / raf_db.LIST
  path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
  shutil.copy(path, tmp_path / "source")
  assert_holds(prepared("raf_db", tmp_path / "source", tmp_path / "data")[0], truth)
  (tmp_path / "source" / raf_db.LIST).write_text("train_00001.jpg 1\n")
  with pytest.raises(ValueError, match="list_patition_label.txt and .* differ: remove the one"):
    prepared("raf_db", tmp_path / "source", tmp_path / "other")


@pytest.mark.parametrize("images", ["image", "origin"])
def test_the_photographs_of_expw_may_lie_in_other_folders(tmp_path, images):
  truth = write_expw(tmp_path / "source", 5, images)
  assert_holds(prepared("expw", tmp_path / "source", tmp_path / "data")[0], truth)


@pytest.mark.parametrize("images", ["aligned", "RAF-AU/aligned"])
def test_the_images_of_raf_au_may_be_named_by_their_number_alone(tmp_path, images):
  fingerprints = []
  for suffix in ("_aligned.jpg", ".jpg"):
    truth = write_raf_au(tmp_path / suffix, 6, suffix, images)
    build, summary = prepared("raf_au", tmp_path / suffix, tmp_path / f"data{suffix}")
    assert_holds(build, truth)
    fingerprints.append(summary["fingerprint"])
  assert fingerprints[0] == fingerprints[1]


def test_the_units_are_those_that_occur_in_the_order_of_their_numbers(tmp_path):
  truth = write_raf_au(tmp_path / "source")
  build, summary = prepared("raf_au", tmp_path / "source", tmp_path / "data")
  units = sorted(set().union(*(face.units for face in truth)))
  assert records.metadata(build)["labels"] == {"au": [f"AU{unit}" for unit in units]}
  assert list(summary["splits"]["train"]["au"]["positive"]) == [f"AU{unit}" for unit in units]


@pytest.mark.parametrize(
  ("code", "units"),
  [
    ("null", set()),
    ("4+6+7", {4, 6, 7}),
    ("L12+R12+25", {12, 25}),
    ("l4", {4}),
    ("T23+B22", {22, 23}),
    ("AD19+AU1", {1, 19}),
    ("12C+25A", {12, 25}),
  ],
)
def test_a_unit_is_on_wherever_and_however_strongly_it_shows(code, units):
  assert raf_au.row_of(["7.jpg", code]) == ("0007", code, units)


# Splits of our own.


def test_the_faces_of_a_photograph_are_in_one_split(tmp_path):
  kept, _ = flat(write_expw(tmp_path / "source", photographs=90))
  build, _ = prepared("expw", tmp_path / "source", tmp_path / "data")
  of = {}
  for split in build.info.splits:
    for record in stored(build, split):
      of.setdefault(record["image_path"][0].decode(), set()).add(split)
  assert {len(splits) for splits in of.values()} == {1}
  assert set().union(*of.values()) == {"train", "validation", "test"}
  assert max(sum(face.image == image for face in kept) for image in of) > 1


def share(name):
  """.8, .1, .1 by MD5: scores on other splits could not be compared with ours."""
  part = int.from_bytes(hashlib.md5(name.encode()).digest(), "big") / 2**128
  return "train" if part < 0.8 else "validation" if part < 0.9 else "test"


def test_the_splits_are_by_a_hash_of_the_image_alone(tmp_path):
  for name, write, key in (
    ("expw", write_expw, lambda image: image),
    ("raf_au", write_raf_au, lambda image: image[:4]),
  ):
    write(tmp_path / name)
    build, _ = prepared(name, tmp_path / name, tmp_path / "data")
    for split in build.info.splits:
      images = [record["image_path"][0].decode() for record in stored(build, split)]
      assert {share(key(image)) for image in images} == {split}
      assert images


# What is left out is counted and named.


@pytest.mark.parametrize("name", SETS)
def test_missing_images_are_counted_and_named(tmp_path, name):
  data_set, config, write, _ = SETS[name]
  _, gone = flat(write(tmp_path / "source"))
  build, _ = prepared(data_set, tmp_path / "source", tmp_path / "data", config)
  missing = records.metadata(build)["missing"].values()
  assert sum(of["count"] for of in missing) == sum(face.gone == "missing" for face in gone)
  named = [image for of in missing for image in of["examples"]]
  assert sorted(named) == sorted(face.image for face in gone if face.gone == "missing")


def test_what_affectnet_leaves_out_is_reported(tmp_path):
  truth = write_affectnet_2017(tmp_path / "source")
  build, _ = prepared("affectnet", tmp_path / "source", tmp_path / "data")
  report = records.metadata(build)["report"]
  for split, faces in truth.items():
    images = lambda why, faces=faces: ", ".join(face.image for face in faces if face.gone == why)
    assert [line for line in report if line.startswith(split)] == [
      f"{split}: 3 rows left out, they have no expression: none 1, uncertain 1, no face 1",
      f"{split}: 2 rows left out, their image is no whole JPEG or PNG: {images('unreadable')}",
      f"{split}: 3 rows left out, the box of the face is empty or outside the image:"
      f" {images('box')}",
    ]


@pytest.mark.parametrize(("name", "published"), [("expw", 91_793), ("raf_au", 4_601)])
def test_the_rows_of_all_splits_are_beside_the_published_number(tmp_path, name, published):
  _, _, write, _ = SETS[name]
  kept, _ = flat(write(tmp_path / "source"))
  build, _ = prepared(name, tmp_path / "source", tmp_path / "data")
  assert records.metadata(build)["report"][-1] == (
    f"{len(kept)} rows in all; published: {published}"
  )


def test_published_counts_add_up():
  releases = affectnet.PUBLISHED
  assert releases["release_2017"]["train"]["images"] == 287_651
  assert releases["release_2017"]["validation"]["images"] == 4_000
  assert releases["release_2021"]["train"]["images"] == 287_651
  assert releases["release_2021"]["validation"]["images"] == 3_999
  assert [raf_db.PUBLISHED[split]["images"] for split in ("train", "test")] == [12_271, 3_068]
  for counts in (*releases["release_2017"].values(), *raf_db.PUBLISHED.values()):
    assert sum(counts["expression"]["votes"].values()) == counts["images"]


def test_the_classes_are_in_the_order_of_the_numbers_in_the_files():
  assert list(affectnet.EXPRESSION_AFFECTNET) == AFFECTNET
  assert list(raf_db.EXPRESSIONS) == RAF
  assert list(expw.EXPRESSIONS) == EXPW


# What is wrong is named.


def spoil(path, line, text):
  """Puts a text in the place of a line."""
  lines = path.read_text().split("\n")
  lines[line - 1] = text
  path.write_text("\n".join(lines))


CSV = "0/a.jpg,1,2,30,40,1;2,{},{},{}"


@pytest.mark.parametrize(
  ("name", "file", "text", "says"),
  [
    ("affectnet of 2017", "training.csv", CSV.format(11, 0, 0), "expression '11': use 0 to 7 .neu"),
    ("affectnet of 2017", "training.csv", CSV.format("", 0, 0), "expression ''"),
    ("affectnet of 2017", "training.csv", CSV.format("0.5", 0, 0), "expression '0.5'"),
    ("affectnet of 2017", "training.csv", CSV.format("nan", 0, 0), "expression 'nan'"),
    ("affectnet of 2017", "training.csv", CSV.format(1, 1.5, 0), "valence '1.5': use a number"),
    ("affectnet of 2017", "training.csv", CSV.format(1, 0, "x"), "arousal 'x'.*or -2 where"),
    ("affectnet of 2017", "training.csv", CSV.format(1, 0, "-5"), "arousal '-5'"),
    ("affectnet of 2017", "training.csv", HEADER, "expression 'expression': use 0 to 7"),
    ("affectnet of 2017", "training.csv", "0/a.jpg,1", "2 fields; expected 9: subDirectory"),
    ("affectnet of 2017", "training.csv", "../a.jpg,1,2,3,4,,1,0,0", "image '../a.jpg': expected"),
    ("affectnet of 2017", "training.csv", "/etc/x,1,2,3,4,,1,0,0", "image '/etc/x'"),
    ("affectnet of 2017", "training.csv", "0/a.jpg,1,2,3,4.5,,1,0,0", "face_height '4.5': use a"),
    ("affectnet of 2017", "training.csv", '0/a.jpg,1,2,3,4,"1"1,1,0,0', "',' expected after"),
    ("raf_db", "EmoLabel/list_patition_label.txt", "train_00001.jpg 8", "expression '8': use 1 to"),
    ("raf_db", "EmoLabel/list_patition_label.txt", "train_00001.jpg", "1 fields; expected two"),
    ("raf_db", "EmoLabel/list_patition_label.txt", "val_00001.jpg 1", "image 'val_00001.jpg'"),
    ("raf_db", "EmoLabel/list_patition_label.txt", "../train_1.jpg 1", "image '../train_1.jpg'"),
    ("expw", "label/label.lst", "a.jpg 0 1 2 3 4 50", "7 fields; expected 8: image, face, top"),
    ("expw", "label/label.lst", "a.jpg 0 1 2 3 4 50 7", "expression '7': use 0 to 6, anger"),
    ("expw", "label/label.lst", "a.jpg 0 1 2 3 4 x 6", "confidence 'x': use a number"),
    ("expw", "label/label.lst", "a.jpg 0 1 2 3 4 1e999 6", "confidence '1e999'"),
    ("expw", "label/label.lst", "a.jpg 0 1 2.5 3 4 50 6", "left '2.5': use a whole number"),
    ("expw", "label/label.lst", "../a.jpg 0 1 2 3 4 50 6", "image '../a.jpg': expected the name"),
    ("raf_au", "RAFAU_label.txt", "0001.jpg", "1 fields; expected two, such as 0001.jpg 4"),
    ("raf_au", "RAFAU_label.txt", "0001.jpg 4++6", r"units '4\+\+6': use numbers with"),
    ("raf_au", "RAFAU_label.txt", "0001.jpg 4,6", "units '4,6'"),
    ("raf_au", "RAFAU_label.txt", "0001.jpg null+4", r"units 'null\+4'"),
    ("raf_au", "RAFAU_label.txt", "0001.jpg X4", "units 'X4'.*or null"),
    ("raf_au", "RAFAU_label.txt", "0001.jpg 0", "units '0'"),
    ("raf_au", "RAFAU_label.txt", "face.jpg 4", "image 'face.jpg': expected a name such as"),
  ],
)
def test_a_malformed_line_is_refused_by_its_number(tmp_path, name, file, text, says):
  data_set, config, write, _ = SETS[name]
  write(tmp_path / "source")
  spoil(tmp_path / "source" / file, 4, text)
  with pytest.raises(ValueError, match=says) as error:
    prepared(data_set, tmp_path / "source", tmp_path / "data", config)
  assert str(error.value).startswith(f"{tmp_path}/source/{file}:4: ")
  assert "\n" not in str(error.value)
  assert not list((tmp_path / "data").rglob("*array_record*"))


@pytest.mark.parametrize("name", ["raf_db", "raf_au"])
def test_an_image_that_is_listed_twice_is_refused_with_both_lines(tmp_path, name):
  _, _, write, _ = SETS[name]
  write(tmp_path / "source")
  (path,) = (tmp_path / "source").rglob("*.txt")
  lines = path.read_text().split("\n")
  spoil(path, 7, lines[1])
  with pytest.raises(ValueError, match=f"{path.name}:7: image .* is in line 2 already"):
    prepared(name, tmp_path / "source", tmp_path / "data")


@pytest.mark.parametrize(
  ("kind", "content", "says"),
  [
    ("exp", npy("11"), "expression '11': use 0 to 7"),
    ("exp", npy("x"), "expression 'x'"),
    ("val", npy("1.5"), "valence '1.5': use a number from -1 to 1, or -2"),
    ("aro", npy(np.nan), "arousal 'nan'"),
    ("aro", npy([1, 2]), "2 numbers; expected one"),
    ("val", npy([]), "0 numbers; expected one"),
    ("exp", b"", "no .npy file of a number"),
    ("exp", b"3", "no .npy file of a number"),
    ("exp", npy("3")[:-2], "no .npy file of a number"),
    ("exp", npy(np.zeros(10_000)), "80,128 bytes; a number has at most 4,096"),
  ],
)
def test_a_file_that_holds_no_label_is_named(tmp_path, kind, content, says):
  truth = write_affectnet_2021(tmp_path / "source")
  path = tmp_path / "source/train_set/annotations" / f"{truth['train'][3].image[:-4]}_{kind}.npy"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=f"{path}: {says}") as error:
    prepared("affectnet", tmp_path / "source", tmp_path / "data", "release_2021")
  assert "\n" not in str(error.value)


def test_a_pickle_in_a_label_is_not_read(tmp_path):
  marker = tmp_path / "ran"
  file = io.BytesIO()
  np.save(file, np.array(Evil(marker), object), allow_pickle=True)
  evil = file.getvalue()
  refuse("no .npy file of a number.*allow_pickle=False", release_2021.number, evil)
  assert not marker.exists()


def test_a_size_that_a_label_claims_is_not_believed():
  large = npy([1.0]).replace(b"(1,), }            ", b"(999999999999,), } ")
  refuse("no .npy file of a number|999999999999 numbers", release_2021.number, large)


def test_a_label_file_that_lacks_is_named(tmp_path):
  truth = write_affectnet_2021(tmp_path / "source")
  path = tmp_path / "source/val_set/annotations" / f"{truth['validation'][2].image[:-4]}_val.npy"
  path.unlink()
  with pytest.raises(ValueError, match=f"{path}: no such file"):
    prepared("affectnet", tmp_path / "source", tmp_path / "data", "release_2021")


def test_the_other_release_of_affectnet_is_recognised(tmp_path):
  write_affectnet_2021(tmp_path / "new")
  with pytest.raises(ValueError, match="no training.csv in .*: add --config=release_2021"):
    prepared("affectnet", tmp_path / "new", tmp_path / "data")
  write_affectnet_2017(tmp_path / "old")
  with pytest.raises(ValueError, match="no folder .*train_set/anno.*: add --config=release_2017"):
    prepared("affectnet", tmp_path / "old", tmp_path / "data", "release_2021")


@pytest.mark.parametrize("name", ["raf_db", "raf_au", "affectnet of 2021"])
def test_a_damaged_face_is_an_error_that_names_it(tmp_path, name):
  data_set, config, write, _ = SETS[name]
  kept, _ = flat(write(tmp_path / "source"))
  path = next((tmp_path / "source").rglob(kept[0].image))
  path.write_bytes(path.read_bytes()[:-300])
  with pytest.raises(ValueError, match=f"{kept[0].image}: not an image that can be decoded"):
    prepared(data_set, tmp_path / "source", tmp_path / "data", config)


def test_an_aligned_face_of_another_size_is_named(tmp_path):
  kept, _ = flat(write_raf_db(tmp_path / "source"))
  (tmp_path / "source/Image/aligned" / kept[0].image).write_bytes(
    encode(np.zeros((90, 100, 3), np.uint8), ".jpg")
  )
  with pytest.raises(ValueError, match=f"{kept[0].image}: 100x90 pixels; expected 100x100"):
    prepared("raf_db", tmp_path / "source", tmp_path / "data")


def test_without_any_usable_photograph_the_first_is_named(tmp_path):
  write_expw(tmp_path / "source")
  for path in (tmp_path / "source/image/origin").iterdir():
    path.write_bytes(b"GIF89a")
  with pytest.raises(ValueError, match="no row is left of .*no whole JPEG or PNG"):
    prepared("expw", tmp_path / "source", tmp_path / "data")


LINKS = {
  "affectnet of 2017": ("training.csv", IMAGES_2017, f"{IMAGES_2017}/0"),
  "affectnet of 2021": ("train_set", "val_set/annotations", "train_set/images"),
  "raf_db": ("EmoLabel/list_patition_label.txt", "Image/aligned"),
  "expw": ("label/label.lst", "image/origin"),
  "raf_au": ("RAFAU_label.txt", "aligned"),
}


@pytest.mark.parametrize(("name", "path"), [(n, path) for n in LINKS for path in LINKS[n]])
def test_a_link_out_of_the_source_is_refused(tmp_path, name, path):
  data_set, config, write, _ = SETS[name]
  write(tmp_path / "source")
  moved = tmp_path / "source" / path
  moved.rename(tmp_path / "outside")
  moved.symlink_to(tmp_path / "outside")
  with pytest.raises(ValueError, match="a link leads out of .*AFFJAX_FOLLOW_LINKS=1"):
    prepared(data_set, tmp_path / "source", tmp_path / "data", config)
  assert not list((tmp_path / "data").rglob("*array_record*"))


# Photographs of all kinds.


def test_photographs_that_browsers_show_are_read():
  rng = np.random.default_rng(0)
  image = cv2.resize(rng.integers(0, 256, (6, 5, 3), np.uint8), (96, 64))
  jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111])[1].tobytes()
  frame = jpeg.index(b"\xff\xc0") + 11
  rare = bytearray(jpeg)  # pixels as before, in another order: the picture is garbled, but whole
  rare[frame], rare[frame + 3], rare[frame + 6] = 0x21, 0x21, 0x11
  stray = jpeg[:-2] + b"\0\0\0" + jpeg[-2:]
  grey, png = encode(image[..., 0], ".jpg"), encode(image[..., 0].astype(np.uint16) * 257, ".png")
  for encoded in (jpeg, stray, bytes(rare), grey, png, encode(image, ".png"), jpeg + b"more"):
    assert photographs.decode(encoded).shape == (64, 96, 3)
  np.testing.assert_array_equal(photographs.decode(encode(image, ".png")), image[..., ::-1])
  for broken in (jpeg[:-200], encode(image, ".png")[:-40], encode(image, ".bmp"), b""):
    with pytest.raises(ValueError, match="."):
      photographs.decode(broken)


def test_a_photograph_is_not_turned_by_its_exif(tmp_path):
  image = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8), (96, 64))
  tag = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
  segment = b"\xff\xe1" + (len(tag) + 2).to_bytes(2, "big") + tag
  jpeg = encode(image, ".jpg")
  turned = jpeg[:2] + segment + jpeg[2:]
  assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (96, 64, 3)
  assert photographs.decode(turned).shape == (64, 96, 3)
  assert photographs.decode(turned[:-2] + b"\0\0" + turned[-2:]).shape == (64, 96, 3)


def test_what_the_build_will_take_is_told_from_the_boxes(tmp_path):
  write_expw(tmp_path / "source", photographs=60)
  build = records.builder("expw", "", str(tmp_path / "data"))
  told = build.megabytes(tmp_path / "source")
  prepare.prepare(build, str(tmp_path / "source"))
  took = sum(path.stat().st_size for path in (tmp_path / "data").rglob("*array_record*")) / 1e6
  assert 0.5 * took < told < 3 * took


def test_a_list_without_a_row_is_named(tmp_path):
  (tmp_path / "empty").write_text("\n\n")
  with pytest.raises(ValueError, match="empty: it lists nothing"):
    lists.read(tmp_path / "empty", list)
  (tmp_path / "binary").write_bytes(b"a\xff")
  with pytest.raises(ValueError, match="binary: not a text file .byte 1 is no UTF-8"):
    lists.read(tmp_path / "binary", list)


# As users have it.


@pytest.mark.parametrize("name", SETS)
def test_the_command_builds_the_set_and_prints_its_counts(tmp_path, capsys, name):
  data_set, config, write, _ = SETS[name]
  kept, _ = flat(write(tmp_path / "source"))
  place = f"--data_dir={tmp_path / 'data'}"
  options = [f"--config={config}"] if config else []
  prepare.main([data_set, f"--source={tmp_path / 'source'}", place, *options])
  said = capsys.readouterr().out
  images = next(line for line in said.splitlines() if line.startswith("images"))
  numbers = [int(cell) for cell in re.findall(r"\d+", images)]
  counted = numbers[::2] if affectnet_or_raf(data_set) else numbers
  assert sum(counted) == len(kept)
  assert "1 rows left out, their image is missing" in said
  prepare.main([data_set, place, *options])  # there already
  again = capsys.readouterr().out
  assert again.splitlines()[1:] == said.splitlines()[1:]
  with pytest.raises(SystemExit) as done:
    prepare.main([data_set, place, "--verify", *options])
  assert done.value.code == 0


def affectnet_or_raf(data_set):
  """Whether there are published counts of its splits: they have columns of their own."""
  return data_set in ("affectnet", "raf_db")


def test_the_help_of_the_command_lists_them(capsys):
  with pytest.raises(SystemExit):
    prepare.main(["--help"])
  said = capsys.readouterr().out
  for data_set in ("affectnet", "expw", "raf_au", "raf_db"):
    assert re.search(rf"^  {data_set} +\w.*", said, re.MULTILINE)


@pytest.mark.parametrize("name", SETS)
def test_the_flagship_reads_their_labels_by_name(tmp_path, name):
  data_set, config, write, _ = SETS[name]
  kept, _ = flat(write(tmp_path / "source"))
  by_number = {face.number: face for face in kept}
  build, _ = prepared(data_set, tmp_path / "source", tmp_path / "data", config)
  wants = {task: tuple(names) for task, names in vit_mtl.get_config("debug").labels.items()}
  rows = stored(build, "train")
  batch = records.records(build, "train", wants, 48).batch(np.arange(len(rows)))
  for i, record in enumerate(rows):
    face = by_number[number_in(record["image"][0])]
    known = face.expression is not None
    expected = "other" if face.expression == "contempt" else face.expression
    assert batch["mask"]["expression"][i] == known
    assert batch["labels"]["expression"][i].tolist() == [n == expected for n in wants["expression"]]
    assert batch["mask"]["va"][i].tolist() == [value is not None for value in face.va]
    on = [face.units is not None and int(unit[2:]) in face.units for unit in wants["au"]]
    assert batch["labels"]["au"][i].tolist() == on
    assert batch["mask"]["au"][i].any() == (face.units is not None)


def test_the_trees_hold_every_quirk(tmp_path):
  truth = write_affectnet_2017(tmp_path)
  with (tmp_path / "training.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  assert {row["expression"] for row in rows} == {str(k) for k in range(11)}
  assert {"NULL", "-1"} <= {row["face_width"] for row in rows}
  assert any(int(row["face_x"]) < 0 for row in rows if row["face_x"] != "NULL")
  assert {face.gone for face in truth["train"]} == {"", "missing", "code", "unreadable", "box"}
