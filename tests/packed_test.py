"""Packed records give the batches of TFDS's."""

import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest

from affjax import labels
from affjax.data import packed, pipeline, records
from tfds_builders import shards

WANTS = {"expression": labels.EXPRESSION_MTL, "au": labels.AU_MTL[:3]}
SIZE = 112


@pytest.fixture(scope="module")
def faces(tiny_faces, tmp_path_factory):
  """The tiny synthetic faces, in a folder of this module's own."""
  folder = tmp_path_factory.mktemp("packed")
  shutil.copytree(f"{tiny_faces}/synthetic_faces", folder / "synthetic_faces")
  return records.builder("synthetic_faces", "tiny", str(folder))


@pytest.fixture(scope="module")
def both(faces):
  for pixels in (None, SIZE):
    packed.pack(faces, "train", pixels)
  return faces


def opened(build, kind, size=SIZE):
  found = packed.shards(build, "train", kind, size)
  images = records.Images(found, (size, size))
  return records.records(build, "train", WANTS, size, images=images)


def same(a, b):
  assert set(a) == set(b)
  for name, x in a.items():
    same(x, b[name]) if isinstance(x, dict) else np.testing.assert_array_equal(x, b[name])


@pytest.mark.parametrize("kind", ["encoded", "pixels", "auto"])
def test_batches_are_those_of_tfds_records(kind, both):
  rows = np.array([17, -1, 0, 95, 17])
  expected = opened(both, "tfds").batch(rows)
  found = opened(both, kind)
  same(found.batch(rows), expected)
  same(found.labelled(pickle.loads(pickle.dumps(found.images))(rows)), expected)


def test_encoded_images_are_brought_to_any_size(both):
  rows = np.arange(4)
  same(opened(both, "encoded", 48).batch(rows), opened(both, "tfds", 48).batch(rows))


def test_workers_read_them(both):
  rows = pipeline.sequence(96, 32)
  found = list(pipeline.batches(opened(both, "pixels"), rows, workers=1))
  expected = opened(both, "tfds")
  for position, batch in enumerate(found):
    same(batch, expected.batch(rows[position]))


def test_auto_takes_the_quickest_that_is_there_and_fits(both, tiny_faces):
  kind = lambda build, size: type(packed.shards(build, "train", "auto", size)).__name__
  assert kind(both, SIZE) == "Pixels"
  assert kind(both, 48) == "Encoded"
  assert kind(records.builder("synthetic_faces", "tiny", tiny_faces), SIZE) == "Shards"


def test_what_is_not_packed_is_named_with_the_command(both):
  with pytest.raises(
    ValueError, match=r"=.pixels.: .*packed synthetic_faces --config=tiny --pixels=48`"
  ):
    packed.shards(both, "train", "pixels", 48)
  with pytest.raises(ValueError, match="records='raw': use one of auto, tfds, encoded, pixels"):
    packed.shards(both, "train", "raw", 48)


def test_packing_that_was_cut_short_is_not_used_and_can_be_repeated(faces, monkeypatch):
  with monkeypatch.context() as broken:
    broken.setattr(records, "store", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      packed.pack(faces, "validation")
  assert packed.find(faces, "validation", None) is None
  packed.pack(faces, "validation")
  assert len(packed.find(faces, "validation", None)) == 32


def test_large_splits_have_several_files(faces, monkeypatch):
  monkeypatch.setattr(shards, "RECORDS", 16)
  packed.pack(faces, "test", 64)
  found = packed.find(faces, "test", 64)
  assert found.lengths == (16, 16)
  expected = records.records(faces, "test", WANTS, 64)
  images = records.Images(found, (64, 64))
  packed_ = records.records(faces, "test", WANTS, 64, images=images)
  same(packed_.batch(np.arange(32)), expected.batch(np.arange(32)))


def test_the_command_says_what_it_made_and_what_is_wrong(faces, tmp_path):
  run = lambda *arguments: subprocess.run(
    [sys.executable, "-m", "affjax.data.packed", *arguments], capture_output=True, text=True
  )
  done = run("synthetic_faces", "--config=tiny", f"--data_dir={faces.data_dir_root}", "--pixels=32")
  assert done.returncode == 0, done.stderr
  said = {line.partition(":")[0] for line in done.stdout.splitlines()}
  assert said == {"train", "validation", "test"}
  missing = run("synthetic_faces", "--config=tiny", f"--data_dir={tmp_path}")
  assert missing.returncode == 1
  assert "error: data set 'synthetic_faces' is not in" in missing.stderr
