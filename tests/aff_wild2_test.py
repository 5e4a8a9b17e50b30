"""The Aff-Wild2 builder, on trees in the official formats that `affwild2_tree` makes up."""

import copy
import dataclasses
import errno
import io
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import affwild2_tree
import cv2
import numpy as np
import pytest
import simplejpeg
from affwild2_tree import AU, EXPRESSION, TRAIN, VA, VALIDATION, Film
from affwild_tree import draw, number_in, number_of, prepared, shuffle_folders, stored
from conftest import remount
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.proto import tf_example_pb2

from affjax.data import prepare, records
from scripts import benchmark_aff_wild2, make_aff_wild2_tree
from tfds_builders import stage
from tfds_builders.aff_wild2 import aff_wild2_dataset_builder as builder
from tfds_builders.aff_wild2 import layout, report, rows

ALL = [VA, EXPRESSION, AU]
SPLITS = (TRAIN, VALIDATION)


def tasks_of(config):
  return ALL if config == "all" else [config]


def assert_holds(build, tree, config):
  """Each record has the number of its frame in its pixels, and the labels of that frame."""
  for split in SPLITS:
    wanted = tree.rows(split, tasks_of(config))
    found = stored(build, split)
    assert [(r["video"][0].decode(), r["frame"][0]) for r in found] == wanted
    for record, (video, frame) in zip(found, wanted, strict=True):
      (encoded,) = record.pop("image")
      assert number_in(encoded) == tree.numbers[video][frame]
      assert record == tree.record(split, tasks_of(config), video, frame)


def built_in(folder):
  """What a build that ended has left, of config all: names of the videos that are whole."""
  found = folder.glob(f"aff_wild2/all/{stage.PREFIX}*/*/*.json")
  return sorted(f"{path.parent.name}/{path.stem}" for path in found)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
  """A tree and its truth; not to be written to."""
  return affwild2_tree.write(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def built(tree, tmp_path_factory):
  """The builder of all its tasks, and the summary."""
  return prepared("aff_wild2", tree.folder, tmp_path_factory.mktemp("data"), "all")


@pytest.fixture
def spoilt(tree, tmp_path):
  """A copy of the tree that a test may spoil."""
  shutil.copytree(tree.folder, tmp_path / "source")
  return dataclasses.replace(copy.deepcopy(tree), folder=tmp_path / "source")


# What is built.


@pytest.mark.parametrize(
  ("config", "edition", "seed"),
  [
    ("all", "ABAW6-10", 1),
    ("all", "ABAW1-2", 2),
    ("all", "ABAW3-5", 3),
    (VA, "ABAW6-10", 4),
    (EXPRESSION, "ABAW1-2", 5),
    (AU, "ABAW3-5", 6),
  ],
)
def test_every_label_sits_on_its_own_crop_however_folders_are_listed(
  tmp_path, monkeypatch, config, edition, seed
):
  tree = affwild2_tree.write(tmp_path / "source", seed, edition)
  with monkeypatch.context() as patch:
    shuffle_folders(patch, seed)
    build, summary = prepared("aff_wild2", tree.folder, tmp_path / "data", config)
  assert_holds(build, tree, config)
  described = records.metadata(build)
  names = {VA: ["valence", "arousal"], EXPRESSION: tree.classes, AU: tree.units}
  assert described["labels"] == {task: names[task] for task in tasks_of(config)}
  assert described["edition"] == edition or (edition, config) == ("ABAW3-5", AU)
  for split in SPLITS:
    found = described["counts"][split]
    assert found == {task: tree.counts(split, task) for task in tasks_of(config)}
    counted = summary["splits"][split]
    assert counted["images"] == len(tree.rows(split, tasks_of(config)))
    if EXPRESSION in found:
      assert counted[EXPRESSION]["labelled"] == found[EXPRESSION]["labelled, with a crop"]


def test_the_tree_has_every_quirk(tree):
  labels = tree.lines[VA][TRAIN].values()
  kinds = {tuple(v is None for v in line) for lines in labels for line in lines}
  assert kinds == {(False, False), (False, True), (True, False), (True, True)}
  units = [line for lines in tree.lines[AU][TRAIN].values() for line in lines]
  assert any(0 < sum(v is None for v in line) < 12 for line in units)
  raw = [path.read_bytes() for path in tree.folder.rglob("*.txt")]
  assert {text.startswith(b"\xef\xbb\xbf") for text in raw} == {True, False}
  assert {b"\r\n" in text for text in raw} == {True, False}
  assert {text.endswith(b"\n") for text in raw} == {True, False}
  assert len(list(tree.folder.glob("cropped_aligned*"))) == 3
  lengths = report.lengths(layout.read(layout.find(tree.folder, ALL)))
  assert lengths["video3"] == {17, 24, 26}
  crops = {name: film.crops for name, film in tree.films.items()}
  assert sum(1 not in found for found in crops.values()) > 3
  assert any(max(found, default=0) > 24 for found in crops.values())


def test_the_annotations_and_crops_may_lie_two_folders_deep(tmp_path):
  tree = affwild2_tree.write(
    tmp_path / "source", 7, annotations="5th ABAW Annotations/of 2023", crops="batch/1"
  )
  # As archivers of other systems leave.
  for name in (
    "__MACOSX/VA_Set/Train_Set/._300.txt",
    "5th ABAW Annotations/of 2023/VA_Estimation_Challenge/Train_Set/._300.txt",
    "batch/1/cropped_aligned/300/.DS_Store",
  ):
    (tree.folder / name).parent.mkdir(parents=True, exist_ok=True)
    (tree.folder / name).write_bytes(b"\x00")
  build, _ = prepared("aff_wild2", tree.folder, tmp_path / "data", VA)
  assert_holds(build, tree, VA)


def test_an_archive_unpacked_into_a_folder_of_its_own_name_is_looked_into(spoilt, tmp_path):
  outer = spoilt.folder / affwild2_tree.ARCHIVES[1]
  outer.rename(spoilt.folder / "inner")
  outer.mkdir()
  (spoilt.folder / "inner").rename(outer / outer.name)
  build, _ = prepared("aff_wild2", spoilt.folder, tmp_path / "data", "all")
  assert_holds(build, spoilt, "all")


def test_a_video_may_be_in_both_splits_with_the_labels_of_other_tasks(built, tree):
  build, _ = built
  video, seen = "41-24-1280x720", {}
  for split in SPLITS:
    for record in stored(build, split):
      if record["video"] == [video.encode()]:
        of = seen.setdefault(split, dict.fromkeys(ALL, 0))
        for task in ALL:
          of[task] += any(record[f"mask/{task}"])
  known = lambda task, split: sum(
    any(v is not None for v in ([line] if task == EXPRESSION else line))
    for frame, line in enumerate(tree.lines[task][split][video], 1)
    if frame in tree.films[video].crops
  )
  assert seen[TRAIN] == {VA: known(VA, TRAIN), EXPRESSION: 0, AU: 0}
  of_validation = {task: known(task, VALIDATION) for task in (EXPRESSION, AU)}
  assert seen[VALIDATION] == {VA: 0} | of_validation
  assert all(seen[TRAIN][task] + seen[VALIDATION][task] for task in ALL)
  both = ["41-24-1280x720", "video70"]
  assert records.metadata(build)["in_both_splits"] == both


def test_what_is_not_as_one_may_think_is_reported(built, tree):
  text = "\n".join(records.metadata(built[0])["report"])
  assert "so that a person is in both: 2 (41-24-1280x720, video70)" in text
  assert "more lines for one task than for another: 1 (video3)" in text
  assert "annotated videos without a crop: 1 (video70)" in text
  assert "videos with crops and no annotation: 1 (video99)" in text
  cells = lambda name: re.search(rf"^{name} +(.*)$", text, re.M)[1].split()
  for name in ("lines", "labelled in part", "labelled, without a crop", "crops without a line"):
    counts = [tree.counts(split, task)[name] for split in SPLITS for task in ALL]
    assert cells(name) == [f"{count:,}" for count in counts]


def test_rows_without_any_label_are_kept_and_counted(built, tree):
  for split in SPLITS:
    nothing = [
      not any(
        value is not None
        for task in ALL
        for label in [tree.label(task, split, video, frame)]
        for value in (label if isinstance(label, list) else [label])
      )
      for video, frame in tree.rows(split, ALL)
    ]
    assert records.metadata(built[0])["unlabelled"][split] == sum(nothing) > 0


def test_the_label_table_says_which_frame_of_whom_a_row_is(built, tree):
  table = records.label_table(built[0], VALIDATION)
  wanted = tree.rows(VALIDATION, ALL)
  assert table["frame"].tolist() == [frame for _, frame in wanted]
  assert table["video"].tolist() == [video.encode() for video, _ in wanted]
  assert table["person"].tolist() == table["video"].tolist()


def test_each_video_has_a_file_of_its_own(built, tree):
  for split in SPLITS:
    rows_of = [video for video, _ in tree.rows(split, ALL)]
    lengths = [rows_of.count(video) for video in dict.fromkeys(rows_of)]
    assert list(records.shards(built[0], split).lengths) == lengths


@pytest.mark.parametrize("config", [VA, "all", "expression_full"])
def test_records_are_serialised_as_tfds_would(tree, tmp_path, config):
  features = records.builder("aff_wild2", config, str(tmp_path)).info.features
  theirs = example_serializer.ExampleSerializer(features.get_serialized_info())
  tasks, time = tasks_of(config.removesuffix("_full")), 12.34 if "full" in config else None
  crops = records.builder("aff_wild2", config.removesuffix("_full"), str(tmp_path))
  plan = crops.read(tree.folder)
  for video in plan.videos:
    ours = rows.Records(video)
    for row, frame in enumerate(video.frames.tolist()):
      crop = tree.crop(video.name, frame).read_bytes()
      example = {"labels": {}, "mask": {}, "image": io.BytesIO(crop)}
      example |= {} if time is None else {"time": time}
      for name, values in tree.record(video.split, tasks, video.name, frame).items():
        kind, _, task = name.partition("/")
        if task:
          scalar = name == "mask/expression"
          example[kind][task] = np.array(values[0] if scalar else values, np.float32)
        else:
          example[name] = values[0]
      record = tf_example_pb2.Example.FromString(ours.record(row, crop, time))
      assert record == theirs.get_tf_example(features.encode_example(example))


# Editions.


def published_of(folder, data, config):
  prepared("aff_wild2", folder, data, config)
  # As another process finds it.
  return records.builder("aff_wild2", config, str(data)).published


@pytest.mark.parametrize("edition", ["ABAW1-2", "ABAW3-5", "ABAW6-10"])
def test_published_counts_are_those_of_the_edition(tmp_path, edition):
  tree = affwild2_tree.write(tmp_path / "source", edition=edition)
  found = published_of(tree.folder, tmp_path / "data", VA)
  valid = {"ABAW3-5": 376_323, "ABAW6-10": 376_332}.get(edition)
  if valid is None:
    assert found == {}
  else:
    assert found[VALIDATION] == {VA: {"labelled": {"valence": valid, "arousal": valid}}}
    assert (TRAIN in found) == (edition == "ABAW3-5")


def test_published_counts_add_up():
  found = report.published(layout.NEW, ALL)
  for split, labelled in ((TRAIN, 585_317), (VALIDATION, 280_532)):
    assert found[split][EXPRESSION]["labelled"] == labelled
    assert sum(found[split][EXPRESSION]["votes"].values()) == labelled
  assert set(found[TRAIN][AU]["labelled"].values()) == {1_356_861}
  # What the label files themselves hold, which others have counted.
  assert 280_532 + report._EXPRESSION[VALIDATION][1] == 284_230


def test_of_the_first_editions_nothing_is_marked_as_different(tmp_path, capsys):
  tree = affwild2_tree.write(tmp_path / "source", edition="ABAW1-2")
  where = [f"--source={tree.folder}", f"--data_dir={tmp_path}/data"]
  prepare.main(["aff_wild2", "--config=all", *where])
  out = capsys.readouterr().out
  assert "AU20" in out
  assert "published" not in out
  assert "<-" not in out


def test_headers_tell_the_first_editions_whatever_folders_are_called(tmp_path):
  tree = affwild2_tree.write(tmp_path / "source", edition="ABAW1-2")
  (tree.folder / "EXPR_Set").rename(tree.folder / "EXPR_Classification_Challenge")
  assert published_of(tree.folder, tmp_path / "data", EXPRESSION) == {}


def test_one_folder_under_both_names_is_read_once_if_the_same(spoilt, tmp_path):
  there = spoilt.folder / "EXPR_Recognition_Challenge"
  shutil.copytree(there, spoilt.folder / "EXPR_Classification_Challenge")
  build, _ = prepared("aff_wild2", spoilt.folder, tmp_path / "data", EXPRESSION)
  assert_holds(build, spoilt, EXPRESSION)
  assert records.metadata(build)["edition"] == layout.EITHER


# What is wrong is named.


def remove(pattern):
  return lambda tree: [shutil.rmtree(path) for path in tree.folder.glob(pattern)]


def twice(task, to):
  def change(tree):
    shutil.copytree(tree.folder / affwild2_tree.EDITIONS[tree.edition][0][task], tree.folder / to)

  return change


def edit(task, split, video, change):
  def apply(tree):
    path = tree.annotation(task, split, video)
    lines = path.read_bytes().decode("utf-8-sig").splitlines()
    path.write_text("\n".join(change(lines)) + "\n")

  return apply


def other_edition(tree):
  for name in ("EXPR_Recognition_Challenge", "AU_Detection_Challenge"):
    (tree.folder / name).rename(tree.folder / f"{name.partition('_')[0]}_Set")


def in_both_splits(tree):
  path = tree.annotation(VA, TRAIN, "300")
  shutil.copy(path, tree.annotation(VA, VALIDATION, "300"))


def other_spelling(tree):
  twice(EXPRESSION, "EXPR_Classification_Challenge")(tree)
  path = tree.folder / "EXPR_Classification_Challenge" / "Train_Set" / "300.txt"
  path.write_bytes(path.read_bytes() + b"\n3")


def crop(video, frame, content=None, to=None):
  """Writes a file among the crops of a video; default a proper crop."""

  def change(tree):
    path = tree.folder / (to or affwild2_tree.ARCHIVES[tree.films[video].archive]) / video
    path.mkdir(parents=True, exist_ok=True)
    picture = draw(1, np.random.default_rng(0)) if content is None else content
    (path / f"{frame:05d}.jpg").write_bytes(picture)

  return change


def link(tree):
  outside = tree.folder.parent / "outside"
  (tree.folder / "cropped_aligned" / "300").rename(outside)
  (tree.folder / "cropped_aligned" / "300").symlink_to(outside)


def link_crop(tree):
  path, outside = tree.crop("300", 1), tree.folder.parent / "outside.jpg"
  path.rename(outside)
  path.symlink_to(outside)


SMALL = cv2.imencode(".jpg", np.zeros((96, 112, 3), np.uint8))[1].tobytes()
AS_LIST = ["image_location,valence,arousal", "300/00001.jpg,0,0", "300/00003.jpg,0,0"]


@pytest.mark.parametrize(
  ("config", "spoil", "says"),
  [
    (AU, remove("AU*"), "no folder AU_Detection_Challenge or AU_Set in it or up to 2 .*--config"),
    (VA, remove("VA*/Train_Set"), "VA_Estimation_Challenge/Train_Set: no annotation files"),
    (VA, twice(VA, "VA_Set"), "VA_Estimation_Challenge and .*/VA_Set differ: .* one edition"),
    (EXPRESSION, other_spelling, "EXPR_Classification.* and .*EXPR_Recognition.* differ"),
    (VA, twice(VA, "b/VA_Set"), "differ: .* one edition"),
    ("all", other_edition, "VA_Est.* and .*EXPR_Set and .*AU_Set are of ABAW1-2 and of later"),
    (VA, in_both_splits, "VA_Estimation_Challenge: video '300' is in both splits"),
    (VA, edit(VA, TRAIN, "300", lambda lines: AS_LIST), "300.txt:1: a list of images"),
    (VA, edit(VA, TRAIN, "300", lambda lines: [*lines, "0,2"]), "300.txt:26: arousal '2'"),
    (AU, edit(AU, TRAIN, "300", lambda lines: ["AU1,AU2,AU4,AU6,AU12,AU15,AU20,AU25"]),
     "300.txt:1: another header than in .*12-30-640x360.txt"),
    (VA, remove("cropped*"), "no folder of crops, cropped_aligned or cropped_aligned_..., in it"),
    (VA, crop("300", 0), "300/00000.jpg: official crops are counted from 1"),
    (VA, crop("300", 1, to="cropped_aligned_images"), "300 and .*images/300 hold different crops"),
    (VA, link, "aligned/300: a link leads out of"),
    (VA, link_crop, "300/00001.jpg: a link leads out of"),
    (VA, crop("300", 1, b""), r"300/00001.jpg: not an image.*0 bytes"),
    (VA, crop("300", 1, SMALL), "300/00001.jpg: 112x96 pixels; expected 112x112"),
  ],
)  # fmt: skip
def test_what_is_wrong_is_named_and_mended_it_builds(spoilt, tree, tmp_path, config, spoil, says):
  spoil(spoilt)
  with pytest.raises(ValueError, match=says) as error:
    prepared("aff_wild2", spoilt.folder, tmp_path / "data", config)
  assert "\n" not in str(error.value)
  assert not records.is_prepared(records.builder("aff_wild2", config, str(tmp_path / "data")))
  assert not list((tmp_path / "data").rglob("incomplete*"))
  build, _ = prepared("aff_wild2", tree.folder, tmp_path / "data", config)
  assert_holds(build, tree, config)


def test_a_split_without_any_picture_is_named(spoilt, tmp_path):
  for name, film in spoilt.films.items():
    if film.splits.get(VA) == VALIDATION:
      shutil.rmtree(spoilt.crop(name, 1).parent)
  with pytest.raises(ValueError, match="no annotated video of validation has a crop"):
    prepared("aff_wild2", spoilt.folder, tmp_path / "data", VA)


def test_the_same_crops_in_two_archives_are_taken_once(spoilt, tmp_path):
  archives = spoilt.folder / "cropped_aligned", spoilt.folder / "cropped_aligned_images"
  shutil.copytree(archives[0] / "300", archives[1] / "300")
  build, _ = prepared("aff_wild2", spoilt.folder, tmp_path / "data", "all")
  assert_holds(build, spoilt, "all")


def test_files_among_crops_that_are_none_are_left_out_and_named(spoilt, tmp_path):
  for name in ("00003.png", "1.jpg", "000001.jpg"):
    (spoilt.crop("300", 1).parent / name).write_bytes(b"")
  build, _ = prepared("aff_wild2", spoilt.folder, tmp_path / "data", "all")
  assert_holds(build, spoilt, "all")
  assert "left out: 3 (" in "\n".join(records.metadata(build)["report"])


# What a build that ended leaves.


def test_all_that_is_broken_is_named_at_once_and_the_other_videos_are_kept(spoilt, tmp_path):
  broken = [spoilt.crop("300", 1), spoilt.crop("300", 8), spoilt.crop("video81", 2)]
  whole = {path: path.read_bytes() for path in broken}
  for path in broken:
    path.write_bytes(b"no image")
  with pytest.raises(ValueError) as error:
    prepared("aff_wild2", spoilt.folder, tmp_path, "all")
  assert all(str(path) in str(error.value) for path in broken)
  kept = built_in(tmp_path)
  assert kept
  assert not {"train/300", "validation/video81"} & set(kept)
  inodes = {p.stat().st_ino for p in tmp_path.rglob("*.array_record")}
  for path, content in whole.items():
    path.write_bytes(content)
  build, _ = prepared("aff_wild2", spoilt.folder, tmp_path, "all")
  assert_holds(build, spoilt, "all")
  files = [path for split in SPLITS for path in records.shards(build, split).paths]
  assert inodes < {os.stat(path).st_ino for path in files}
  assert len(files) == len(kept) + 2
  assert not list(tmp_path.rglob(f"{stage.PREFIX}*"))


def test_more_than_ten_broken_images_are_counted(spoilt, tmp_path):
  for frame in range(1, 15):
    spoilt.crop("12-30-640x360", frame).write_bytes(b"")
  with pytest.raises(ValueError, match="; and 4 more .*kept") as error:
    prepared("aff_wild2", spoilt.folder, tmp_path, VA)
  assert str(error.value).count("not an image") == 10


@pytest.mark.parametrize("kind", ["label", "line", "crop", "gap"])
def test_what_has_changed_since_is_written_anew(spoilt, tmp_path, kind):
  broken = spoilt.crop("video81", 2)
  picture = broken.read_bytes()
  broken.write_bytes(b"")
  with pytest.raises(ValueError):
    prepared("aff_wild2", spoilt.folder, tmp_path, "all")
  assert "train/300" in built_in(tmp_path)
  broken.write_bytes(picture)
  lines = spoilt.lines[VA][TRAIN]["300"]
  if kind in ("label", "line"):
    lines[6] = [0.25, -0.5]
    if kind == "line":
      lines.append([1.0, 1.0])
    text = [",".join("-5" if v is None else repr(v) for v in line) for line in lines]
    edit(VA, TRAIN, "300", lambda old: [old[0], *text])(spoilt)
  elif kind == "crop":
    spoilt.numbers["300"][7] = 77
    spoilt.crop("300", 7).write_bytes(draw(77, np.random.default_rng(9)))
  else:
    spoilt.crop("300", 7).unlink()
    spoilt.films["300"].crops.remove(7)
  build, _ = prepared("aff_wild2", spoilt.folder, tmp_path, "all")
  assert_holds(build, spoilt, "all")


def test_a_kept_file_that_is_damaged_is_written_anew(spoilt, tmp_path):
  broken = spoilt.crop("video81", 2)
  picture = broken.read_bytes()
  broken.write_bytes(b"")
  with pytest.raises(ValueError):
    prepared("aff_wild2", spoilt.folder, tmp_path, "all")
  broken.write_bytes(picture)
  (folder,) = (tmp_path / "aff_wild2" / "all").glob(f"{stage.PREFIX}*")
  with (folder / "train" / "300.array_record").open("ab") as file:
    file.truncate(1000)
  (folder / "train" / "510.json").write_text("{")
  (folder / "train" / "5.array_record").unlink()
  (folder / "train" / "video90.123").write_text("of a process that was killed")
  (folder.parent / f"{stage.PREFIX}0.9.0").mkdir()
  build, _ = prepared("aff_wild2", spoilt.folder, tmp_path, "all")
  assert_holds(build, spoilt, "all")
  assert not list(tmp_path.rglob(f"{stage.PREFIX}*"))


def test_what_was_kept_needs_no_room_again(spoilt, tmp_path):
  build = records.builder("aff_wild2", "all", str(tmp_path))
  size = build.megabytes(spoilt.folder)
  broken = spoilt.crop("video81", 2)
  broken.write_bytes(b"")
  with pytest.raises(ValueError):
    prepared("aff_wild2", spoilt.folder, tmp_path, "all")
  assert 0 < build.megabytes(spoilt.folder) < size / 4
  assert build.kept() == len(built_in(tmp_path))


@pytest.fixture(scope="module")
def long_tree(tmp_path_factory):
  """Long enough to be killed in the middle."""
  split = lambda i: dict.fromkeys(ALL, VALIDATION if i % 5 == 0 else TRAIN)
  made = {f"video{i}": Film(split(i), 300, set(range(1, 301))) for i in range(10)}
  return affwild2_tree.write(tmp_path_factory.mktemp("long"), made=made)


@pytest.fixture(scope="module")
def undisturbed(long_tree, tmp_path_factory):
  build, _ = prepared("aff_wild2", long_tree.folder, tmp_path_factory.mktemp("data"), "all")
  return build


PREPARE = """
import sys
from affjax.data import prepare
from tfds_builders import stage
stage.WORTH_WORKERS = 0
prepare.main(sys.argv[1:])
"""


def start(tree, data_dir):
  """Prepares in a process of its own, which starts others."""
  return subprocess.Popen(
    [sys.executable, "-c", PREPARE, "aff_wild2", "--config=all",
     f"--source={tree.folder}", f"--data_dir={data_dir}"],
    cwd=Path(__file__).parent.parent,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )  # fmt: skip


def signalled(tree, data_dir, number):
  """Starts a build, sends it a signal once two videos are whole; what it says, its workers."""
  process = start(tree, data_dir)
  while len(built_in(data_dir)) < 2:
    assert process.poll() is None, process.communicate()
    time.sleep(0.001)
  listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
  process.send_signal(number)
  return process.communicate()[1], [int(pid) for pid in listed], process.returncode


def wait_for_end(processes):
  until = time.monotonic() + 20
  while any(Path(f"/proc/{pid}").exists() for pid in processes):
    assert time.monotonic() < until, "a worker outlives its build"
    time.sleep(0.01)


def files_of(build):
  paths = [Path(path) for split in SPLITS for path in records.shards(build, split).paths]
  return {path.name: path.read_bytes() for path in paths}


@pytest.mark.slow
def test_a_killed_build_goes_on_and_holds_what_an_undisturbed_one_does(
  long_tree, undisturbed, tmp_path
):
  _, workers, code = signalled(long_tree, tmp_path, signal.SIGKILL)
  assert code == -signal.SIGKILL
  assert workers
  wait_for_end(workers)
  kept = built_in(tmp_path)
  assert 2 <= len(kept) < 10
  inodes = {p.stat().st_ino for p in tmp_path.rglob("*.array_record")}
  build, summary = prepared("aff_wild2", long_tree.folder, tmp_path, "all")
  assert summary == records.summary(undisturbed)
  assert files_of(build) == files_of(undisturbed)
  paths = [path for split in SPLITS for path in records.shards(build, split).paths]
  assert inodes & {os.stat(path).st_ino for path in paths}
  assert_holds(build, long_tree, "all")
  assert not list(tmp_path.rglob(f"{stage.PREFIX}*"))


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_and_keeps_whole_videos(long_tree, undisturbed, tmp_path):
  said, workers, code = signalled(long_tree, tmp_path, signal.SIGINT)
  assert code == 1
  assert said.splitlines()[-1].startswith("interrupted: ")
  assert "Traceback" not in said
  wait_for_end(workers)
  kept = built_in(tmp_path)
  assert 2 <= len(kept) < 10
  assert f"{len(kept)} whole videos are kept; the same command goes on" in said.splitlines()[-1]
  left = {path.suffix for path in tmp_path.rglob(f"{stage.PREFIX}*/*/*")}
  assert left == {".json", ".array_record"}
  build, _ = prepared("aff_wild2", long_tree.folder, tmp_path, "all")
  assert files_of(build) == files_of(undisturbed)


@pytest.mark.slow
def test_records_do_not_depend_on_the_number_of_processes(
  long_tree, undisturbed, tmp_path, monkeypatch
):
  monkeypatch.setattr(stage, "WORTH_WORKERS", 0)
  monkeypatch.setattr(stage, "_cores", lambda: 3)
  build, _ = prepared("aff_wild2", long_tree.folder, tmp_path, "all")
  assert files_of(build) == files_of(undisturbed)


def leave(job, write):
  """A task that ends its process."""
  os._exit(3)


def no_room(job, write):
  """A task whose files cannot be written."""
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("task", "error", "says"),
  [(leave, RuntimeError, "writes train/b died"), (no_room, OSError, os.strerror(errno.ENOSPC))],
)
def test_what_ends_a_process_ends_the_build(tmp_path, task, error, says):
  parts = [stage.Part("train/b", "1", 9, None)]
  with pytest.raises(error, match=says):
    stage.Stage(tmp_path / ".stage-1").write(parts, task, "video", workers=2)
  assert not list(tmp_path.rglob("*.*"))[1:]


def test_a_build_that_finds_no_room_goes_on_when_there_is_some(
  long_tree, undisturbed, disk, monkeypatch
):
  place = disk("size=5m")
  with monkeypatch.context() as patch:
    patch.setattr(builder.Builder, "megabytes", lambda self, source: 0)
    with pytest.raises(ValueError, match=os.strerror(errno.ENOSPC)):
      prepared("aff_wild2", long_tree.folder, place, "all")
  assert 0 < len(built_in(place)) < 10
  remount(place, "size=40m")
  build, _ = prepared("aff_wild2", long_tree.folder, place, "all")
  assert files_of(build) == files_of(undisturbed)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path):
  noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
  jpeg = simplejpeg.encode_jpeg(noise, quality=98)
  (tmp_path / "00001.jpg").write_bytes(jpeg)
  count = 3000
  for frame in range(2, count + 1):
    os.link(tmp_path / "00001.jpg", tmp_path / f"{frame:05d}.jpg")

  def peak(length):
    frames = np.arange(1, length + 1, dtype=np.int32)
    lines = {VA: np.zeros((length, 2), np.float32)}
    names = {VA: 2, EXPRESSION: 0, AU: 0}
    video = rows.Video(TRAIN, "long", tmp_path, frames, frames, names, lines)
    part = stage.Part(f"train/{length}", "1", length, video)
    stage.Stage(tmp_path / ".stage-1").write([part], rows.crops, "video", workers=1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

  before, after = peak(count // 10), peak(count)
  assert len(jpeg) * count > 70e6
  assert after - before < 20e6


def test_overwriting_builds_anew_what_has_changed(spoilt, tmp_path):
  prepared("aff_wild2", spoilt.folder, tmp_path, VA)
  spoilt.lines[VA][TRAIN]["5"] = [[0.75, -0.75]]
  edit(VA, TRAIN, "5", lambda lines: [lines[0], "0.75,-0.75"])(spoilt)
  build = records.builder("aff_wild2", VA, str(tmp_path))
  prepare.prepare(build, str(spoilt.folder), overwrite=True)
  assert_holds(build, spoilt, VA)


# Whole frames.

BIG = 48  # pixels of a block, which coding does not blur


def write_video(path, numbers, fps=25):
  """Writes frames that carry their numbers."""
  av = pytest.importorskip("av")
  rng = np.random.default_rng(0)
  with av.open(str(path), "w") as container:
    stream = container.add_stream("mpeg4", rate=fps)
    stream.width, stream.height, stream.pix_fmt = 8 * BIG, 6 * BIG, "yuv420p"
    stream.bit_rate = 4_000_000
    for number in numbers:
      crop = cv2.imdecode(np.frombuffer(draw(number, rng), np.uint8), cv2.IMREAD_COLOR)
      picture = cv2.resize(crop[:48, :64], (8 * BIG, 6 * BIG), interpolation=cv2.INTER_NEAREST)
      for packet in stream.encode(av.VideoFrame.from_ndarray(picture, "bgr24")):
        container.mux(packet)
    for packet in stream.encode():
      container.mux(packet)


def number_in_frame(encoded):
  picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
  assert min(picture.shape[:2]) == rows.FULL_SIZE
  return number_of(cv2.resize(picture, (64, 48), interpolation=cv2.INTER_AREA))


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
  """A tree with videos instead of crops: it, and base name -> the numbers of its frames."""
  pytest.importorskip("av")
  tree = affwild2_tree.write(tmp_path_factory.mktemp("filmed"), 3)
  for archive in affwild2_tree.ARCHIVES:
    shutil.rmtree(tree.folder / archive)
  shuffle, numbers = random.Random(0), {}
  lengths = {"12-30-640x360": 23, "300": 24, "video3": 22, "video9": 26, "video99": 3}
  for i, (base, length) in enumerate(({"88-30-1920x1080": 23} | lengths).items()):
    numbers[base] = [shuffle.getrandbits(24) for _ in range(length)]
    path = tree.folder / f"batch{i % 2 + 1}" / f"{base}.{('mp4', 'avi')[i % 2]}"
    path.parent.mkdir(exist_ok=True)
    write_video(path, numbers[base])
  return tree, numbers


@pytest.fixture(scope="module")
def in_full(filmed, tmp_path_factory):
  return prepared("aff_wild2", filmed[0].folder, tmp_path_factory.mktemp("data"), "all_full")[0]


def test_whole_frames_have_the_labels_of_their_number(filmed, in_full):
  tree, numbers = filmed
  for split in SPLITS:
    longest = {
      video: max(len(tree.lines[task][split].get(video, [])) for task in ALL)
      for video in tree.films
    }
    wanted = [
      (video, frame)
      for video in sorted(longest)
      for frame in range(1, longest[video] + 1)
      if frame <= len(numbers.get(re.sub("_(left|right)$", "", video), []))
    ]
    found = stored(in_full, split)
    assert [(r["video"][0].decode(), r["frame"][0]) for r in found] == wanted
    for record, (video, frame) in zip(found, wanted, strict=True):
      (encoded,), (seconds,) = record.pop("image"), record.pop("time")
      base = re.sub("_(left|right)$", "", video)
      assert number_in_frame(encoded) == numbers[base][frame - 1]
      assert seconds == pytest.approx((frame - 1) / 25, abs=1e-3)
      assert record == tree.record(split, ALL, video, frame)


def test_both_people_of_a_video_have_the_same_pictures(in_full):
  of = lambda split, video: [
    r["image"] for r in stored(in_full, split) if r["video"] == [video.encode()]
  ]
  left = of(TRAIN, "88-30-1920x1080_left")
  assert len(left) == 23
  assert left == of(VALIDATION, "88-30-1920x1080_right")


def test_frames_and_lines_that_differ_in_number_are_reported(filmed, in_full):
  described = records.metadata(in_full)
  text = "\n".join(described["report"])
  # video3 has 26 lines for va and 22 frames; video9 has 24 and 26, and its second person too.
  assert "frames less lines: -4 in 1 videos, -1 in 3 videos, +0 in 1 videos, +2 in 2 videos" in text
  assert described["counts"][TRAIN][VA]["lines without a frame"] > 4
  assert "videos with frames and no annotation: 1 (video99)" in text
  assert in_full.published == {}


def test_a_video_that_cannot_be_decoded_is_named(filmed, tmp_path):
  source = shutil.copytree(filmed[0].folder, tmp_path / "source")
  (path,) = (path for path in source.rglob("300.*") if path.suffix != ".txt")
  path.write_bytes(path.read_bytes()[:64])
  with pytest.raises(ValueError, match=f"{path.name}"):
    prepared("aff_wild2", source, tmp_path / "data", "va_full")


def test_whole_frames_need_videos(tree, tmp_path):
  with pytest.raises(ValueError, match="no videos .*mp4.* anywhere in it"):
    prepared("aff_wild2", tree.folder, tmp_path, "va_full")


# The tree that the benchmark measures on.


def test_a_generated_tree_is_like_the_real_one_and_its_pixels_say_which_frame_they_are(
  tmp_path, monkeypatch
):
  source = tmp_path / "source"
  options = ["--videos=30", "--frames=3000", "--seed=3"]
  monkeypatch.setattr(sys, "argv", ["make_aff_wild2_tree", str(source), *options])
  make_aff_wild2_tree.main()
  build, _ = prepared("aff_wild2", source, tmp_path / "data", "all")
  counts = records.metadata(build)["counts"]
  of = lambda task, what: sum(counts[split][task][what] for split in SPLITS)
  assert of(VA, "lines") == pytest.approx(3000, abs=30)
  assert 0.55 < of(EXPRESSION, "labelled lines") / of(EXPRESSION, "lines") < 0.7
  assert 0.02 < of(VA, "lines without a crop") / of(VA, "lines") < 0.12
  opened = benchmark_aff_wild2.opened("all", tmp_path / "data")
  assert benchmark_aff_wild2.check(source, opened, 1) == sum(map(len, opened.values()))
  # And would it be seen?
  (path, *_) = sorted(source.glob("*/VA_Estimation_Challenge/Train_Set/*.txt"))
  header, first, *lines = path.read_text().splitlines()
  path.write_text("\n".join([header, *lines, first]) + "\n")
  benchmark_aff_wild2.lines_of.cache_clear()
  with pytest.raises(SystemExit, match=f"is not frame .* of {path.stem}"):
    benchmark_aff_wild2.check(source, opened, 1)
