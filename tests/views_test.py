"""What a view does to labels: the stated rates, a pure function of each row's key and person."""

import dataclasses
import pickle
import time

import numpy as np
import pytest

from affjax import labels
from affjax.data import pipeline, records, views

NAMES = {"va": labels.VA, "expression": labels.EXPRESSION_MTL, "au": labels.AU_MTL}
PEOPLE, IMAGES = 4000, 3
ROWS = PEOPLE * IMAGES


def table(people=PEOPLE, images=IMAGES, seed=0):
  """A split of random labels, everything labelled."""
  rng = np.random.default_rng(seed)
  rows = people * images
  return {
    "key": np.array([b"train/%06d/%d" % divmod(row, images) for row in range(rows)]),
    "person": np.array([b"train/%06d" % (row // images) for row in range(rows)]),
    "labels/va": rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
    "labels/expression": np.eye(8, dtype=np.float32)[rng.integers(0, 8, rows)],
    "labels/au": (rng.random((rows, 12)) < 0.4).astype(np.float32),
    "mask/va": np.ones((rows, 2), np.float32),
    "mask/expression": np.ones((rows, 1), np.float32),
    "mask/expression_strict": np.ones((rows, 1), np.float32),
    "mask/au": np.ones((rows, 12), np.float32),
  }


TRUE = table()


def same(found, expected):
  assert set(found) == set(expected)
  for name in found:
    np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert found[name].dtype == expected[name].dtype


def rows_of(columns, rows):
  return {name: column[rows] for name, column in columns.items()}


def within_error(found, expected, count):
  """Whether a share of `count` draws is the expected one, to four standard errors."""
  return abs(found - expected) <= 4 * np.sqrt(expected * (1 - expected) / count) + 1e-12


ALL = [("clean", "s_aff_wild2"), ("mild", "none"), ("wild", "none"), ("wild", "s_aff_wild2")]


# A pure function.


@pytest.mark.parametrize("view", [views.View(), views.View("clean", "s_aff_wild2", "test")])
def test_the_clean_view_without_masks_is_the_table_itself(view):
  assert not view
  assert view(TRUE, NAMES) is TRUE


@pytest.mark.parametrize(("noise", "masks"), ALL)
def test_a_view_is_the_same_every_time_and_leaves_the_truth_alone(noise, masks):
  true = table()
  found = views.View(noise, masks)(true, NAMES)
  same(found, views.View(noise, masks)(table(), NAMES))
  same(true, TRUE)
  assert any((found[name] != TRUE[name]).any() for name in TRUE)


@pytest.mark.parametrize(("noise", "masks"), ALL)
def test_neither_the_order_nor_the_size_of_the_split_matters(noise, masks):
  view = views.View(noise, masks)
  rows = np.random.default_rng(1).permutation(ROWS)[:500]
  same(view(rows_of(TRUE, rows), NAMES), rows_of(view(TRUE, NAMES), rows))


def test_neither_the_order_nor_the_number_of_the_labels_matters():
  view = views.View("wild")
  order = {"va": [1], "expression": [*range(7, -1, -1)], "au": [5, 2, 0]}
  names = {task: [NAMES[task][i] for i in order[task]] for task in NAMES}
  expected = view(TRUE, NAMES)
  some = {n: c[:, order[n[7:]]] if n.startswith("labels/") else c for n, c in TRUE.items()}
  found = view(some, names)
  for task in NAMES:
    np.testing.assert_array_equal(
      found[f"labels/{task}"], expected[f"labels/{task}"][:, order[task]]
    )


def test_a_view_draws_the_same_on_every_machine_for_ever():
  true = rows_of(TRUE, slice(0, 24)) | {"labels/va": np.zeros((24, 2), np.float32)}
  true["labels/expression"] = np.eye(8, dtype=np.float32)[[0] * 24]
  found = views.View("wild", "s_aff_wild2")(true, NAMES)
  assert found["mask/va"][::IMAGES, 0].tolist() == [0, 1, 1, 1, 0, 1, 0, 1]
  assert found["labels/expression"].argmax(1).tolist() == [
    0, 0, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 5, 0, 7, 5, 0, 0, 0, 0, 0,
  ]  # fmt: skip
  expected = [[0.10991583, 0.19328868], [0.23316377, 0.0470087], [0.00905155, 0.28101599]]
  np.testing.assert_allclose(found["labels/va"][:3], expected, atol=1e-7)


def test_a_large_split_is_viewed_in_a_moment():
  large = table(25_000, 2)
  start = time.perf_counter()
  views.View("wild", "s_aff_wild2")(large, NAMES)
  assert time.perf_counter() - start < 2  # measured: a tenth of a second


# Masks.


def combinations(found):
  """[rows] which tasks are labelled, as a sorted tuple."""
  has = {task: found[f"mask/{task}"].any(1) for task in NAMES}
  return [tuple(task for task in NAMES if has[task][row]) for row in range(len(found["key"]))]


@pytest.mark.parametrize("role", ["train", "validation"])
def test_tasks_are_missing_together_as_often_as_the_table_says(role):
  found = views.View(masks="s_aff_wild2", role=role)(TRUE, NAMES)
  people = combinations(rows_of(found, slice(0, None, IMAGES)))
  shares = {tuple(t for t in NAMES if t in together): share
            for together, share in views.MASKS["s_aff_wild2"][role].items()}  # fmt: skip
  assert set(people) == set(shares)
  chi_square = 0.0
  for together, share in shares.items():
    assert within_error(people.count(together) / PEOPLE, share, PEOPLE), together
    chi_square += (people.count(together) - share * PEOPLE) ** 2 / (share * PEOPLE)
  assert chi_square < 22.5  # the 99.9th percentile at six degrees of freedom


def test_the_tables_give_the_published_shares_of_each_task():
  shares = views.MASKS["s_aff_wild2"]["train"]
  assert sum(shares.values()) == pytest.approx(1)
  for task, published in (("va", 0.730), ("expression", 0.637), ("au", 0.726)):
    assert sum(p for t, p in shares.items() if task in t) == pytest.approx(published, abs=0.0015)
  assert sum(views.MASKS["s_aff_wild2"]["validation"].values()) == pytest.approx(1)


def test_all_images_of_a_person_lack_the_same_tasks():
  found = views.View(masks="s_aff_wild2")(TRUE, NAMES)
  for task in NAMES:
    mask = found[f"mask/{task}"].reshape(PEOPLE, -1)
    assert (mask == mask[:, :1]).all()
    assert 0 < mask.mean() < 1


@pytest.mark.parametrize("nobody", ["absent", "empty"])
def test_without_people_each_image_is_drawn_for_itself(nobody):
  true = {name: column for name, column in TRUE.items() if name != "person"}
  if nobody == "empty":
    true["person"] = np.array([b""] * ROWS)
  found = views.View(masks="s_aff_wild2")(true, NAMES)["mask/va"][:, 0]
  assert within_error(found.mean(), 0.730, ROWS)
  assert len(np.unique(found.reshape(PEOPLE, IMAGES).sum(1))) == IMAGES + 1


def test_what_a_data_set_lacks_itself_stays_missing_and_rules_go_with_their_task():
  true = table(300)
  true["mask/au"][::2, 3] = 0
  true["mask/expression_strict"][::5] = 0
  found = views.View(masks="s_aff_wild2")(true, NAMES)
  au, expression = found["mask/au"][:, :1], found["mask/expression"]
  np.testing.assert_array_equal(found["mask/au"], true["mask/au"] * au)
  np.testing.assert_array_equal(
    found["mask/expression_strict"], true["mask/expression_strict"] * expression
  )


def test_masks_move_no_label_and_noise_moves_no_mask():
  masked = views.View(masks="s_aff_wild2")(TRUE, NAMES)
  noisy = views.View("wild")(TRUE, NAMES)
  both = views.View("wild", "s_aff_wild2")(TRUE, NAMES)
  for name in TRUE:
    kind = name.partition("/")[0]
    np.testing.assert_array_equal(both[name], (noisy if kind == "labels" else masked)[name])
    np.testing.assert_array_equal((masked if kind == "labels" else noisy)[name], TRUE[name])


def test_masks_and_noise_are_independent():
  true = {name: column for name, column in TRUE.items() if name != "person"}  # drawn by one key
  found = views.View("wild", "s_aff_wild2")(true, NAMES)
  wrong = (found["labels/au"] != true["labels/au"]).astype(float)
  error = found["labels/va"] - true["labels/va"]
  for task in NAMES:
    mask = found[f"mask/{task}"][:, 0]
    for other in (*wrong.T, *error.T):
      assert abs(np.corrcoef(mask, other)[0, 1]) < 4.5 / np.sqrt(ROWS)


# Noise.


@pytest.mark.parametrize("level", ["mild", "wild"])
def test_valence_and_arousal_are_off_by_as_much_as_stated_and_stay_in_range(level):
  true = {**TRUE, "labels/va": TRUE["labels/va"] * np.float32(0.02)}  # nothing is clipped
  error = views.View(level)(true, NAMES)["labels/va"] - true["labels/va"]
  noise = views.NOISE[level]
  assert error.std(0) == pytest.approx([noise.valence, noise.arousal], rel=4 / np.sqrt(2 * ROWS))
  assert np.abs(error.mean(0)).max() < 4 * noise.arousal / np.sqrt(ROWS)
  assert abs(np.corrcoef(error.T)[0, 1]) < 4 / np.sqrt(ROWS)
  # The shape is the normal's: of it .0027 lie beyond three deviations.
  beyond = (np.abs(error) > 3 * error.std(0)).mean()
  assert beyond == pytest.approx(0.0024, abs=0.0012)
  found = views.View(level)(TRUE, NAMES)["labels/va"]
  assert np.abs(found).max() == 1
  assert (np.abs(found) == 1).mean() > 0.01


@pytest.mark.parametrize("level", ["mild", "wild"])
def test_units_are_missed_and_seen_falsely_as_often_as_stated(level):
  found, true = views.View(level)(TRUE, NAMES)["labels/au"], TRUE["labels/au"]
  assert set(np.unique(found)) == {0, 1}
  for unit in range(12):
    on = true[:, unit] > 0
    assert within_error((found[on, unit] == 0).mean(), views.NOISE[level].missed, on.sum())
    assert within_error((found[~on, unit] == 1).mean(), views.NOISE[level].false, (~on).sum())
  wrong = np.corrcoef((found != true).T)
  assert np.abs(wrong - np.eye(12)).max() < 4.5 / np.sqrt(ROWS)  # each unit by itself


@pytest.mark.parametrize("level", ["mild", "wild"])
def test_wrong_expressions_go_where_the_table_says(level):
  found = views.View(level)(TRUE, NAMES)["labels/expression"]
  assert (found.sum(1) == 1).all()
  assert (found.max(1) == 1).all()
  true, said = TRUE["labels/expression"].argmax(1), found.argmax(1)
  for index, name in enumerate(labels.EXPRESSION_MTL):
    of = true == index
    wrong = views.NOISE[level].expression
    for to, target in enumerate(labels.EXPRESSION_MTL):
      share = 1 - wrong if to == index else wrong * views.CONFUSED[name].get(target, 0)
      assert within_error((said[of] == to).mean(), share, of.sum()), (name, target)


def test_every_row_of_the_confusions_is_a_distribution_over_other_expressions():
  assert set(views.CONFUSED) == set(labels.EXPRESSION_MTL)
  for name, shares in views.CONFUSED.items():
    assert sum(shares.values()) == pytest.approx(1)
    assert set(shares) <= set(labels.EXPRESSION_MTL) - {name}


def test_expressions_without_a_row_are_never_wrong_and_lacking_ones_never_named():
  names = {"expression": ("contempt", "neutral", "sadness", "anger")}
  label = np.eye(4, dtype=np.float32)[np.arange(ROWS) % 4]
  true = {"key": TRUE["key"], "labels/expression": label}
  found = views.View("wild")(true, names)["labels/expression"].argmax(1).reshape(-1, 4)
  assert (found[:, 0] == 0).all()
  # Of neutral's neighbours sadness is there alone, of anger's neutral alone.
  assert set(found[:, 1]) == {1, 2}
  assert set(found[:, 2]) == {1, 2}
  assert set(found[:, 3]) == {1, 3}
  for column in (1, 2, 3):
    assert within_error((found[:, column] != column).mean(), 0.25, len(found))


def test_of_votes_the_winners_go_to_another_expression():
  votes = np.zeros((ROWS, 8), np.float32)
  votes[:, [0, 5]] = 0.7, 0.3
  found = views.View("wild")({**TRUE, "labels/expression": votes}, NAMES)["labels/expression"]
  np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
  moved = found[:, 0] == 0
  assert within_error(moved.mean(), 0.25, ROWS)
  np.testing.assert_array_equal(found[~moved], votes[~moved])
  to = found[moved].argmax(1)
  assert within_error((to == 7).mean(), 0.6, moved.sum())  # neutral is taken for `other`
  np.testing.assert_allclose(found[moved][to == 5][:, 5], 1)  # or for the sadness of the others


def test_the_wild_err_wherever_the_mild_do():
  mild, wild = (views.View(level)(TRUE, NAMES) for level in ("mild", "wild"))
  for task in ("expression", "au"):
    name = f"labels/{task}"
    assert ((wild[name] != TRUE[name]) >= (mild[name] != TRUE[name])).all()


def test_levels_grow():
  levels = [dataclasses.astuple(views.NOISE[level]) for level in ("clean", "mild", "wild")]
  assert all(a < b for low, high in zip(levels, levels[1:], strict=False)
             for a, b in zip(low, high, strict=True))  # fmt: skip


@pytest.mark.parametrize(
  ("section", "said"),
  [
    ({"noise": "loud"}, "config.data.view.noise='loud': use one of clean, mild, wild, or"),
    ({"noise": "valence=0.3,expresion=0.5"}, "config.data.view.noise='valence=0.3,expresion=0.5'"),
    ({"noise": "expression=1.5"}, "config.data.view.noise='expression=1.5': use"),
    ({"noise": "valence=-0.1"}, "config.data.view.noise='valence=-0.1': use"),
    ({"noise": "valence=nan"}, "config.data.view.noise='valence=nan': use"),
    ({"noise": "valence=loud"}, "config.data.view.noise='valence=loud': use"),
    ({"masks": "wild"}, "config.data.view.masks='wild': use one of none, s_aff_wild2"),
  ],
)
def test_an_unknown_view_is_answered_with_the_known_ones(section, said):
  with pytest.raises(ValueError) as error:
    views.View(**section)
  assert str(error.value).startswith(said)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("noise", "changed"),
  [("valence=0.2", "va"), ("expression=0.25", "expression"), ("missed=0.2,false=0.03", "au")],
)
def test_noise_of_one_task_is_that_of_the_named_one_and_leaves_the_others(noise, changed):
  found, wild = (views.View(name)(TRUE, NAMES) for name in (noise, "wild"))
  for task in NAMES:
    expected = (wild if task == changed else TRUE)[f"labels/{task}"].copy()
    if task == changed == "va":
      expected[:, 1] = TRUE["labels/va"][:, 1]
    np.testing.assert_array_equal(found[f"labels/{task}"], expected)


# Batches.

VIEW = views.View("wild", "s_aff_wild2")
WANTS = {
  "va": ("arousal", "valence"),
  "expression": ("happiness", "other", "neutral", "sadness", "fear"),
  "au": ("AU25", "AU1", "AU99"),
}


@pytest.fixture(scope="module")
def faces(tiny_faces):
  return records.builder("synthetic_faces", "tiny", tiny_faces)


@pytest.fixture(scope="module")
def seen(faces):
  return records.labels(faces, "train", WANTS, VIEW)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_the_rows_of_the_viewed_table(faces, seen, workers):
  viewed = records.records(faces, "train", WANTS, 32, seen)
  plain = records.records(faces, "train", WANTS, 32)
  rows = pipeline.sequence(len(viewed), 40)  # the last is padded
  found = list(pipeline.batches(viewed, rows, workers=workers))
  assert sum((batch["index"] >= 0).sum() for batch in found) == 96
  changed = 0
  for position, batch in enumerate(found):
    index = batch["index"]
    real = index >= 0
    true = plain.batch(rows[position])
    np.testing.assert_array_equal(batch["image"], true["image"])
    for kind, columns in zip(("labels", "mask"), seen, strict=True):
      assert set(batch[kind]) == set(WANTS)
      for task, values in columns.items():
        np.testing.assert_array_equal(batch[kind][task][real], values[index[real]])
        assert not batch[kind][task][~real].any()
        assert batch[kind][task].dtype == np.float32
        changed += (batch[kind][task] != true[kind][task]).any()
  assert changed >= 2 * 5


def test_what_the_data_set_lacks_stays_masked_in_a_viewed_batch(faces, seen):
  batch = records.records(faces, "train", WANTS, 32, seen).batch(np.arange(96))
  assert not batch["mask"]["au"][:, 2].any()
  assert batch["mask"]["au"][:, 0].any()


def test_the_table_itself_stands_in_where_nothing_is_changed(faces):
  plain = records.records(faces, "train", WANTS, 32)
  clean = records.records(faces, "train", WANTS, 32, records.labels(faces, "train", WANTS))
  rows = np.array([3, -1, 50])
  for kind in ("labels", "mask"):
    same(clean.batch(rows)[kind], plain.batch(rows)[kind])


def test_hard_labels_are_viewed_with_their_task(tiny_ferplus):
  wants = {"expression": labels.EXPRESSION_SEVEN}
  seen = records.labels(tiny_ferplus, "train", wants, views.View(masks="s_aff_wild2"))
  batch = records.records(tiny_ferplus, "train", wants, 48, seen).batch(np.arange(37))
  true = records.records(tiny_ferplus, "train", wants, 48).batch(np.arange(37))
  has = seen[1]["expression"]
  assert 0 < has.sum() < true["mask"]["expression"].sum()
  for name in ("expression_strict", "expression_official"):
    assert (batch["mask"][name] <= true["mask"][name]).all()
    assert batch["mask"][name].any()
    assert not (batch["mask"][name] * (true["mask"]["expression"] > has)).any()


def test_workers_are_sent_no_labels(faces, seen):
  opened = records.records(faces, "train", WANTS, 32, seen)
  sent = pickle.dumps(opened.images)
  assert len(sent) < 1000
  found = opened.labelled(pickle.loads(sent)(np.array([5])))
  np.testing.assert_array_equal(found["labels"]["va"][0], seen[0]["va"][5])
