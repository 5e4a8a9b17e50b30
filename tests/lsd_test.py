"""The LSD builder, on trees in the official layout that `affwild_tree` makes up."""

import shutil

import pytest
from affwild_tree import LSD_CLASSES, number_in, prepared, shuffle_folders, stored, write_lsd

from tfds_builders.lsd import lsd_dataset_builder as builder

ROOTS = {
  "train": "training_set_synthetic_images",
  "validation": "validation_set_real_images",
  "test": "test_set",
}


def assert_holds(build, source, truth):
  for split, images in truth.items():
    found = stored(build, split)
    assert sorted(r["image_path"][0].decode() for r in found) == sorted(images)
    for record in found:
      path = record["image_path"][0].decode()
      name, number = images[path]
      assert number_in(record["image"][0]) == number
      assert record["image"][0] == (source / ROOTS[split] / path).read_bytes()
      assert record["labels/expression"] == [float(name == c) for c in LSD_CLASSES]
      assert record["mask/expression"] == [float(name is not None)]


@pytest.mark.parametrize(("seed", "anger"), [(1, "ANGRER"), (2, "ANGERE"), (3, "ANGER")])
def test_every_image_has_the_label_of_its_folder_however_folders_are_listed(
  tmp_path, monkeypatch, seed, anger
):
  truth = write_lsd(tmp_path / "source", seed, anger)
  with monkeypatch.context() as patch:
    shuffle_folders(patch, seed)
    build, summary = prepared("lsd", tmp_path / "source", tmp_path / "data")
  assert_holds(build, tmp_path / "source", truth)
  for split in ("train", "validation"):
    votes = {c: sum(name == c for name, _ in truth[split].values()) for c in LSD_CLASSES}
    assert summary["splits"][split] == {
      "images": len(truth[split]),
      "expression": {"labelled": len(truth[split]), "votes": votes},
    }
  assert summary["splits"]["test"]["expression"]["labelled"] == 0


def test_the_order_and_the_content_do_not_depend_on_the_folders_order_or_spelling(
  tmp_path, monkeypatch
):
  def fingerprint(place, anger, seed):
    write_lsd(tmp_path / place, 7, anger)
    with monkeypatch.context() as patch:
      shuffle_folders(patch, seed)
      return prepared("lsd", tmp_path / place, tmp_path / f"{place}_data")[1]

  assert fingerprint("a", "ANGRER", 1) == fingerprint("b", "ANGER", 2)


def test_test_images_are_in_the_order_of_their_list(tmp_path):
  source = tmp_path / "source"
  write_lsd(source)
  path = source / "LSD_Challenge_test_set_release.txt"
  names = ["10.jpg", "2.jpg", "0.jpg", "2.jpg"]
  path.write_text("\r\n".join(["image,expression", *(f"{name}," for name in names)]))
  build, _ = prepared("lsd", source, tmp_path / "data")
  found = stored(build, "test")
  assert [r["image_path"][0].decode() for r in found] == names
  assert [r["key"][0] for r in found] == [b"test/%06d" % line for line in (2, 3, 4, 5)]


def test_the_folder_of_the_test_images_may_have_any_name_and_is_said(tmp_path, capsys):
  truth = write_lsd(tmp_path / "source", test="whatever")
  build, _ = prepared("lsd", tmp_path / "source", tmp_path / "data")
  assert len(stored(build, "test")) == len(truth["test"])
  assert f"test images {tmp_path / 'source' / 'whatever'}\n" in capsys.readouterr().err


def test_without_its_list_there_is_no_test_split(tmp_path):
  write_lsd(tmp_path / "source")
  (tmp_path / "source" / "LSD_Challenge_test_set_release.txt").unlink()
  build, _ = prepared("lsd", tmp_path / "source", tmp_path / "data")
  assert set(build.info.splits) == {"train", "validation"}


def test_files_that_are_no_images_are_not_taken(tmp_path):
  truth = write_lsd(tmp_path / "source")
  (tmp_path / "source" / ROOTS["train"] / "FEAR" / "Thumbs.db").write_bytes(b"x")
  build, _ = prepared("lsd", tmp_path / "source", tmp_path / "data")
  assert_holds(build, tmp_path / "source", truth)


def two_angers(source):
  (source / ROOTS["train"] / "ANGER").mkdir()


def copy_test(source):
  shutil.copytree(source / "test_set", source / "copy")


@pytest.mark.parametrize(
  ("spoil", "says"),
  [
    (
      lambda s: shutil.rmtree(s / ROOTS["validation"]),
      "validation_set_real_images: no such folder",
    ),
    (lambda s: shutil.rmtree(s / ROOTS["train"] / "FEAR"), "images: expected one folder FEAR"),
    (two_angers, "ANGRER or ANGERE or ANGER; it has ANGRER and ANGER"),
    (lambda s: shutil.rmtree(s / "test_set"), "images of LSD_Challenge.*0.jpg.*none does"),
    (copy_test, "images of LSD_Challenge.*copy and test_set do"),
    (
      lambda s: (s / ROOTS["train"] / "FEAR" / "0.jpg").write_bytes(b"\xff\xd8\xff"),
      "FEAR/0.jpg: not an image",
    ),
  ],
)
def test_what_is_wrong_is_named(tmp_path, spoil, says):
  write_lsd(tmp_path / "source")
  spoil(tmp_path / "source")
  with pytest.raises(ValueError, match=says):
    prepared("lsd", tmp_path / "source", tmp_path / "data")


def test_published_counts_add_up():
  for split, total in (("train", 277_251), ("validation", 4_670)):
    counts = builder.PUBLISHED[split]
    assert counts["images"] == total == sum(counts["expression"]["votes"].values())
