"""The builder of users' own image folders: what its CSV may say, and how it says what is wrong."""

import csv

import cv2
import numpy as np
import pytest
from affwild_tree import number_in, shuffle_folders, stored, write_folder
from affwild_tree import prepared as prepared_set

from affjax.data import prepare, records
from tfds_builders import shards
from tfds_builders.image_folder import table


def prepared(source, data_dir, name="mine"):
  return prepared_set("image_folder", source, data_dir, name)


def everything(build):
  """All records, of whatever split, by line."""
  found = [record for split in build.info.splits for record in stored(build, split)]
  return {record["line"][0]: record for record in found}


# What is built.


def random_rows(count, seed=0):
  """Rows of every column, with empty cells, as text; and images that some rows share."""
  rng = np.random.default_rng(seed)
  maybe = lambda value: value if rng.random() < 0.7 else ""
  images = [f"{'xyz'[k % 3]}/{k}.jpg" for k in range(count - 5)]
  rows = [
    {
      "path": images[int(rng.integers(len(images)))],
      "person": maybe(f"Anna, {rng.integers(9)}"),
      "video": maybe(f"v{rng.integers(20)}"),
      "frame": maybe(str(rng.integers(999))),
      "valence": maybe(f"{rng.uniform(-1, 1):.5f}"),
      "arousal": maybe(f"{rng.uniform(-1, 1):.2e}"),
      "expression": maybe(str(rng.choice(["Anger", "contempt", "NEUTRAL"]))),
      "AU12": maybe(str(rng.integers(2))),
      "AU4": maybe(f"{rng.integers(2)}.0"),
    }
    for _ in range(count)
  ]
  return images, rows


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_label_sits_on_its_own_image(tmp_path, monkeypatch, seed):
  images, rows = random_rows(80, seed)
  source = write_folder(tmp_path / "source", "", images)
  with (source / "labels.csv").open("w", newline="") as f:  # with CRLF, and quotes where needed
    writer = csv.DictWriter(f, rows[0])
    writer.writeheader()
    writer.writerows(rows)
  with monkeypatch.context() as patch:
    shuffle_folders(patch, seed)
    build, summary = prepared(source, tmp_path / "data")
  names = {
    "va": ["valence", "arousal"],
    "expression": ["neutral", "anger", "contempt"],
    "au": ["AU12", "AU4"],
  }
  assert records.metadata(build)["labels"] == names
  found = everything(build)
  assert len(found) == len(rows)
  for line, row in enumerate(rows, 2):
    record = found[line]
    assert images[number_in(record["image"][0]) - 1] == row["path"]
    assert record["image"][0] == (source / row["path"]).read_bytes()
    for task in ("va", "au"):
      cells = [row[name] for name in names[task]]
      assert record[f"labels/{task}"] == [np.float32(cell or 0) for cell in cells]
      assert record[f"mask/{task}"] == [float(cell != "") for cell in cells]
    label = [float(row["expression"].lower() == name) for name in names["expression"]]
    assert record["labels/expression"] == label
    assert record["mask/expression"] == [float(row["expression"] != "")]
    assert record["person"] == [row["person"].encode()]
    assert record["video"] == [row["video"].encode()]
    assert record["frame"] == [int(row["frame"] or -1)]
    assert record["image_path"] == [row["path"].encode()]
  assert sum(counts["images"] for counts in summary["splits"].values()) == len(rows)
  for task in ("va", "au"):
    for name in names[task]:
      counted = [counts[task]["labelled"][name] for counts in summary["splits"].values()]
      assert sum(counted) == sum(row[name] != "" for row in rows)


def test_a_byte_order_mark_quotes_blank_lines_and_spaces_do_no_harm(tmp_path):
  text = '\ufeffpath , expression\r\n\r\n"a.jpg", Fear \r\n\r\n"b.jpg",\r\n'
  build, _ = prepared(write_folder(tmp_path / "source", text), tmp_path / "data")
  found = everything(build)
  assert [number_in(record["image"][0]) for record in found.values()] == [1, 2]
  assert [record["mask/expression"] for record in found.values()] == [[1], [0]]
  assert records.metadata(build)["labels"] == {"expression": ["fear"]}


def test_a_row_is_known_by_its_line_even_after_a_quoted_line_break(tmp_path):
  text = 'path,person\na.jpg,"one\ntwo"\nb.jpg,x\nb.jpg,x\n'
  build, _ = prepared(write_folder(tmp_path / "source", text), tmp_path / "data")
  found = everything(build)
  assert {line: record["image_path"] for line, record in found.items()} == {
    3: [b"a.jpg"],
    4: [b"b.jpg"],
    5: [b"b.jpg"],
  }


def test_jpeg_and_png_grey_and_colour_of_any_size_and_suffix_are_read(tmp_path):
  rng = np.random.default_rng(0)
  files = {
    "grey.jpg": cv2.imencode(".jpg", rng.integers(0, 256, (30, 20), np.uint8))[1],
    "grey.png": cv2.imencode(".png", rng.integers(0, 256, (7, 9), np.uint8))[1],
    "colour.png": cv2.imencode(".png", rng.integers(0, 256, (8, 300, 3), np.uint8))[1],
    "png.jpg": cv2.imencode(".png", rng.integers(0, 256, (64, 64, 3), np.uint8))[1],
    "none": cv2.imencode(".jpg", rng.integers(0, 256, (48, 48, 3), np.uint8))[1],
  }
  text = "path,split\n" + "".join(f"{name},train\n" for name in files)
  source = write_folder(tmp_path / "source", text, [])
  for name, content in files.items():
    (source / name).write_bytes(content.tobytes())
  build, _ = prepared(source, tmp_path / "data")
  batch = records.records(build, "train", {}, 48).batch(np.arange(5))
  for image, content in zip(batch["image"], files.values(), strict=True):
    whole = records.fit(cv2.imdecode(content, cv2.IMREAD_COLOR)[..., ::-1], (48, 48))
    assert np.abs(image.astype(int) - whole).max() <= 4
  for i, row in enumerate(build.as_data_source("train")):  # TFDS reads them too
    assert row["image"].shape[-1] == 3
    assert row["image_path"].decode() == list(files)[i]


def test_a_set_may_have_labels_of_a_few_columns_only(tmp_path):
  text = "path,split,arousal\na.jpg,train,0.5\nb.jpg,train,\nc.jpg,train,-1\n"
  build, summary = prepared(write_folder(tmp_path / "source", text), tmp_path / "data")
  assert records.metadata(build)["labels"] == {"va": ["arousal"]}
  wants = {"va": ("valence", "arousal"), "expression": ("anger", "other"), "au": ("AU1",)}
  batch = records.records(build, "train", wants, 48).batch(np.arange(3))
  np.testing.assert_array_equal(batch["labels"]["va"], [[0, 0.5], [0, 0], [0, -1]])
  np.testing.assert_array_equal(batch["mask"]["va"], [[0, 1], [0, 0], [0, 1]])
  assert not batch["mask"]["expression"].any()
  assert not batch["mask"]["au"].any()
  assert summary["splits"]["train"] == {"images": 3, "va": {"labelled": {"arousal": 2}}}


def test_a_folder_without_labels_is_allowed_and_said_to_be_so(tmp_path):
  source = write_folder(tmp_path / "source", "path,split\na.jpg,test\n")
  build, summary = prepared(source, tmp_path / "data")
  assert records.metadata(build)["labels"] == {}
  batch = records.records(build, "test", {"expression": ("anger",)}, 48).batch(np.arange(1))
  assert not batch["mask"]["expression"].any()
  text = prepare.table(summary, None, records.metadata(build))
  assert "nothing is labelled" in text


def test_sets_of_several_names_lie_beside_each_other(tmp_path):
  one = write_folder(tmp_path / "one", "path,split,AU1\na.jpg,train,1\n")
  two = write_folder(tmp_path / "two", "path,split,AU1\na.jpg,train,0\nb.jpg,train,1\n")
  builds = [prepared(one, tmp_path, "first")[0], prepared(two, tmp_path, "second")[0]]
  builds.append(prepared(one, tmp_path, "")[0])
  assert [b.builder_config.name for b in builds] == ["first", "second", "default"]
  reopened = [records.builder("image_folder", n, str(tmp_path)) for n in ("first", "second", "")]
  assert [len(stored(b, "train")) for b in reopened] == [1, 2, 1]
  assert len({records.summary(b)["fingerprint"] for b in reopened}) == 3


def test_records_are_in_the_order_of_the_csv_over_several_files(tmp_path, monkeypatch):
  monkeypatch.setattr(shards, "RECORDS", 20)
  images, _ = random_rows(60)
  order = np.random.default_rng(0).permutation(images).tolist()
  text = "path,split\n" + "".join(f"{name},train\n" for name in order)
  build, _ = prepared(write_folder(tmp_path / "source", text, images), tmp_path / "data")
  assert len(records.shards(build, "train").paths) > 2
  assert [r["image_path"][0].decode() for r in stored(build, "train")] == order


# The choice of the file.


def test_of_several_csvs_labels_csv_is_read(tmp_path):
  source = write_folder(tmp_path / "source", "path,split\nb.jpg,train\n")
  write_folder(source, "path,split\na.jpg,train\n", name="a.csv")
  build, _ = prepared(source, tmp_path / "data")
  assert [record["image_path"] for record in stored(build, "train")] == [[b"b.jpg"]]


def test_a_single_csv_may_have_any_name(tmp_path):
  source = write_folder(tmp_path / "source", "path,split\na.jpg,train\n", name="my faces.csv")
  assert table.find(source).name == "my faces.csv"


@pytest.mark.parametrize("names", [[], ["a.csv", "b.csv"]])
def test_no_csv_and_several_others_are_named(tmp_path, names):
  for name in names:
    (tmp_path / name).write_text("path\n")
  with pytest.raises(ValueError, match=f"one .csv, or labels.csv.*{', '.join(names) or 'none'}"):
    table.find(tmp_path)


# Splits.


def rows_of(*columns, count=0):
  return table.Rows(dict(columns), list(range(count or len(columns[0][1]))))


def test_nobody_is_in_two_splits_and_the_shares_are_about_right():
  people = [f"person {k % 1000}" for k in range(5000)]
  videos = [f"video {k}" for k in range(5000)]
  rows = rows_of(("path", videos), ("person", people), ("video", videos))
  found = table.splits(rows)
  assert not table.in_two(rows, found)
  shares = [found.count(split) / 5000 for split in ("train", "validation", "test")]
  np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.03)


def test_without_people_videos_stay_together_and_without_these_paths_count():
  paths = [f"{k}.jpg" for k in range(400)]
  videos = [f"v{k % 40}" for k in range(400)]
  found = table.splits(rows_of(("path", paths), ("video", videos)))
  by_video = {video: {s for v, s in zip(videos, found, strict=True) if v == video}
              for video in videos}  # fmt: skip
  assert {len(of) for of in by_video.values()} == {1}
  assert set(found) == {"train", "validation", "test"}
  assert table.splits(rows_of(("path", paths))) != found


def test_the_split_never_changes():
  # Scores on another split could not be compared with these.
  people = [f"p{k}" for k in range(20)]
  found = table.splits(rows_of(("path", people), ("person", people)))
  assert [k for k, split in enumerate(found) if split == "validation"] == [9, 12, 18]
  assert [k for k, split in enumerate(found) if split == "test"] == [1, 5, 13, 17]


def test_a_person_in_two_splits_of_the_column_is_warned_of(tmp_path, capsys):
  text = "path,person,split\na.jpg,Anna,train\nb.jpg,Anna,validation\nc.jpg,Ben,test\n"
  build, _ = prepared(write_folder(tmp_path / "source", text), tmp_path / "data")
  assert set(build.info.splits) == {"train", "validation", "test"}
  warning = [x for x in capsys.readouterr().err.splitlines() if x.startswith("warning")]
  assert len(warning) == 1
  assert "1 people are in more than one split (Anna)" in warning[0]


def test_a_split_that_comes_out_empty_is_warned_of(tmp_path, capsys):
  text = "path,person\na.jpg,Anna\nb.jpg,Anna\n"
  prepared(write_folder(tmp_path / "source", text), tmp_path / "data")
  assert "no row falls into" in capsys.readouterr().err


# What is wrong is named.


def one(column, value):
  return f"path,{column}\na.jpg,{value}\n"


@pytest.mark.parametrize(
  ("text", "says"),
  [
    (one("valance", "1"), "labels.csv:1: column 'valance': did you mean 'valence'?"),
    (one("Valence", "1"), ":1: column 'Valence': did you mean 'valence'?"),
    (one("AU01_r", "1"), ":1: column 'AU01_r': did you mean 'AU1'?"),
    (one("happiness", "1"), ":1: column 'happiness': .*use path, person"),
    (one("valence,valence", "1,1"), ":1: column 'valence' is there twice"),
    ("file,valence\na.jpg,1\n", ":1: column 'file'"),
    ("person\nAnna\n", ":1: no column path"),
    ("path;valence\na.jpg;1\n", ":1: columns are separated by commas"),
    ("", ":1: no column path"),
    ("path\n", "no rows below the header"),
    (b"path,person\na.jpg,\xe4\n", "not UTF-8 text"),
    ('path\n"a.jpg\n', ":2: "),
    (one("valence", "1.01"), ":2: valence '1.01': use a number from -1 to 1"),
    (one("arousal", "-5"), ":2: arousal '-5': use a number from -1 to 1"),
    (one("arousal", "nan"), ":2: arousal 'nan': .*leave it empty"),
    (one("arousal", "inf"), ":2: arousal 'inf'"),
    (one("arousal", '"0,5"'), ":2: arousal '0,5'"),
    (one("arousal", "1_0"), ":2: arousal '1_0'"),
    (one("expression", "3"), ":2: expression '3': use neutral, anger.*numbers differ"),
    (one("expression", "happy"), ":2: expression 'happy': did you mean 'happiness'?"),
    (one("expression", "Surprised"), "did you mean 'surprise'?"),
    (one("expression", "-1"), ":2: expression '-1'"),
    (one("AU12", "2"), ":2: AU12 '2': use 0 or 1"),
    (one("AU12", "-1"), ":2: AU12 '-1': use 0 or 1, or leave it empty"),
    (one("AU12", "0.5"), ":2: AU12 '0.5'"),
    (one("frame", "-1"), ":2: frame '-1': use an integer from 0 on"),
    (one("frame", "1.5"), ":2: frame '1.5'"),
    (one("split", "val"), ":2: split 'val': did you mean 'validation'?"),
    (one("expr", "fear"), ":1: column 'expr': did you mean 'expression'?"),
    (one("split", ""), ":2: split '': use train, dev, validation, test"),
    (one("valence", "1,1"), ":2: 3 fields; the header has 2"),
    ("path,valence\na.jpg\n", ":2: 1 fields; the header has 2"),
    ("path\na.jpg\n\n../a.jpg\n", ":4: path '../a.jpg': use a path inside the folder"),
    ("path\n/etc/passwd\n", ":2: path '/etc/passwd'"),
    ('path\n""\n', ":2: path ''"),
    ("path\na.jpg\nd.jpg\ne.jpg\n", r":3: path 'd.jpg': no such file \(and of 1 more rows\)"),
    ("path\nA.jpg\n", ":2: path 'A.jpg': no such file"),
  ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, says):
  with pytest.raises(ValueError, match=says) as error:
    prepared(write_folder(tmp_path / "source", text), tmp_path / "data")
  assert "\n" not in str(error.value)
  assert not list((tmp_path / "data").rglob("*array_record*"))


@pytest.mark.parametrize(
  "content",
  [b"", b"text", b"GIF89a" + bytes(50), b"\xff\xd8\xff\xe0 cut", b"\x89PNG\r\n\x1a\n cut"],
)
def test_files_that_are_no_whole_jpeg_or_png_are_named(tmp_path, content):
  source = write_folder(tmp_path / "source", "path\na.jpg\n")
  (source / "a.jpg").write_bytes(content)
  with pytest.raises(ValueError, match=r"a.jpg: not an image that can be decoded"):
    prepared(source, tmp_path / "data")


def test_a_path_that_is_a_folder_is_named(tmp_path):
  source = write_folder(tmp_path / "source", "path\nphotos\n", ["photos/a.jpg"])
  with pytest.raises(ValueError, match="photos: not a regular file"):
    prepared(source, tmp_path / "data")


@pytest.mark.parametrize("name", ["a/b", "..", "a b", "-x", "1.0.0", "ä"])
def test_names_that_cannot_be_folders_are_refused(tmp_path, name):
  with pytest.raises(ValueError, match="use a name of letters, digits, _ and -"):
    records.builder("image_folder", name, str(tmp_path))
