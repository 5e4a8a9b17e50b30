import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from affjax import transfer
from scripts import measure_gap


def faces(rng, rows, shares, moved, features=8, classes=3):
  """Gaussian classes; `moved` says how far those of photographs lie from those of renders."""
  means = 1.2 * np.random.default_rng(0).normal(size=(classes, features))
  means = means + moved * np.random.default_rng(1).normal(size=(classes, features))
  label = rng.choice(classes, rows, p=shares)
  return (means[label] + rng.normal(size=(rows, features))).astype(np.float32), label


def accuracy(logits, label):
  return (logits.argmax(1) == label).mean()


def test_adapting_finds_the_classes_where_the_photographs_have_them():
  rng = np.random.default_rng(1)
  x, label = faces(rng, 20_000, [1 / 3] * 3, 0)
  shares = np.array([0.6, 0.3, 0.1])
  photographs, truth = faces(rng, 4000, shares, 1.2)
  learnt = transfer.learn(x, np.eye(3)[label], x[:, :2], shares**0.5, components=8)
  adapted = transfer.adapt(learnt, photographs, transfer.Axes.of(photographs, 6), shares)
  before, after = accuracy(learnt(photographs), truth), accuracy(adapted(photographs), truth)
  assert before < 0.93
  assert after > before + 0.04
  # What was fitted answers for images that it was not fitted to.
  others, truth = faces(rng, 1000, shares, 1.2)
  assert accuracy(adapted(others), truth) == pytest.approx(after, abs=0.02)


def test_readings_come_before_logits_in_the_semantics():
  rng = np.random.default_rng(2)
  x, label = faces(rng, 20_000, [0.4, 0.3, 0.3], 0)
  learnt = transfer.learn(x, np.eye(3)[label], 5 * x[:, :2] + 1, np.ones(3) / 3, components=8)
  found = learnt.semantics(x)
  assert found.shape == (20_000, 5)
  for column in range(2):
    assert np.corrcoef(found[:, column], x[:, column])[0, 1] > 0.95
  np.testing.assert_allclose(found[:, 2:], learnt(x), rtol=1e-5)


def test_axes_are_of_the_largest_spread_after_standardising():
  rng = np.random.default_rng(3)
  common = rng.normal(size=(500, 1))
  x = np.concatenate([common + 0.1 * rng.normal(size=(500, 3)), 100 * rng.normal(size=(500, 1))], 1)
  z = transfer.Axes.of(x, 2)(x)
  assert abs(np.corrcoef(z[:, 0], common[:, 0])[0, 1]) > 0.99
  assert z.var(0)[0] == pytest.approx(3, rel=0.05)


def test_scores_are_those_of_scikit_learn_and_lie_in_their_interval():
  rng = np.random.default_rng(4)
  label = rng.integers(0, 7, 600)
  logits = [np.eye(7)[label] + 0.8 * rng.normal(size=(600, 7)) for _ in range(2)]
  mask = (rng.random(600) < 0.8).astype(np.float32)
  found = measure_gap.score(logits, np.eye(7)[label], mask, slice(1, 7))
  kept = (mask > 0) & (label > 0)
  answers = [x[kept][:, 1:].argmax(1) + 1 for x in logits]
  f1 = [sklearn_metrics.f1_score(label[kept], a, average="macro") for a in answers]
  assert found["images"] == kept.sum()
  assert found["f1"] == pytest.approx(np.mean(f1))
  assert found["accuracy"] == pytest.approx(np.mean([(label[kept] == a).mean() for a in answers]))
  assert found["f1_low"] < found["f1"] < found["f1_high"]
  # About two standard errors of a share to each side.
  width = found["accuracy_high"] - found["accuracy_low"]
  assert width == pytest.approx(3.9 * (0.25 / kept.sum()) ** 0.5, rel=0.4)
  most = np.bincount(label[kept]).max() / kept.sum()
  assert found["floor_accuracy"] == pytest.approx(most)


def test_people_are_drawn_whole_and_as_many_as_there_are():
  people = np.repeat([b"a", b"b", b"c", b"d"], 3)[np.random.default_rng(5).permutation(12)]
  rows = measure_gap.draw_people(people, 0)
  assert len(rows) == 12
  names, counts = np.unique(people[rows], return_counts=True)
  assert len(names) < 4
  assert (counts % 3 == 0).all()
  assert not np.array_equal(rows, measure_gap.draw_people(people, 1))


@pytest.mark.parametrize("name", measure_gap.VARIANTS)
def test_a_variant_is_lsd7_but_for_one_thing(name, tmp_path):
  config = measure_gap.variant(name, str(tmp_path)).builder_config
  ours, theirs = config.describe(), measure_gap.LSD7.describe()
  changed = {key.partition(".")[0] for key in ours if ours[key] != theirs[key]} - {"identities"}
  assert changed == set(measure_gap.VARIANTS[name]) - {"identities"}
  assert config.name == f"lsd7_{name}"
  assert config.classes == measure_gap.LSD7.classes
