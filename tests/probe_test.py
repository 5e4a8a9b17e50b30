"""The pixel probe against scikit-learn, and what it learns from, keeps and says."""

import dataclasses
import types
from pathlib import Path

import numpy as np
import pytest
from conftest import debug_config
from sklearn import linear_model

from affjax import evaluate, experiment, probe
from affjax.data import records

ROWS, FEATURES = 300, 20


@pytest.fixture(scope="module")
def problem():
  """Features of very unequal size, as principal axes are, and three outputs that depend on them."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(ROWS, FEATURES)) * np.geomspace(5, 0.05, FEATURES) + 0.3
  latent = x @ rng.normal(size=(FEATURES, 3)) + rng.normal(0, 8, (ROWS, 3))
  mask = (rng.random((ROWS, 3)) < 0.7).astype(np.float32)
  return x.astype(np.float32), latent.astype(np.float32), mask


@pytest.mark.parametrize("strength", [1e-1, 1e1, 1e3])
def test_ridge_is_that_of_scikit_learn_for_each_output_on_its_labelled_rows(problem, strength):
  x, y, mask = problem
  weights, bias = probe.ridge(x, y, mask, strength)
  for output in range(3):
    kept = mask[:, output] > 0
    theirs = linear_model.Ridge(alpha=strength).fit(x[kept].astype(float), y[kept, output])
    np.testing.assert_allclose(weights[:, output], theirs.coef_, rtol=1e-5, atol=1e-7)
    assert bias[output] == pytest.approx(theirs.intercept_, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("strength", [1e-1, 1e1, 1e3])
def test_units_are_regressed_as_by_scikit_learn(problem, strength):
  x, latent, mask = problem
  y = (latent > np.array([[0, 1, 8]], np.float32)).astype(np.float32)  # the last is rare
  weights, bias = probe.logistic_units(x, y, mask, strength)
  for unit in range(3):
    kept = mask[:, unit] > 0
    theirs = linear_model.LogisticRegression(C=1 / strength, tol=1e-10, max_iter=10_000)
    theirs.fit(x[kept].astype(float), y[kept, unit])
    expected = theirs.decision_function(x)
    close(probe.predict("au", (weights[:, [unit]], bias[[unit]]), x)[:, 0], expected)


@pytest.mark.parametrize("strength", [1e-1, 1e1, 1e3])
def test_expressions_are_regressed_as_by_scikit_learn(problem, strength):
  x, latent, mask = problem
  y, kept = np.eye(3, dtype=np.float32)[latent.argmax(1)], mask[:, 0] > 0
  model = probe.logistic_classes(x, y, mask[:, 0], strength)
  theirs = linear_model.LogisticRegression(C=1 / strength, tol=1e-10, max_iter=10_000)
  theirs.fit(x[kept].astype(float), y[kept].argmax(1))
  close(model[0], theirs.coef_.T)
  close(probabilities(probe.predict("expression", model, x)), theirs.predict_proba(x))


def test_votes_count_in_parts(problem):
  x, latent, _ = problem
  votes = np.random.default_rng(1).dirichlet([1, 1, 1], ROWS).astype(np.float32)
  model = probe.logistic_classes(x, votes, np.ones(ROWS, np.float32), 1.0)
  theirs = linear_model.LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000)
  classes = np.repeat(np.arange(3), ROWS)
  theirs.fit(np.tile(x.astype(float), (3, 1)), classes, sample_weight=votes.T.reshape(-1))
  close(probabilities(probe.predict("expression", model, x)), theirs.predict_proba(x))


def close(found, expected):
  """To three thousandths of the spread, in single precision."""
  assert np.abs(found - expected).max() < 3e-3 * np.std(expected)


def probabilities(logits):
  exponents = np.exp(logits - logits.max(1, keepdims=True))
  return exponents / exponents.sum(1, keepdims=True)


@pytest.mark.parametrize("fit", [probe.ridge, probe.logistic_units])
def test_what_is_not_labelled_is_not_learnt_from(problem, fit):
  x, latent, mask = problem
  y = (latent > 0).astype(np.float32)
  expected = fit(x, y, mask, 1.0)
  for a, b in zip(fit(x, np.where(mask > 0, y, 1 - y), mask, 1.0), expected, strict=True):
    np.testing.assert_array_equal(a, b)
  mask = mask * [[1, 1, 0]]
  weights, _ = fit(x, y, mask.astype(np.float32), 1.0)
  assert not weights[:, 2].any()


def test_valence_and_arousal_stay_in_range(problem):
  x, latent, mask = problem
  found = probe.predict("va", probe.ridge(x, latent, mask, 1.0), x)
  assert np.abs(found).max() == 1


# A split whose labels are seen in the brightness of its images.


class Bright:
  """Stands in for `records.Records`."""

  def __init__(self, seed, size, count=200):
    rng = np.random.default_rng(seed)
    self.level = rng.uniform(40, 215, (count, 2)).astype(np.float32)  # upper and lower half
    noise = rng.normal(0, 4, (count, size, size, 3))
    half = np.arange(size)[None, :, None, None] < size // 2
    level = np.where(half, self.level[:, 0, None, None, None], self.level[:, 1, None, None, None])
    self.image = (level + noise).clip(0, 255).astype(np.uint8)

  def __len__(self):
    return len(self.image)

  def batch(self, rows):
    level = self.level[rows]
    labels = {"va": level / 128 - 1, "au": (level > 128).astype(np.float32)}
    labels["expression"] = np.eye(2, dtype=np.float32)[(level[:, 0] > level[:, 1]).astype(int)]
    mask = {task: np.ones_like(labels[task]) for task in ("va", "au")}
    mask["expression"] = np.ones(len(rows), np.float32)
    return {"image": self.image[rows], "labels": labels, "mask": mask, "index": rows}


@pytest.fixture(autouse=True)
def small(monkeypatch):
  """A quicker probe: 36 pixels."""
  monkeypatch.setattr(probe, "SIZE", 6)


NAMES = {"va": ["valence", "arousal"], "expression": ["sadness", "fear"], "au": ["AU1", "AU2"]}
SCORING = evaluate.Scoring(NAMES)


def bright(folder, count=200):
  """Stands in for `experiment.Data`."""
  seeds = {"train": 0, "validation": 1, "test": 2}
  opened = lambda split, size=None: Bright(seeds[split], size or probe.SIZE, count)
  return types.SimpleNamespace(
    build=types.SimpleNamespace(data_dir=folder),
    summary={"fingerprint": "abc"},
    labels=NAMES,
    train_split="train",
    select="validation",
    records=opened,
    skipped={},
    seen=lambda split: tuple(opened(split).batch(np.arange(count))[k] for k in ("labels", "mask")),
  )


def test_what_brightness_says_is_learnt(tmp_path):
  found = probe.scores(bright(tmp_path), SCORING, ["validation", "test"])
  for split in ("validation", "test"):
    assert found[split]["va/ccc"] > 0.97
    assert found[split]["expression/f1"] > 0.9
    assert found[split]["au/f1"] > 0.9
    assert found[split]["p_mtl"] > 2.8


def test_the_strength_that_scores_best_on_the_split_of_choices_is_kept(tmp_path, monkeypatch):
  tried = {}

  def fit(x, y, mask, strength):
    tried[strength] = probe.ridge(x, y, mask, strength)
    return tried[strength]

  monkeypatch.setitem(probe._FITS, "va", fit)
  monkeypatch.setattr(probe, "STRENGTHS", (1e9, 1e1, 1e7))
  best = probe.scores(bright(tmp_path), SCORING, ["validation"])["validation"]["va/ccc"]
  assert list(tried) == [1e9, 1e1, 1e7]
  monkeypatch.setattr(probe, "STRENGTHS", (1e1,))
  assert probe.scores(bright(tmp_path), SCORING, ["validation"])["validation"]["va/ccc"] == best


def test_a_large_split_is_learnt_from_in_part(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(probe, "ROWS", 50)
  rows = []
  read = probe._read
  monkeypatch.setattr(
    probe, "_read", lambda data, split, of=None: rows.append((split, of)) or read(data, split, of)
  )
  probe.scores(bright(tmp_path), SCORING, ["test"])
  (split, chosen), *others = rows
  assert split == "train"
  assert len(set(chosen.tolist())) == 50
  assert max(chosen) > 100  # not the first in the order of the files
  assert [of for _, of in others] == [None, None]
  assert "50 of the 200 images" in capsys.readouterr().out


def test_images_are_grey_and_reduced_by_averaging(tmp_path):
  data = bright(tmp_path, 3)
  images = data.records("train").image
  found = probe._read(data, "train")["image"]
  luma = images @ np.array([0.299, 0.587, 0.114]) / 255
  np.testing.assert_allclose(found, luma.reshape(3, -1), atol=1e-6)


# Kept beside the data.


@pytest.fixture
def fits(monkeypatch):
  """Which splits were scored by a fit, each time; none is really made."""
  done = []

  def fit(data, scoring, splits):
    done.append(list(splits))
    return {split: {"va/ccc": float(len(done))} for split in splits}

  monkeypatch.setattr(probe, "_fit_and_score", fit)
  return done


def test_the_scores_are_kept_and_only_what_is_missing_is_made(tmp_path, fits):
  data = bright(tmp_path)
  first = probe.scores(data, SCORING, ["validation"])
  assert probe.scores(data, SCORING, ["validation"]) == first
  both = probe.scores(data, SCORING, ["test", "validation"])
  assert fits == [["validation"], ["test"]]
  assert list(both) == ["test", "validation"]
  assert both["validation"] == first["validation"]


def test_made_anew_it_is_the_same_to_the_bit(tmp_path):
  first = probe.scores(bright(tmp_path), SCORING, ["test"])
  (kept,) = Path(tmp_path).iterdir()
  kept.unlink()
  assert probe.scores(bright(tmp_path), SCORING, ["test"]) == first


def test_what_is_kept_is_of_one_data_set_its_labels_as_seen_and_the_settings(
  tmp_path, fits, monkeypatch
):
  def again(data, scoring=SCORING):
    before = len(fits)
    probe.scores(data, scoring, ["test"])
    return len(fits) > before

  data = bright(tmp_path)
  assert again(data)
  assert not again(bright(tmp_path))
  other = bright(tmp_path)
  other.summary = {"fingerprint": "abd"}
  assert again(other)
  seen = bright(tmp_path)
  labels, mask = seen.seen("train")
  mask["va"][0, 0] = 0
  seen.seen = lambda split: (labels, mask)
  assert again(seen)
  assert again(data, dataclasses.replace(SCORING, scored={"au": ["AU1"]}))
  monkeypatch.setattr(probe, "ROWS", 100)
  assert again(data)


def test_a_folder_that_cannot_be_written_does_not_stop_it(tmp_path, fits, monkeypatch):
  def refuse(path, content):
    raise PermissionError(13, "no")

  monkeypatch.setattr(Path, "write_bytes", refuse)
  assert probe.scores(bright(tmp_path), SCORING, ["test"]) == {"test": {"va/ccc": 1.0}}
  assert not list(tmp_path.iterdir())


# On real records.


def test_a_view_is_learnt_from_and_the_tasks_that_a_set_lacks_are_left_out(tiny_ferplus, tmp_path):
  config = debug_config("data=ferplus,debug", data__image_size=48)
  data = experiment.Data(config, str(Path(tiny_ferplus.data_dir).parents[1]))
  scoring = evaluate.Scoring.of(data.labels, records.metadata(data.build))
  found = probe.scores(data, scoring, ["validation"])["validation"]
  assert {"expression/strict/f1", "expression/official/accuracy"} <= set(found)
  assert not [name for name in found if name.startswith(("va", "au", "p_mtl"))]


def test_the_probe_sees_the_masks_that_training_sees(tiny_faces, monkeypatch):
  data = experiment.Data(debug_config(), tiny_faces)
  scoring = evaluate.Scoring.of(data.labels, records.metadata(data.build))
  seen = {}
  for task, fit in probe._FITS.items():
    monkeypatch.setitem(
      probe._FITS,
      task,
      lambda x, y, mask, strength, task=task, fit=fit: (
        seen.setdefault(task, mask) is None or fit(x, y, mask, strength)
      ),
    )
  probe._fit_and_score(data, scoring, ["validation"])
  for task, mask in data.targets[1].items():
    np.testing.assert_array_equal(seen[task], mask)
    assert 0 < mask.mean() < 1
