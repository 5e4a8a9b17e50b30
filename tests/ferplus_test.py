"""The FER+ builder, on a source of noise that the tests write and, where it is, on the real one."""

import csv
import re
import shutil
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest
from conftest import COLUMNS, write_ferplus, zip_up

from affjax.data import prepare, records
from tfds_builders import shards
from tfds_builders.ferplus import ferplus_dataset_builder as ferplus

IMAGES = r"images +37 +3 +12"  # a line of the table: train, dev, validation
COMMAND = """
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
hide = lambda name, *rest: None if name == "tensorflow" else find(name, *rest)
importlib.machinery.PathFinder.find_spec = staticmethod(hide)
from affjax.data import prepare
prepare.main(sys.argv[1:])
"""


def votes(**counts):
  return np.array([counts.get(column, 0) for column in COLUMNS])


def build(source, data_dir):
  builder = records.builder("ferplus", "", str(data_dir))
  return builder, prepare.prepare(builder, str(source))


def keys(builder, split):
  return sorted(row["key"].decode() for row in builder.as_data_source(split))


def png(folder, number):
  return next(folder.glob(f"FER2013*/fer{number:07d}.png"))


@pytest.fixture
def source(tmp_path):
  return write_ferplus(tmp_path / "source")


# Votes.


def test_columns_are_those_of_the_official_file():
  assert list(ferplus.VOTE_COLUMNS) == COLUMNS


def test_the_soft_label_is_the_share_of_the_votes_for_a_class():
  soft = ferplus.distribution(votes(neutral=3, fear=1, unknown=4, NF=2))
  np.testing.assert_array_equal(soft, [0.75, 0, 0, 0, 0, 0, 0.25, 0])
  assert soft.dtype == np.float32


def test_the_soft_label_is_zero_where_only_unknown_and_no_face_votes_are():
  np.testing.assert_array_equal(ferplus.distribution(votes(unknown=3, NF=7)), np.zeros(8))


@pytest.mark.parametrize(
  ("counts", "strict", "official"),
  [
    (dict(anger=10), "anger", "anger"),
    (dict(anger=6, fear=4), "anger", "anger"),
    (dict(anger=5, fear=5), None, None),
    (dict(anger=5, fear=3, sadness=2), None, None),  # exactly half is no majority
    (dict(anger=5, fear=2, sadness=2, neutral=1), None, "anger"),  # 5 of 9
    (dict(anger=4, fear=2, sadness=2, neutral=1, NF=1), None, None),  # 4 of 8
    (dict(anger=2, fear=1, sadness=1, neutral=1), None, "anger"),
    (dict(anger=1), "anger", None),
    (dict(anger=1, fear=1, sadness=1), None, None),
    (dict(anger=3, unknown=7), "unknown", "unknown"),
    (dict(anger=4, NF=6), "NF", "NF"),
    (dict(anger=5, unknown=4, NF=1), None, "anger"),  # unknown votes count in the whole
    (dict(), None, None),
  ],
)
def test_the_majority_by_both_rules(counts, strict, official):
  assert ferplus.majority(votes(**counts), "strict") == strict
  assert ferplus.majority(votes(**counts), "official") == official


def reference_majority(raw):
  """What FERPlus/src/ferplus.py does in mode "majority", in plain Python."""
  kept = [count if count >= 2 else 0 for count in raw]
  if max(kept) > 0.5 * sum(kept):
    return COLUMNS[kept.index(max(kept))]
  return None


def test_the_official_rule_agrees_with_the_authors_code_on_random_votes():
  rng = np.random.default_rng(0)
  outcomes = set()
  for _ in range(2000):
    drawn = rng.multinomial(10, rng.dirichlet(np.full(10, 0.3)))
    expected = reference_majority(drawn.tolist())
    assert ferplus.majority(drawn, "official") == expected
    outcomes.add(expected)
  assert outcomes == {None, *COLUMNS}


def test_an_unknown_rule_is_named():
  with pytest.raises(ValueError, match="'loose'.*strict.*official"):
    ferplus.majority(votes(anger=10), "loose")


# The dev split.


def test_the_dev_split_never_changes():
  # Scores chosen on another dev split could not be compared with these.
  chosen = [n for n in range(60) if ferplus.is_dev(f"fer{n:07d}.png")]
  assert chosen == [10, 23, 38, 40, 48, 50]


def test_the_dev_split_is_about_a_tenth():
  share = np.mean([ferplus.is_dev(f"fer{n:07d}.png") for n in range(10_000)])
  assert 0.09 < share < 0.11


def test_images_do_not_change_sides_when_others_are_missing(source, tmp_path, tiny_ferplus):
  for number in range(0, 40, 2):
    png(source, number).unlink()
  fewer, _ = build(source, tmp_path / "data")
  for split in ("train", "dev"):
    assert keys(fewer, split)
    assert set(keys(fewer, split)) < set(keys(tiny_ferplus, split))


# Building.


def test_every_image_is_in_one_split_and_carries_its_votes(tiny_ferplus, tmp_path):
  with (write_ferplus(tmp_path / "same") / "fer2013new.csv").open() as f:
    rows = {row["Image name"]: row for row in csv.DictReader(f)}
  found = []
  for split in ("train", "dev", "validation"):
    for example in tiny_ferplus.as_data_source(split):
      part, name = example["key"].decode().split("/")
      assert part == split
      expected = [int(rows[name][column]) for column in COLUMNS]
      np.testing.assert_array_equal(example["votes"], expected)
      np.testing.assert_array_equal(example["labels"]["expression"], ferplus.distribution(expected))
      assert example["mask"]["expression"] == (sum(expected[:8]) > 0)
      for rule in ("strict", "official"):
        scored = ferplus.majority(expected, rule) in COLUMNS[:7]
        assert example["mask"][f"expression_{rule}"] == scored
      original = cv2.imread(str(png(tmp_path / "same", int(name[3:10]))), cv2.IMREAD_GRAYSCALE)
      np.testing.assert_array_equal(example["image"][..., 0], original)
      found.append(name)
  assert sorted(found) == sorted(rows)


def test_the_summary_counts_what_the_vote_file_holds(tmp_path):
  source = write_ferplus(tmp_path / "source")
  with (source / "fer2013new.csv").open() as f:
    valid = [
      [int(row[c]) for c in COLUMNS] for row in csv.DictReader(f) if row["Usage"] == "PublicTest"
    ]
  _, summary = build(source, tmp_path / "data")
  counts = summary["splits"]["validation"]
  assert counts["images"] == 12
  assert counts["expression"]["labelled"] == sum(sum(row[:8]) > 0 for row in valid)
  strict = dict.fromkeys(COLUMNS[:8], 0)
  for row in valid:
    if max(row) > 5 and row.index(max(row)) < 7:
      strict[COLUMNS[row.index(max(row))]] += 1
  assert sum(strict.values()) > 0
  assert counts["expression"]["expression_strict"] == strict
  shares = np.sum([np.array(row[:8]) / max(sum(row[:8]), 1) for row in valid], 0)
  assert list(counts["expression"]["votes"].values()) == [round(share, 1) for share in shares]
  text = prepare.table(summary)
  assert re.search(f"^{IMAGES}$", text, re.MULTILINE)
  assert "expression, strict" in text


def test_zips_and_folders_build_the_same_data(tiny_ferplus, tmp_path):
  zipped, summary = build(write_ferplus(tmp_path / "zips", zipped=True), tmp_path / "data")
  assert not list((tmp_path / "zips").glob("**/*.png"))
  assert summary == records.summary(tiny_ferplus)
  for split in ("train", "dev", "validation"):
    pairs = zip(zipped.as_data_source(split), tiny_ferplus.as_data_source(split), strict=True)
    for ours, theirs in pairs:
      np.testing.assert_array_equal(ours["image"], theirs["image"])


def test_large_splits_have_several_files_that_hold_the_same(
  source, tmp_path, tiny_ferplus, monkeypatch
):
  monkeypatch.setattr(shards, "RECORDS", 16)
  several, summary = build(source, tmp_path / "data")
  assert summary == records.summary(tiny_ferplus)
  for split in ("train", "validation"):
    read = lambda build, split=split: records.records(build, split, {}, 48)
    count = len(read(several))
    assert len(read(several).images.shards.paths) == -(-count // 16)
    rows = np.arange(count)
    for name, x in read(several).batch(rows).items():
      jax.tree.map(np.testing.assert_array_equal, x, read(tiny_ferplus).batch(rows)[name])


def test_the_command_builds_without_tensorflow(source, tmp_path):
  zip_up(source)
  run = lambda *arguments: subprocess.run(
    [sys.executable, "-c", COMMAND, "ferplus", f"--data_dir={tmp_path}/data", *arguments],
    capture_output=True,
    text=True,
  )
  first = run(f"--source={source}")
  assert first.returncode == 0, first.stderr
  assert re.search(f"^{IMAGES}$", first.stdout, re.MULTILINE)
  again = run()  # the official files are no longer needed
  assert again.returncode == 0, again.stderr
  assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
  missing = run(f"--data_dir={tmp_path}/elsewhere", "--source=/no/such/folder")
  assert missing.returncode == 1
  assert missing.stderr.strip().splitlines()[-1].startswith("error: --source=/no/such/folder")
  assert "Traceback" not in missing.stderr


def test_a_picture_that_is_also_in_validation_is_dropped_from_training(source, tmp_path):
  shutil.copyfile(png(source, 100), png(source, 1))
  builder, summary = build(source, tmp_path / "data")
  training = keys(builder, "train") + keys(builder, "dev")
  assert len(training) == 39
  assert not [key for key in training if key.endswith("fer0000001.png")]
  assert summary["splits"]["validation"]["images"] == 12


def test_a_picture_that_occurs_twice_in_training_is_there_once(source, tmp_path):
  shutil.copyfile(png(source, 2), png(source, 30))
  builder, _ = build(source, tmp_path / "data")
  names = [key.split("/")[1] for key in keys(builder, "train") + keys(builder, "dev")]
  assert "fer0000002.png" in names
  assert "fer0000030.png" not in names


def test_the_test_folder_is_a_split_of_its_own_where_it_is(source, tmp_path):
  (source / "FER2013Test").mkdir()
  png(source, 111).rename(source / "FER2013Test" / "fer0000111.png")
  shutil.copyfile(source / "FER2013Test" / "fer0000111.png", png(source, 110))
  builder, _ = build(source, tmp_path / "data")
  assert keys(builder, "test") == ["test/fer0000111.png"]
  assert len(keys(builder, "validation")) == 10


def test_rows_without_a_name_and_images_without_a_row_are_left_out(source, tmp_path):
  table = source / "fer2013new.csv"
  lines = [line for line in table.read_text().splitlines() if "fer0000105" not in line]
  lines.append("PublicTest,,4,0,0,1,3,2,0,0,0,0")
  table.write_text("\n".join(lines) + "\n")
  builder, summary = build(source, tmp_path / "data")
  assert summary["splits"]["validation"]["images"] == 11
  assert "validation/fer0000105.png" not in keys(builder, "validation")


@pytest.mark.parametrize(
  ("encoded", "said"),
  [
    (b"not an image", "fer0000104.png: not an image"),
    (b"", "fer0000104.png: not an image"),
    (cv2.imencode(".png", np.zeros((48, 64), np.uint8))[1].tobytes(), "fer0000104.png: 64x48"),
  ],
)
def test_an_image_that_is_not_as_it_should_be_is_named(source, tmp_path, encoded, said):
  good = png(source, 104).read_bytes()
  png(source, 104).write_bytes(encoded)
  with pytest.raises(ValueError, match=said):
    build(source, tmp_path / "data")
  assert not records.is_prepared(records.builder("ferplus", "", str(tmp_path / "data")))
  # Mended, it builds in the same place.
  png(source, 104).write_bytes(good)
  _, summary = build(source, tmp_path / "data")
  assert summary["splits"]["validation"]["images"] == 12


@pytest.mark.parametrize("share", [0.05, 0.6])
def test_a_truncated_image_is_named(source, tmp_path, share):
  whole = png(source, 104).read_bytes()
  png(source, 104).write_bytes(whole[: int(share * len(whole))])
  with pytest.raises(ValueError, match="fer0000104.png"):
    build(source, tmp_path / "data")


def test_a_missing_folder_is_named_with_what_it_should_hold(tmp_path):
  with pytest.raises(ValueError, match="nowhere: no such folder.*fer2013new.csv"):
    build(tmp_path / "nowhere", tmp_path / "data")


def test_without_a_source_the_command_to_run_is_said(tmp_path):
  with pytest.raises(ValueError, match="affjax.data.prepare ferplus --source=FOLDER"):
    prepare.prepare(records.builder("ferplus", "", str(tmp_path)))


def test_a_source_without_training_images_is_named(source, tmp_path):
  shutil.rmtree(source / "FER2013Train")
  with pytest.raises(ValueError, match="no images in FER2013Train"):
    build(source, tmp_path / "data")


def test_a_table_of_another_kind_is_named(source, tmp_path):
  (source / "fer2013new.csv").write_text("emotion,pixels,Usage\n0,1 2 3,Training\n")
  with pytest.raises(ValueError, match="no column.*Image name"):
    build(source, tmp_path / "data")


# The real one.


@pytest.fixture(scope="module")
def real(ferplus_source, tmp_path_factory):
  return build(ferplus_source, tmp_path_factory.mktemp("ferplus"))[1]["splits"]


def test_real_every_image_is_there(real):
  assert real["train"]["images"] + real["dev"]["images"] == 13_424
  assert real["validation"]["images"] == 3_510
  assert 0.09 < real["dev"]["images"] / 13_424 < 0.11


def test_real_the_strict_majority_of_the_validation_split(real):
  counts = real["validation"]["expression"]["expression_strict"]
  assert counts == {
    "neutral": 1051,
    "happiness": 839,
    "surprise": 353,
    "sadness": 274,
    "anger": 231,
    "disgust": 12,
    "fear": 38,
    "contempt": 0,  # not scored
  }
  floor = max(counts.values()) / sum(counts.values())
  assert round(floor, 3) == 0.376
