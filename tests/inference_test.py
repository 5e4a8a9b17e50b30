"""A predictor: named outputs, one program a bucket, the numbers of evaluation; what it is given."""

import json
import sys

import cv2
import jax
import numpy as np
import pytest
from conftest import SMALL, debug_config, save_run
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

import affjax
from affjax import calibrate, evaluate, inference
from affjax.data import records


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
  """Of the flagship in small, with task tokens, its weights drawn."""
  return affjax.load(save_run(tmp_path_factory.mktemp("run") / "run", debug_config(**SMALL)))


def pictures(count, size=32, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


# What a prediction is.


def prediction(count=4):
  rng = np.random.default_rng(3)
  values = lambda *names: {name: rng.random(count).astype(np.float32) for name in names}
  return inference.Prediction(
    va=values("valence", "arousal"),
    expression=np.array(["fear", "<b>", "fear", "anger"])[:count],
    expression_probability=values("anger", "fear", "<b>"),
    au_probability=values("AU1", "AU12"),
    au={"AU1": rng.random(count) > 0.5, "AU12": np.ones(count, bool)},
  )


def test_columns_are_named_and_in_order():
  made = prediction()
  columns = made.columns()
  names = ["valence", "arousal", "expression", "p_anger", "p_fear", "p_<b>", "AU1", "AU12"]
  assert list(columns) == [*names, "AU1_on", "AU12_on"]
  np.testing.assert_array_equal(columns["AU1_on"], made.au["AU1"].astype(int))
  rows = made.rows()
  for name, values in columns.items():
    assert [row[name] for row in rows] == values.tolist()
  json.dumps(rows)  # of Python's own types


def test_tasks_that_a_model_lacks_have_no_columns():
  empty = inference.Prediction(
    {}, np.full(2, ""), {}, {"AU4": np.zeros(2)}, {"AU4": np.ones(2) > 0}
  )
  assert list(empty.columns()) == ["AU4", "AU4_on"]
  assert len(empty) == 2
  assert "AU4" in repr(empty)
  assert "expression" not in repr(empty)


@pytest.mark.parametrize(
  ("rows", "taken"),
  [(slice(1, 3), [1, 2]), (-1, [3]), ([2, 0], [2, 0]), (np.arange(4) % 2 == 0, [0, 2])],
)
def test_a_part_of_a_prediction_is_one(rows, taken):
  whole = prediction()
  part = whole[rows]
  assert len(part) == len(taken)
  for name, values in part.columns().items():
    np.testing.assert_array_equal(values, whole.columns()[name][taken])


def test_a_table_of_pandas_holds_the_columns():
  pytest.importorskip("pandas")
  made = prediction()
  table = made.to_pandas(index=["a", "b", "c", "d"])
  assert list(table.columns) == list(made.columns())
  assert table.loc["b", "expression"] == "<b>"
  np.testing.assert_array_equal(table["AU12"], made.au_probability["AU12"])


def test_without_pandas_it_is_said_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "pandas", None)
  with pytest.raises(ImportError, match=r'pip install "affjax\[tables\]"'):
    prediction().to_pandas()


def test_a_prediction_is_shown_in_short():
  made = prediction()
  title, head, *lines = repr(made).splitlines()
  assert title == "Prediction of 4 images:"
  assert head.split() == ["valence", "arousal", "expression", "p", "units"]
  assert [line.split()[2] for line in lines] == made.expression.tolist()
  assert all("AU12" in line for line in lines)
  assert "<b>" not in made._repr_html_()
  assert "&lt;b&gt;" in made._repr_html_()


# What is decided.


def test_a_predictor_says_what_it_is(predictor):
  assert repr(predictor) == (
    "<Predictor vit.ViT mu/16 -> decoders.TaskTokens, step 3: 32 x 32"
    " -> va (2), expression (8), au (12)>"
  )


def test_valence_and_arousal_beyond_their_bounds_are_the_bounds(predictor):
  others = {"expression": np.full((2, 8), 0.125), "au": np.zeros((2, 12))}
  made = predictor.decide({"va": np.array([[1.9, -0.25], [0.5, -3.0]]), **others})
  assert made.va["valence"].tolist() == [1, 0.5]
  assert made.va["arousal"].tolist() == [-0.25, -1]


def test_expressions_and_units_are_decided_on_as_calibrate_does(predictor, tmp_path):
  labels, rng = predictor.labels, np.random.default_rng(1)
  settings = {
    "va": {},
    "expression": {"bias": dict(zip(labels["expression"], rng.normal(0, 3, 8), strict=True))},
    "au": {"threshold": {"AU4": 0.9, "AU26": 0.1}},
  }
  (tmp_path / "settings.json").write_text(json.dumps(settings))
  own = inference.Predictor(
    predictor.config,
    predictor._procedure,
    predictor._params,
    predictor._model_state,
    settings=calibrate.read(tmp_path / "settings.json"),
  )
  assert own.postprocess["au"]["threshold"]["AU4"] == 0.9
  assert own.postprocess["au"]["threshold"]["AU1"] == 0.5
  outputs = {task: rng.normal(0, 2, (500, len(names))) for task, names in labels.items()}
  outputs["au"][:3] = 0  # on at one half, as in the scores
  expected = calibrate.apply(outputs, np.arange(500), np.ones(500, bool), settings, labels)
  found, plain = (p.decide(p.probabilities(outputs)) for p in (own, predictor))
  best = expected["expression"].argmax(1)
  assert found.expression.tolist() == [labels["expression"][k] for k in best]
  for unit, decides in zip(labels["au"], expected["au"].T, strict=True):
    np.testing.assert_array_equal(found.au[unit], decides >= 0)
  np.testing.assert_array_equal(np.stack(list(plain.au.values()), 1), outputs["au"] >= 0)
  likeliest = outputs["expression"].argmax(1)
  assert plain.expression.tolist() == [labels["expression"][k] for k in likeliest]
  assert plain.expression.tolist() != found.expression.tolist()
  exps = np.exp(outputs["expression"])
  np.testing.assert_allclose(
    np.stack(list(plain.expression_probability.values()), 1),
    exps / exps.sum(1, keepdims=True),
    rtol=1e-6,
  )
  np.testing.assert_allclose(
    plain.au_probability["AU7"], 1 / (1 + np.exp(-outputs["au"][:, 4])), rtol=1e-6
  )
  kept = np.clip(outputs["va"][:, 1], -1, 1).astype(np.float32)
  np.testing.assert_array_equal(plain.va["arousal"], kept)


@pytest.mark.parametrize(
  ("settings", "says"),
  [
    ({"au": {"threshold": {"AU99": 0.5}}}, "threshold of AU99"),
    ({"va": {"weights": [0.5, 0.5]}}, "the settings of va are of 2 models"),
  ],
)
def test_settings_of_another_model_are_refused(predictor, settings, says):
  parts = predictor.config, predictor._procedure, predictor._params, predictor._model_state
  with pytest.raises(ValueError, match=says):
    inference.Predictor(*parts, settings=settings)


# Buckets.


@given(st.integers(1, 3000), st.sampled_from([inference.BUCKETS, (1,), (1, 8), (8,), (3, 10)]))
def test_every_image_is_in_one_part_and_at_most_half_of_the_work_is_for_nothing(count, sizes):
  parts = list(inference.cut(count, sizes))
  end = 0
  for start, number, size in parts:
    assert start == end
    assert 1 <= number <= size
    assert size in sizes
    end = start + number
  assert end == count
  assert sum(size for *_, size in parts) <= max(2 * count, sizes[0])


def test_nothing_is_compiled_but_one_program_a_bucket(predictor, caplog):
  predictor.outputs(pictures(3))  # whatever else is compiled, once
  counts = [1, 2, 5, 8, 9, 30, 64, 70, 256, 300, 3, 8, 65]
  used = {size for n in counts for *_, size in inference.cut(n, inference.BUCKETS)} - {1}
  assert used == {8, 64, 256}
  with jax.log_compiles():
    for count in counts:
      assert len(predictor.predict(pictures(count))) == count
  assert sum("Finished XLA compilation" in line for line in caplog.messages) == len(used)


def test_outputs_are_to_the_bit_those_of_the_procedure_at_that_size(predictor):
  model = jax.jit(predictor._procedure.predict)
  images = pictures(72)
  padded = np.zeros((8, 32, 32, 3), np.uint8)
  padded[:5] = images[:5]
  for count, given_images in ((5, padded), (8, images[:8]), (64, images[:64])):
    expected = model(predictor._params, predictor._model_state, given_images)
    for task, values in predictor.outputs(images[:count]).items():
      np.testing.assert_array_equal(values, expected[task][:count])
  # Of trained weights it is within 1e-6; these, which were drawn, make more of what is rounded.
  together = predictor.predict(images).columns()
  alone = [predictor.predict(image[None]).columns() for image in images]
  for name in set(together) - {"expression"}:
    np.testing.assert_allclose([x[name][0] for x in alone], together[name], atol=5e-6)


def test_a_batch_is_read_while_the_device_works_on_the_one_before():
  events = []

  class Later:
    """What a device gives: there once it is asked for."""

    def __init__(self, number):
      self.number = number

    def __array__(self, *arguments, **options):
      events.append(f"landed {self.number}")
      return np.full(2, self.number)

  def batches():
    for number in range(3):
      events.append(f"read {number}")
      yield 2, (number,)

  np.testing.assert_array_equal(inference._run(Later, batches()), [0, 0, 1, 1, 2, 2])
  order = ["read 0", "read 1", "landed 0", "read 2", "landed 1", "landed 2"]
  assert [event for event in dict.fromkeys(events) if event in order] == order


# What is given.


def test_paths_arrays_and_grey_are_one_image(predictor, tmp_path):
  grey = pictures(1)[0, ..., 0]
  cv2.imwrite(str(tmp_path / "face.png"), grey)
  path = tmp_path / "face.png"
  colour = np.repeat(grey[..., None], 3, -1)
  for images in ([path], str(path), path, [colour], colour[None], [grey], grey[None]):
    found = predictor.outputs(images)
    for task, values in predictor.outputs([colour]).items():
      np.testing.assert_array_equal(found[task], values)
  many = predictor.outputs([path, colour, grey] * 5)
  assert np.ptp(many["au"], axis=0).max() < 1e-5


def test_images_of_another_size_are_resized_as_evaluation_does(predictor):
  large = pictures(2, 50)
  expected = predictor.outputs(np.stack([records.fit(image, (32, 32)) for image in large]))
  for task, values in predictor.outputs(large).items():
    np.testing.assert_array_equal(values, expected[task])


@pytest.mark.parametrize(
  ("images", "says"),
  [
    (pictures(1)[0], "one image of shape .32, 32, 3.: give a list of it"),
    (pictures(1)[0, ..., 0], "one image of shape .32, 32.: give a list of it"),
    ([], "no images given"),
    (np.zeros((0, 32, 32, 3), np.uint8), "no images given"),
    ([pictures(1)[0].astype(float)], "expected .height, width, 3. uint8 RGB"),
    (["/nowhere/face.jpg"], "/nowhere/face.jpg"),
  ],
)
def test_what_is_no_sequence_of_images_is_refused(predictor, images, says):
  with pytest.raises((ValueError, FileNotFoundError), match=says):
    predictor.predict(images)


def test_weights_are_the_average_or_raw(predictor, tmp_path):
  where = save_run(tmp_path / "run", debug_config(**SMALL))
  average, raw = (affjax.load(where, weights=name) for name in ("ema", "raw"))
  same = predictor.outputs(pictures(1))["va"]
  np.testing.assert_array_equal(average.outputs(pictures(1))["va"], same)
  assert np.abs(raw.outputs(pictures(1))["va"] - same).max() > 1e-3
  with pytest.raises(ValueError, match="weights='best': use ema or raw"):
    affjax.load(where, weights="best")


# Evaluation.


@pytest.mark.slow
def test_the_scores_of_evaluation_are_those_of_the_predictions(tiny_faces, tmp_path):
  config = debug_config(model__encoder=SMALL["model__encoder"])
  where = save_run(tmp_path / "run", config)
  told = evaluate.run(config, where, tiny_faces, splits=("test",))["scores"]["test"]
  build = records.builder("synthetic_faces", "tiny", tiny_faces)
  batch = records.records(build, "test", config["labels"], 112).batch(np.arange(32))
  assert all(mask.all() for mask in batch["mask"].values())
  found = affjax.load(where).predict(batch["image"])
  names = np.array(config["labels"]["expression"])
  truth = names[batch["labels"]["expression"].argmax(1)]
  accuracy = metrics.accuracy_score(truth, found.expression)
  f1 = metrics.f1_score(truth, found.expression, labels=names, average=None, zero_division=0)
  assert told["expression/accuracy"] == pytest.approx(accuracy, abs=1e-6)
  assert told["expression/f1"] == pytest.approx(f1.mean(), abs=1e-6)
  for k, unit in enumerate(config["labels"]["au"]):
    score = metrics.f1_score(batch["labels"]["au"][:, k], found.au[unit], zero_division=0)
    assert told[f"au/f1/{unit}"] == pytest.approx(score, abs=1e-6)
  for k, name in enumerate(("valence", "arousal")):
    x, y = found.va[name].astype(float), batch["labels"]["va"][:, k].astype(float)
    ccc = 2 * np.cov(x, y, ddof=0)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    assert told[f"va/ccc/{name}"] == pytest.approx(ccc, abs=1e-5)
