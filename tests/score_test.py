"""Scores from files. T1 and T2 are constants of tests/metrics_test.py, here read from disk."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import sklearn.metrics
from metrics_test import (
  AU_FN,
  AU_FP,
  AU_FRAMES,
  AU_TP,
  EXPRESSION_TARGETS,
  LSD_PREDICTED,
  lsd_confusion,
)
from metrics_test import ccc as reference_ccc

from affjax import annotations, labels, score

MTL = "image,valence,arousal,expression,aus"
EXPR = "image_location,Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other"


def run(capsys, task, of, predictions, *options):
  """The JSON of the command line, and its table."""
  score.main([f"--task={task}", f"--labels={of}", f"--predictions={predictions}", *options])
  out, err = capsys.readouterr()
  return json.loads(out), err


def fails(capsys, task, of, predictions, *options):
  with pytest.raises(SystemExit) as error:
    score.main([f"--task={task}", f"--labels={of}", f"--predictions={predictions}", *options])
  assert capsys.readouterr().out == ""
  return str(error.value)


def write(file, header, rows):
  file.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
  return file


def mtl_rows(images, va, expression, au):
  return [
    (image, *v, e, *a)
    for image, v, e, a in zip(images, va.tolist(), expression.tolist(), au.tolist(), strict=True)
  ]


def names(count, videos=1):
  return [f"video{k % videos}/{k // videos + 1:05d}.jpg" for k in range(count)]


# Published numbers.


def test_t1_from_files(tmp_path, capsys):
  counts = lsd_confusion()
  pairs = [(t, p) for t in range(6) for p in range(6) for _ in range(counts[t, p])]
  truth = [(f"{k}.jpg", t) for k, (t, _) in enumerate(pairs)]
  of = write(tmp_path / "l.txt", "image,expression", truth)
  rows = [(f"{k}.jpg", p) for k, (_, p) in enumerate(pairs)]
  np.random.default_rng(0).shuffle(rows)  # found by name
  result, table = run(capsys, "lsd", of, write(tmp_path / "p.txt", "image,expression", rows))
  assert result["score"] == pytest.approx(0.6728896450510998, abs=1e-12)
  assert result["expression"]["accuracy"] == pytest.approx(0.7471092077087794, abs=1e-12)
  expected = [0.832579185520362, 0.7710843373493975, 0.2188449848024316]
  expected += [0.8628013777267509, 0.7160068846815835, 0.6360211002260738]
  per_class = result["expression"]["f1_per_class"]
  assert list(per_class) == list(labels.EXPRESSION_LSD)
  np.testing.assert_allclose(list(per_class.values()), expected, rtol=0, atol=1e-12)
  assert list(result["expression"]["predicted"].values()) == LSD_PREDICTED
  assert "lsd (ABAW4): 0.6729" in table


def test_t1_from_the_tree_of_class_folders(tmp_path, capsys):
  folders = ["ANGRER", "DISGUST", "FEAR", "HAPPINESS", "SADNESS", "SURPRISE"]
  for k, folder in enumerate(folders):
    (tmp_path / "tree" / folder).mkdir(parents=True)
    (tmp_path / "tree" / folder / f"face{k}.jpg").touch()
  predictions = write(
    tmp_path / "p.txt", "image,expression", [(f"face{k}.jpg", max(k, 1)) for k in range(6)]
  )
  result, _ = run(capsys, "lsd", tmp_path / "tree", predictions)
  assert result["expression"]["accuracy"] == pytest.approx(5 / 6)
  assert result["expression"]["f1_per_class"]["disgust"] == pytest.approx(2 / 3)
  assert result["expression"]["f1_per_class"]["anger"] == 0


def test_t2_from_files(tmp_path, capsys):
  tp, fp, fn = AU_TP, AU_FP, AU_FN
  target, predicted = np.zeros((2, AU_FRAMES, 12), int)
  for k in range(12):
    target[: tp[k] + fn[k], k] = 1
    predicted[: tp[k], k] = 1
    predicted[tp[k] + fn[k] : tp[k] + fn[k] + fp[k], k] = 1
  images = names(AU_FRAMES)
  none, zeros = np.full((AU_FRAMES, 2), -5), np.zeros((AU_FRAMES, 2))
  rows = mtl_rows(images, none, none[:, 0] + 4, target)
  of = write(tmp_path / "l.txt", MTL, rows)
  answers = write(tmp_path / "p.txt", MTL, mtl_rows(images, zeros, none[:, 0] + 5, predicted))
  result, _ = run(capsys, "mtl", of, answers)
  assert result["au"]["f1"] == pytest.approx(0.49368479684460276, abs=1e-12)
  expected = [0.56099218, 0.44302449, 0.56837571, 0.56656315, 0.72636587, 0.70537923]
  expected += [0.66032561, 0.13768524, 0.1047619, 0.21239954, 0.87793932, 0.3604053]
  np.testing.assert_allclose(
    list(result["au"]["f1_per_unit"].values()), expected, rtol=0, atol=1e-8
  )
  assert result["va"]["scored"] == {"valence": 0, "arousal": 0}
  assert result["expression"]["skipped_unlabelled"] == AU_FRAMES
  assert result["score"] == result["au"]["f1"]


def test_the_trivial_floor_of_the_official_validation_marginals(tmp_path, capsys):
  count, rng = AU_FRAMES, np.random.default_rng(0)
  expression = np.full(count, -1)
  expression[: sum(EXPRESSION_TARGETS)] = np.repeat(np.arange(8), EXPRESSION_TARGETS)
  au = np.zeros((count, 12), int)
  for k, positive in enumerate(np.add(AU_TP, AU_FN)):
    au[rng.permutation(count)[:positive], k] = 1
  va = np.round(rng.uniform(-1, 1, (count, 2)), 3)
  of = write(tmp_path / "l.txt", MTL, mtl_rows(names(count), va, expression, au))
  trivial = mtl_rows(names(count), 0 * va, 0 * expression + 7, 0 * au + 1)
  result, table = run(capsys, "mtl", of, write(tmp_path / "p.txt", MTL, trivial))
  assert result["score"] == pytest.approx(result["floor"], abs=1e-12)
  assert result["floor"] == pytest.approx(0.416, abs=5e-4)
  assert result["rows"]["scored"] == 26_876
  assert result["expression"]["scored"] == 15_440
  assert "floor 0.4161" in table


# Agreement with scikit-learn and NumPy.


def random_tree(rng, rows, videos=7):
  """Partial labels (one class and one unit without support) and complete predictions."""
  target = annotations.Annotations(
    images=tuple(names(rows, videos)),
    va=np.where(rng.uniform(size=(rows, 2)) < 0.3, np.nan, rng.uniform(-1, 1, (rows, 2))),
    expression=rng.integers(-1, 7, rows),
    au=rng.integers(-1, 2, (rows, 12)) * (np.arange(12) > 0),
    classes=labels.EXPRESSION_MTL,
    units=labels.AU_MTL,
  )
  answers = annotations.Annotations(
    images=target.images,
    va=rng.uniform(-1, 1, (rows, 2)),
    expression=rng.integers(0, 8, rows),
    au=rng.integers(0, 2, (rows, 12)),
    classes=labels.EXPRESSION_MTL,
    units=labels.AU_MTL,
  )
  return target, answers


def expected_scores(target, answers):
  va = []
  for k in range(2):
    known = ~np.isnan(target.va[:, k])
    va.append(reference_ccc(answers.va[known, k], target.va[known, k]) if known.sum() > 1 else 0)
  known = target.expression >= 0
  f1 = lambda t, p, **kw: sklearn.metrics.f1_score(t, p, zero_division=0, **kw) if len(t) else 0.0
  pair = target.expression[known], answers.expression[known]
  expression = f1(*pair, labels=range(8), average="macro")
  au = [f1(t[t >= 0], p[t >= 0]) for t, p in zip(target.au.T, answers.au.T, strict=True)]
  return np.mean(va), expression, np.mean(au)


@pytest.mark.parametrize("rows", [1, 2, 500])
@pytest.mark.parametrize("seed", range(3))
def test_random_partial_labels_score_as_by_scikit_learn_and_numpy(seed, rows):
  target, answers = random_tree(np.random.default_rng(seed), rows)
  result = score.score("mtl", target, answers)
  parts = [result["va"]["ccc"], result["expression"]["f1"], result["au"]["f1"]]
  np.testing.assert_allclose(parts, expected_scores(target, answers), rtol=0, atol=1e-12)
  assert result["score"] == pytest.approx(sum(parts), abs=1e-12)


def test_files_without_any_label_score_zero_and_say_so(tmp_path, capsys):
  none = np.full((5, 2), -5)
  of = write(
    tmp_path / "l.txt", MTL, mtl_rows(names(5), none, none[:, 0] + 4, np.full((5, 12), -1))
  )
  rows = mtl_rows(names(5), none * 0, none[:, 0] * 0, np.zeros((5, 12), int))
  result, table = run(capsys, "mtl", of, write(tmp_path / "p.txt", MTL, rows))
  assert result["score"] == result["floor"] == 0
  assert result["rows"]["skipped_unlabelled"] == 5
  assert "0 scored of 5; 5 without any label" in table


def test_a_constant_has_no_concordance(tmp_path, capsys):
  of = write(
    tmp_path / "l.txt", "image_location,valence,arousal", [(n, 0.1, 0.3) for n in names(9)]
  )
  result, _ = run(capsys, "va", of, of)
  assert result["score"] == 0


# Rows are found by name.


def per_video(folder, header, videos):
  folder.mkdir()
  for video, lines in videos.items():
    write(folder / f"{video}.txt", header, [(line,) for line in lines])
  return folder


def test_per_video_labels_meet_a_list_of_predictions_by_frame_number(tmp_path, capsys):
  header = EXPR.removeprefix("image_location,")
  of = per_video(tmp_path / "labels", header, {"b": [3, -1, 5], "a_left": [0, 1]})
  rows = [("a_left/00002.jpg", 1), ("b/00003.jpg", 5), ("b/00001.jpg", 4), ("b/00002.jpg", 7)]
  rows += [("a_left/00001.jpg", 0), ("c/00001.jpg", 2)]
  result, table = run(capsys, "expression", of, write(tmp_path / "p.txt", EXPR, rows))
  assert result["expression"]["accuracy"] == 3 / 4
  assert result["rows"] == {
    "labels": 5, "labelled": 4, "scored": 4, "skipped_unlabelled": 1,
    "skipped_without_prediction": 0, "predictions": 6, "predictions_not_in_labels": 1,
  }  # fmt: skip
  assert "expression (ABAW10)" in table


def test_folders_of_per_video_files_meet_one_another(tmp_path, capsys):
  of = per_video(tmp_path / "l", "valence,arousal", {"a": ["0.1,0.2", "-5,-5"], "b": ["0.5,-0.4"]})
  answers = {"b": ["0.5,-0.4"], "a": ["0.1,0.2", "0,0", "1,1"]}
  result, _ = run(capsys, "va", of, per_video(tmp_path / "p", "valence,arousal", answers))
  assert result["score"] == pytest.approx(1)
  assert result["rows"]["predictions_not_in_labels"] == 1


def test_duplicated_rows_count_twice(tmp_path, capsys):
  header = "image,expression"
  of = write(tmp_path / "l.txt", header, [("0.jpg", 0), ("1.jpg", 1), ("1.jpg", 1)])
  once = write(tmp_path / "once.txt", header, [("1.jpg", 0), ("0.jpg", 0)])
  twice = write(tmp_path / "twice.txt", header, [("1.jpg", 0), ("1.jpg", 1), ("0.jpg", 0)])
  assert run(capsys, "lsd", of, once)[0]["expression"]["accuracy"] == pytest.approx(1 / 3)
  assert run(capsys, "lsd", of, twice)[0]["expression"]["accuracy"] == pytest.approx(2 / 3)
  many = write(tmp_path / "many.txt", header, [("1.jpg", k) for k in (0, 1, 2)] + [("0.jpg", 0)])
  message = fails(capsys, "lsd", of, many)
  assert "1.jpg has 2 labels and 3 predictions that differ" in message


def test_labelled_rows_without_a_prediction_are_an_error_unless_skipping_is_asked_for(
  tmp_path, capsys
):
  of = write(
    tmp_path / "l.txt", EXPR, [("v/00001.jpg", 0), ("v/00002.jpg", 1), ("v/00003.jpg", -1)]
  )
  answers = write(tmp_path / "p.txt", EXPR, [("v/00001.jpg", 0)])
  message = fails(capsys, "expression", of, answers)
  assert "1 of 3 rows have a label but no prediction (first: v/00002.jpg)" in message
  assert "--missing=skip" in message
  result, _ = run(capsys, "expression", of, answers, "--missing=skip")
  assert result["rows"]["skipped_without_prediction"] == 1
  assert result["expression"]["accuracy"] == 1
  assert result["expression"]["scored"] == 1


# Editions.


def test_the_first_two_editions_mix_accuracy_in(tmp_path, capsys):
  header = EXPR.removeprefix("image_location,").removesuffix(",Other")
  of = per_video(tmp_path / "l", header, {"a": [0, 0, 0, 1]})
  result, _ = run(capsys, "expression", of, per_video(tmp_path / "p", header, {"a": [0, 0, 1, 1]}))
  f1 = (0.8 + 2 / 3) / 7
  assert result["expression"]["f1"] == pytest.approx(f1)
  assert result["score"] == pytest.approx(0.67 * f1 + 0.33 * 0.75)
  assert result["floor"] == pytest.approx(0.67 * (6 / 7) / 7 + 0.33 * 0.75)
  assert result["edition"] == 2

  units = ",".join(labels.AU_ABAW1)
  of = per_video(tmp_path / "al", units, {"a": ["1,0,0,0,0,0,0,1", "0,0,0,0,0,0,-1,1"]})
  answers = per_video(tmp_path / "ap", units, {"a": ["1,0,0,0,0,0,0,1", "1,0,0,0,0,0,0,1"]})
  result, _ = run(capsys, "au", of, answers)
  assert result["edition"] == 1
  assert result["score"] == pytest.approx(0.5 * (2 / 3 + 1) / 8 + 0.5 * 14 / 15)
  # AU25 always on, AU1 on (F1 2/3 and one of two right), the others off.
  assert result["floor"] == pytest.approx(0.5 * (2 / 3 + 1) / 8 + 0.5 * (1 + 2 + 11) / 15)


def test_the_twelve_units_of_the_second_edition_are_scored_by_its_rule_on_request(tmp_path, capsys):
  header = "image_location," + ",".join(labels.AU_MTL)
  of = write(tmp_path / "l.txt", header, [("v/00001.jpg", *[1] * 6, *[0] * 6)])
  assert run(capsys, "au", of, of)[0]["score"] == pytest.approx(0.5)
  assert run(capsys, "au", of, of, "--edition=2")[0]["score"] == pytest.approx(0.75)
  message = fails(capsys, "au", of, of, "--edition=1")
  assert "--edition=1: labels of task au with AU1, " in message
  assert "are those of ABAW 2, 3" in message


def test_files_of_two_editions_do_not_fit(tmp_path, capsys):
  eight = EXPR.removeprefix("image_location,")
  of = per_video(tmp_path / "l", eight, {"a": [0]})
  answers = per_video(tmp_path / "p", eight.removesuffix(",Other"), {"a": [0]})
  assert "must be of one edition" in fails(capsys, "expression", of, answers)


def test_compound_expressions_are_seven_classes(tmp_path, capsys):
  header = "image_location,Fearfully_Surprised,Happily_Surprised,Sadly_Surprised"
  header += ",Disgustedly_Surprised,Angrily_Surprised,Sadly_Fearful,Sadly_Angry"
  of = write(tmp_path / "l.txt", header, [(n, k) for k, n in enumerate(names(7))])
  answers = write(tmp_path / "p.txt", header, [(n, min(k, 5)) for k, n in enumerate(names(7))])
  result, _ = run(capsys, "ce", of, answers)
  assert result["score"] == pytest.approx((5 + 2 / 3) / 7)
  assert list(result["expression"]["f1_per_class"])[-1] == "sadly angry"


# Intervals.


def test_the_bootstrap_draws_videos_and_agrees_with_scoring_each_sample(tmp_path):
  target, answers = random_tree(np.random.default_rng(0), 70)
  result = score.score("mtl", target, answers, resamples=40, seed=3)["bootstrap"]
  assert result["groups"] == 7
  drawn = np.random.default_rng(3).multinomial(7, np.full(7, 1 / 7), size=40)
  video = np.array([int(image[5]) for image in target.images])
  totals = []
  for times in drawn:
    rows = np.repeat(np.arange(70), times[video])
    frames = annotations.frames("v", len(rows))
    pick = lambda a, rows=rows, frames=frames: dataclasses.replace(
      a, images=tuple(frames), va=a.va[rows], expression=a.expression[rows], au=a.au[rows]
    )
    totals.append(sum(expected_scores(pick(target), pick(answers))))
  np.testing.assert_allclose(result["score"], np.percentile(totals, [2.5, 97.5]), rtol=1e-9)


def test_an_interval_needs_two_videos(tmp_path, capsys):
  of = write(tmp_path / "l.txt", EXPR, [("v/00001.jpg", 0)])
  assert "at least two videos" in fails(capsys, "expression", of, of, "--bootstrap=10")


# The command.


def test_a_line_that_is_wrong_is_named_and_nothing_is_printed(tmp_path, capsys):
  of = write(tmp_path / "l.txt", EXPR, [("v/00001.jpg", 0)])
  wrong = write(tmp_path / "p.txt", EXPR, [("v/00001.jpg", 8)])
  expected = f"error: {wrong}:2: expression '8'; expected an integer from 0 to 7"
  assert fails(capsys, "expression", of, wrong) == expected
  assert "no such file" in fails(capsys, "expression", of, tmp_path / "absent.txt")


def test_the_command_prints_one_json_object_and_a_table_for_people(tmp_path):
  of = write(tmp_path / "l.txt", "image_location,valence,arousal", [
    (n, k / 10, -k / 10) for k, n in enumerate(names(9))
  ])  # fmt: skip
  command = [sys.executable, "-m", "affjax.score", "--task=va", f"--labels={of}"]
  done = subprocess.run([*command, f"--predictions={of}"], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout)["score"] == pytest.approx(1)
  assert "CCC 1.0000" in done.stderr
