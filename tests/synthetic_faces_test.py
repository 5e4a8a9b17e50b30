"""The synthetic faces: who is drawn, what is shown, how it is labelled, what is recorded."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import simplejpeg

from affjax import labels
from tfds_builders.synthetic_faces import asset as assets
from tfds_builders.synthetic_faces import (
  camera,
  expression,
  knobs,
  label_model,
  renderer,
  synthetic_faces_dataset_builder,
  workers,
)

SETTING = knobs.Knobs()
UNITS = label_model.UNITS
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


def digest(face):
  return hashlib.sha256(face.jpeg + face.intensity.tobytes() + face.va.tobytes()).hexdigest()


def render(identity, image, split="train", seed=0, version="0.1.0"):
  return renderer.render_face(version, seed, split, identity, image, SETTING)


def strengths(**units):
  """au12=(1, 0.5): unit 12 at 1 on the face's left, 0.5 on its right."""
  intensity = np.zeros((len(UNITS), 2))
  for name, value in units.items():
    intensity[UNITS.index(int(name.removeprefix("au")))] = value
  return intensity


def person(number=0):
  return renderer.draw_person("0.1.0", 0, "test", number, SETTING.person)


def express(intensity, gaze=(0.0, 0.0), number=0):
  return expression.express(assets.load(), person(number).vertices, intensity, np.array(gaze))


def scene(intensity, head=(0.0, 0.0, 0.0)):
  lights = np.array([[0.4, 0.4, 0.8, 0.7, 0.7, 0.7], [-0.5, 0, 0.8, 0.2, 0.2, 0.2]], np.float32)
  return renderer.Scene(
    intensity=intensity,
    head=np.array(head),
    eyes=np.zeros(2),
    focal=55.0,
    lights=lights,
    ambient=np.full(3, 0.3, np.float32),
    background=np.full((renderer.SIZE, renderer.SIZE, 3), 0.3, np.float32),
    turn=0.0,
    zoom=1.0,
    shift=np.zeros(2),
  )


def picture(intensity, number=0, **kwargs):
  return renderer.render(person(number), scene(intensity, **kwargs))[0]


@pytest.fixture(scope="module")
def drawn():
  """30,000 faces' units with the rejection off: classes, [faces, 21] presence."""
  rng = np.random.default_rng(0)
  faces = [label_model.draw(rng, ambiguity=1.0) for _ in range(30_000)]
  return np.array([f.expression for f in faces]), np.array([f.present for f in faces]), faces


# Determinism.


def test_a_face_has_the_same_bytes_twice_and_in_another_order():
  places = [(i, j) for i in range(3) for j in range(2)]
  first = {place: digest(render(*place)) for place in places}
  renderer.draw_person.cache_clear()
  assert {place: digest(render(*place)) for place in reversed(places)} == first
  assert len(set(first.values())) == len(places)


def test_a_face_changes_with_version_seed_and_split():
  faces = [
    render(0, 0),
    render(0, 0, version="0.1.1"),
    render(0, 0, seed=1),
    render(0, 0, split="validation"),
  ]
  assert len({digest(face) for face in faces}) == len(faces)


def test_two_processes_render_what_one_does():
  one, two = (
    [[digest(face) for face in faces] for faces in workers.faces("0.1.0", 0, "t", 3, 2, SETTING, n)]
    for n in (1, 2)
  )
  assert one == two
  assert [digest(render(i, j, split="t")) for i in range(3) for j in range(2)] == sum(one, [])


def test_a_dead_process_is_an_error_and_not_a_short_split():
  broken = knobs.Knobs(mode="no such mode")
  with pytest.raises((RuntimeError, KeyError)):
    list(workers.faces("0.1.0", 0, "t", 3, 1, broken, 2))


# The label model.


def test_shares_of_patterns_and_classes_sum_to_one():
  for mode in ("natural", "strong"):
    assert label_model.class_prior(mode).sum() == pytest.approx(1)
    for name in label_model.CLASSES:
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


def test_all_faces_have_the_base_rates_of_s_aff_wild2(drawn):
  _, present, _ = drawn
  np.testing.assert_allclose(present[:, :12].mean(0), AFFWILD2, atol=0.02)


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
  faces = [label_model.draw(rng) for _ in range(4_000)]
  own = np.mean([f.distribution.argmax() == f.expression for f in faces])
  free = np.mean([f.distribution.argmax() == f.expression for f in drawn[2]])
  assert own == pytest.approx(0.75 + 0.25 * free, abs=0.025)
  rates = np.mean([f.present[:12] for f in faces], 0)
  np.testing.assert_allclose(rates, drawn[1][:, :12].mean(0), atol=0.06)


def test_units_are_at_least_point_2_strong_where_they_are_there_and_weaker_elsewhere():
  rng = np.random.default_rng(4)
  for _ in range(500):
    face = label_model.draw(rng)
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


# The picture.

UPPER = (1, 2, 4, 5, 7, 43)
LOWER = (12, 14, 15, 17, 18, 20, 23, 24, 25, 26, 27, 28)


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_moves_its_part_of_the_face_and_no_other(unit):
  rest = express(strengths()).vertices
  moved = express(strengths(**{f"au{unit}": 1})).vertices
  length = np.linalg.norm(moved - rest, axis=1)
  eyes = np.mean([rest[eye].mean(0) for eye in assets.load().eyes], 0)
  mouth = rest[assets.load().landmarks["upper lip"]]
  nose = 0.5 * (eyes[1] + mouth[1])
  above, below = (length[rest[:, 1] > nose] ** 2).sum(), (length[rest[:, 1] <= nose] ** 2).sum()
  assert length.max() > 0.02  # two millimetres
  if unit in UPPER:
    assert above > 0.95 * (above + below)
  elif unit in LOWER:
    assert below > 0.95 * (above + below)
  else:  # cheeks, nose and upper lip
    between = (rest[:, 1] > mouth[1] - 0.1) & (rest[:, 1] < eyes[1] + 0.3)
    assert (length[between] ** 2).sum() > 0.9 * (above + below)
    assert below > 0.2 * above


@pytest.mark.parametrize("unit", [1, 2, 4, 6, 7, 9, 10, 12, 14, 15, 43])
def test_a_unit_on_the_faces_left_moves_the_right_of_the_picture(unit):
  rest, moved = (express(strengths(**{f"au{unit}": side})).vertices for side in (0, (1, 0)))
  length = np.linalg.norm(moved - rest, axis=1) ** 2
  middle = rest[assets.load().landmarks["nose"], 0]
  assert length[rest[:, 0] > middle].sum() > 0.85 * length.sum()


@pytest.mark.parametrize("unit", UPPER)
def test_pixels_change_where_a_unit_of_the_upper_face_acts(unit):
  change = np.abs(picture(strengths(**{f"au{unit}": 1})) - picture(strengths())).max(-1)
  assert change[:66].max() > 0.05
  assert change[72:].max() < 0.1 * change[:66].max()


def test_left_of_the_face_is_right_in_the_picture():
  change = np.abs(picture(strengths(au2=(1, 0))) - picture(strengths())).sum((0, 2))
  assert change[57:].sum() > 20 * change[:55].sum()


def test_raised_brows_do_not_slope_like_a_scowl():
  asset = assets.load()

  def slope(**units):
    vertices = express(strengths(**units)).vertices
    return asset.height(vertices, "outer brow", "inner brow") / expression.eye_distance(
      asset, vertices
    )

  rest = slope()
  assert slope(au1=1) - rest < -0.1
  assert slope(au1=1, au2=1) - rest < 0.02
  assert slope(au1=1, au4=1) < 0


def test_brows_and_mouths_at_rest_are_level():
  asset = assets.load()
  for number in range(30):
    vertices = person(number).vertices
    distance = expression.eye_distance(asset, vertices)
    assert abs(asset.height(vertices, "outer brow", "inner brow") / distance + 0.025) < 0.08
    assert abs(asset.height(vertices, "corner", "lip") / distance) < 0.05


@pytest.mark.parametrize("number", range(8))
def test_lips_are_parted_exactly_where_unit_25_is_there(number):
  rng = np.random.default_rng(number)
  for _ in range(40):
    face = label_model.draw(rng, ambiguity=1.0)
    intensity = label_model.draw_intensity(rng, face)
    if face.present[UNITS.index(20)]:
      continue  # parts the lips by itself
    gap = express(intensity, number=number).gap
    assert (gap > expression.PARTED) == face.present[UNITS.index(25)]


def test_stretched_lips_are_labelled_as_parted():
  intensity = strengths(au20=0.8)
  gap = express(intensity).gap
  assert gap > expression.PARTED
  seen = label_model.lips_seen(intensity, gap > expression.PARTED)
  assert seen[UNITS.index(25)].max() >= label_model.PRESENT
  closed = label_model.lips_seen(strengths(au25=0.6), False)
  assert closed[UNITS.index(25)].max() < label_model.PRESENT


def test_a_head_turns_and_rises_as_its_angles_say():
  def nose(head):
    asset, who = assets.load(), person()
    face = expression.express(asset, who.vertices, strengths(), np.zeros(2))
    pose = renderer._pose(asset, who, face, scene(strengths(), head))
    points = pose.project(renderer._five_points(asset, face.vertices))[1][:, :2] / 2
    return points[2] - points[:2].mean(0)

  assert nose((25, 0, 0))[0] > 5
  assert nose((-25, 0, 0))[0] < -5
  assert nose((0, 20, 0))[1] < nose((0, 0, 0))[1] < nose((0, -20, 0))[1]


def test_eyes_turn_as_the_gaze_says():
  asset = assets.load()
  for gaze, axis, sign in (((20, 0), 0, 1), ((-20, 0), 0, -1), ((0, 15), 1, 1), ((0, -15), 1, -1)):
    for eye in asset.eyes:
      front = eye[asset.vertices[eye, 2].argmax()]
      move = (express(strengths(), gaze).vertices - express(strengths()).vertices)[front]
      assert sign * move[axis] > 0.02


def test_the_five_points_lie_on_the_template():
  asset = assets.load()
  for number in range(5):
    who = person(number)
    face = expression.express(asset, who.vertices, strengths(), np.zeros(2))
    pose = renderer._pose(asset, who, face, scene(strengths(), (0, 0, 20)))
    points = pose.project(renderer._five_points(asset, face.vertices))[1][:, :2] / 2
    assert np.linalg.norm(points - renderer.TEMPLATE, axis=1).mean() < 4


def test_similarity_finds_scale_rotation_and_shift():
  source = np.random.default_rng(6).normal(size=(5, 2))
  fit, offset = 2 * np.exp(0.3j), 5 - 7j
  flat = fit * (source[:, 0] + 1j * source[:, 1]) + offset
  found = renderer.similarity(source, np.stack([flat.real, flat.imag], 1))
  np.testing.assert_allclose(found, (fit, offset), rtol=1e-9)


def test_camera_faults_happen_at_their_rate_and_only_then():
  gradient = np.linspace(0.1, 0.6, 112 * 112 * 3, dtype=np.float32).reshape(112, 112, 3)
  clean = np.round(camera.develop(gradient) * 255)
  spoilt = lambda i, setting: camera.spoil(np.random.default_rng(i), gradient, setting)[0]
  never = knobs.Camera(rate=0, grey_rate=0)
  assert (spoilt(0, never) == clean).all()
  untouched = np.mean([(spoilt(i, knobs.Camera()) == clean).all() for i in range(200)])
  assert untouched == pytest.approx(0.95 * 0.7**7, abs=0.07)


# The records.


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """The tiny data set, written to ArrayRecord and opened again."""
  builder = synthetic_faces_dataset_builder.Builder(
    data_dir=tmp_path_factory.mktemp("data"), config="tiny"
  )
  builder.download_and_prepare(file_format="array_record")
  return builder, {
    split: [
      builder.as_data_source(split)[i] for i in range(builder.info.splits[split].num_examples)
    ]
    for split in synthetic_faces_dataset_builder.SPLITS
  }


def test_the_builder_writes_all_splits_without_tensorflow(built):
  builder, records = built
  assert "tensorflow" not in sys.modules
  assert {split: len(rows) for split, rows in records.items()} == {
    "train": 96,
    "validation": 32,
    "test": 32,
  }
  names = builder.info.metadata["labels"]
  assert tuple(names["va"]) == labels.VA
  assert tuple(names["expression"]) == labels.EXPRESSION_MTL
  assert tuple(names["au"]) == labels.AU_MTL


def test_records_hold_what_was_rendered(built):
  _, records = built
  rows = {row["key"].decode(): row for row in records["train"]}
  for identity, image in ((0, 0), (17, 1), (47, 0)):
    face, row = render(identity, image), rows[f"train/{identity:06d}/{image}"]
    np.testing.assert_array_equal(row["image"], simplejpeg.decode_jpeg(face.jpeg))
    np.testing.assert_array_equal(row["labels"]["va"], face.va.astype(np.float32))
    assert row["labels"]["expression"].argmax() == face.expression
    np.testing.assert_array_equal(row["unit_intensity"], face.intensity.astype(np.float32))
    assert row["pattern"].decode() == face.pattern


def test_labels_are_valid(built):
  _, records = built
  for row in sum(records.values(), []):
    assert row["image"].shape == (112, 112, 3)
    assert np.abs(row["labels"]["va"]).max() <= 1
    assert sorted(row["labels"]["expression"]) == [0] * 7 + [1]
    np.testing.assert_array_equal(
      row["labels"]["au"], row["unit_intensity"][:12].max(1) >= label_model.PRESENT
    )
    assert row["distribution"].sum() == pytest.approx(1, abs=1e-5)
    for mask in row["mask"].values():
      assert (np.asarray(mask) == 1).all()
  assert np.mean([row["image"].std() > 15 for row in records["train"]]) > 0.95


def test_people_and_keys_do_not_cross_splits(built):
  _, records = built
  people = {split: {row["person"] for row in rows} for split, rows in records.items()}
  assert [len(people[split]) for split in people] == [48, 16, 16]
  assert not people["train"] & people["validation"] | people["train"] & people["test"]
  keys = [row["key"] for row in sum(records.values(), [])]
  assert len(set(keys)) == len(keys)
  heads = [
    renderer.draw_person("0.1.0", 0, split, i, SETTING.person).vertices.tobytes()
    for split in ("train", "validation", "test")
    for i in range(4)
  ]
  assert len(set(heads)) == len(heads)


def test_pictures_are_stored_with_full_colour_resolution():
  height, width, _, subsampling = simplejpeg.decode_jpeg_header(render(0, 0).jpeg)
  assert (height, width, subsampling) == (112, 112, "444")


def test_the_renderer_needs_neither_jax_nor_tfds():
  code = (
    "import sys; from tfds_builders.synthetic_faces import workers;"
    "assert not {'jax', 'tensorflow_datasets', 'tensorflow'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
