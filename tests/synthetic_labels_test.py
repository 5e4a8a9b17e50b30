"""The label model of the synthetic faces: classes, units, valence, arousal, the ceiling."""

import numpy as np
import pytest

from tfds_builders.synthetic_faces import ceiling, knobs, label_model

UNITS = label_model.UNITS
NATURAL, FREE = knobs.Labels(), knobs.Labels(ambiguity=1.0)
# P(unit | class) of the natural mode with the rejection off, as the label model was published.
RATE_UNITS = (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26, 5, 9, 14, 17, 20, 43)
RATES = {
  "neutral": (0.09, 0.05, 0.08, 0.10, 0.19, 0.23, 0.03, 0, 0.02, 0.04, 0.58, 0.08, 0, 0, 0.04)
  + (0, 0, 0),
  "anger": (0.03, 0, 0.75, 0.05, 0.51, 0.34, 0, 0.01, 0.17, 0.10, 0.57, 0.09, 0.21, 0.11, 0)
  + (0.17, 0.03, 0),
  "disgust": (0, 0, 0.53, 0.33, 0.69, 0.78, 0, 0.05, 0, 0.01, 0.74, 0.05, 0, 0.49, 0)
  + (0.23, 0.05, 0),
  "fear": (0.60, 0.22, 0.48, 0.06, 0.46, 0.43, 0, 0, 0, 0, 0.87, 0.23, 0.61, 0, 0) + (0, 0.44, 0),
  "happiness": (0.03, 0.02, 0, 0.69, 0.67, 0.57, 0.92, 0, 0, 0.01, 0.77, 0.09, 0, 0, 0.03)
  + (0, 0, 0.02),
  "sadness": (0.39, 0, 0.52, 0.18, 0.20, 0.16, 0, 0.21, 0.02, 0.10, 0.49, 0.01, 0, 0, 0)
  + (0.24, 0.04, 0.33),
  "surprise": (0.64, 0.45, 0, 0.09, 0.12, 0.12, 0.12, 0, 0, 0, 0.88, 0.37, 0.60, 0, 0) + (0, 0, 0),
  "other": (0.21, 0.11, 0.22, 0.33, 0.43, 0.39, 0.24, 0.01, 0.04, 0.05, 0.71, 0.09, 0.01, 0.03)
  + (0.11, 0.03, 0.01, 0.08),
}
# Rates of the twelve units in s-Aff-Wild2's training set (Kollias, 2022).
AFFWILD2 = (0.181, 0.085, 0.197, 0.296, 0.400, 0.371, 0.259, 0.024, 0.029, 0.048, 0.683, 0.104)
# Share of faces whose posterior is highest at their own class, before any rejection.
ACCEPTED = (0.72, 0.64, 0.80, 0.71, 0.89, 0.63, 0.75, 0.32)


def strengths(**units):
  """au12=(1, 0.5): unit 12 at 1 on the face's left, 0.5 on its right."""
  intensity = np.zeros((len(UNITS), 2))
  for name, value in units.items():
    intensity[UNITS.index(int(name.removeprefix("au")))] = value
  return intensity


@pytest.fixture(scope="module")
def drawn():
  """30,000 faces' units with the rejection off: classes, [faces, 21] presence."""
  rng = np.random.default_rng(0)
  faces = [label_model.draw(rng, FREE) for _ in range(30_000)]
  return np.array([f.expression for f in faces]), np.array([f.present for f in faces]), faces


def test_shares_of_patterns_and_classes_sum_to_one():
  for mode in label_model.PRIOR:
    assert label_model.class_prior(knobs.Labels(mode)).sum() == pytest.approx(1)
    for name in label_model.shown_classes(knobs.Labels(mode)):
      shares = [p.weight[mode] for p in label_model.PATTERNS if p.expression == name]
      assert sum(shares) == pytest.approx(1), (mode, name)


@pytest.mark.parametrize("name", label_model.CLASSES)
def test_units_of_a_class_come_at_the_published_rates(drawn, name):
  classes, present, _ = drawn
  faces = present[classes == label_model.CLASSES.index(name)]
  expected = np.array(RATES[name])
  measured = faces[:, [UNITS.index(unit) for unit in RATE_UNITS]].mean(0)
  # The table is rounded to hundredths; four standard errors on top of that.
  tolerance = 0.008 + 4 * np.sqrt(np.maximum(expected, 0.005) * (1 - expected) / len(faces))
  assert (np.abs(measured - expected) < tolerance).all(), dict(
    zip(RATE_UNITS, measured, strict=True)
  )


@pytest.mark.parametrize("name", label_model.CLASSES)
def test_exact_rates_of_a_class_are_the_published_ones(name):
  shares = [p.weight["natural"] * (p.expression == name) for p in label_model.PATTERNS]
  exact = shares @ label_model.probabilities_after_rules()
  exact = exact[[UNITS.index(unit) for unit in RATE_UNITS]]
  np.testing.assert_allclose(exact, RATES[name], atol=0.012)


def test_all_faces_have_the_base_rates_of_s_aff_wild2(drawn):
  _, present, _ = drawn
  np.testing.assert_allclose(present[:, :12].mean(0), AFFWILD2, atol=0.02)


def test_faces_that_were_drawn_again_keep_the_base_rates_of_s_aff_wild2():
  rng = np.random.default_rng(7)
  faces = [label_model.draw(rng, NATURAL) for _ in range(12_000)]
  rates = np.mean([f.present[:12] for f in faces], 0)
  np.testing.assert_allclose(rates, AFFWILD2, atol=0.04)
  shares = np.bincount([f.expression for f in faces], minlength=8) / len(faces)
  np.testing.assert_allclose(shares, label_model.class_prior(NATURAL), atol=0.018)


@pytest.mark.parametrize(
  ("setting", "classes"),
  [
    (knobs.Labels("strong"), label_model.CLASSES),
    (knobs.Labels("strong", prior=knobs.SIX), label_model.CLASSES[1:7]),
    (knobs.Labels("posed", prior=knobs.SEVEN), label_model.CLASSES[:7]),
    (knobs.Labels("posed"), label_model.CLASSES[:7]),
    (knobs.Labels("independent"), ("other",)),
  ],
)
def test_classes_of_the_strong_mode_come_alike_and_only_those_wanted(setting, classes):
  assert label_model.shown_classes(setting) == classes
  rng = np.random.default_rng(8)
  drawn = [label_model.CLASSES[label_model.draw(rng, setting).expression] for _ in range(4_000)]
  shares = {name: drawn.count(name) / len(drawn) for name in label_model.CLASSES}
  for name, share in shares.items():
    if name in classes:
      assert share == pytest.approx(1 / len(classes), abs=4 * 0.4 / np.sqrt(len(drawn)))
    else:
      assert share == 0


def test_a_prior_is_in_the_proportions_of_its_weights():
  prior = label_model.class_prior(knobs.Labels(prior=knobs.LSD_TRAIN))
  np.testing.assert_allclose(prior[1:7], np.array(knobs.LSD_TRAIN[1:7]) / 277_251)
  assert prior[[0, 7]].tolist() == [0, 0]


def test_a_class_that_a_mode_does_not_show_is_an_error():
  with pytest.raises(ValueError, match=r"\['other'\], which mode 'posed' does not show"):
    label_model.class_prior(knobs.Labels("posed", prior=(1,) * 8))


def test_independent_units_say_nothing_of_each_other_but_what_no_face_can_show():
  rng, setting = np.random.default_rng(15), knobs.Labels("independent")
  present = np.array([label_model.draw(rng, setting).present for _ in range(8_000)])
  rates = present.mean(0)
  assert (rates[:12] > 0.1).all()
  # Lips that are parted by the jaw or pressed together, smiles whose corners are not drawn down.
  bound = [{23, 24}, {24, 25}, {25, 26}, {25, 27}, {26, 27}, {12, 15}, {25, 28}, {5, 43}]
  bound += [{24, 26}, {24, 27}, {26, 28}, {27, 28}, {24, 28}]  # through 25
  correlation = np.corrcoef(present.T)
  for i, a in enumerate(UNITS):
    for j, b in enumerate(UNITS[:i]):
      if {a, b} not in bound:
        assert abs(correlation[i, j]) < 4.5 / np.sqrt(len(present)), (a, b)


def test_strong_faces_show_the_textbook_where_natural_ones_mostly_do_not():
  sad = {}
  for mode in ("natural", "strong"):
    rng, setting = np.random.default_rng(9), knobs.Labels(mode, 1.0, (0, 0, 0, 0, 0, 1, 0, 0))
    sad[mode] = np.mean([label_model.draw(rng, setting).present for _ in range(2_000)], 0)
  column = UNITS.index(15)
  assert sad["natural"][column] == pytest.approx(0.21, abs=0.04)
  assert sad["strong"][column] > 0.4


def test_classes_come_in_turn_where_that_is_wanted():
  setting = knobs.Labels("strong", prior=knobs.SIX, walk=True)
  rng = np.random.default_rng(10)
  turns = [label_model.draw(rng, setting, turn).expression for turn in range(12)]
  assert turns == [1, 2, 3, 4, 5, 6] * 2


def test_trivial_predictors_score_about_point_38(drawn):
  classes, present, _ = drawn
  rates = present[:, :12].mean(0)
  most = np.bincount(classes).max() / len(classes)
  floor = 0 + 2 * most / (1 + most) / 8 + (2 * rates / (1 + rates)).mean()
  assert floor == pytest.approx(0.38, abs=0.01)


def test_exact_probabilities_after_the_rules_agree_with_draws():
  rng = np.random.default_rng(1)
  exact, table = label_model.probabilities_after_rules(), label_model.probabilities()
  for row in range(len(table)):
    shown = label_model.apply_rules(rng.random((8_000, len(UNITS))) < table[row], rng)
    np.testing.assert_allclose(shown.mean(0), exact[row], atol=0.027)


def test_shown_units_are_possible_together():
  rng = np.random.default_rng(2)
  shown = label_model.apply_rules(rng.random((20_000, len(UNITS))) < 0.5, rng)
  at = {unit: shown[:, column] for column, unit in enumerate(UNITS)}
  for one, other in ((26, 27), (23, 24), (24, 25), (28, 25), (5, 43), (15, 12)):
    assert not (at[one] & at[other]).any(), (one, other)
    assert at[one].any()
    assert at[other].any()
  assert at[25][at[26] | at[27]].all()
  # 24 needs closed lips too: none of 25, 26 and 27 drawn.
  assert at[23].mean() == pytest.approx(0.375, abs=0.02)
  assert at[24].mean() == pytest.approx(0.375 / 8, abs=0.01)


def test_posterior_is_highest_at_the_intended_class_as_often_as_published(drawn):
  classes, _, faces = drawn
  for number, share in enumerate(ACCEPTED):
    own = [f.distribution.argmax() == number for f in faces if f.expression == number]
    assert np.mean(own) == pytest.approx(share, abs=0.045), label_model.CLASSES[number]


def test_rejection_leaves_one_face_in_four_ambiguous(drawn):
  rng = np.random.default_rng(3)
  faces = [label_model.draw(rng, NATURAL) for _ in range(4_000)]
  own = np.mean([f.distribution.argmax() == f.expression for f in faces])
  free = np.mean([f.distribution.argmax() == f.expression for f in drawn[2]])
  assert own == pytest.approx(0.75 + 0.25 * free, abs=0.025)
  rates = np.mean([f.present[:12] for f in faces], 0)
  np.testing.assert_allclose(rates, drawn[1][:, :12].mean(0), atol=0.06)


def test_units_are_at_least_point_2_strong_where_they_are_there_and_weaker_elsewhere():
  rng = np.random.default_rng(4)
  for _ in range(500):
    face = label_model.draw(rng, NATURAL)
    strongest = label_model.draw_intensity(rng, face).max(1)
    np.testing.assert_array_equal(strongest >= label_model.PRESENT, face.present)


def test_contempt_is_one_sided():
  number = next(i for i, p in enumerate(label_model.PATTERNS) if p.name == "contempt")
  present = np.isin(UNITS, (12, 14))
  face = label_model.Drawn(7, number, present, np.full(8, 0.125))
  sides = [label_model.draw_intensity(np.random.default_rng(i), face) for i in range(20)]
  for intensity in sides:
    weaker = intensity[[UNITS.index(12), UNITS.index(14)]].min(1)
    assert (weaker == 0).all()
  assert len({int(s[UNITS.index(14)].argmax()) for s in sides}) == 2


def test_valence_and_arousal_are_what_the_formulae_say():
  va = label_model.valence_arousal
  np.testing.assert_allclose(va(strengths()), np.tanh([0.05, -0.15]))
  np.testing.assert_allclose(va(strengths(au6=1, au12=1)), np.tanh([2.5, 0.5]))
  np.testing.assert_allclose(va(strengths(au12=(1, 0))), np.tanh([0.775, 0.025]))
  np.testing.assert_allclose(va(strengths(au1=1, au4=0.5)), np.tanh([-0.525, 0.15]))
  # A smile takes back what 10, 24 and 5 say.
  np.testing.assert_allclose(
    va(strengths(au10=1, au24=1, au5=1)), np.tanh([0.05 - 0.3 - 0.15 - 0.05, -0.15 + 0.3 + 0.95])
  )
  np.testing.assert_allclose(
    va(strengths(au10=1, au24=1, au5=1, au12=1)), np.tanh([1.5, -0.15 + 0.3 + 0.95 + 0.35])
  )


def test_valence_and_arousal_stay_in_their_range():
  rng = np.random.default_rng(5)
  values = [label_model.valence_arousal(rng.random((len(UNITS), 2))) for _ in range(200)]
  assert np.abs(values).max() <= 1
  assert np.std(values, 0).min() > 0.05


# The ceiling.


@pytest.mark.parametrize(
  ("mode", "f1", "accuracy"), [("natural", 0.67, 0.68), ("strong", 0.77, 0.77)]
)
def test_the_ceiling_without_rejection_is_the_published_one(mode, f1, accuracy):
  setting, rng = knobs.Labels(mode, ambiguity=1.0), np.random.default_rng(11)
  faces = [label_model.draw(rng, setting) for _ in range(8_000)]
  score = ceiling.scores([f.distribution for f in faces], [f.expression for f in faces], setting)
  assert score["expression/f1"] == pytest.approx(f1, abs=0.02)
  assert score["expression/accuracy"] == pytest.approx(accuracy, abs=0.02)
  assert score["p_mtl"] == 2 + score["expression/f1"]


def test_a_mode_without_a_class_has_a_ceiling_over_the_others():
  setting, rng = knobs.Labels("posed"), np.random.default_rng(13)
  faces = [label_model.draw(rng, setting) for _ in range(700)]
  score = ceiling.scores([f.distribution for f in faces], [f.expression for f in faces], setting)
  assert 0.9 < score["expression/f1"] < 1


def test_no_simpler_rule_beats_the_ceiling():
  rng = np.random.default_rng(12)
  faces = [label_model.draw(rng, NATURAL) for _ in range(6_000)]
  posterior = np.array([f.distribution for f in faces])
  intended = np.array([f.expression for f in faces])
  best = ceiling.scores(posterior, intended, NATURAL)["expression/accuracy"]
  for weight in (1, label_model.class_prior(NATURAL)):
    assert ((posterior * weight).argmax(1) == intended).mean() < best + 0.005
  # Taking no notice of the faces that were drawn again would cost two points.
  assert ((posterior * weight).argmax(1) == intended).mean() < best - 0.01


def test_classes_are_scored_alike_whatever_their_number():
  setting = knobs.Labels("strong", 1.0, knobs.SIX)
  sure = np.eye(8)[[1, 1, 2, 3, 4, 5, 6]]
  assert ceiling.scores(sure, [1, 1, 2, 3, 4, 5, 6], setting)["expression/f1"] == 1
  wrong = ceiling.scores(sure, [1, 2, 2, 3, 4, 5, 6], setting)
  assert wrong["expression/f1"] == pytest.approx((2 / 3 + 2 / 3 + 4) / 6)
  assert wrong["expression/accuracy"] == pytest.approx(6 / 7)


@pytest.mark.parametrize("pattern", ["downcast", "crying", "hanging", "weeping"])
def test_heads_and_eyes_of_the_sad_hang(pattern):
  rng = np.random.default_rng(14)
  drawn = [label_model.follow(rng, pattern) for _ in range(500)]
  assert np.mean([head[1] for head, _ in drawn]) == pytest.approx(-12, abs=1)
  assert np.mean([gaze[1] == -15 for _, gaze in drawn]) == pytest.approx(0.6, abs=0.08)
