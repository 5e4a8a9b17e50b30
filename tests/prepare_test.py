"""The command that prepares data: its table of counts, what it keeps and what it refuses."""

import collections
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from affwild_tree import MTL, counts, stored, write_folder, write_mtl
from tensorflow_datasets.core import shuffle

from affjax.data import prepare, records

CSV = "path,split,valence,AU1\na.jpg,train,0.5,1\nb.jpg,train,,0\nc.jpg,test,-1,\n"
SUMMARY = {
  "splits": {
    "test": {"images": 40, "va": {"labelled": {"valence": 0.0, "arousal": 0.0}}},
    "train": {
      "images": 1_234_567,
      "va": {"labelled": {"valence": 1_000_000.0, "arousal": 999_999.0}},
      "expression": {
        "labelled": 20.0,
        "votes": {"anger": 12.5, "fear": 7.5, "contempt": 0.0},
        "expression_strict": {"anger": 11.0, "fear": 6.0, "contempt": 0.0},
      },
      "au": {"labelled": {"AU1": 30.0, "AU2": 0.0}, "positive": {"AU1": 7.0, "AU2": 0.0}},
    },
  }
}


@pytest.fixture
def source(tmp_path):
  return write_folder(tmp_path / "source", CSV)


def main(capsys, *arguments):
  """Runs the command; what it prints on stdout and on stderr."""
  prepare.main([str(argument) for argument in arguments])
  return capsys.readouterr()


def refused(capsys, *arguments):
  """Runs the command, which must end with a one-line error."""
  with pytest.raises(SystemExit) as error:
    main(capsys, *arguments)
  text = str(error.value)
  assert text.startswith("error: ")
  assert "\n" not in text
  return text


def cells(text, label):
  """The columns of the line of a label."""
  (found,) = [x for x in text.splitlines() if re.match(rf" *{re.escape(label)}(  |$)", x)]
  return [cell.strip() for cell in re.split("  +", found.strip())[1:]]


# The table.


def test_the_table_has_a_column_a_split_and_a_line_a_label():
  text = prepare.table(SUMMARY)
  assert text.splitlines()[0].split() == ["train", "test"]
  assert cells(text, "images") == ["1234567", "40"]
  assert cells(text, "valence") == ["1000000"]
  assert cells(text, "labelled") == ["20"]
  assert cells(text, "AU1") == ["7 / 23"]
  anger = [x.split() for x in text.splitlines() if "anger" in x]
  assert anger == [["anger", "12.5"], ["anger", "11"]]
  assert "expression, strict" in text


def test_lines_of_zeros_are_left_out():
  text = prepare.table(SUMMARY)
  assert "contempt" not in text
  assert "AU2" not in text


def test_all_lines_are_aligned_to_one_width():
  published = {"train": {"images": 1, "va": {"labelled": {"valence": 1_000_000}}}}
  rows = prepare.table(SUMMARY, published).splitlines()[:-1]
  ends = {re.search(r"train", rows[0]).end(), re.search(r"1234567", rows[1]).end()}
  assert len(ends) == 1
  assert max(map(len, rows)) < 80


def test_published_counts_stand_beside_and_what_differs_is_marked():
  published = {
    "train": {
      "images": 1_234_567,
      "va": {"labelled": {"valence": 1_000_001, "arousal": 999_999}},
      "expression": {"votes": {"anger": 12.5, "contempt": 3}, "labelled": 20},
      "au": {"labelled": {"AU1": 30}, "positive": {"AU1": 8}},
    },
    "test": {"images": 40},
    "dev": {"images": 7},  # there is none here, so there is nothing to compare
  }
  text = prepare.table(SUMMARY, published)
  assert text.splitlines()[0].split() == ["train", "published", "test", "published"]
  assert cells(text, "images") == ["1234567", "1234567", "40", "40"]
  assert cells(text, "valence") == ["1000000", "1000001 <-"]
  assert cells(text, "arousal") == ["999999", "999999"]
  assert cells(text, "contempt") == ["0", "3 <-"]
  assert cells(text, "AU1") == ["7 / 23", "8 / 22 <-"]
  assert text.splitlines()[-1] == (
    "3 published counts differ (<-): train valence, train contempt, train AU1"
  )


def test_agreement_with_all_published_counts_is_said():
  published = {"train": {"images": 1_234_567}, "test": {"images": 40}}
  text = prepare.table(SUMMARY, published)
  assert text.splitlines()[-1] == "all published counts agree"
  assert "<-" not in text
  assert "published" not in prepare.table(SUMMARY)


def test_a_published_task_of_which_nothing_is_there_differs():
  published = {"test": {"va": {"labelled": {"valence": 5}}}}
  assert "1 published counts differ (<-): test valence" in prepare.table(SUMMARY, published)


def test_rows_that_were_left_out_are_counted_and_named():
  missing = {"train": {"count": 7, "examples": ["a/1.jpg", "a/2.jpg"]}}
  text = prepare.table(SUMMARY, None, {"missing": missing, "unlabelled": {"train": 3, "test": 0}})
  assert "train: 7 rows left out, their image is missing: a/1.jpg, a/2.jpg, ..." in text
  assert cells(text, "without any label") == ["3", "0"]


def test_the_table_of_a_licensed_set_is_printed_beside_published_counts(tmp_path, capsys):
  truth = write_mtl(tmp_path / "source")
  arguments = (f"--source={tmp_path / 'source'}", f"--data_dir={tmp_path / 'data'}")
  out = main(capsys, "s_aff_wild2", *arguments).out
  train, validation, test = (counts(truth[split]) for split in MTL)
  assert cells(out, "images") == [
    str(train["images"]), "142382 <-",
    str(validation["images"]), "26876 <-",
    str(test["images"]), "51159 <-",
  ]  # fmt: skip
  on, known = train["au"]["positive"]["AU12"], train["au"]["labelled"]["AU12"]
  assert cells(out, "AU12")[:2] == [f"{on} / {known - on}", "26783 / 76533 <-"]
  gone = [row.image for row in truth["train"] if row.missing]
  assert f"train: {len(gone)} rows left out, their image is missing: {gone[0]}, " in out
  assert re.search(r"51 published counts differ \(<-\): train images, .*\.\.\.$", out)


# The command.


def test_a_set_that_is_there_is_not_built_again_but_its_table_is_printed(tmp_path, source, capsys):
  arguments = ("image_folder", "--config=mine", f"--data_dir={tmp_path / 'data'}")
  first = main(capsys, *arguments, f"--source={source}")
  files = lambda: {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*record*")}
  before = files()
  (source / "labels.csv").write_text("nonsense")
  again = main(capsys, *arguments, f"--source={source}")
  assert "there already (--overwrite builds it again)" in again.out.splitlines()[0]
  assert again.out.splitlines()[1:] == first.out.splitlines()[1:]
  assert "building" not in again.err
  assert files() == before
  shutil.rmtree(source)
  assert main(capsys, *arguments).out.splitlines()[1:] == first.out.splitlines()[1:]


def test_overwrite_builds_anew(tmp_path, source, capsys):
  arguments = ("image_folder", f"--source={source}", f"--data_dir={tmp_path / 'data'}")
  assert cells(main(capsys, *arguments).out, "images") == ["2", "1"]
  (source / "labels.csv").write_text("path,split,arousal\na.jpg,train,1\nb.jpg,dev,\n")
  out = main(capsys, *arguments, "--overwrite").out
  assert cells(out, "images") == ["1", "1"]
  assert "valence" not in out.replace("valence and arousal", "")
  build = records.builder("image_folder", "", str(tmp_path / "data"))
  assert [r["labels/va"] for r in stored(build, "train")] == [[1.0]]
  assert set(build.info.splits) == {"train", "dev"}
  assert records.metadata(build)["labels"] == {"va": ["arousal"]}
  assert not list((tmp_path / "data").glob(".overwrite*"))


def test_what_is_there_survives_an_overwrite_that_fails(tmp_path, source, capsys):
  arguments = ("image_folder", f"--source={source}", f"--data_dir={tmp_path / 'data'}")
  before = main(capsys, *arguments).out.splitlines()[1:]
  (source / "a.jpg").write_bytes(b"")
  assert "a.jpg: not an image" in refused(capsys, *arguments, "--overwrite")
  assert main(capsys, *arguments).out.splitlines()[1:] == before
  assert not list((tmp_path / "data").glob(".overwrite*"))


def test_the_builder_knows_the_splits_of_what_another_process_built(tmp_path, source):
  waiting, first = (records.builder("image_folder", "", str(tmp_path)) for _ in range(2))
  prepare.prepare(first, str(source))
  prepare.prepare(waiting, str(source))
  assert len(records.shards(waiting, "train")) == 2


def test_a_build_needs_no_more_space_than_there_is(tmp_path, source, capsys, monkeypatch):
  usage = collections.namedtuple("usage", "total used free")  # noqa: PYI024
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 2000))
  arguments = ("image_folder", f"--source={source}", f"--data_dir={tmp_path / 'data'}")
  assert "make room, or name another place with --data_dir" in refused(capsys, *arguments)
  monkeypatch.undo()
  assert "about 1 MB" in main(capsys, *arguments).err


def test_the_size_that_is_said_is_about_the_size_on_disk(tmp_path):
  write_mtl(tmp_path / "source", frames=60)
  build = records.builder("s_aff_wild2", "", str(tmp_path))
  said = build.megabytes(tmp_path / "source")
  prepare.prepare(build, str(tmp_path / "source"))
  size = sum(path.stat().st_size for path in Path(build.data_dir).glob("*array_record*")) / 1e6
  assert said == pytest.approx(size, rel=0.15)


def test_splits_larger_than_tfds_holds_in_memory_need_no_tensorflow(tmp_path, source, monkeypatch):
  monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 100)
  build = records.builder("image_folder", "", str(tmp_path))
  assert prepare.prepare(build, str(source))["splits"]["train"]["images"] == 2
  assert "tensorflow" not in sys.modules


def test_what_the_user_can_mend_is_said_in_one_line(tmp_path, source, capsys):
  data = f"--data_dir={tmp_path / 'data'}"
  empty = tmp_path / "empty"
  empty.mkdir()
  says = lambda *arguments: refused(capsys, *arguments, data)
  assert "use one of aff_wild2, affectnet, expw, ferplus" in says("fer")
  assert "has no config 'abaw4'; it has ['mtl', 'abaw3']" in says("s_aff_wild2", "--config=abaw4")
  assert "--config=mine --source=FOLDER" in says("image_folder", "--config=mine")
  assert "nowhere: no such folder" in says("lsd", f"--source={tmp_path / 'nowhere'}")
  assert "nothing is in it" in says("ferplus", f"--source={empty}")
  assert f"no {MTL['train']} in" in says("s_aff_wild2", f"--source={source}")
  main(capsys, "image_folder", f"--source={source}", data)
  assert "--overwrite needs --source=FOLDER" in says("image_folder", "--overwrite")


def test_an_interrupted_build_says_so_and_leaves_nothing(tmp_path, source, monkeypatch, capsys):
  def interrupt(*unused):
    raise KeyboardInterrupt

  arguments = ["image_folder", f"--source={source}", f"--data_dir={tmp_path / 'data'}"]
  monkeypatch.setattr("tfds_builders.images.check", interrupt)
  with pytest.raises(SystemExit, match="interrupted"):
    prepare.main(arguments)
  assert not list((tmp_path / "data").rglob("*array_record*"))
  monkeypatch.undo()
  assert cells(main(capsys, *arguments).out, "images") == ["2", "1"]


def test_help_names_every_data_set_and_loads_none():
  command = [sys.executable, "-m", "affjax.data.prepare", "--help"]
  shown = subprocess.run(command, capture_output=True, text=True).stdout
  for name in (*records.names(), "--source", "--config", "--overwrite", "--data_dir"):
    assert name in shown
  assert all(len(line) <= 120 for line in shown.splitlines())
