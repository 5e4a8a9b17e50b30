"""Submissions of every edition, by a real model on invented trees, against oracles of their own."""

import copy
import functools
import json
import random
import shutil
import subprocess
import sys
import types
from pathlib import Path

import annotations_judge
import av
import cv2
import jax
import numpy as np
import pytest
import sklearn.metrics
from annotations_judge import FORMATS, SUBMISSIONS
from conftest import debug_config, launch, save_run
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_test import ccc

import affjax
from affjax import annotations, calibrate, inference, labels, score, submit

# Video -> its frames and those of them with a crop. Sorted as files "a-b" comes before "a", sorted
# as images too, but "a.b" does not.
TREE = {
  "a": (9, [3, 4, 7]),
  "a-b": (5, [1, 2, 3, 4, 5]),
  "a.b": (2, [1, 2]),
  "46-30-484x360_left": (6, [1, 2, 6]),
  "video2": (3, []),
}
CROPS = [f"{video}/{k:05d}.jpg" for video, (_, crops) in TREE.items() for k in crops]
HEADERS = {kind: form.header for kind, form in FORMATS.items()}
COMPOUND = [
  ("fear", "surprise"), ("happiness", "surprise"), ("sadness", "surprise"),
  ("disgust", "surprise"), ("anger", "surprise"), ("sadness", "fear"), ("sadness", "anger"),
]  # fmt: skip


def draw(path, rng):
  """A photograph of nothing: smooth noise, unlike any other."""
  path.parent.mkdir(parents=True, exist_ok=True)
  image = cv2.resize(rng.integers(0, 256, (4, 4, 3), np.uint8), (112, 112))
  cv2.imwrite(str(path), image)


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
  folder, rng = tmp_path_factory.mktemp("crops"), np.random.default_rng(1)
  for name in [*CROPS, "a/00012.jpg", "unlisted/00001.jpg"]:
    draw(folder / name, rng)
  return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return save_run(tmp_path_factory.mktemp("submit") / "run", debug_config(), seed=1)


OPENED = functools.cache(inference.load)


@pytest.fixture(scope="module", autouse=True)
def _runs_are_opened_once_and_for_short_videos():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(inference, "load", OPENED)
    patch.setattr(inference, "BUCKETS", (8,))
    yield


def ask(predictor, crops):
  """Image -> values of the model's outputs, all at once and in another order."""
  names = random.Random(0).sample(CROPS, len(CROPS))
  outputs = predictor.outputs([crops / name for name in names])
  return {
    name: in_terms({task: array[i].astype(float) for task, array in outputs.items()})
    for i, name in enumerate(names)
  }


@pytest.fixture(scope="module")
def said(run, crops):
  return ask(OPENED(str(run), "best"), crops)


def call(run, crops, task, edition, test_list, output, *options):
  submit.main([
    f"--checkpoint={run}", f"--images={crops}", f"--task={task}", f"--edition={edition}",
    f"--test_list={test_list}", f"--output={output}", *options,
  ])  # fmt: skip
  return output


def fails(*arguments):
  with pytest.raises(SystemExit) as error:
    call(*arguments)
  text = str(error.value)
  assert text.startswith("error: ")
  assert "\n" not in text
  return text


# An oracle.


def softmax(logits):
  exps = [np.exp(x - max(logits)) for x in logits]
  return np.array(exps) / sum(exps)


def in_terms(output):
  """Raw outputs of one image -> values that are filled and decided on."""
  return {
    "va": output["va"],
    "expression": softmax(output["expression"]),
    "au": 1 / (1 + np.exp(-output["au"])),
  }


def expected(images, said, how="hold", max_gap=np.inf):
  """Values of each image, by loops over the frames of its video that are listed and have a crop."""
  values = {name: said[name] for name in set(images) & set(said)}
  mean = lambda those: {
    t: np.mean([v[t] for v in those], axis=0) for t in ("va", "expression", "au")
  }
  found = []
  for image in images:
    video, k = image[:-10], int(image[-9:-4])
    there = {int(name[-9:-4]): v for name, v in values.items() if name[:-10] == video}
    before, after = [n for n in there if n <= k], [n for n in there if n >= k]
    if not there:
      found.append(mean(values.values()))
      continue
    low, high = max(before, default=min(there)), min(after, default=max(there))
    near = abs(k - low) if how == "hold" else min(abs(k - low), abs(high - k))
    if near > max_gap:
      found.append(mean(there.values()))
    elif how == "hold" or low == high:
      found.append(there[low])
    else:
      at = (k - low) / (high - low)
      found.append({t: (1 - at) * there[low][t] + at * there[high][t] for t in there[low]})
  return found


def decided(values, kind):
  """One frame's fields of a line: floats or integers."""
  form, fields = FORMATS[kind], []
  if form.va:
    fields += [min(1.0, max(-1.0, v)) for v in values["va"]]
  if kind == "list_ce":
    p = dict(zip(labels.EXPRESSION_MTL, values["expression"], strict=True))
    fields.append(int(np.argmax([p[one] + p[two] for one, two in COMPOUND])))
  elif kind == "lsd":
    fields.append(int(np.argmax(values["expression"][1:7])))
  elif form.classes:
    fields.append(int(np.argmax(values["expression"][: form.classes])))
  if form.aus:
    fields += [int(p > 0.5) for p in values["au"]]
  return fields


def read_lines(path, header):
  first, *lines = path.read_bytes().decode("ascii").removesuffix("\n").split("\n")
  assert first == header
  return [line.split(",") for line in lines]


def check_lines(found, named, values, kind, within=1e-7):
  """Every line of a file against the oracle; `named`: images first, or [] in per-video files."""
  assert len(found) == len(values)
  for i, (fields, value) in enumerate(zip(found, values, strict=True)):
    if named:
      assert fields.pop(0) == named[i]
    wanted = decided(value, kind)
    numbers = [float(field) for field in fields]
    np.testing.assert_allclose(numbers, wanted, rtol=0, atol=within, err_msg=str(i))


def write_list(path, kind, images, end=","):
  path.write_text("".join(f"{line}\n" for line in (HEADERS[kind], *(i + end for i in images))))
  return path


def every_frame(videos=TREE):
  return [f"{video}/{k:05d}.jpg" for video in videos for k in range(1, TREE[video][0] + 1)]


# The list of a multi-task challenge: gaps, images twice, one video in two places.
SOME = [
  "a/00001.jpg", "a/00001.jpg", "a/00004.jpg", "a/00005.jpg", "a-b/00002.jpg", "a-b/00002.jpg",
  "video2/00003.jpg", "46-30-484x360_left/00004.jpg", "46-30-484x360_left/00006.jpg",
  "a/00007.jpg", "a/00009.jpg", "a.b/00001.jpg", "46-30-484x360_left/00002.jpg",
]  # fmt: skip


@pytest.mark.parametrize("how", ["hold", "interpolate"])
@pytest.mark.parametrize(
  ("task", "edition"), [("mtl", 7), ("mtl", 3), ("va", 5), ("expression", 10), ("au", 6), ("ce", 7)]
)
def test_every_line_of_a_list_is_what_the_model_says_of_that_frame(
  task, edition, how, run, crops, said, tmp_path
):
  kind = SUBMISSIONS[task, edition]
  images = SOME if task == "mtl" else every_frame()
  test_list = write_list(tmp_path / "list.txt", kind, images)
  output = call(run, crops, task, edition, test_list, tmp_path / "predictions.txt", f"--fill={how}")
  check_lines(read_lines(output, HEADERS[kind]), images, expected(images, said, how), kind)
  judged = annotations_judge.judge_submission({"": output.read_text()}, kind, images)
  assert judged is not None
  assert sorted(p.name for p in tmp_path.iterdir()) == ["list.txt", "predictions.txt"]


def per_video(folder, kind, lines):
  """A folder of per-video files: video -> lines of labels."""
  folder.mkdir()
  for video, own in lines.items():
    (folder / f"{video}.txt").write_text("".join(f"{line}\n" for line in (HEADERS[kind], *own)))
  return folder


@pytest.mark.parametrize(
  ("task", "edition"), [("va", 1), ("va", 3), ("expression", 2), ("expression", 3), ("au", 2)]
)
def test_every_line_of_the_files_of_the_early_editions_is_what_the_model_says_of_that_frame(
  task, edition, run, crops, said, tmp_path
):
  kind = SUBMISSIONS[task, edition]
  nothing = {"va": "-5,-5", "expression": "-1", "au": ",".join(["-1"] * 12)}[task]
  asked = per_video(tmp_path / "asked", kind, {v: [nothing] * n for v, (n, _) in TREE.items()})
  output = call(run, crops, task, edition, asked, tmp_path / "made", "--fill=interpolate")
  values = dict(zip(every_frame(), expected(every_frame(), said, "interpolate"), strict=True))
  assert {p.stem for p in output.iterdir()} == set(TREE)
  for video in TREE:
    found = read_lines(output / f"{video}.txt", HEADERS[kind])
    check_lines(found, [], [values[image] for image in every_frame([video])], kind)


def test_a_folder_of_labels_asks_for_every_frame_of_the_later_editions_too(
  run, crops, said, tmp_path
):
  asked = per_video(tmp_path / "asked", "video_expr", {v: ["-1"] * n for v, (n, _) in TREE.items()})
  output = call(run, crops, "expression", 8, asked, tmp_path / "p.txt", "--max_gap=2")
  images = every_frame(sorted(TREE, key=lambda video: f"{video}.txt"))
  found = read_lines(output, HEADERS["list_expr"])
  check_lines(found, images, expected(images, said, max_gap=2), "list_expr")


def film(path, count):
  """A video of so many grey frames."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), "w") as container:
    stream = container.add_stream("mpeg4", rate=25)
    stream.width = stream.height = 32
    for k in range(count):
      frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 9 * k, np.uint8), "rgb24")
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


@pytest.mark.parametrize("edition", [3, 5])
def test_names_of_videos_ask_for_every_frame_that_is_counted_in_them_and_one_more(
  edition, run, crops, said, tmp_path, capsys
):
  film(tmp_path / "videos" / "batch1" / "46-30-484x360.mp4", 5)
  film(tmp_path / "videos" / "batch2" / "a-b.avi", 4)
  names, named = ["46-30-484x360_left", "a-b"], tmp_path / "names.txt"
  named.write_text("\r\n".join(names))
  films = f"--videos={tmp_path / 'videos'}"
  output = call(run, crops, "va", edition, named, tmp_path / "made", films)
  assert "warning: 11 frames of 2 videos as a decoder counts them" in capsys.readouterr().err
  images = every_frame(names)
  values = dict(zip(images, expected(images, said), strict=True))
  if edition == 5:
    check_lines(read_lines(output, HEADERS["list_va"]), images, list(values.values()), "list_va")
  else:
    for video in names:
      found = read_lines(output / f"{video}.txt", HEADERS["video_va"])
      check_lines(found, [], [values[image] for image in every_frame([video])], "video_va")
  named.write_text("46-30-484x360_right\nvideo2\na.mp4\n")
  message = fails(run, crops, "va", edition, named, tmp_path / "again", films)
  assert f"has no video of video2, a.mp4, named in {named}" in message


@pytest.mark.parametrize("tree", [False, True])
def test_images_without_a_video_are_answered_one_by_one(tree, run, crops, said, tmp_path):
  places = ["ANGRER", "DISGUST", "FEAR", "HAPPINESS", "SADNESS", "SURPRISE"]
  folder, source = tmp_path / "images", {}
  for i, name in enumerate(CROPS):
    place = folder / places[i % 6] if tree else folder
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(crops / name, place / f"{i}.jpg")
    source[f"{i}.jpg"] = said[name]
  images = [f"{i}.jpg" for i in (3, 0, 12, 3, *range(len(CROPS)))]
  asked = folder if tree else write_list(tmp_path / "list.txt", "lsd", images)
  output = call(run, folder, "lsd", 4, asked, tmp_path / "p.txt")
  if tree:
    images = [f"{i}.jpg" for k in range(6) for i in sorted(range(k, len(CROPS), 6), key=str)]
  found = read_lines(output, HEADERS["lsd"])
  check_lines(found, images, [source[image] for image in images], "lsd")
  if not tree:
    (folder / "12.jpg").unlink()
    said = fails(run, folder, "lsd", 4, asked, tmp_path / "again.txt")
    assert "1 images are missing: 12.jpg" in said


def test_the_frames_that_were_filled_are_counted_by_video(run, crops, tmp_path, capsys):
  test_list = write_list(tmp_path / "list.txt", "list_va", every_frame())
  call(run, crops, "va", 6, test_list, tmp_path / "p.txt")
  told = capsys.readouterr().out.splitlines()
  assert told[:4] == [
    "12 of 25 frames have no crop: filled (hold)",
    "  46-30-484x360_left: 3 of 6",
    "  a: 6 of 9",
    "  video2: 3 of 3, all: by the mean of all predicted frames",
  ]
  assert "a VA list of ABAW6, 25 rows, raw, of step 3" in told[4]


# Written, read again, scored.


def random_rows(task, edition, rng, rows):
  """Answers to any task, and labels of the same images, a fifth of them missing."""
  form = annotations.submission(task, edition)
  images = {
    "": annotations.frames("v", rows // 2) + annotations.frames("w", rows - rows // 2),
    "frame": [f"v{k % 3}/{k // 3 + 1:05d}.jpg" for k in range(rows)],
    "file": [f"{k}.jpg" for k in range(rows)],
  }[form.image]
  lack = lambda *shape: (rng.random(shape) < 0.2) & form.marked
  parts = {
    "va": lambda: rng.uniform(-1, 1, (rows, 2)),
    "expression": lambda: rng.integers(0, len(form.classes), rows),
    "au": lambda: rng.integers(0, 2, (rows, len(form.units))),
  }
  asked = {"va": form.va, "expression": form.classes, "au": form.units}
  answers = {name: part() for name, part in parts.items() if asked[name]}
  truth = {
    name: np.where(lack(*x.shape), np.nan if name == "va" else -1, parts[name]())
    for name, x in answers.items()
  }
  whole = {n: x if n == "va" else x.astype(np.int64) for n, x in truth.items()}
  names = dict(images=tuple(images), classes=form.classes, units=form.units)
  return annotations.Annotations(**names, **answers), annotations.Annotations(**names, **whole)


def in_memory(task, edition, answers, truth):
  """The challenge's score by scikit-learn and NumPy."""
  f1 = functools.partial(sklearn.metrics.f1_score, zero_division=0)
  total = []
  if answers.va is not None:
    known = ~np.isnan(truth.va)
    each = [ccc(answers.va[k, i], truth.va[k, i]) for i, k in enumerate(known.T)]
    total.append(np.mean(each))
  if answers.expression is not None:
    known = truth.expression >= 0
    pair = truth.expression[known], answers.expression[known]
    value = f1(*pair, labels=range(len(answers.classes)), average="macro")
    if edition < 3:
      value = 0.67 * value + 0.33 * sklearn.metrics.accuracy_score(*pair)
    total.append(value)
  if answers.au is not None:
    known = truth.au >= 0
    each = [f1(truth.au[k, i], answers.au[k, i]) for i, k in enumerate(known.T)]
    value = np.mean(each)
    if edition < 3:
      value = 0.5 * value + 0.5 * (truth.au == answers.au)[known].mean()
    total.append(value)
  return sum(total)


@pytest.mark.parametrize(("task", "edition"), SUBMISSIONS)
def test_each_format_is_written_and_scores_from_the_file_as_it_did_in_memory(
  task, edition, tmp_path
):
  answers, truth = random_rows(task, edition, np.random.default_rng(edition), 60)
  submit.write(tmp_path / "made", task, edition, answers)
  read = annotations.read(tmp_path / "made", task, predictions=True)
  found = score.score(task, truth, read, edition=edition)
  assert found["score"] == pytest.approx(in_memory(task, edition, answers, truth), abs=1e-12)
  assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_rows_that_an_edition_does_not_take_are_not_written(tmp_path):
  answers, _ = random_rows("va", 8, np.random.default_rng(0), 6)
  answers.va[4, 1] = np.nan
  with pytest.raises(ValueError, match=r"made:6: arousal '-5'; expected a number from -1 to 1"):
    submit.write(tmp_path / "made", "va", 8, answers)
  with pytest.raises(ValueError, match="frames 1, 2, 3"):
    submit.write(tmp_path / "made", "va", 3, answers)
  assert list(tmp_path.iterdir()) == []


def labelled(rng, kind):
  """video -> lines of labels, a third of them missing."""
  return {
    video: [str(rng.integers(8)) if rng.random() < 0.7 else "-1" for _ in range(count)]
    for video, (count, _) in TREE.items()
  }


def test_scores_are_over_all_labelled_frames_and_over_those_with_a_crop(
  run, crops, said, tmp_path, capsys
):
  truth = labelled(np.random.default_rng(0), "video_expr")
  folder = per_video(tmp_path / "labels", "video_expr", truth)
  call(run, crops, "expression", 8, folder, tmp_path / "p.txt", f"--labels={folder}")
  images = every_frame()
  answers = [decided(v, "list_expr")[0] for v in expected(images, said)]
  lines = capsys.readouterr().out.splitlines()[-3:]
  assert lines[0].split() == ["frames", "score", "floor"]
  for line, what, rows in (
    (lines[1], "raw, all labelled frames", images),
    (lines[2], "raw, frames with a crop", [i for i in images if i in said]),
  ):
    pairs = [
      (int(truth[i[:-10]][int(i[-9:-4]) - 1]), a)
      for i, a in zip(images, answers, strict=True)
      if i in rows and truth[i[:-10]][int(i[-9:-4]) - 1] != "-1"
    ]
    f1 = sklearn.metrics.f1_score(
      *zip(*pairs, strict=True), labels=range(8), average="macro", zero_division=0
    )
    assert line.startswith(what)
    assert line.removeprefix(what).split()[:2] == [str(len(pairs)), f"{f1:.4f}"]


def test_the_parts_of_a_multi_task_score_stand_beside_it(run, crops, tmp_path, capsys):
  rows = [f"{image},0.{k},-0.{k},{k % 8}" + f",{k % 2}" * 12 for k, image in enumerate(SOME)]
  of = tmp_path / "labels.txt"
  of.write_text("\n".join([HEADERS["mtl"], *rows]))
  test_list = write_list(tmp_path / "list.txt", "mtl", SOME)
  output = call(run, crops, "mtl", 11, test_list, tmp_path / "p.txt", f"--labels={of}")
  line = capsys.readouterr().out.splitlines()[-2].removeprefix("raw, all labelled frames").split()
  answers = annotations.read(output, "mtl")
  found = score.score("mtl", annotations.read(of, "mtl"), answers)
  parts = [found["va"]["ccc"], found["expression"]["f1"], found["au"]["f1"]]
  assert line == [str(len(SOME)), *(f"{x:.4f}" for x in (found["score"], found["floor"], *parts))]


def test_labels_that_do_not_fit_are_refused_before_anything_is_predicted(tmp_path):
  nowhere = tmp_path / "no_run", tmp_path
  test_list = write_list(tmp_path / "list.txt", "list_expr", ["a/00001.jpg"])
  of = write_list(tmp_path / "l.txt", "list_expr", ["a/00001.jpg,0", "a/00002.jpg,1"], end="")
  message = fails(*nowhere, "expression", 8, test_list, tmp_path / "p.txt", f"--labels={of}")
  assert f"--labels={of}: 1 of 2 labelled frames are not in --test_list" in message
  seven = per_video(tmp_path / "seven", "video_expr7", {"a": ["0"]})
  message = fails(*nowhere, "expression", 8, test_list, tmp_path / "p.txt", f"--labels={seven}")
  assert "those of ABAW 1, 2" in message


# After post-processing.


def test_post_processed_answers_are_written_and_scored_beside_the_raw_ones(
  run, crops, said, tmp_path, capsys
):
  """Mean over three frames of the video, by a loop; then bias, thresholds; then what is missing."""
  bias = {"neutral": 0.7, "other": -1.1, "sadness": 0.4}
  cuts = {"AU1": 0.2, "AU26": 0.9, "AU7": 0.55}
  window = {"kind": "mean", "width": 3}
  settings_of = {
    "va": {"smooth": window},
    "expression": {"smooth": window, "bias": bias},
    "au": {"smooth": window, "threshold": cuts},
  }
  (tmp_path / "settings.json").write_text(json.dumps(settings_of))
  smooth = {}
  for name in CROPS:
    around = [f"{name[:-9]}{int(name[-9:-4]) + k:05d}.jpg" for k in (-1, 0, 1)]
    near = [said[other] for other in around if other in said]
    value = {task: np.mean([v[task] for v in near], axis=0) for task in near[0]}
    biased = value["expression"] * np.exp([bias.get(n, 0) for n in labels.EXPRESSION_MTL])
    value["expression"] = biased / biased.sum()
    value["au"] = value["au"] - [cuts.get(n, 0.5) for n in labels.AU_MTL] + 0.5
    smooth[name] = value
  images = every_frame()
  raw, made = (expected(images, values) for values in (said, smooth))
  for task, kind in (("va", "list_va"), ("expression", "list_expr"), ("au", "list_au")):
    form = annotations.FORMATS[task][0]
    truth = [decided(v, kind) for v in raw]  # so that the raw score is as high as it can be
    of = tmp_path / f"{task}.txt"
    lines = [f"{i},{','.join(map(str, t))}" for i, t in zip(images, truth, strict=True)]
    of.write_text("\n".join([form.header, *lines]))
    output = call(
      run, crops, task, 8, of, tmp_path / f"{task}_made.txt", f"--labels={of}",
      f"--postprocess={tmp_path / 'settings.json'}",
    )  # fmt: skip
    check_lines(read_lines(output, form.header), images, made, kind)
    *_, all_raw, crop_raw, all_made, crop_made, note = capsys.readouterr().out.splitlines()
    assert all_raw.startswith("raw, all labelled frames")
    assert crop_raw.startswith("raw, frames with a crop")
    assert all_made.startswith("post-processed, all labelled frames")
    assert crop_made.startswith("post-processed, frames with a crop")
    found = score.score(task, annotations.read(of, task), annotations.read(output, task))["score"]
    assert all_made.split()[-3:-1] == ["25", f"{found:.4f}"]
    assert float(all_raw.split()[-2]) > found
    assert "in-sample" in note


@pytest.mark.parametrize(
  ("content", "says"),
  [
    ({"va": {"smooth": {"kind": "mean", "width": 4}}}, "width=4"),
    ({"expression": {"bias": {"contempt": 1.0}}}, "contempt"),
    ({"expression": {"weights": [0.5, 0.5]}}, "2 models"),
    ({"expresion": {}}, "expresion"),
  ],
)
def test_settings_of_another_model_are_refused(content, says, run, crops, tmp_path):
  (tmp_path / "s.json").write_text(json.dumps(content))
  test_list = write_list(tmp_path / "list.txt", "list_expr", every_frame())
  options = [f"--postprocess={tmp_path / 's.json'}", f"--images={tmp_path / 'none'}"]
  message = fails(run, crops, "expression", 8, test_list, tmp_path / "p.txt", *options)
  assert says in message


@pytest.mark.slow
def test_the_command_line_submits_what_a_trained_run_says(tiny_faces, crops, tmp_path):
  trained = launch(tmp_path / "run", tiny_faces)
  told = trained.communicate(timeout=600)[0]
  assert trained.returncode == 0, told
  test_list = write_list(tmp_path / "list.txt", "mtl", SOME, end="")
  command = [
    sys.executable, "-m", "affjax.submit", f"--checkpoint={tmp_path / 'run'}", "--task=mtl",
    "--edition=11", f"--test_list={test_list}", f"--images={crops}", "--fill=interpolate",
    f"--output={tmp_path / 'predictions.txt'}",
  ]  # fmt: skip
  done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
  assert done.returncode == 0, done.stderr
  assert "a MTL list of ABAW11, 13 rows, raw" in done.stdout
  values = expected(SOME, ask(affjax.load(str(tmp_path / "run")), crops), "interpolate")
  found = read_lines(tmp_path / "predictions.txt", HEADERS["mtl"])
  check_lines(found, SOME, values, "mtl", within=1e-6)


class Counting:
  """A model that sees nothing but frame numbers: how far each is from the one before it."""

  def sequence(self, paths, frames):
    return {"va": np.stack([frames, np.diff(frames, prepend=0)], axis=1).astype(np.float32)}


def test_a_model_of_time_is_given_each_video_in_order_with_the_numbers_of_its_frames(crops):
  images = random.Random(0).sample(every_frame(), len(every_frame()))
  frames = submit.find(images, [crops])
  found = submit.run_model(Counting(), frames, ["va"])["va"]
  said = {frames.names[i]: found[i].tolist() for i in np.flatnonzero(frames.present)}
  assert said == {
    f"{video}/{k:05d}.jpg": [k, k - before]
    for video, (_, own) in TREE.items()
    for before, k in zip([0, *own[:-1]], own, strict=False)
  }
  assert np.isnan(found[~frames.present]).all()
  assert [frames.names[row] for row in frames.row] == images


# What is refused.


def test_a_model_whose_outputs_are_no_numbers_is_refused(run, crops):
  broken = copy.copy(OPENED(str(run), "best"))
  broken._params = jax.tree.map(lambda x: x * np.nan, broken._params)
  frames = submit.find(CROPS, [crops])
  with pytest.raises(ValueError, match="46-30-484x360_left: the model's va of an image here"):
    submit.run_model(broken, frames, ["va"])


@pytest.mark.parametrize(
  ("task", "edition", "options", "says"),
  [
    ("va", 4, [], "--edition=4: task va was posed by ABAW 1, 2, 3, 5, 6, 8, 10"),
    ("au", 1, [], "its model lacks AU20, which a per-video AU file of ABAW1 asks for"),
    ("au", 2, ["--videos=x"], "--videos=x is for the names of videos alone"),
    ("expression", 3, ["--output={0}/none/p"], "none is no folder that can be written to"),
    ("expression", 3, ["--which=7"], "no checkpoint '7'"),
    ("expression", 3, ["--images={0}/none"], "--images={0}/none: no such folder"),
    ("expression", 3, ["--images={0}"], "none of 2 images is there, such as a/00001.jpg"),
    ("expression", 3, ["--checkpoint={0}"], "holds no run"),
    ("expression", 3, ["--test_list={0}/none"], "none: no such file or folder"),
    ("mtl", 7, [], "a.txt:1: header"),
    ("expression", 5, ["--output={0}"], "{0}: is there already: name another"),
    ("expression", 5, ["--output={0}", "--overwrite"], "a EXPR list is wanted, one file"),
  ],
)
def test_what_cannot_be_is_refused_before_anything_is_predicted(
  task, edition, options, says, run, crops, tmp_path
):
  kind = {"va": "video_va", "au": "video_au8" if edition == 1 else "video_au"}.get(
    task, "video_expr"
  )
  lines = {"va": ["0,0"], "au": ["0" + ",0" * (7 if edition == 1 else 11)]}.get(task, ["0"])
  asked = per_video(tmp_path / "asked", kind, {"a": lines * 2})
  options = [option.format(tmp_path) for option in options]
  message = fails(run, crops, task, edition, asked, tmp_path / "p", *options)
  assert says.format(tmp_path) in message
  assert [p.name for p in tmp_path.iterdir()] == ["asked"]


@pytest.mark.parametrize(
  ("edition", "text", "says"),
  [
    (3, "image_location,valence,arousal\na/00001.jpg\n", "list.txt:1: ABAW3 takes a per-video VA"),
    (
      8,
      "image_location,valence,arousal\na/1.jpg\n",
      "list.txt:2: image 'a/1.jpg'; expected a name",
    ),
    (
      8,
      "image,valence\na/00001.jpg\n",
      "list.txt:1: 'image,valence'; expected the name of a video",
    ),
    (8, "image_location,valence,arousal\n", "list.txt: lists no images"),
    (8, "a\nb\n", "list.txt: names videos without their lengths: give their folder with --videos"),
  ],
)
def test_a_test_list_that_is_none_is_named_by_line(edition, text, says, run, crops, tmp_path):
  (tmp_path / "list.txt").write_text(text)
  assert says in fails(run, crops, "va", edition, tmp_path / "list.txt", tmp_path / "p.txt")


def test_an_image_that_cannot_be_read_leaves_nothing_and_what_was_there_stays(run, crops, tmp_path):
  damaged = tmp_path / "crops"
  shutil.copytree(crops, damaged)
  (damaged / "a" / "00004.jpg").write_bytes(b"\xff\xd8\xff")
  output = tmp_path / "p.txt"
  output.write_text("before")
  test_list = write_list(tmp_path / "list.txt", "list_va", every_frame())
  message = fails(run, damaged, "va", 8, test_list, output, "--overwrite")
  assert "a/00004.jpg: the image cannot be decoded" in message
  assert output.read_text() == "before"
  assert len(list(tmp_path.iterdir())) == 3


def test_what_is_there_is_replaced_if_asked_for_and_if_it_is_a_submission(run, crops, tmp_path):
  asked = per_video(tmp_path / "asked", "video_va", {"a": ["0,0"] * 4})
  output = tmp_path / "made"
  for options in ([], ["--overwrite"]):
    call(run, crops, "va", 2, asked, output, *options)
    assert [p.name for p in output.iterdir()] == ["a.txt"]
    (output / "b.txt").write_text("of another try")
  assert "is there already" in fails(run, crops, "va", 2, asked, output)
  (output / "thesis.tex").touch()
  message = fails(run, crops, "va", 2, asked, output, "--overwrite")
  assert "holds more than per-video files (thesis.tex)" in message
  assert (output / "thesis.tex").exists()


# Filling.


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_gaps_are_filled_as_by_a_loop_over_frame_numbers(data):
  number = np.array(sorted(data.draw(st.sets(st.integers(1, 60), min_size=1, max_size=20))))
  there = data.draw(st.lists(st.booleans(), min_size=len(number), max_size=len(number)))
  there[data.draw(st.integers(0, len(number) - 1))] = True
  present, max_gap = np.array(there), data.draw(st.none() | st.integers(1, 20))
  how = data.draw(st.sampled_from(["hold", "interpolate"]))
  values = np.random.default_rng(0).normal(size=(len(number), 3))
  values[~present] = np.nan
  images = [f"v/{k:05d}.jpg" for k in number]
  said = {
    image: {"va": v, "expression": v, "au": v}
    for image, v, p in zip(images, values, present, strict=True)
    if p
  }
  wanted = expected(images, said, how, np.inf if max_gap is None else max_gap)
  found = submit.fill(values, number, present, how, max_gap)
  np.testing.assert_allclose(found, [w["va"] for w in wanted], rtol=1e-12, atol=1e-12)


# Names.


def test_values_beyond_the_range_are_clipped_and_equal_probabilities_go_to_the_first_class():
  frames = types.SimpleNamespace(row=np.array([1, 0, 1]))
  form = annotations.submission("va", 8)
  values = {"va": np.array([[-1.5, 0.25], [1.01, -0.5]])}
  found = submit.answers(values, frames, ["b", "a", "b"], form)
  assert found.va.tolist() == [[1, -0.5], [-1, 0.25], [1, -0.5]]
  form = annotations.submission("expression", 8)
  found = submit.answers({"expression": np.full((2, 8), 0.125)}, frames, ["b", "a", "b"], form)
  assert found.expression.tolist() == [0, 0, 0]


def read_out(known, logits, task, edition):
  form = annotations.submission(task, edition)
  outputs = {"expression" if task in ("ce", "lsd") else task: np.array(logits, np.float32)}
  rows = len(logits)
  deciding = calibrate.apply(outputs, np.arange(rows), np.ones(rows, bool), {}, known)
  return submit.read_out(deciding, known, form)


def test_answers_are_found_by_name_whatever_the_order_of_the_model():
  va = read_out({"va": ("arousal", "valence")}, [[0.1, 0.2]], "va", 8)["va"]
  np.testing.assert_allclose(va, [[0.2, 0.1]])
  units = labels.AU_MTL[::-1]
  au = read_out({"au": (*units, "AU99")}, [range(-6, 7)], "au", 8)["au"]
  np.testing.assert_array_equal(au[0] >= 0, np.arange(12)[::-1] - 6 >= 0)
  names = ("other", *labels.EXPRESSION_LSD[::-1], "neutral")
  probability = read_out({"expression": names}, [[9, 0, 1, 2, 3, 4, 5, 8]], "lsd", 4)["expression"]
  assert probability.argmax(1).tolist() == [labels.EXPRESSION_LSD.index("anger")]
  assert probability.sum() < 0.1  # the rest is in what the edition lacks


def test_contempt_counts_as_other_where_the_edition_has_other():
  names = labels.EXPRESSION_FERPLUS  # contempt and no other
  logits = [[0.0] * 7 + [2.0]]
  eight = read_out({"expression": names}, logits, "expression", 8)["expression"]
  assert eight.argmax() == labels.EXPRESSION_MTL.index("other")
  seven = read_out({"expression": names}, logits, "expression", 1)["expression"]
  np.testing.assert_allclose(seven, np.full((1, 7), 1 / (7 + np.exp(2))), rtol=1e-6)
  both = (*labels.EXPRESSION_MTL, "contempt")
  found = read_out({"expression": both}, [[1.2, 0, 0, 0, 0, 0, 0, 0.9, 0.9]], "expression", 8)
  assert found["expression"].argmax() == 7  # together they are more than neutral


def test_compound_expressions_are_those_of_the_model_or_sums_of_its_basic_ones():
  own = labels.EXPRESSION_COMPOUND[::-1]
  logits = np.arange(7.0)[None]
  found = read_out({"expression": own}, logits, "ce", 6)["expression"]
  np.testing.assert_allclose(found[0], softmax(logits[0])[::-1], rtol=1e-6)
  logits = np.random.default_rng(0).normal(size=(20, 8))
  found = read_out({"expression": labels.EXPRESSION_MTL}, logits, "ce", 6)["expression"]
  for row, one in zip(found, logits.astype(np.float32), strict=True):
    p = dict(zip(labels.EXPRESSION_MTL, softmax(one.astype(float)), strict=True))
    np.testing.assert_allclose(row, [p[a] + p[b] for a, b in COMPOUND], rtol=1e-6)


@pytest.mark.parametrize(
  ("known", "task", "edition", "lacks"),
  [
    ({"va": ("valence",)}, "va", 8, "arousal"),
    ({}, "mtl", 7, "valence, arousal, neutral, anger, .*, other, AU1, AU2, .*, AU26"),
    ({"expression": labels.EXPRESSION_SEVEN}, "expression", 3, "other"),
    ({"expression": labels.EXPRESSION_MTL[1:]}, "lsd", 4, ""),
    ({"expression": labels.EXPRESSION_FERPLUS}, "expression", 8, ""),
    (
      {"expression": labels.EXPRESSION_MTL[:6]},
      "ce",
      6,
      "fearfully surprised, .*, angrily surprised",
    ),
    ({"expression": labels.EXPRESSION_COMPOUND[1:]}, "ce", 6, "fearfully surprised"),
    ({"au": labels.AU_MTL}, "au", 1, "AU20"),
  ],
)
def test_what_a_model_lacks_is_named(known, task, edition, lacks):
  form = annotations.submission(task, edition)
  if not lacks:
    submit.check_names(known, form, "runs/x")
    return
  with pytest.raises(ValueError, match=f"^runs/x: its model lacks {lacks}, which a {form.name}"):
    submit.check_names(known, form, "runs/x")


def test_crops_are_found_in_several_folders_and_what_differs_between_them_is_refused(
  crops, tmp_path
):
  parts = [tmp_path / "cropped_aligned", tmp_path / "cropped_aligned_new_50_vids"]
  for name in CROPS:
    place = parts[name.startswith("a/")] / name
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(crops / name, place)
  shutil.copytree(parts[1] / "a", parts[0] / "a")
  frames = submit.find(every_frame(), parts)
  assert [
    name for name, there in zip(frames.names, frames.present, strict=True) if there
  ] == sorted(CROPS)
  for name, path, there in zip(frames.names, frames.paths, frames.present, strict=True):
    assert not there or Path(path).read_bytes() == (crops / name).read_bytes()
  shutil.copy(crops / "a-b" / "00001.jpg", parts[0] / "a" / "00003.jpg")
  with pytest.raises(ValueError, match=r"a/00003\.jpg and .*a/00003\.jpg differ: leave one"):
    submit.find(every_frame(), parts)
