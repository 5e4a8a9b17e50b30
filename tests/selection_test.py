"""Rows by name: splits, folds, every n-th frame; against oracles that go row by row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affjax import experiment
from affjax.data import records, selection
from tests.conftest import debug_config

PEOPLE = ["", "anna", "ben", "7_left", "7_right", "7"]
VIDEOS = ["", "7_left", "7_right", "7", "8", "8_right", "right", "_left"]
ROWS = st.lists(
  st.tuples(st.sampled_from(PEOPLE), st.sampled_from(VIDEOS), st.integers(0, 30)),
  min_size=1,
  max_size=40,
)


def table_of(rows):
  people, videos, frames = zip(*rows, strict=True)
  return {
    "key": np.array([b"train/%d" % i for i in range(len(rows))]),
    "person": np.array([p.encode() for p in people]),
    "video": np.array([v.encode() for v in videos]),
    "frame": np.array(frames),
  }


def base(name):
  for side in ("_left", "_right"):
    if name.endswith(side):
      return name[: -len(side)], True
  return name, True


def brute_groups(rows):
  """Merges sets until none share a name."""
  sets = []
  for i, (person, video, _) in enumerate(rows):
    names = {("p", base(person))} if person else set()
    names |= {("v", base(video))} if video else set()
    sets.append(({i}, names))
  merged = True
  while merged:
    merged = False
    for a in range(len(sets)):
      for b in range(a + 1, len(sets)):
        if sets[a][1] & sets[b][1]:
          sets[a] = (sets[a][0] | sets[b][0], sets[a][1] | sets[b][1])
          del sets[b]
          merged = True
          break
      if merged:
        break
  return {frozenset(members) for members, _ in sets}


def as_sets(group):
  return {frozenset(np.flatnonzero(group == g).tolist()) for g in set(group.tolist())}


@settings(deadline=None)
@given(ROWS)
def test_rows_that_share_a_person_or_a_video_are_one_group_and_no_others(rows):
  assert as_sets(selection.groups(table_of(rows))) == brute_groups(rows)


@settings(deadline=None)
@given(ROWS, st.integers(1, 4))
def test_folds_part_no_group_and_hold_every_row_once(rows, count):
  table = table_of(rows)
  together = brute_groups(rows)
  if count > len(together):
    with pytest.raises(ValueError, match=f"use at most {len(together)} folds"):
      selection.folds(table, count)
    return
  fold = selection.folds(table, count)
  assert set(fold.tolist()) == set(range(count))
  for members in together:
    assert len({fold[i] for i in members}) == 1
  # Each fold but for its last group is no larger than the smallest.
  sizes = np.bincount(fold, minlength=count)
  assert sizes.max() - sizes.min() <= max(map(len, together))


@settings(deadline=None)
@given(ROWS, st.randoms())
def test_folds_do_not_depend_on_the_order_of_the_rows(rows, random):
  table = table_of(rows)
  count = min(3, len(brute_groups(rows)))
  order = np.array(random.sample(range(len(rows)), len(rows)))
  shuffled = {name: column[order] for name, column in table.items()}
  np.testing.assert_array_equal(
    selection.folds(shuffled, count), selection.folds(table, count)[order]
  )


@settings(deadline=None)
@given(ROWS, st.integers(1, 12))
def test_of_every_n_frame_numbers_of_a_person_in_a_video_the_first_row_is_taken(rows, step):
  table = table_of(rows)
  lowest = min(frame for _, _, frame in rows)
  first = {}
  for i, (person, video, frame) in enumerate(rows):
    place = (person, video, (frame - lowest) // step)
    if place not in first or frame < rows[first[place]][2]:
      first[place] = i
  taken = selection.Selection.parse(f"train:every={step}").rows(table, np.ones(len(rows), bool))
  assert taken.tolist() == sorted(first.values())


def test_steps_are_taken_from_left_to_right_and_a_fold_is_the_same_whatever_was_left_out():
  rows = [(f"p{i // 4}", f"p{i // 4}", i % 4) for i in range(24)]
  table, labelled = table_of(rows), np.arange(24) % 3 > 0
  fold = selection.folds(table, 3)
  rows_of = lambda name: selection.Selection.parse(name).rows(table, labelled).tolist()
  inside = np.flatnonzero(fold == 1)
  assert rows_of("train:fold=1/3") == inside.tolist()
  assert rows_of("train:not_fold=1/3") == np.flatnonzero(fold != 1).tolist()
  assert rows_of("train:labelled:fold=1/3") == [i for i in inside if labelled[i]]
  assert rows_of("train:every=2:labelled") == [i for i in range(0, 24, 2) if labelled[i]]
  # The first labelled of every two.
  assert rows_of("train:labelled:every=2")[:3] == [1, 2, 4]


@pytest.mark.parametrize(
  "name",
  ["", "train+", "train+train", "train:fold=5/5", "train:fold=0/0", "train:fold=1", "train:every=0",
   "train:every=-1", "train:all", "train:", "train:fold=0/5:", "train:labelled=1"],
)  # fmt: skip
def test_a_name_that_cannot_be_one_is_refused_with_what_can(name):
  with pytest.raises(ValueError, match=":fold=K/N and :not_fold=K/N .*:every=N, :labelled"):
    selection.Selection.parse(name)


def test_a_selection_without_rows_and_frames_that_are_not_there_are_refused():
  table = table_of([("anna", "", 0)])
  with pytest.raises(ValueError, match="train:labelled: no row is left"):
    selection.Selection.parse("train:labelled").rows(table, np.zeros(1, bool))
  with pytest.raises(ValueError, match="needs the frame number of every row"):
    selection.Selection.parse("train:every=2").rows({"key": table["key"]}, np.ones(1, bool))


def opened(data_dir, train, select, **data):
  config = debug_config()
  config["data"] |= {"train": train, "select": select, "report": (), **data}
  return experiment.Data(config, data_dir)


def test_the_rows_of_a_fold_are_those_of_the_splits_with_their_own_images_and_labels(tiny_faces):
  data = opened(tiny_faces, "train+validation:not_fold=0/3", "train+validation:fold=0/3", view={})
  split, rest = data.records(data.select), data.records(data.train_split)
  whole = {}
  for name in ("train", "validation"):
    part = records.records(data.build, name, data.labels, 112)
    keys = records.label_table(data.build, name)["key"]
    for row, key in enumerate(keys.tolist()):
      whole[key] = (part, row)
  assert len(split) + len(rest) == len(whole)
  keys, other = data.table(data.select)["key"].tolist(), data.table(data.train_split)["key"]
  assert set(keys) | set(other.tolist()) == set(whole)
  people = lambda name: set(data.table(name)["person"].tolist())
  assert not people(data.select) & people(data.train_split)
  rows = np.array([0, len(split) - 1, -1])
  batch = split.batch(rows)
  for i, row in enumerate(rows[:2]):
    part, of = whole[keys[row]]
    own = part.batch(np.array([of]))
    np.testing.assert_array_equal(batch["image"][i], own["image"][0])
    for task in data.labels:
      np.testing.assert_array_equal(batch["labels"][task][i], own["labels"][task][0])
      np.testing.assert_array_equal(batch["mask"][task][i], own["mask"][task][0])
  assert not batch["image"][2].any()
  assert batch["index"].tolist() == rows.tolist()


def test_labelled_rows_are_those_that_the_view_leaves_a_label(tiny_faces):
  view = {"noise": "clean", "masks": "s_aff_wild2"}
  data = opened(tiny_faces, "train:labelled", "validation", view=view)
  labels, masks = data.targets
  assert all(len(x) == len(data.records("train:labelled")) for x in labels.values())
  kept = np.concatenate([mask.reshape(len(mask), -1) for mask in masks.values()], 1)
  assert kept.any(1).all()


def test_rows_of_any_shape_are_read_and_gaps_are_padding(tiny_faces):
  data = opened(tiny_faces, "train", "validation", view={})
  split = data.records("train")
  rows = np.array([[3, -1, 4], [0, 1, -1]])
  batch, flat = split.batch(rows), split.batch(rows.reshape(-1))
  assert batch["image"].shape == (2, 3, 112, 112, 3)
  for kind in ("labels", "mask"):
    for task, values in batch[kind].items():
      np.testing.assert_array_equal(values.reshape(flat[kind][task].shape), flat[kind][task])
  np.testing.assert_array_equal(batch["image"].reshape(flat["image"].shape), flat["image"])
  assert not batch["mask"]["va"][0, 1].any()


def test_a_run_says_how_much_of_what_it_is_scored_on_it_is_trained_on(tiny_faces):
  said = lambda *splits: opened(tiny_faces, *splits).describe()
  assert "warning: 32 of them are trained on" in said("train+validation", "validation")
  assert "warning: 96 of them are trained on" in said("train", "train")
  assert "warning" not in said("train+validation:not_fold=0/3", "train+validation:fold=0/3")
  assert "warning" not in said("train", "validation")
