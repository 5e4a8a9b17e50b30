"""Calibration from stored outputs to settings, scored independently with scikit-learn and NumPy."""

import json

import numpy as np
import pytest
import sklearn.metrics
from metrics_test import ccc
from scipy import ndimage, special

from affjax import calibrate, labels, postprocess

NAMES = {"va": labels.VA, "expression": labels.EXPRESSION_MTL, "au": labels.AU_MTL[:4]}
FRAMES = 40


def invented(videos=12, noise=1.0, seed=0, independent=False):
  """Arrays as `affjax.extract` stores them: what is shown moves slowly, outputs see it in noise.

  Videos are siblings by twos. Frames are every third of a video, some lack labels.
  """
  rng = np.random.default_rng(seed)
  rows = videos * FRAMES
  walk = ndimage.gaussian_filter1d(rng.normal(size=(videos, FRAMES, 14)), 3, axis=1)
  truth = (walk / walk.std()).reshape(rows, 14)
  seen = noise * rng.normal(size=truth.shape) + (0 if independent else truth)
  names = [f"video{k // 2}_{('left', 'right')[k % 2]}".encode() for k in range(videos)]
  video = np.repeat(names, FRAMES)
  frame = np.tile(np.arange(FRAMES) * 3 + 1, videos)
  shown = (truth[:, 2:10] if independent else truth[:, 2:10] + np.linspace(-0.6, 0.6, 8)).argmax(1)
  return {
    "key": np.array([b"%s/%05d.jpg" % pair for pair in zip(video, frame, strict=True)]),
    "video": video,
    "person": video,
    "frame": frame,
    "features": rng.normal(size=(rows, 3)).astype(np.float32),
    "outputs/va": np.tanh(seen[:, :2]).astype(np.float32),
    "outputs/expression": seen[:, 2:10].astype(np.float32),
    "outputs/au": (2 * seen[:, 10:] - 2).astype(np.float32),
    "labels/va": np.tanh(truth[:, :2]).astype(np.float32),
    "labels/expression": np.eye(8, dtype=np.float32)[shown],
    "labels/au": (truth[:, 10:] > 0.8).astype(np.float32),
    "mask/va": (rng.random((rows, 2)) < 0.9).astype(np.float32),
    "mask/expression": (rng.random(rows) < 0.8).astype(np.float32),
    "mask/au": (rng.random((rows, 4)) < 0.9).astype(np.float32),
  }


def store(folder, arrays, split="validation", **described):
  folder.mkdir(exist_ok=True)
  np.savez(folder / f"{split}.npz", **arrays)
  (folder / "features.json").write_text(json.dumps({"labels": NAMES} | described))
  return folder


def oracle(arrays, va, expression, au):
  """The four scores of values, class indices and decisions."""
  kept = lambda task: arrays[f"mask/{task}"] > 0
  of = [ccc(va[m, k].astype(float), arrays["labels/va"][m, k].astype(float))
        for k, m in enumerate(kept("va").T)]  # fmt: skip
  m = kept("expression")
  truth = arrays["labels/expression"].argmax(1)
  f1 = sklearn.metrics.f1_score(
    truth[m], expression[m], average="macro", labels=range(8), zero_division=0
  )
  units = [
    sklearn.metrics.f1_score(arrays["labels/au"][m, k], au[m, k], zero_division=0)
    for k, m in enumerate(kept("au").T)
  ]
  parts = {"va/ccc": np.mean(of), "expression/f1": f1, "au/f1": np.mean(units)}
  return parts | {"p_mtl": sum(parts.values())}


def outputs(arrays):
  return {task: arrays[f"outputs/{task}"] for task in NAMES}


def series(arrays):
  return np.unique(arrays["video"], return_inverse=True)[1]


def decided(scores):
  return scores["va"], scores["expression"].argmax(1), scores["au"] >= 0


def run(capsys, *arguments):
  """What the command prints."""
  calibrate.main([str(a) for a in arguments])
  return capsys.readouterr().out


def fails(capsys, *arguments):
  with pytest.raises(SystemExit) as error:
    calibrate.main([str(a) for a in arguments])
  assert capsys.readouterr().out == ""
  assert "\n" not in str(error.value)
  return str(error.value)


def fitted(folders, tasks=tuple(NAMES), **options):
  rows = calibrate.read_rows(folders, "validation")
  return calibrate.calibrate(rows, tasks, calibrate.candidates(), folds=3, **options)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
  """Arrays, their folder, the table and the settings."""
  arrays = invented()
  folder = store(tmp_path_factory.mktemp("features"), arrays)
  return arrays, folder, *fitted([folder])


# Scores.


def test_the_raw_row_is_the_score_of_the_outputs_as_they_are(calibrated):
  arrays, _, table, _ = calibrated
  raw = outputs(arrays)
  expected = oracle(arrays, raw["va"], raw["expression"].argmax(1), raw["au"] >= 0)
  assert table["raw", ""] == pytest.approx(expected, abs=1e-9)


def test_the_best_constant_stands_beside(calibrated):
  arrays, _, table, _ = calibrated
  rows = len(arrays["key"])
  of = [oracle(arrays, np.zeros((rows, 2)), np.full(rows, k), np.ones((rows, 4))) for k in range(8)]
  assert table["best constant", ""]["expression/f1"] == pytest.approx(
    max(scores["expression/f1"] for scores in of), abs=1e-9
  )
  assert table["best constant", ""]["au/f1"] == pytest.approx(of[0]["au/f1"], abs=1e-9)
  assert table["best constant", ""]["va/ccc"] == 0


def test_nothing_that_is_fitted_scores_less_in_sample_than_raw(calibrated):
  table = calibrated[2]
  inside = {name: scores for (name, how), scores in table.items() if how == "in-sample"}
  assert set(inside) == {"smoothing", "biases and thresholds", "all of these"}
  for scores in inside.values():
    assert all(scores[column] >= table["raw", ""][column] for column in scores)
  for column in table["raw", ""]:
    assert inside["all of these"][column] >= inside["smoothing"][column]


def test_smoothing_gains_on_videos_that_it_did_not_see_where_faces_move_slowly(calibrated):
  table = calibrated[2]
  unseen, raw = table["smoothing", "cross-fitted by video"], table["raw", ""]
  assert unseen["va/ccc"] > raw["va/ccc"] + 0.1
  assert table["all of these", "cross-fitted by video"]["p_mtl"] > raw["p_mtl"] + 0.2


def test_a_stage_alone_leaves_what_it_does_not_touch(calibrated):
  table = calibrated[2]
  for how in ("in-sample", "cross-fitted by video"):
    assert table["biases and thresholds", how]["va/ccc"] == table["raw", ""]["va/ccc"]


def test_the_order_of_the_rows_changes_nothing(calibrated, tmp_path):
  arrays, _, table, settings = calibrated
  order = np.random.default_rng(0).permutation(len(arrays["key"]))
  again = fitted([store(tmp_path / "b", {name: x[order] for name, x in arrays.items()})])
  assert again == (table, settings)


def test_siblings_are_of_one_fold_and_smoothed_each_on_its_own(calibrated):
  arrays, folder, *_ = calibrated
  rows = calibrate.read_rows([folder], "validation")
  video = np.sort(arrays["video"])
  of = lambda what, name: set(what[video == name].tolist())
  assert len(set(rows.groups.tolist())) == 6
  for k in range(6):
    left, right = (f"video{k}_{side}".encode() for side in ("left", "right"))
    assert of(rows.groups, left) == of(rows.groups, right)
    assert not of(rows.series, left) & of(rows.series, right)


def test_on_noise_the_in_sample_row_seems_to_gain_and_the_cross_fitted_one_does_not(tmp_path):
  inside, unseen = [], []
  for seed in range(4):
    arrays = invented(seed=seed, independent=True)
    table, _ = fitted([store(tmp_path / str(seed), arrays)], ["va", "expression"])
    gain = lambda how, table=table: [
      table["all of these", how][c] - table["raw", ""][c] for c in ("va/ccc", "expression/f1")
    ]
    inside.append(gain("in-sample"))
    unseen.append(gain("cross-fitted by video"))
  assert (np.array(inside) >= 0).all()
  assert (np.mean(inside, 0) > 0.02).all()
  assert (np.mean(unseen, 0) < 0.02).all()


def test_labels_that_a_data_set_lacks_are_not_scored(tmp_path):
  arrays = invented()
  scored = {"expression": labels.EXPRESSION_MTL[:7], "au": ["AU4", "AU1"]}
  folder = store(tmp_path / "a", arrays, scored=scored)
  table, settings = fitted([folder], ["expression", "au"])
  truth, logits = arrays["labels/expression"].argmax(1), arrays["outputs/expression"]
  m = (arrays["mask/expression"] > 0) & (truth < 7)
  expected = sklearn.metrics.f1_score(truth[m], logits[m, :7].argmax(1), average="macro")
  assert table["raw", ""]["expression/f1"] == pytest.approx(expected, abs=1e-9)
  assert set(settings["expression"]["bias"]) == set(scored["expression"])
  assert set(settings["au"]["threshold"]) == {"AU1", "AU4"}
  inside = table["all of these", "in-sample"]
  assert all(inside[column] >= table["raw", ""][column] for column in inside)
  rows = calibrate.read_rows([folder], "validation")
  bias = calibrate.calibrate(rows, ["expression"], [])[1]["expression"]["bias"]
  order = np.argsort(arrays["key"])
  expected = postprocess.class_bias(
    special.log_softmax(logits.astype(float), 1)[order, :7], np.eye(8)[truth[order]], m[order]
  )
  np.testing.assert_allclose(list(bias.values()), expected, rtol=0, atol=1e-9)


# Settings.


def test_saved_settings_give_the_in_sample_scores_on_the_same_outputs(tmp_path, capsys, calibrated):
  arrays, folder, table, settings = calibrated
  file = tmp_path / "settings.json"
  text = run(capsys, folder, "--folds=3", f"--save={file}")
  assert [p.name for p in tmp_path.iterdir()] == ["settings.json"]
  found = calibrate.read(file)
  assert {task: found[task] for task in NAMES} == settings
  assert found["fitted_on"]["split"] == "validation"
  assert found["fitted_on"]["rows"] == len(arrays["key"])
  present = np.ones(len(arrays["key"]), bool)
  scores = calibrate.apply(outputs(arrays), arrays["frame"], present, found, NAMES, series(arrays))
  expected = table["all of these", "in-sample"]
  assert oracle(arrays, *decided(scores)) == pytest.approx(expected, abs=1e-9)
  assert f"{expected['p_mtl']:.4f}" in text
  assert f"{table['raw', '']['p_mtl']:.4f}" in text
  rows = [line.strip() for line in text.splitlines()]
  assert sum(line.startswith("cross-fitted by video  ") for line in rows) == 3
  assert "480 rows of 6 groups" in text  # siblings go together


def test_no_settings_change_no_decision():
  arrays = invented()
  raw, present = outputs(arrays), np.ones(len(arrays["key"]), bool)
  found = calibrate.apply(raw, arrays["frame"], present, {}, NAMES)
  np.testing.assert_array_equal(found["va"], raw["va"])
  np.testing.assert_array_equal(found["expression"].argmax(1), raw["expression"].argmax(1))
  np.testing.assert_array_equal(found["au"] >= 0, raw["au"] >= 0)


def test_biases_and_thresholds_go_by_name():
  arrays = invented()
  raw, present = outputs(arrays), np.ones(len(arrays["key"]), bool)
  settings = {
    "expression": {"bias": {"fear": 100.0}},
    "au": {"threshold": {"AU2": 0.0, "AU1": 1.0}},
  }
  found = calibrate.apply(raw, arrays["frame"], present, settings, NAMES)
  assert set(found["expression"].argmax(1)) == {labels.EXPRESSION_MTL.index("fear")}
  on = found["au"] >= 0
  assert not on[:, 0].any()
  assert on[:, 1].all()
  np.testing.assert_array_equal(on[:, 2:], raw["au"][:, 2:] >= 0)


def test_a_unit_is_on_from_its_threshold_on():
  logits = np.array([[-1.0], [-0.5], [0.3]])
  probability = 1 / (1 + np.exp(-logits))
  for threshold, on in ((probability[1, 0], 2), (np.nextafter(probability[1, 0], 1), 1)):
    settings = {"au": {"threshold": {"AU1": float(threshold)}}}
    found = calibrate.apply(
      {"au": logits}, np.arange(3), np.ones(3, bool), settings, {"au": ["AU1"]}
    )
    assert (found["au"] >= 0).sum() == on


def test_absent_frames_get_what_is_near_them_and_else_nothing():
  frames, present = np.array([1, 2, 3, 9]), np.array([True, False, True, False])
  logits = np.array([[0.0, 2.0], [np.nan, np.nan], [0.0, 2.0], [5.0, 5.0]])
  settings = {"expression": {"smooth": {"kind": "mean", "width": 3}}}
  names = {"expression": ["neutral", "anger"]}
  found = calibrate.apply({"expression": logits}, frames, present, settings, names)["expression"]
  np.testing.assert_allclose(np.exp(found[:3, 1]), 1 / (1 + np.exp(-2)), rtol=1e-12)
  assert np.isnan(found[3]).all()
  raw = calibrate.apply({"expression": logits}, frames, present, {}, names)["expression"]
  np.testing.assert_array_equal(np.isnan(raw).all(1), ~present)


def test_settings_of_other_labels_are_refused():
  arrays = invented()
  settings = {"au": {"threshold": {"AU1": 0.3, "AU26": 0.4}}}
  with pytest.raises(ValueError, match="AU26"):
    calibrate.apply(
      outputs(arrays), arrays["frame"], np.ones(len(arrays["key"]), bool), settings, NAMES
    )


@pytest.mark.parametrize(
  ("content", "says"),
  [
    ("", "cannot be read"),
    ("[" * 100_000, "cannot be read"),
    ("[]", "au, expression, fitted_on, va"),
    ('{"gaze": {}}', "gaze"),
    ('{"va": []}', "smooth, weights"),
    ('{"va": {"bias": {}}}', "bias"),
    ('{"au": {"thresholds": {"AU1": 0.5}}}', "thresholds"),
    ('{"au": {"threshold": {"AU1": "0.5"}}}', "a number for each name"),
    ('{"au": {"threshold": {"AU1": NaN}}}', "a number for each name"),
    ('{"au": {"threshold": 0.5}}', "a number for each name"),
    ('{"expression": {"bias": {"fear": 1' + "0" * 400 + "}}}", "a number for each name"),
    ('{"va": {"smooth": {"kind": "mean"}}}', "kind, width"),
    ('{"va": {"smooth": {"kind": "mean", "width": 5, "sigma": 1}}}', "kind, width"),
    ('{"va": {"smooth": {"kind": "mean", "width": 6}}}', "odd"),
    ('{"va": {"smooth": null}}', "kind, width"),
    ('{"va": {"weights": [0.5, 0.6]}}', "sum to 1"),
    ('{"va": {"weights": [1.5, -0.5]}}', "from 0 on"),
    ('{"va": {"weights": []}}', "sum to 1"),
  ],
)
def test_a_file_that_holds_no_settings_is_refused_in_one_line(tmp_path, content, says):
  file = tmp_path / "settings.json"
  file.write_text(content)
  with pytest.raises(ValueError, match=says) as error:
    calibrate.read(file)
  assert str(error.value).startswith(str(file))
  assert "\n" not in str(error.value)
  assert len(str(error.value)) < 400


def test_settings_that_are_missing_are_named(tmp_path):
  with pytest.raises(ValueError, match="none.json.*No such file"):
    calibrate.read(tmp_path / "none.json")


# Ensembles.


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
  """Two models of the same rows, of which the second is stored in another order."""
  root = tmp_path_factory.mktemp("ensemble")
  a = invented(noise=1.0)
  rng = np.random.default_rng(1)
  noisy = lambda x: (x + 0.7 * rng.normal(size=x.shape)).astype(np.float32)
  b = a | {f"outputs/{task}": noisy(a[f"outputs/{task}"]) for task in NAMES}
  order = rng.permutation(len(a["key"]))
  folders = [store(root / "a", a), store(root / "b", {n: x[order] for n, x in b.items()})]
  return a, b, folders, *fitted(folders, members=("a", "b"))


def test_an_ensemble_is_matched_by_key_and_each_member_scored(ensemble):
  a, b, _, table, _ = ensemble
  for name, arrays in (("raw a", a), ("raw b", b)):
    raw = outputs(arrays)
    expected = oracle(a, raw["va"], raw["expression"].argmax(1), raw["au"] >= 0)
    assert table[name, ""] == pytest.approx(expected, abs=1e-9)
  mean = {task: (outputs(a)[task].astype(float) + outputs(b)[task]) / 2 for task in NAMES}
  expected = oracle(a, mean["va"], mean["expression"].argmax(1), mean["au"] >= 0)
  assert table["raw, equal weights", ""] == pytest.approx(expected, abs=1e-9)


def test_a_fitted_blend_scores_no_less_in_sample_than_any_raw_row(ensemble):
  table = ensemble[3]
  for raw in ("raw a", "raw b", "raw, equal weights"):
    for column, value in table[raw, ""].items():
      assert table["blend", "in-sample"][column] >= value
      assert table["all of these", "in-sample"][column] >= value


def test_settings_of_an_ensemble_are_applied_to_its_members_together(ensemble):
  a, b, _, table, settings = ensemble
  present = np.ones(len(a["key"]), bool)
  args = a["frame"], present, settings, NAMES, series(a)
  scores = calibrate.apply([outputs(a), outputs(b)], *args)
  expected = table["all of these", "in-sample"]
  assert oracle(a, *decided(scores)) == pytest.approx(expected, abs=1e-9)
  with pytest.raises(ValueError, match="of 2 models, the outputs of 1"):
    calibrate.apply(outputs(a), *args)


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (lambda x: x | {"key": np.char.add(x["key"], b"x")}, "different rows"),
    (lambda x: {name: values[1:] for name, values in x.items()}, "different rows"),
    (lambda x: x | {"labels/va": -x["labels/va"]}, "labels/va"),
    (lambda x: x | {"mask/au": 1 - x["mask/au"]}, "mask/au"),
  ],
)
def test_inputs_of_other_rows_or_labels_are_refused(tmp_path, capsys, change, says):
  arrays = invented(videos=4)
  a, b = store(tmp_path / "a", arrays), store(tmp_path / "b", change(arrays))
  assert says in fails(capsys, a, b)


# The command.


def test_the_command_takes_a_file_some_tasks_and_causal_smoothing(tmp_path, capsys):
  folder = store(tmp_path / "a", invented(videos=6), split="test")
  file = tmp_path / "s.json"
  arguments = "--tasks=va", "--folds=2", "--causal", "--max_gap=4", f"--save={file}"
  text = run(capsys, folder / "test.npz", *arguments)
  assert "expression/f1" not in text
  assert "p_mtl" not in text
  settings = calibrate.read(file)
  assert set(settings) == {"va", "fitted_on"}
  assert settings["va"]["smooth"]["causal"] is True
  assert settings["va"]["smooth"]["max_gap"] == 4


def test_rows_that_are_no_frames_are_not_smoothed(tmp_path, capsys):
  arrays = invented(videos=4)
  no_video = arrays | {"video": np.full(160, b"", "S1")}
  photographs = no_video | {"frame": np.zeros(160, int)}
  no_frame = arrays | {"frame": np.full(160, -1)}
  nowhere = no_video | {"person": np.full(160, b"", "S1"), "frame": np.full(160, -1)}
  lacks = {name: x for name, x in arrays.items() if name not in ("video", "person", "frame")}
  texts = [
    run(capsys, store(tmp_path / str(k), x), "--tasks=au", "--folds=2")
    for k, x in enumerate((no_video, photographs, no_frame, nowhere, lacks))
  ]
  assert all("smoothing is left out" in text for text in texts)
  assert all("160 rows of 2 groups" in text for text in texts[:3])
  assert "160 rows of 160 groups" in texts[3]
  assert texts[3] == texts[4]


def test_what_else_an_extraction_holds_is_left_alone(calibrated, tmp_path):
  arrays, _, table, settings = calibrated
  more = {"mask/expression_strict": arrays["mask/expression"], "site": arrays["video"]}
  lacks = {n: x for n, x in arrays.items() if n not in ("labels/va", "mask/va")}
  found = calibrate.read_rows([store(tmp_path / "a", lacks | more)], "validation")
  assert found.tasks == ("expression", "au")
  assert fitted([store(tmp_path / "b", arrays | more)]) == (table, settings)


def lacking(name):
  return lambda x: {n: values for n, values in x.items() if n != name}


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (lacking("key"), "lacks key"),
    (lacking("mask/va"), "lacks mask/va"),
    (lambda x: x | {"outputs/au": x["outputs/au"][:, :2]}, "outputs/au has shape"),
    (lambda x: x | {"frame": x["frame"][:3]}, "frame has shape"),
    (lambda x: x | {"outputs/va": np.full_like(x["outputs/va"], np.nan)}, "not all finite"),
    (lambda x: x | {"video": x["video"].astype(object)}, "cannot be read"),
  ],
)
def test_files_that_are_not_of_an_extraction_are_refused_by_name(tmp_path, capsys, change, says):
  folder = store(tmp_path / "a", change(invented(videos=4)))
  error = fails(capsys, folder, f"--save={tmp_path / 's.json'}")
  assert says in error
  assert str(folder / "validation.npz") in error
  assert not (tmp_path / "s.json").exists()


@pytest.mark.parametrize(
  ("options", "says"),
  [
    (["--split=test"], "test.npz"),
    (["--tasks=va,gaze"], "va, expression, au"),
    (["--tasks="], "va, expression, au"),
    (["--folds=7"], "7 folds of 2 groups"),
    (["--folds=1"], "1 folds"),
    (["--max_gap=0"], "from 1 on"),
    (["--save=nowhere/s.json"], "folder that is there"),
    (["--save=s.txt"], ".json"),
  ],
)
def test_options_that_cannot_be_are_refused_in_one_line(tmp_path, capsys, options, says):
  folder = store(tmp_path / "a", invented(videos=4))
  assert says in fails(capsys, folder, *options)


def test_a_damaged_file_and_missing_labels_are_named(tmp_path, capsys):
  folder = store(tmp_path / "a", invented(videos=4))
  (folder / "features.json").unlink()
  assert "features.json" in fails(capsys, folder)
  (folder / "features.json").write_text("{}")
  assert "says nothing of labels" in fails(capsys, folder)
  file = folder / "validation.npz"
  file.write_bytes(file.read_bytes()[:5000])
  assert "cannot be read" in fails(capsys, folder)
