"""What is scored on a data set that does not label all that a model says."""

import json
import types

import jax
import numpy as np
import pytest
from conftest import debug_config

from affjax import evaluate, experiment, metrics
from affjax.data import records, views

LABELS = debug_config()["labels"]


def scores(scoring, outputs, labels, mask):
  states = scoring.states(outputs, {"labels": labels, "mask": mask})
  return scoring.scores({name: metrics.to_host(state) for name, state in states.items()})


def batch(rows=6):
  """Outputs that are right everywhere."""
  rng = np.random.default_rng(0)
  au = (np.arange(rows)[:, None] + np.arange(12)) % 2
  labels = {
    "va": rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
    "expression": np.eye(8, dtype=np.float32)[np.arange(rows)],
    "au": au.astype(np.float32),
  }
  outputs = labels | {"au": labels["au"] - 0.5}
  mask = {"va": np.ones((rows, 2)), "expression": np.ones(rows), "au": np.ones((rows, 12))}
  return outputs, labels, mask


def described(**changes):
  """Metadata of a data set that labels all, but for the changes."""
  return {"labels": LABELS | changes}


def test_where_everything_is_labelled_everything_is_scored():
  scoring = evaluate.Scoring.of(LABELS, described())
  found = scores(scoring, *batch())
  # Two expressions occur in none of the six rows.
  assert found["p_mtl"] == pytest.approx(1 + 6 / 8 + 1)
  assert scoring.left_out == []
  assert set(found) == set(scoring.names(["va", "expression", "au"]))


def test_units_and_dimensions_that_a_data_set_lacks_do_not_count_as_wrong():
  scoring = evaluate.Scoring.of(LABELS, described(au=["AU25", "AU99", "AU1"], va=["arousal"]))
  outputs, labels, mask = batch()
  outputs["va"] = outputs["va"] * [-1, 1]
  found = scores(scoring, outputs, labels, mask)
  assert found["au/f1"] == 1
  assert found["va/ccc"] == pytest.approx(1)
  assert [name for name in found if name.startswith("au/f1/")] == ["au/f1/AU1", "au/f1/AU25"]
  assert "valence" in scoring.left_out
  assert "AU2" in scoring.left_out
  assert "AU25" not in scoring.left_out


def test_expressions_that_a_data_set_lacks_are_no_answers():
  six = ["anger", "disgust", "fear", "happiness", "sadness", "surprise"]
  scoring = evaluate.Scoring.of(LABELS, described(expression=six))
  outputs, labels, mask = batch()
  outputs["expression"] = outputs["expression"] + 5 * np.eye(8)[0]  # neutral before all
  mask["expression"][0] = 0  # the neutral row is not of this set
  found = scores(scoring, outputs, labels, mask)
  assert found["expression/f1"] == pytest.approx(5 / 6)  # no surprise among the rows
  assert found["expression/accuracy"] == 1
  assert scoring.left_out == ["neutral", "other"]


def test_contempt_is_scored_as_other_where_the_model_has_no_contempt():
  scoring = evaluate.Scoring.of(LABELS, described(expression=["neutral", "contempt"]))
  assert list(scoring.names_of("expression")) == ["neutral", "other"]


def test_a_data_set_can_leave_expressions_out_of_its_own_scores():
  metadata = described() | {"scoring": {"expression": {"rules": ["strict"], "classes": ["fear"]}}}
  scoring = evaluate.Scoring.of(LABELS, metadata)
  assert list(scoring.names_of("expression")) == ["fear"]
  assert "expression/strict/f1" in scoring.names(["expression"])


def test_the_seven_expressions_have_the_score_of_abaw1_and_others_have_not():
  scoring = evaluate.Scoring.of(LABELS, described(expression=LABELS["expression"][:7]))
  found = scores(scoring, *batch())
  expected = 0.67 * found["expression/f1"] + 0.33 * found["expression/accuracy"]
  assert found["expression/abaw2"] == pytest.approx(expected)
  assert "expression/abaw2" in scoring.names(["expression"])
  assert "expression/abaw2" not in scores(evaluate.Scoring.of(LABELS, described()), *batch())


def test_a_task_that_a_data_set_lacks_is_not_scored():
  metadata = {"labels": {"va": ["valence", "arousal"]}}
  scoring = evaluate.Scoring.of(LABELS, metadata)
  assert set(scores(scoring, *batch())) == {"va/ccc", "va/ccc/valence", "va/ccc/arousal"}
  assert scoring.left_out == []


# Ceilings.

CEILING = {
  "va/ccc": 1.0,
  "expression/f1": 0.66,
  "expression/accuracy": 0.67,
  "au/f1": 1.0,
  "p_mtl": 2.66,
}


def ceilings(folder, split="test", wants=LABELS, view=views.CLEAN, **changes):
  """Of a data set that declares those of its test split."""
  metadata = described(**changes) | {"ceiling": {"test": CEILING}}
  (folder / "metadata.json").write_text(json.dumps(metadata))
  data = types.SimpleNamespace(
    build=types.SimpleNamespace(data_dir=folder), view=lambda split: view
  )
  return evaluate.ceilings(data, split, evaluate.Scoring.of(wants, metadata))


def test_a_ceiling_is_what_the_data_set_declares(tmp_path):
  assert ceilings(tmp_path) == CEILING
  assert ceilings(tmp_path, "test/no_view") == CEILING
  assert ceilings(tmp_path, "validation") == {}


def test_missing_labels_leave_the_ceiling_and_wrong_ones_do_not(tmp_path):
  assert ceilings(tmp_path, view=views.View(masks="s_aff_wild2")) == CEILING
  assert ceilings(tmp_path, view=views.View(noise="mild")) == {}


def test_there_is_no_ceiling_of_what_is_scored_on_other_labels_than_the_data_sets(tmp_path):
  seven = LABELS | {"expression": LABELS["expression"][:7]}
  assert set(ceilings(tmp_path, wants=seven)) == {"va/ccc", "au/f1"}
  assert set(ceilings(tmp_path, wants={"au": LABELS["au"]})) == {"au/f1"}
  assert ceilings(tmp_path, wants=LABELS | {"expression": LABELS["expression"][::-1]}) == CEILING


def test_a_data_set_that_declares_none_has_none(tmp_path):
  (tmp_path / "metadata.json").write_text(json.dumps(described()))
  data = types.SimpleNamespace(
    build=types.SimpleNamespace(data_dir=tmp_path), view=lambda split: views.CLEAN
  )
  assert evaluate.ceilings(data, "test", evaluate.Scoring.of(LABELS, described())) == {}


# The table.


def test_the_table_has_a_column_for_each_yardstick_and_a_line_for_each_score():
  scores = {"au/f1": 0.5, "au/f1/AU1": 0.25, "au/f1/AU12": 0.75, "p_mtl": 1.25}
  floors = {"au/f1": 0.125, "au/f1/AU1": 0.0, "au/f1/AU12": 1.0, "p_mtl": 0.5}
  probes = {"au/f1": 0.375, "au/f1/AU12": 0.5}
  columns = {"score": scores, "floor": floors, "ceiling": {"p_mtl": 2.66}, "probe": probes}
  assert evaluate.table(columns, "title").splitlines() == [
    "title",
    "               score    floor  ceiling    probe",
    "  au/f1        0.500    0.125        -    0.375",
    "  p_mtl        1.250    0.500    2.660        -",
    "  au/f1       AU1  AU12",
    "    score    0.25  0.75",
    "    floor    0.00  1.00",
    "    probe       -  0.50",
  ]


def test_columns_without_a_score_are_left_out():
  columns = {"score": {"va/ccc": 0.5}, "floor": {"va/ccc": 0.0}, "ceiling": {}, "probe": {}}
  assert evaluate.table(columns, "title").splitlines()[1].split() == ["score", "floor"]
  assert evaluate.table({"score": {}}, "title").startswith("title")


@pytest.mark.slow
def test_a_split_that_stays_on_the_devices_is_read_once_and_scored_alike(tiny_faces, monkeypatch):
  config = debug_config()
  _, data, procedure, mesh = experiment.open_training(config, tiny_faces)
  state = jax.jit(procedure.init)()
  reads = []
  read = records.Images.__call__
  monkeypatch.setattr(
    records.Images, "__call__", lambda self, rows: reads.append(1) or read(self, rows)
  )

  def scored(evaluator):
    reads.clear()
    return evaluator(state.averaged, state.model_state), len(reads)

  open_ = lambda **options: evaluate.evaluator(
    config, data, "validation", procedure, mesh, **options
  )
  streamed, kept = open_(), open_(often=True)
  expected, batches = scored(streamed)
  for evaluator, count in ((streamed, batches), (kept, batches), (kept, 0), (kept, 0)):
    found, read_now = scored(evaluator)
    np.testing.assert_equal(found, expected)
    assert read_now == count
  _, count = scored(kept.on(data.records("test"), "test"))
  assert count > 0
