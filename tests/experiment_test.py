"""What a config asks of its data is answered, or refused, before anything is compiled."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import debug_config

from affjax import dry_run, evaluate, experiment, train

BALANCED = {
  "va": {"name": "losses.ccc_loss"},
  "expression": {
    "name": "losses.focal_cross_entropy",
    "class_weights": "balanced",
    "logit_adjustment": "prior",
  },
  "au": {"name": "losses.binary_cross_entropy", "positive_weight": "balanced"},
}


def faces_config(**changes):
  return debug_config(losses=BALANCED, **changes)


@pytest.fixture(scope="module")
def faces(tiny_faces):
  return experiment.Data(debug_config(), tiny_faces)


@pytest.fixture(scope="module")
def batch(faces):
  """The whole training split, as the network gets it."""
  split = faces.records("train")
  return split.batch(np.arange(len(split)))


@pytest.fixture(scope="module")
def resolved(faces):
  return experiment.resolve_losses(faces_config(), faces)["losses"]


def ferplus_config(tiny_ferplus, **changes):
  """The flagship on the tiny FER+, and where that is."""
  return debug_config("data=ferplus,debug", **changes), str(Path(tiny_ferplus.data_dir).parents[1])


def expressions(batch):
  """Of the labelled rows: here people lack tasks."""
  labelled = batch["labels"]["expression"][batch["mask"]["expression"] > 0]
  assert 0 < len(labelled) < 96
  return labelled


def test_balanced_class_weights_are_in_inverse_proportion_to_the_labelled_rows(resolved, batch):
  labelled = expressions(batch)
  rows = labelled.sum(0)
  assert (rows > 0).all()
  weights = np.array(resolved["expression"]["class_weights"])
  np.testing.assert_allclose(weights, len(labelled) / (8 * rows), rtol=1e-6)
  assert (weights * rows).sum() / len(labelled) == pytest.approx(1)


def test_the_prior_is_the_share_of_each_class(resolved, batch):
  prior = resolved["expression"]["logit_adjustment"]
  np.testing.assert_allclose(prior, expressions(batch).mean(0), rtol=1e-6)


def test_balanced_positive_weights_are_negatives_by_positives_up_to_a_limit(resolved, batch):
  labelled = batch["labels"]["au"][batch["mask"]["au"][:, 0] > 0]
  on = labelled.sum(0)
  assert 0 < len(labelled) < 96
  weights = resolved["au"]["positive_weight"]
  np.testing.assert_allclose(weights, np.minimum((len(labelled) - on) / on, 20), rtol=1e-6)
  assert max(weights) == 20
  assert min(weights) < 1


def test_unit_weights_are_in_inverse_proportion_to_how_often_a_unit_is_on(faces, batch):
  config = faces_config()
  config["losses"] = {
    "au": {"name": "losses.binary_cross_entropy_and_dice", "unit_weights": "inverse"}
  }
  found = experiment.resolve_losses(config, faces)["losses"]["au"]["unit_weights"]
  on = batch["labels"]["au"][batch["mask"]["au"][:, 0] > 0].mean(0)
  assert (on > 0).all()
  np.testing.assert_allclose(found, 12 / on / (1 / on).sum(), rtol=1e-6)
  assert np.mean(found) == pytest.approx(1)


def test_a_unit_that_is_never_on_has_weight_one_beside_others_whose_mean_is(tiny_faces):
  config = faces_config()
  config["losses"] = {"au": {"name": "losses.dice_loss", "unit_weights": "inverse"}}
  data = experiment.Data(config, tiny_faces)
  data.targets[0]["au"][:, 3] = 0
  found = experiment.resolve_losses(config, data)["losses"]["au"]["unit_weights"]
  assert found[3] == 1
  assert np.mean(found) == pytest.approx(1)
  data.targets[0]["au"][:] = 0
  assert experiment.resolve_losses(config, data)["losses"]["au"]["unit_weights"] == [1.0] * 12


def test_numbers_are_in_the_order_of_the_models_labels_and_of_soft_votes(tiny_ferplus):
  config, data_dir = ferplus_config(tiny_ferplus)
  config["labels"] = {"expression": ["other", "happiness", "neutral", "boredom"]}
  config["losses"] = {"expression": BALANCED["expression"]}
  data = experiment.Data(config, data_dir)
  found = experiment.resolve_losses(config, data)["losses"]["expression"]
  split = data.records("train")
  batch = split.batch(np.arange(len(split)))
  labelled = batch["mask"]["expression"] > 0
  votes = batch["labels"]["expression"][labelled].sum(0)  # contempt is `other`
  assert 0 < labelled.sum() < len(labelled)
  np.testing.assert_allclose(found["logit_adjustment"], votes / labelled.sum(), rtol=1e-5)
  np.testing.assert_allclose(
    found["class_weights"], [*labelled.sum() / (3 * votes[:3]), 0], rtol=1e-5
  )


def test_units_that_the_data_lack_or_never_show_have_weight_one(tiny_faces):
  config = faces_config()
  config["labels"]["au"] = ["AU99", *config["labels"]["au"]]
  data = experiment.Data(config, tiny_faces)
  data.targets[0]["au"][:, 1] = 0
  data.targets[0]["au"][:, 2] = 1
  weights = experiment.resolve_losses(config, data)["losses"]["au"]["positive_weight"]
  assert weights[:3] == [1, 1, 1]


def test_numbers_that_a_config_gives_stay_and_the_config_is_left_alone(faces):
  config = faces_config()
  config["losses"]["au"]["positive_weight"] = [2.0] * 12
  before = json.dumps(config)
  assert experiment.resolve_losses(config, faces)["losses"]["au"]["positive_weight"] == [2.0] * 12
  assert json.dumps(config) == before


def test_the_numbers_are_said(faces, resolved, tiny_faces, capsys):
  dry_run.run(
    faces_config(accumulate=2, data__sampling="class_balanced"), tiny_faces, compiles=False
  )
  said = capsys.readouterr().out.splitlines()
  weight = resolved["expression"]["class_weights"][1]
  assert any(line.startswith("loss   expression class_weights: ") and f"anger {weight:.3g}" in line
             for line in said)  # fmt: skip
  assert any(line.startswith("loss   au positive_weight: ") and "AU23 20" in line for line in said)
  assert any(line.endswith(", in 2 micro-batches, classes in equal shares") for line in said)


def test_strata_are_the_most_probable_expressions_of_the_models(tiny_ferplus):
  config, data_dir = ferplus_config(tiny_ferplus, data__sampling="class_balanced")
  config["labels"] = {"expression": ["happiness", "neutral"]}
  data = experiment.Data(config, data_dir)
  split = data.records("train")
  batch = split.batch(np.arange(len(split)))
  expected = batch["labels"]["expression"].argmax(1)
  expected[batch["mask"]["expression"] == 0] = -1
  np.testing.assert_array_equal(data.strata, expected)
  assert set(expected) == {-1, 0, 1}


def test_classes_are_drawn_evenly_where_the_config_says_so(tiny_faces):
  config = debug_config(data__sampling="class_balanced", batch_size=32, data__view__masks="none")
  _, data, _, mesh = experiment.open_training(config, tiny_faces)
  batches = train.training_batches(config, data, mesh, 3)
  for _ in range(2):
    drawn = np.asarray(next(batches)["labels"]["expression"]).argmax(1)
    np.testing.assert_array_equal(np.bincount(drawn, minlength=8), 4)
  batches.close()


# Views.


def counts(data, split):
  return {task: data.labelled(split, task) for task in ("va", "expression", "au")}


def test_training_and_choosing_are_viewed_and_what_is_reported_is_not(tiny_faces):
  config = debug_config(data__view__noise="wild")
  data = experiment.Data(config, tiny_faces)
  plain = experiment.Data(debug_config(data__view__masks="none"), tiny_faces)
  for split, rows in (("train", 96), ("validation", 32)):
    exact, seen = plain.seen(split), data.seen(split)
    assert counts(plain, split) == dict.fromkeys(("va", "expression", "au"), rows)
    assert counts(data, split) != counts(plain, split)
    assert np.abs(exact[0]["va"] - seen[0]["va"]).mean() > 0.05
    for kind, values in zip(exact, data.seen(split + experiment.NO_VIEW), strict=True):
      for task in values:
        np.testing.assert_array_equal(values[task], kind[task])
  assert counts(data, "validation")["va"] == 32  # nobody there lacks it
  np.testing.assert_array_equal(data.seen("test")[0]["va"], plain.seen("test")[0]["va"])
  assert counts(data, "test") == counts(plain, "test")


@pytest.mark.parametrize("split", ["train", "validation", "validation/no_view", "test"])
def test_counts_are_those_of_the_batches(tiny_faces, split):
  data = experiment.Data(debug_config(), tiny_faces)
  opened = data.records(split)
  mask = opened.batch(np.arange(len(opened)))["mask"]
  found = {task: int(mask[task].reshape(len(opened), -1)[:, 0].sum()) for task in mask}
  assert counts(data, split) == found


def test_splits_that_have_a_view_are_scored_without_it_too(faces):
  names = faces.with_no_view(("validation", "test"))
  assert names == ["validation", "validation/no_view", "test"]
  assert faces.with_no_view(names[1:]) == names[1:]


def test_a_split_that_is_both_learnt_from_and_chosen_by_is_masked_as_training(tiny_faces):
  data = experiment.Data(debug_config(data__select="train", data__report=[]), tiny_faces)
  assert str(data.view("train")) == "masks s_aff_wild2/train"


def test_the_view_is_said_with_the_counts_through_it(tiny_faces, capsys):
  config = debug_config(data__view__noise="mild")
  dry_run.run(config, tiny_faces, compiles=False)
  said = capsys.readouterr().out
  data = experiment.Data(config, tiny_faces)
  seen = counts(data, "train")
  assert (
    f"train: 96 images (va {seen['va']}, expression {seen['expression']}, au {seen['au']}),"
    " noise mild, masks s_aff_wild2/train\n"
  ) in said
  assert "test: 32 images (va 32, expression 32, au 32)\n" in said


def test_rows_that_the_view_leaves_unlabelled_are_a_stratum_of_their_own(tiny_faces):
  data = experiment.Data(debug_config(data__sampling="class_balanced"), tiny_faces)
  mask = data.records("train").batch(np.arange(96))["mask"]["expression"]
  np.testing.assert_array_equal(data.strata < 0, mask == 0)
  assert 0 < mask.sum() < 96


# Refusals.


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"accumulate": 3}, "config.accumulate=3 does not divide config.batch_size=16"),
    ({"accumulate": 0}, "config.accumulate=0 does not divide"),
    ({"accumulate": 4}, "config.batch_size / config.accumulate=4 is not a multiple of the 8"),
    ({"data__sampling": "balanced"}, "sampling='balanced': use one of uniform, class_balanced"),
    ({"data__view__noise": "loud"}, "view.noise='loud': use one of clean, mild, wild"),
    ({"data__view__masks": "some"}, "config.data.view.masks='some': use one of none, s_aff_wild2"),
    ({"losses__expression__label_smoothing": 2.0}, "config.losses.expression: label_smoothing=2.0"),
  ],
)
def test_what_does_not_fit_is_said_in_one_line_before_the_run(tiny_faces, tmp_path, changes, said):
  with pytest.raises(ValueError, match=said) as error:
    train.run(debug_config(**changes), tmp_path / "run", tiny_faces)
  assert "\n" not in str(error.value)
  assert not (tmp_path / "run").exists()


def test_weights_of_another_length_are_refused(faces):
  config = faces_config()
  config["losses"]["au"]["positive_weight"] = [1.0, 2.0]
  with pytest.raises(ValueError, match="config.losses.au: positive_weight=.*use 12 numbers"):
    experiment.resolve_losses(config, faces)


def test_balancing_what_has_no_labels_is_refused(tiny_ferplus, tmp_path):
  config, data_dir = ferplus_config(tiny_ferplus, losses=BALANCED)
  with pytest.raises(ValueError, match="au: positive_weight='balanced' needs.*ferplus.*none of au"):
    train.run(config, tmp_path / "run", data_dir)
  config, data_dir = ferplus_config(tiny_ferplus, data__sampling="class_balanced")
  config["labels"] = {"expression": ["boredom"]}
  config["losses"] = {"expression": {"name": "losses.cross_entropy"}}
  with pytest.raises(ValueError, match="sampling='class_balanced' needs.*none of expression"):
    train.run(config, tmp_path / "run", data_dir)
  assert not (tmp_path / "run").exists()


def test_configs_from_before_these_fields_mean_their_defaults(tiny_faces):
  config = debug_config()
  del config["accumulate"], config["data"]["sampling"]
  del config["data"]["view"], config["evaluate"]["probe"]
  resolved, data, _, _ = experiment.open_training(config, tiny_faces)
  assert resolved == config
  assert data.strata is None
  assert not any(data.view(split) for split in ("train", "validation", "test"))


@pytest.mark.slow
def test_a_run_with_all_of_it_trains_and_its_checkpoint_is_scored(tiny_faces, tmp_path):
  config = faces_config(steps=14, accumulate=2, profile=2, data__sampling="class_balanced")
  result = train.run(config, tmp_path, tiny_faces)
  (trace,) = (tmp_path / train.PROFILE).rglob("*.xplane.pb")  # TensorBoard's format
  seen = jax.profiler.ProfileData.from_file(str(trace))
  operations = {e.name for plane in seen.planes for line in plane.lines for e in line.events}
  assert any(name.startswith("dot") for name in operations), operations
  assert json.loads((tmp_path / "config.json").read_text()) == config  # as it was asked for
  again = evaluate.run(config, tmp_path, tiny_faces, splits=("test",))
  assert again["scores"]["test"] == result["scores"]["test"]
