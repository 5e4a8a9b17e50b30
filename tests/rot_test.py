"""Damaged data are named by file and record, or masked and counted; builds are whole or absent."""

import contextlib
import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from affwild_tree import write_folder
from array_record.python import array_record_module
from conftest import debug_config, remount

from affjax import experiment, resident, sharding
from affjax.data import manifest, packed, pipeline, prepare, records
from scripts import rot_matrix
from scripts.rot_matrix import FAULTS, FILE, SPLIT

OF_RECORDS = [name for name, fault in FAULTS.items() if fault.says]
OF_CACHES = [name for name, fault in FAULTS.items() if not fault.says]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A data_dir with the tiny faces, three files of the training split, packed too."""
  folder = tmp_path_factory.mktemp("whole")
  rot_matrix.faces(folder)
  return folder


@pytest.fixture(scope="module")
def expected(whole):
  """The whole training split as one batch."""
  return rot_matrix.read(rot_matrix.opened(whole, "error"))


@pytest.fixture
def copy(whole, tmp_path):
  shutil.copytree(whole, tmp_path / "data")
  return tmp_path / "data"


def builder(data_dir):
  return records.builder("synthetic_faces", "tiny", str(data_dir))


def folder(data_dir):
  return Path(builder(data_dir).data_dir)


def one_line(error):
  text = str(error.value)
  assert "\n" not in text
  return text


def lost_rows(data_dir, name):
  """The rows that a fault costs; of a flipped byte that of which ArrayRecord itself says so."""
  if FAULTS[name].lost:
    return list(FAULTS[name].lost)
  path = rot_matrix.file(
    data_dir, rot_matrix.PACKED if FAULTS[name].kind == "encoded" else rot_matrix.SHARD
  )
  reader = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
  lost = []
  for record in range(reader.num_records()):
    try:
      reader.read([record])
    except RuntimeError:
      lost.append(32 * FILE + record)
  assert len(lost) == 1
  return lost


def same(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def masked(batch, lost):
  """A batch as it should be where rows are lost."""
  blank = jax.tree.map(np.copy, batch)
  rows = np.flatnonzero(np.isin(batch["index"], lost))
  for x in jax.tree.leaves(blank):
    x[rows] = 0
  blank["index"][rows] = -1
  return blank


# Training on it.


@pytest.mark.parametrize("name", OF_RECORDS)
def test_damage_is_an_error_that_names_file_and_record(name, copy):
  FAULTS[name].make(copy)
  files = {"tfds": rot_matrix.SHARD, "encoded": rot_matrix.PACKED}
  place = f"{folder(copy)}/{files[FAULTS[name].kind]}: "
  if not FAULTS[name].at_start:
    place = f"record {lost_rows(copy, name)[0] - 32 * FILE} of {place}"
  opened = []
  with pytest.raises(ValueError, match=FAULTS[name].says) as error:  # noqa: PT012
    opened.append(rot_matrix.opened(copy, "error", FAULTS[name].kind))
    rot_matrix.read(opened[0])
  assert one_line(error).startswith(place)
  assert "config.data.unreadable='skip'" in str(error.value)
  assert bool(opened) != FAULTS[name].at_start  # before anything is compiled


@pytest.mark.parametrize("name", OF_RECORDS)
def test_skipping_masks_the_damaged_rows_alone_and_counts_them(name, copy, expected, capsys):
  FAULTS[name].make(copy)
  lost = lost_rows(copy, name)
  data = rot_matrix.opened(copy, "skip", FAULTS[name].kind)
  assert data.skipped == {}
  same(rot_matrix.read(data), masked(expected, lost))
  rot_matrix.read(data)  # what is read again is counted once
  facts = data.skipped[SPLIT]
  assert (facts["count"], facts["of"]) == (len(lost), 96)
  assert len(facts["first"]) == min(len(lost), 5)
  assert facts["first"][0].startswith(f"record {lost[0] - 32 * FILE} of {folder(copy)}/")
  assert capsys.readouterr().err.count("skipped in train") == 1


@pytest.mark.parametrize("name", OF_CACHES)
@pytest.mark.parametrize("unreadable", experiment.UNREADABLE)
def test_what_is_made_from_the_records_is_made_anew(
  name, unreadable, copy, expected, whole, capsys
):
  FAULTS[name].make(copy)
  data = rot_matrix.opened(copy, unreadable)
  same(rot_matrix.read(data), expected)
  assert data.summary == records.summary(builder(whole))
  assert "so it is made anew" in capsys.readouterr().err
  assert manifest.verify(builder(copy))


def test_nothing_is_skipped_of_what_is_whole(whole, expected, capsys):
  data = rot_matrix.opened(whole, "skip")
  same(rot_matrix.read(data), expected)
  assert data.skipped == {}
  assert capsys.readouterr().err == ""


def test_workers_lose_the_same_rows(copy, expected):
  FAULTS["undecodable image"].make(copy)
  data = rot_matrix.opened(copy, "skip")
  same(rot_matrix.read(data, workers=2), masked(expected, rot_matrix.ROW))
  assert data.skipped[SPLIT]["first"][0].endswith(": the image cannot be decoded")


def test_training_takes_the_other_samples_in_the_same_order(copy, expected):
  FAULTS["missing shard"].make(copy)
  split = rot_matrix.opened(copy, "skip").records(SPLIT)
  order = pipeline.order(96, 0, 16)[:9]
  for step, batch in enumerate(pipeline.batches(split, order)):
    rows = order[step]
    np.testing.assert_array_equal(
      batch["index"], np.where(np.isin(rows, rot_matrix.ROWS), -1, rows)
    )
    same(batch, masked(jax.tree.map(lambda x, rows=rows: x[rows], expected), rot_matrix.ROWS))


@pytest.mark.parametrize("spread", [False, True])
def test_device_memory_holds_what_streaming_gives(spread, copy, expected):
  FAULTS["truncated shard"].make(copy)
  data, mesh = rot_matrix.opened(copy, "skip"), sharding.make_mesh()
  held = resident.Resident(data.records(SPLIT), mesh, spread=spread)
  assert data.skipped[SPLIT]["count"] == 32
  order = pipeline.order(96, 1, 16)[:4]
  gather = jax.jit(held.batch)
  streamed = pipeline.batches(data.records(SPLIT), order)
  for rows, batch in zip(held.rows(order), streamed, strict=True):
    assert (batch["index"] == -1).any()
    same(jax.device_get(gather(held.arrays, rows)), batch)
  assert data.skipped[SPLIT]["count"] == 32  # one count of both


def test_earlier_runs_stop_at_damage_and_other_words_are_refused(copy):
  config = debug_config(data__records="tfds")
  assert config["data"].pop("unreadable") == "error"
  FAULTS["missing shard"].make(copy)
  with pytest.raises(ValueError, match="No such file or directory"):
    experiment.Data(config, str(copy))
  config["data"]["unreadable"] = "ignore"
  with pytest.raises(ValueError, match="unreadable='ignore': use one of error, skip"):
    experiment.Data(config, str(copy))


def test_no_damage_to_a_file_crashes_or_gives_another_record(tmp_path):
  writer = array_record_module.ArrayRecordWriter(str(tmp_path / "whole"), "group_size:1")
  rng = np.random.default_rng(0)
  content = [rng.bytes(700) for _ in range(20)]
  with contextlib.closing(writer):
    for record in content:
      writer.write(record)
  whole = (tmp_path / "whole").read_bytes()
  lost = []
  for case in range(300):
    damaged = bytearray(whole)
    if case % 3 == 0:
      del damaged[rng.integers(len(whole)) :]
    else:
      at = rng.integers(15_000) if case % 3 == 1 else rng.integers(len(whole))
      damaged[at : at + 8] = rng.bytes(len(damaged[at : at + 8]))
    (tmp_path / "damaged").write_bytes(damaged)
    shards = records.Shards((str(tmp_path / "damaged"),), (20,))
    for row in range(20):
      try:
        assert shards.record(row) == content[row]
      except ValueError as e:
        lost.append(str(e).startswith(f"record {row} of "))
  assert all(lost)
  assert 0 < len(lost) < 300 * 20


def test_a_file_of_another_number_of_records_is_damaged(copy):
  shards = records.shards(builder(copy), SPLIT)
  Path(shards.paths[0]).write_bytes(rot_matrix.file(copy, "*-test.*").read_bytes())
  assert len(records.shards(builder(copy), "test")) == 32
  other = records.Shards(shards.paths, (31, *shards.lengths[1:]))
  with pytest.raises(ValueError, match="record 0 of .*00000-of-00003: 32 records, expected 31"):
    other.record(0)


# Tables and descriptions.


def test_a_table_with_any_byte_flipped_is_noticed_or_as_it_was(copy):
  build = builder(copy)
  path = folder(copy) / records.TABLE.format(SPLIT)
  whole, table = path.read_bytes(), records.kept_table(build, SPLIT)
  noticed = 0
  for byte in range(0, len(whole), 17):
    path.write_bytes(whole)
    rot_matrix.flip(path, byte)
    found = records.kept_table(build, SPLIT)
    noticed += found is None
    same(found or table, table)
  assert noticed > 0.5 * len(whole) / 17


def test_labels_cannot_be_skipped_where_there_is_no_table(copy):
  FAULTS["flipped byte"].make(copy)
  rot_matrix.file(copy, records.TABLE.format(SPLIT)).unlink()
  with pytest.raises(ValueError, match="labels of train cannot be .*: record .*hash mismatch"):
    rot_matrix.opened(copy, "skip").records(SPLIT)


def test_a_record_without_the_labels_of_the_others_is_named(copy):
  rot_matrix.rewrite(copy, lambda record: b"")
  rot_matrix.file(copy, records.TABLE.format(SPLIT)).unlink()
  with pytest.raises(ValueError, match="record 5 of .*: the record has no key"):
    records.label_table(builder(copy), SPLIT)


@pytest.mark.parametrize(
  ("name", "content"),
  [
    *((name, x) for name in (records.INFO, records.METADATA) for x in (b"", b"{", b"[1]", b"\xff")),
    (records.INFO, b'{"name": 1}'),  # no description of a data set
  ],
)
def test_a_description_that_cannot_be_read_is_named(name, content, copy):
  path = rot_matrix.file(copy, name)
  path.write_bytes(content)
  with pytest.raises(ValueError) as error:
    builder(copy)
  assert one_line(error).startswith(f"{path} cannot be read (")


def test_a_description_that_is_missing_is_named(copy):
  path = rot_matrix.file(copy, records.METADATA)
  path.unlink()
  with pytest.raises(ValueError) as error:
    rot_matrix.opened(copy, "error").records(SPLIT)
  assert one_line(error).startswith(f"{path} cannot be read (")
  rot_matrix.file(copy, records.INFO).unlink()
  with pytest.raises(ValueError, match=f"{path.parent} is damaged, there is no {records.INFO}"):
    prepare.prepare(builder(copy))


# Packed records.


@pytest.mark.parametrize(
  "change",
  [
    {"files": ["../x", "b", "c"]},
    {"files": ["/etc/passwd", "b", "c"]},
    {"files": ["..", "b", "c"]},
    {"files": "abc"},
    {"files": None},
    {"lengths": [32, 32]},
    {"lengths": [32, 32, 31]},
    {"lengths": [32, 32, "32"]},
  ],
)
def test_packed_files_lie_beside_what_describes_them_and_hold_the_split(change, copy):
  path = rot_matrix.file(copy, f"affjax_{SPLIT}-encoded.json")
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(ValueError) as error:
    packed.shards(builder(copy), SPLIT, "auto", 112)
  assert one_line(error).startswith(f"{path}: expected files beside it")


def test_a_packed_description_that_cannot_be_read_is_named(copy, capsys):
  path = rot_matrix.file(copy, f"affjax_{SPLIT}-encoded.json")
  path.write_bytes(path.read_bytes()[:50])
  with pytest.raises(ValueError) as error:
    packed.shards(builder(copy), SPLIT, "auto", 112)
  assert one_line(error).startswith(f"{path} cannot be read")
  assert not manifest.verify(builder(copy))
  assert path.name in capsys.readouterr().out


@pytest.mark.parametrize("pixels", [None, 112])
def test_what_is_damaged_is_not_packed_but_named(pixels, copy):
  FAULTS["no image"].make(copy)
  for path in folder(copy).glob("affjax_*-*"):
    path.unlink()
  with pytest.raises(ValueError, match="^record 5 of .*00001-of-00003: the record holds no image"):
    packed.pack(builder(copy), SPLIT, pixels)
  assert not [p for p in folder(copy).iterdir() if "encoded" in p.name or "pixels" in p.name]


def test_pixels_of_another_length_are_damaged(copy):
  build = builder(copy)
  packed.pack(build, "test", 32)
  path = rot_matrix.file(copy, "affjax_test-pixels32.array_record*")
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
  with contextlib.closing(writer):
    for record in range(32):
      writer.write(bytes(32 * 32 * 3 - (record == 9)))
  found = packed.find(build, "test", 32)
  images = records.Images(found, (32, 32))
  assert records.lost(images(np.arange(32))["index"]).tolist() == [9]
  assert images.why(9) == f"record 9 of {path}: 3071 bytes, expected 3072"


# Verifying.


def run(capsys, data_dir, *arguments):
  """Runs `prepare`: its exit status, stdout, and its last words or stderr."""
  with pytest.raises(SystemExit) as end:
    prepare.main(["synthetic_faces", "--config=tiny", f"--data_dir={data_dir}", *arguments])
  said = capsys.readouterr()
  code = end.value.code
  return (1, said.out, code) if isinstance(code, str) else (code, said.out, said.err)


def test_the_manifest_is_of_what_cannot_be_made_anew(whole):
  known = json.loads((folder(whole) / records.MANIFEST).read_text())
  assert set(known) == {
    *(path.name for path in folder(whole).glob("synthetic_faces-*.array_record*")),
    "dataset_info.json", "features.json", "metadata.json",
  }  # fmt: skip
  for name, of in known.items():
    content = (folder(whole) / name).read_bytes()
    assert of == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_what_is_whole_is_verified(whole, capsys):
  before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
  code, out, _ = run(capsys, whole, "--verify")
  files = [p for p in folder(whole).iterdir() if "array_record" in p.name or p.name[:6] != "affjax"]
  size = sum(path.stat().st_size for path in files) / 1e6
  assert (code, out) == (0, f"{len(files)} files, {size:.1f} MB: as they were written\n")
  assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_damaged_is_named_with_what_is_lost(name, copy, capsys):
  FAULTS[name].make(copy)
  code, out, _ = run(capsys, copy, "--verify")
  head, line, *_ = out.splitlines()
  assert code == 1
  assert head.split() == ["file", "what", "records", "lost"]
  assert (folder(copy) / line.split()[0]).parent.is_dir()
  assert out.count("array_record") <= 1
  if FAULTS[name].says:
    lost = [row - 32 * FILE for row in lost_rows(copy, name)]
    assert f"{len(lost)} of 32: {', '.join(map(str, lost[:5]))}" in line


def test_descriptions_are_verified(copy, capsys):
  path = folder(copy) / records.METADATA
  path.write_text(path.read_text().replace("AU12", "AU13"))
  code, out, _ = run(capsys, copy, "--verify")
  assert code == 1
  assert f"{records.METADATA}  other bytes than were written" in out


def test_a_set_of_before_there_were_manifests_is_read_and_gets_one(copy, capsys):
  path = folder(copy) / records.MANIFEST
  kept = path.read_text()
  path.unlink()
  code, out, err = run(capsys, copy, "--verify")
  assert code == 0
  assert "every record can be read" in out
  assert "every record is read" in err
  assert path.read_text() == kept
  FAULTS["undecodable image"].make(copy)
  assert run(capsys, copy, "--verify")[0] == 1
  assert not path.is_file()


def test_a_manifest_that_cannot_be_read_is_named(copy, capsys):
  path = folder(copy) / records.MANIFEST
  for content in ("{", "[]", '{"a": 1}'):
    path.write_text(content)
    code, _, said = run(capsys, copy, "--verify")
    assert code == 1
    assert said.startswith(f"error: {path} cannot be read: delete it")


def test_verifying_builds_nothing(tmp_path, capsys):
  code, _, said = run(capsys, tmp_path, "--verify")
  assert code == 1
  assert said.startswith("error: data set 'synthetic_faces' is not in")
  assert not list(tmp_path.iterdir())


def test_preparing_what_is_there_notices_lost_files(copy, capsys):
  FAULTS["missing shard"].make(copy)
  code, _, said = run(capsys, copy)
  assert code == 1
  assert said.startswith(f"error: {folder(copy) / rot_matrix.SHARD}: No such file or directory")


# Building where there is no room, no leave, or where a build was killed.


def test_a_build_that_fills_the_disk_leaves_nothing_and_can_be_repeated(disk, capsys):
  place = disk("size=1400k")  # enough by the estimate, and too little
  code, _, said = run(capsys, place)
  assert code == 1
  assert said.startswith("error: data set 'synthetic_faces' cannot be written to ")
  assert "No space left on device. Nothing of it is kept" in said
  assert not list(place.rglob("*array_record*"))
  assert not list(place.rglob("incomplete*"))
  remount(place, "size=8m")
  prepare.prepare(builder(place))
  assert manifest.verify(builder(place))


def test_packing_that_fills_the_disk_leaves_nothing_and_can_be_repeated(disk, whole, capsys):
  place = disk("size=6m")
  shutil.copytree(whole / "synthetic_faces", place / "synthetic_faces")
  build, before = builder(place), set(folder(place).iterdir())
  with pytest.raises(ValueError) as error:
    packed.pack(build, SPLIT, 112)  # 3.6 MB
  assert "packed train cannot be written to" in one_line(error)
  assert "No space left on device" in one_line(error)
  assert set(folder(place).iterdir()) == before
  remount(place, "size=12m")
  packed.pack(build, SPLIT, 112)
  assert manifest.verify(build)


def test_what_is_made_from_records_need_not_be_kept(disk, whole):
  place = disk("size=6m")
  shutil.copytree(whole / "synthetic_faces", place / "synthetic_faces")
  kept = folder(place) / records.TABLE.format(SPLIT)
  table = records.label_table(builder(place), SPLIT)
  kept.unlink()
  usage = shutil.disk_usage(place)
  (place / "filler").write_bytes(bytes(usage.free))
  same(records.label_table(builder(place), SPLIT), table)
  assert not [path for path in folder(place).iterdir() if path.name.startswith(f"{kept.stem}.")]


def test_a_read_only_place_is_said_in_one_line_or_read(disk, whole, tmp_path, capsys):
  place = disk("size=8m")
  shutil.copytree(whole / "synthetic_faces", place / "synthetic_faces")
  remount(place, "ro")
  source = write_folder(tmp_path / "source", "path,split,valence\na.jpg,train,0.5\n")
  with pytest.raises(SystemExit) as error:
    prepare.main(["image_folder", f"--source={source}", f"--data_dir={place}"])
  assert str(error.value.code).startswith("error: data set 'image_folder' cannot be written to")
  assert "Read-only file system" in str(error.value.code)
  assert prepare.prepare(builder(place)) == records.summary(builder(whole))
  with pytest.raises(ValueError, match="packed test cannot be written to .*: Read-only file"):
    packed.pack(builder(place), "test")


def test_a_build_that_lost_records_is_not_kept(tmp_path, monkeypatch):
  source = write_folder(tmp_path / "source", "path,split,valence\na.jpg,train,0.5\nb.jpg,train,0\n")
  build = records.builder("image_folder", "", str(tmp_path / "data"))

  class Loses:
    """A writer whose last record does not get to the disk, which is no error."""

    def __init__(self, *args):
      self._writer, self._last = writer(*args), None

    def write(self, record):
      if self._last is not None:
        self._writer.write(self._last)
      self._last = record

    def close(self):
      self._writer.close()

  writer = array_record_module.ArrayRecordWriter
  with monkeypatch.context() as patch:
    patch.setattr(array_record_module, "ArrayRecordWriter", Loses)
    with pytest.raises(ValueError, match="record 0 of .*: 1 records, expected 2"):
      prepare.prepare(build, str(source))
  assert not list((tmp_path / "data").rglob("*array_record*"))


def test_what_killed_builds_have_left_is_removed_by_the_next(tmp_path):
  source = write_folder(tmp_path / "source", "path,split,valence\na.jpg,train,0.5\n")
  build = records.builder("image_folder", "", str(tmp_path / "data"))
  place = Path(build.data_dir)
  left = place.parent / f"incomplete.ABC123_{place.name}"
  left.mkdir(parents=True)
  (left / "image_folder-train.array_record-00000-of-00001").write_bytes(b"half")
  prepare.prepare(build, str(source))
  assert not left.exists()
  # One that was to replace it, killed between two renames: what was there is put back.
  aside = place.parent / ".overwrite-abc"
  aside.mkdir()
  place.rename(aside / "before")
  again = records.builder("image_folder", "", str(tmp_path / "data"))
  shutil.rmtree(tmp_path / "source")
  (tmp_path / "source").mkdir()
  (tmp_path / "source" / "nothing").write_text("to build it from")
  assert prepare.prepare(again, str(source))["splits"]["train"]["images"] == 1
  assert not aside.exists()
  assert manifest.verify(again)
