"""The reader against the independent judge; the judge was written first, from the formats alone."""

import random
import re

import annotations_judge
import numpy as np
import pytest
from annotations_judge import (
  FORMATS,
  SUBMISSIONS,
  fixtures,
  legal_file,
  legal_submission,
  mutate,
  mutate_submission,
)

from affjax import annotations, labels

TASKS = {
  "mtl": "mtl",
  "lsd": "lsd",
  "video_va": "va",
  "list_va": "va",
  "video_expr": "expression",
  "video_expr7": "expression",
  "list_expr": "expression",
  "video_au": "au",
  "video_au8": "au",
  "list_au": "au",
  "list_ce": "ce",
}


def rows_of(read):
  """Annotations as the judge writes them."""
  none = [None] * len(read)
  number = lambda v: None if np.isnan(v) else v
  va = none if read.va is None else [tuple(map(number, row)) for row in read.va.tolist()]
  expression = none if read.expression is None else read.expression.tolist()
  au = none if read.au is None else [tuple(row) for row in read.au.tolist()]
  return list(zip(read.images, va, expression, au, strict=True))


def parse(text, kind, video, predictions=False):
  """Our reading in the judge's terms; None: refused."""
  try:
    read = annotations.parse(text, TASKS[kind], "FILE", video=video, predictions=predictions)
  except ValueError as e:
    return None if str(e).startswith("FILE:") else str(e)
  return rows_of(read)


def test_the_judge_knows_every_format_that_we_know():
  ours = {form.header for task in annotations.FORMATS.values() for form in task}
  assert ours == {form.header for form in FORMATS.values()}


@pytest.mark.parametrize("name", fixtures())
def test_literal_files_read_as_the_judge_reads_them(name, tmp_path):
  video, text = fixtures()[name]
  kind = name.partition(" ")[0]
  expected = annotations_judge.judge(text, video=video)
  assert expected
  file = tmp_path / f"{video or 'list'}.txt"
  file.write_bytes(text.encode())
  assert rows_of(annotations.read(file, TASKS[kind])) == expected


def test_a_multi_task_list_in_full():
  text = (
    "image,valence,arousal,expression,aus\n"
    "some_video/00001.jpg,-0.01233333333333,0.0,7,0,0,0,0,0,0,0,0,0,0,0,0\n"
    "some_video/00066.jpg,0.08,0.031,-1,0,0,1,0,0,0,0,0,0,0,1,0\n"
    "some_video/00066.jpg,-5,-5.0,4,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,\n"
    "46-30-484x360_left/00070.jpg,-5,0.5,0,1,0,1,0,1,0,1,0,1,0,1,-1\n"
  )
  read = annotations.parse(text, "mtl", "list.txt")
  assert read.images[1:3] == ("some_video/00066.jpg",) * 2
  nan = np.nan
  va = [[-0.01233333333333, 0], [0.08, 0.031], [nan, nan], [nan, 0.5]]
  np.testing.assert_array_equal(read.va, va)
  assert read.expression.tolist() == [7, -1, 4, 0]
  assert read.au[1].tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0]
  assert (read.au[2] == -1).all()
  assert read.au[3].tolist() == [1, 0] * 5 + [1, -1]
  assert read.classes == labels.EXPRESSION_MTL
  assert read.units == labels.AU_MTL


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("predictions", [False, True])
def test_random_legal_files_mean_what_the_judge_says(kind, predictions):
  rng = random.Random(kind)
  for _ in range(100):
    text, video = legal_file(rng, kind, rng.randrange(6), predictions=predictions)
    expected = annotations_judge.judge(text, video=video, predictions=predictions)
    assert expected is not None
    assert parse(text, kind, video, predictions) == expected, text


@pytest.mark.parametrize("kind", TASKS)
def test_mutated_lines_are_read_as_the_judge_reads_them_or_refused(kind):
  """100,000 lines over all formats; what is not legal is never accepted, what is legal always."""
  rng = random.Random(f"mutations of {kind}")
  read = refused = 0
  while read + refused < 100_000 / len(TASKS):
    text, video = legal_file(rng, kind, 40)
    header, *lines = text.rstrip("\r\n").split("\n")
    for line in lines:
      changed = mutate(rng, line)
      if not changed.rstrip("\r"):
        continue  # an empty last line is no line: below
      # On its own, so that every line is judged whatever the others are.
      alone = f"{header}\n{changed}\n"
      expected = annotations_judge.judge(alone, video=video)
      assert parse(alone, kind, video) == expected, repr(alone)
      refused += expected is None
      read += expected is not None
  assert read > 0.15 * refused
  assert refused > 0.15 * read


@pytest.mark.parametrize("kind", TASKS)
def test_one_illegal_line_among_many_is_named(kind, tmp_path):
  rng = random.Random(0)
  text, video = legal_file(rng, kind, 50)
  header, *lines = text.rstrip("\r\n").split("\n")
  lines[30] = "illegal"
  file = tmp_path / f"{video or 'list'}.txt"
  file.write_bytes("\n".join([header, *lines]).encode())
  with pytest.raises(ValueError, match=rf"{file}:32: "):
    annotations.read(file, TASKS[kind])


MTL = "image,valence,arousal,expression,aus\n"
REST = ",0" * 12


@pytest.mark.parametrize(
  ("line", "says"),
  [
    ("v/00001.jpg,0,0,8" + REST, "2: expression '8'; expected an integer from 0 to 7, or -1"),
    ("v/00001.jpg,1.5,0,1" + REST, "2: valence '1.5'; expected a number from -1 to 1, or -5"),
    ("v/00001.jpg,0,nan,1" + REST, "2: arousal 'nan'; expected a number"),
    ("v/00001.jpg,0,0,1" + ",0" * 11 + ",2", "2: AU26 '2'; expected 0 or 1, or -1"),
    ("../00001.jpg,0,0,1" + REST, r"2: image '\.\./00001.jpg'; expected a name like video/00001"),
    ("v/../00001.jpg,0,0,1" + REST, "2: image .* expected a name like"),
    ("/v/00001.jpg,0,0,1" + REST, "2: image .* expected a name like"),
    ("v/00000.jpg,0,0,1" + REST, "2: image .* expected a name like"),
    ("v/00001.jpg,0,0,1", "2: 4 fields in .* a MTL list has 16: image, valence, arousal,"),
    ("v/00001.jpg,0,0,1" + REST + ",,", "2: 17 fields"),
    ("\nv/00001.jpg,0,0,1" + REST, "2: an empty line between data lines"),
  ],
)
def test_a_line_is_refused_with_what_was_expected(line, says):
  with pytest.raises(ValueError, match=f"^FILE:{says}"):
    annotations.parse(MTL + line, "mtl", "FILE")


def test_predictions_may_not_hold_the_markers_of_missing_labels():
  for line in ("-5,0,1" + REST, "0,0,-1" + REST, "0,0,1" + ",-1" * 12):
    text = MTL + f"v/00001.jpg,{line}\n"
    assert len(annotations.parse(text, "mtl", "FILE")) == 1
    with pytest.raises(ValueError, match="FILE:2: .*expected"):
      annotations.parse(text, "mtl", "FILE", predictions=True)


@pytest.mark.parametrize(
  ("content", "says"),
  [
    (b"", ":1: header ''; expected 'image,valence"),
    (b"image,valence,arousal\n", ":1: header 'image,valence,arousal'; expected"),
    (MTL.encode() + b"v/00001.jpg\n\xff\xfe", r":3: not a text file \(byte 0xff\)"),
    (None, ": no such file"),
  ],
)
def test_files_that_are_none_of_the_formats_are_named(tmp_path, content, says):
  file = tmp_path / "list.txt"
  if content is not None:
    file.write_bytes(content)
  with pytest.raises(ValueError, match=f"{file}{says}"):
    annotations.read(file, "mtl")


def test_an_empty_line_inside_a_per_video_file_is_refused_because_it_would_move_every_frame():
  with pytest.raises(ValueError, match="FILE:3: an empty line"):
    annotations.parse("valence,arousal\n0,0\n\n1,1\n", "va", "FILE", video="v")


def test_line_k_of_a_per_video_file_is_frame_k_counted_from_one(tmp_path):
  (tmp_path / "video55_left.txt").write_text("valence,arousal\n0.1,0.2\n-5,-5\n0.3,0.4\n")
  read = annotations.read(tmp_path / "video55_left.txt", "va")
  assert read.images == tuple(f"video55_left/0000{k}.jpg" for k in (1, 2, 3))
  np.testing.assert_array_equal(read.va[:, 0], [0.1, np.nan, 0.3])


def test_a_folder_is_read_video_by_video_in_order_of_names(tmp_path):
  (tmp_path / "b.txt").write_text(f"{','.join(labels.AU_MTL)}\n{'0,' * 11}1\n")
  (tmp_path / "a.txt").write_text(f"{','.join(labels.AU_MTL)}\n" + f"{'1,' * 11}-1\n" * 2)
  (tmp_path / "notes.md").write_text("not annotations")
  read = annotations.read(tmp_path, "au")
  assert read.images == ("a/00001.jpg", "a/00002.jpg", "b/00001.jpg")
  assert read.au[:, -1].tolist() == [-1, -1, 1]


def test_a_folder_without_files_or_with_several_editions_is_refused(tmp_path):
  with pytest.raises(ValueError, match="no per-video files"):
    annotations.read(tmp_path, "au")
  (tmp_path / "a.txt").write_text(",".join(labels.AU_MTL))
  (tmp_path / "b.txt").write_text(",".join(labels.AU_ABAW1))
  with pytest.raises(ValueError, match=r"b\.txt:1: another header than in .*a\.txt"):
    annotations.read(tmp_path, "au")
  (tmp_path / "a.txt").write_text("image_location," + ",".join(labels.AU_MTL))
  with pytest.raises(ValueError, match=r"a\.txt:1: a list of images among per-video files"):
    annotations.read(tmp_path, "au")


def test_release_lists_are_read_with_or_without_trailing_commas_and_with_dummy_values(tmp_path):
  file = tmp_path / "list.txt"
  file.write_text(f"{MTL}video45_1/00001.jpg\nvideo45_1/00001.jpg,\nv/00007.jpg,0,0,1{REST}\n")
  names = ("video45_1/00001.jpg", "video45_1/00001.jpg", "v/00007.jpg")
  assert annotations.read_names(file, "mtl") == names
  file.write_text("image,expression\n0.jpg\n1.jpg\n")
  assert annotations.read_names(file, "lsd") == ("0.jpg", "1.jpg")
  file.write_text(f"{MTL}v/00001.jpg\nv/1.jpg\n")
  with pytest.raises(ValueError, match=rf"{file}:3: image 'v/1.jpg'"):
    annotations.read_names(file, "mtl")
  file.write_text("valence,arousal\n0,0\n")
  with pytest.raises(ValueError, match="names no images"):
    annotations.read_names(file, "va")


@pytest.mark.parametrize("kind", TASKS)
def test_what_is_written_reads_back_as_the_same_numbers(kind, tmp_path):
  rng = random.Random(1)
  for _ in range(20):
    text, video = legal_file(rng, kind, rng.randrange(8))
    rows = annotations.parse(text, TASKS[kind], "FILE", video=video)
    file = tmp_path / f"{video or 'list'}.txt"
    annotations.write(file, TASKS[kind], rows, FORMATS[kind].header)
    judged = annotations_judge.judge(file.read_bytes().decode(), video=video)
    assert judged == rows_of(rows)


def test_rows_that_do_not_fit_a_format_are_not_written(tmp_path):
  file = tmp_path / "v.txt"
  rows = annotations.Annotations(("v/00002.jpg",), va=np.zeros((1, 2)))
  with pytest.raises(ValueError, match="frames 1, 2, 3"):
    annotations.write(file, "va", rows, "valence,arousal")
  with pytest.raises(ValueError, match="valence '1.01'; expected"):
    annotations.write(file, "va", annotations.Annotations(rows.images, va=rows.va + 1.01))
  with pytest.raises(ValueError, match="a AU list needs au, which the rows lack"):
    annotations.write(file, "au", rows)
  seven = annotations.Annotations(
    rows.images, expression=np.array([6]), classes=labels.EXPRESSION_SEVEN
  )
  with pytest.raises(ValueError, match="holds neutral, .*, other; the rows hold neutral"):
    annotations.write(file, "expression", seven)
  assert not file.exists()


def write_images(folder, *names):
  folder.mkdir(parents=True)
  for name in names:
    (folder / name).touch()


@pytest.mark.parametrize("anger", ["ANGRER", "ANGERE", "ANGER"])
def test_the_class_folders_of_lsd_are_labels_however_anger_is_spelt(tmp_path, anger):
  for k, name in enumerate([anger, "DISGUST", "FEAR", "HAPPINESS", "SADNESS", "SURPRISE"]):
    write_images(tmp_path / name, f"{10 - k}.jpg")
  folders = annotations.lsd_folders(tmp_path)
  assert {name: folder.name for name, folder in folders.items()} == {
    "anger": anger, "disgust": "DISGUST", "fear": "FEAR", "happiness": "HAPPINESS",
    "sadness": "SADNESS", "surprise": "SURPRISE",
  }  # fmt: skip
  read = annotations.read(tmp_path, "lsd")
  assert dict(zip(read.images, read.expression.tolist(), strict=True)) == {
    f"{10 - k}.jpg": k for k in range(6)
  }


def test_class_folders_that_are_missing_or_doubled_are_named(tmp_path):
  with pytest.raises(ValueError, match="one folder ANGRER or ANGERE or ANGER; it has none"):
    annotations.lsd_folders(tmp_path)
  for name in ("ANGRER", "ANGER", "DISGUST", "FEAR", "HAPPINESS", "SADNESS", "SURPRISE"):
    write_images(tmp_path / name, "0.jpg")
  with pytest.raises(ValueError, match="it has ANGRER and ANGER"):
    annotations.lsd_folders(tmp_path)
  (tmp_path / "ANGER" / "0.jpg").unlink()
  (tmp_path / "ANGER").rmdir()
  with pytest.raises(ValueError, match=r"1 file names occur in two class folders \(0.jpg\)"):
    annotations.read(tmp_path, "lsd")


def test_an_unknown_task_is_named():
  with pytest.raises(ValueError, match="task 'emotion': use one of mtl, va, expression, au, lsd"):
    annotations.parse("", "emotion", "FILE")


# Submissions.


def test_the_judge_knows_every_edition_and_its_format():
  ours = {
    (task, edition): form.header
    for task, editions in annotations.SUBMISSIONS.items()
    for edition, form in editions.items()
  }
  assert ours == {key: FORMATS[kind].header for key, kind in SUBMISSIONS.items()}


@pytest.mark.parametrize(
  ("task", "edition", "posed"),
  [
    ("va", 4, "1, 2, 3, 5, 6, 8, 10"),
    ("expression", 7, "1, 2, 3, 5, 6, 8, 10"),
    ("au", 11, "1, 2, 3, 5, 6, 8, 10"),
    ("mtl", 5, "3, 4, 7, 11"),
    ("lsd", 7, "4"),
    ("ce", 5, "6, 7, 8"),
  ],
)
def test_an_edition_that_did_not_pose_a_task_is_refused_with_those_that_did(task, edition, posed):
  with pytest.raises(ValueError, match=f"^--edition={edition}: task {task} was .* ABAW {posed}$"):
    annotations.submission(task, edition)


def write_submission(folder, files, kind):
  """A file or, of the per-video formats, a folder."""
  if FORMATS[kind].path:
    (text,) = files.values()
    (folder / "predictions.txt").write_bytes(text.encode(errors="surrogateescape"))
    return folder / "predictions.txt"
  for name, text in files.items():
    (folder / f"{name}.txt").write_bytes(text.encode(errors="surrogateescape"))
  return folder


def read_or_refused(path, task, edition, images):
  """(rows, "") or (None, what was said)."""
  try:
    return rows_of(annotations.read_submission(path, task, edition, images)), ""
  except ValueError as e:
    return None, str(e)


# One edition of each format.
EDITIONS = {kind: key for key, kind in SUBMISSIONS.items()}


@pytest.mark.parametrize("kind", EDITIONS)
def test_mutated_submissions_are_read_as_the_judge_reads_them_or_refused_by_file(kind, tmp_path):
  """10,000 files and folders over all formats, against the images that were asked for."""
  rng = random.Random(f"submissions of {kind}")
  read = refused = 0
  while read + refused < 10_000 / len(EDITIONS):
    files = legal_submission(rng, kind)
    images = [
      image
      for name in sorted(files, key=lambda name: name + ".txt")
      for image, *_ in annotations_judge.judge(files[name], video=name, predictions=True)
    ]
    changed = mutate_submission(rng, files)
    folder = tmp_path / str(read + refused)
    folder.mkdir()
    path = write_submission(folder, changed, kind)
    expected = annotations_judge.judge_submission(changed, kind, images)
    found, said = read_or_refused(path, *EDITIONS[kind], images)
    assert not said or re.match(rf"{re.escape(str(path))}(/[\w-]+\.txt)?:\d+: [^\n]*$", said), said
    assert found == expected, repr(changed)
    refused += expected is None
    read += expected is not None
  assert read > 0.1 * refused
  assert refused > 0.4 * read


LISTED = ("v/00001.jpg", "v/00001.jpg", "v/00003.jpg")
VA_LIST = "image_location,valence,arousal\n"


@pytest.mark.parametrize(
  ("text", "says"),
  [
    (VA_LIST + "v/00001.jpg,0,0\nv/00003.jpg,0,0\n", "3: image 'v/00003.jpg'; the test list has"),
    (VA_LIST + "v/00001.jpg,0,0\n" * 2, "4: 2 rows; the test list has 3"),
    (VA_LIST + "v/00001.jpg,0,0\n" * 2 + "v/00003.jpg,0,0\n" * 2, "5: 4 rows; the test list has 3"),
    (VA_LIST + "v/00001.jpg,-5,0\n", "2: valence '-5'; expected a number from -1 to 1$"),
    ("valence,arousal\n0,0\n", "1: header of a per-video VA file; ABAW8 takes a VA list: 'image_l"),
  ],
)
def test_a_submission_that_is_not_what_was_asked_for_is_named_by_line(tmp_path, text, says):
  file = tmp_path / "v.txt"
  file.write_text(text)
  with pytest.raises(ValueError, match=f"^{file}:{says}"):
    annotations.read_submission(file, "va", 8, LISTED)


def test_per_video_submissions_are_compared_frame_by_frame(tmp_path):
  images = annotations.frames("a", 2) + annotations.frames("b", 1)
  (tmp_path / "a.txt").write_text("valence,arousal\n0,0\n0,0\n")
  with pytest.raises(ValueError, match=r"b\.txt:2: 0 frames; the test list has 1$"):
    annotations.read_submission(tmp_path, "va", 2, images)
  (tmp_path / "b.txt").write_text("valence,arousal\n0,0\n0,0\n")
  with pytest.raises(ValueError, match=r"b\.txt:3: 2 frames; the test list has 1$"):
    annotations.read_submission(tmp_path, "va", 2, images)
  (tmp_path / "b.txt").write_text("valence,arousal\n0,1\n")
  assert annotations.read_submission(tmp_path, "va", 2, images).va.tolist() == [[0, 0]] * 2 + [
    [0, 1]
  ]
  with pytest.raises(ValueError, match="ABAW10 takes one file: a VA list"):
    annotations.read_submission(tmp_path, "va", 10, images)
  with pytest.raises(ValueError, match="ABAW3 takes a folder of them: a per-video VA file"):
    annotations.read_submission(tmp_path / "a.txt", "va", 3, images)
  for name, header in (("a", labels.AU_MTL), ("b", labels.AU_MTL)):
    (tmp_path / f"{name}.txt").write_text(",".join(header) + "\n" + "0," * 11 + "0\n")
  with pytest.raises(ValueError, match=r"a\.txt:1: header of a per-video AU file; ABAW1 takes a"):
    annotations.read_submission(tmp_path, "au", 1, images)


def test_lists_of_videos_are_read_a_name_a_line(tmp_path):
  file = tmp_path / "names.txt"
  file.write_bytes(b"\xef\xbb\xbf10-60-1280x720_right\r\n10-60-1280x720\r\n\n")
  assert annotations.read_videos(file, "va") == ("10-60-1280x720_right", "10-60-1280x720")
  assert not annotations.has_header(file, "va")
  for line, says in (
    ("a\nb,c", "2: 'b,c'; expected the name of a video, or on line 1 the header 'image_location,"),
    ("a\n\nb", "2: ''; expected the name of a video"),
    ("a\nb\na", "3: video 'a' again, after line 1"),
    ("a/00001.jpg", "1: 'a/00001.jpg'; expected"),
  ):
    file.write_text(line)
    with pytest.raises(ValueError, match=f"^{file}:{says}"):
      annotations.read_videos(file, "va")
  file.write_text("image_location,valence,arousal\r\n")
  assert annotations.has_header(file, "va")
  assert not annotations.has_header(file, "au")


def test_more_frames_than_five_digits_name_are_refused():
  assert annotations.frames("v", 99_999)[-1] == "v/99999.jpg"
  with pytest.raises(ValueError, match="'v' has 100,000 frames"):
    annotations.frames("v", 100_000)
