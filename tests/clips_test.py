"""Windows of frames: cut, read, scored once and stitched together again."""

import collections
import json
import types

import cv2
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affjax import augment, evaluate, experiment, inference, resident, sharding, train
from affjax.data import clips, pipeline, prepare, records
from configs import temporal

# Cutting.

Split = collections.namedtuple("Split", "video person frame")


@st.composite
def splits(draw, duplicates=True):
  """Rows in any order: some videos, some people, gaps, frames that are there twice."""
  size = draw(st.integers(1, 40))
  names = lambda letters: draw(st.lists(st.sampled_from(letters), min_size=size, max_size=size))
  frame = draw(st.lists(st.integers(0, 25), min_size=size, max_size=size))
  rows = list(zip(names(["a", "b"]), names(["", "x", "y"]), frame, strict=True))
  most = 3 if duplicates else 1
  rows = [row for i, row in enumerate(rows) if rows[:i].count(row) < most]
  return Split(*map(np.array, zip(*rows, strict=True)))


sizes = st.integers(1, 9).flatmap(
  lambda length: st.tuples(st.just(length), st.integers(1, length), st.integers(1, 4))
)


def cut(split, length, stride, step=1):
  return clips.windows(*split, length=length, stride=stride, step=step)


@given(splits(), sizes)
@settings(max_examples=150, deadline=None)
def test_a_window_is_of_one_person_in_one_video_and_keeps_its_frames_apart_by_the_step(split, size):
  length, _, step = size
  rows = cut(split, *size)
  assert rows.shape[1] == length
  assert set(rows[rows >= 0].tolist()) == set(range(len(split.frame)))
  assert (rows >= 0).any(1).all()
  for window in rows:
    at = np.flatnonzero(window >= 0)
    assert len({(split.video[r], split.person[r]) for r in window[at]}) == 1
    starts = split.frame[window[at]] - at * step
    assert (starts == starts[0]).all()


@given(splits(), sizes)
@settings(max_examples=150, deadline=None)
def test_a_gap_is_where_the_split_has_no_such_frame(split, size):
  known = {(v, p, f) for v, p, f in zip(*split, strict=True)}
  for window in cut(split, *size):
    at = int(np.flatnonzero(window >= 0)[0])
    row = window[at]
    for place, other in enumerate(window):
      frame = split.frame[row] + (place - at) * size[2]
      assert (other >= 0) == ((split.video[row], split.person[row], frame) in known)


@given(splits(duplicates=False), sizes)
@settings(max_examples=150, deadline=None)
def test_windows_are_those_of_a_walk_along_each_track(split, size):
  length, stride, step = size
  expected = []
  tracks = collections.defaultdict(dict)
  first = {}
  for v, p, f in zip(*split, strict=True):
    first[v, p] = min(first.get((v, p), f), f)
  for row, (v, p, f) in enumerate(zip(*split, strict=True)):
    since = f - first[v, p]
    tracks[v, p, since % step][since // step] = row
  for _, track in sorted(tracks.items()):
    start = 0
    while True:
      window = [track.get(place, -1) for place in range(start, start + length)]
      if max(window) >= 0:
        expected.append(window)
      if start + length > max(track):
        break
      start += stride
  np.testing.assert_array_equal(cut(split, *size), expected)


@given(splits(duplicates=False), sizes, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_rows_changes_nothing(split, size, random):
  order = np.array(random.sample(range(len(split.frame)), len(split.frame)))
  shuffled = Split(*(column[order] for column in split))
  found = cut(shuffled, *size)
  np.testing.assert_array_equal(np.where(found < 0, -1, order[found]), cut(split, *size))


def test_a_second_row_of_a_frame_has_a_window_of_its_own_with_the_same_neighbours():
  frame = np.array([1, 2, 2, 3, 4, 5, 6])
  rows = cut(Split(np.full(7, "v"), np.full(7, ""), frame), 3, 3)
  assert rows.tolist() == [[0, 1, 3], [4, 5, 6], [0, 2, 3]]


def test_a_far_frame_costs_no_more_windows_than_a_near_one():
  rows = cut(Split(np.full(3, "v"), np.full(3, ""), np.array([0, 1, 10**9])), 4, 2)
  assert rows.tolist() == [[0, 1, -1, -1], [-1, -1, 2, -1]]


def test_names_may_be_bytes_as_label_tables_have_them():
  split = Split(np.array([b"v", b"v", b"w"]), np.zeros(3, "S1"), np.array([1, 2, 1]))
  assert cut(split, 2, 2).tolist() == [[0, 1], [2, -1]]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(frame=np.array([1, -1, 3])), "1 of 3 rows have none, such as row 1"),
    (dict(video=np.array(["v", "", ""]), person=np.full(3, "")), "2 of 3 rows have none, .* row 1"),
  ],
)
def test_rows_of_which_it_is_not_known_what_they_are_of_are_refused(change, message):
  split = Split(np.full(3, "v"), np.full(3, "p"), np.arange(3))._replace(**change)
  with pytest.raises(ValueError, match=message):
    cut(split, 2, 1)


def test_frame_numbers_that_tell_nothing_apart_are_refused():
  with pytest.raises(ValueError, match="frame 7 of one person in one video has 20 rows"):
    cut(Split(np.full(20, "v"), np.full(20, ""), np.full(20, 7)), 2, 1)


@pytest.mark.parametrize(
  ("section", "message"),
  [
    (dict(length=-1), "clips.length=-1: use 0 to"),
    (dict(length=True), "clips.length=True: use 0 to"),
    (dict(length=8, stride=9), "stride=9 leaves out frames .*length=8"),
    (dict(length=8, step=0), "clips.step=0: use 1 to"),
    (dict(length=8, shuffle="all"), "shuffle='all': use one of none, clip, split"),
    (dict(lenght=8), r"takes no \['lenght'\]; it takes length, stride, step, shuffle"),
  ],
)
def test_a_section_that_makes_no_sense_is_refused(section, message):
  with pytest.raises(ValueError, match=message):
    clips.Clips.of({"data": {"clips": section}})


def test_configs_of_earlier_runs_have_no_clips():
  assert not clips.Clips.of({"data": {}})


# Shuffled times.

LONG = Split(np.repeat(["a", "b", "b"], 30), np.repeat(["", "x", "y"], 30), np.tile(range(30), 3))


@pytest.mark.parametrize("kind", ["clip", "split"])
def test_shuffling_deals_the_rows_out_once_and_the_same_way_every_time(kind):
  made = lambda shuffle: clips.Clips(8, shuffle=shuffle).windows(*LONG)
  rows, dealt = made("none"), made(kind)
  np.testing.assert_array_equal(dealt, made(kind))
  np.testing.assert_array_equal(dealt < 0, rows < 0)
  pairs = {(a, b) for a, b in zip(rows[rows >= 0], dealt[rows >= 0], strict=True)}
  assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) == 90
  assert sum(a == b for a, b in pairs) < 10
  same = [LONG.video[a] == LONG.video[b] and LONG.person[a] == LONG.person[b] for a, b in pairs]
  assert all(same) == (kind == "clip")


# Scored once, and stitched.


@given(splits(), sizes)
@settings(max_examples=100, deadline=None)
def test_each_row_is_scored_once_where_it_is_nearest_to_the_middle(split, size):
  rows = cut(split, *size)
  scored = clips.scored(rows)
  assert sorted(rows[scored]) == list(range(len(split.frame)))
  off = np.broadcast_to(np.abs(np.arange(size[0]) - (size[0] - 1) / 2), rows.shape)
  for row in range(len(split.frame)):
    assert off[scored & (rows == row)] == off[rows == row].min()


@given(splits(), sizes)
@settings(max_examples=100, deadline=None)
def test_stitching_takes_the_mean_over_the_windows_that_have_a_row(split, size):
  rows = cut(split, *size)
  outputs = np.random.default_rng(0).normal(size=(*rows.shape, 3))
  found = clips.stitch(outputs, rows, len(split.frame) + 1)
  assert np.isnan(found[-1]).all()
  for row in range(len(split.frame)):
    np.testing.assert_allclose(found[row], outputs[rows == row].mean(0), rtol=1e-5, atol=1e-6)


# Reading.


@pytest.fixture(scope="module")
def few_clips(tmp_path_factory):
  """A data_dir that holds synthetic clips of twelve frames, of four people and two and two."""
  data_dir = str(tmp_path_factory.mktemp("few_clips"))
  prepare.prepare(records.builder("synthetic_faces", "tiny_clips", data_dir))
  return data_dir


def few_config(argument="", **changes):
  config = temporal.get_config(f"debug,data=synthetic_faces/tiny_clips,length=5{argument}")
  config.image_size = config.data.image_size = 32
  if "features" not in argument:
    config.model.encoder.update(variant="mu/8", width=16, depth=1, num_heads=2, stem="patch")
  config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
  config.evaluate.probe = False
  config.losses.expression.logit_adjustment = config.losses.au.positive_weight = None
  return json.loads(config.to_json_best_effort())


@pytest.fixture(scope="module")
def opened(few_clips):
  config = few_config()
  return config, experiment.Data(config, few_clips)


def read(dataset, count):
  iterator = iter(dataset)
  return [next(iterator) for _ in range(count)]


def test_a_batch_of_clips_holds_what_its_frames_hold_one_by_one(opened):
  config, data = opened
  split, table = data.records("train"), data.table("train")
  rows = experiment.order(config, data)
  assert rows[0].shape == (8, 5)
  for step, batch in enumerate(read(pipeline.batches(split, rows), 3)):
    np.testing.assert_array_equal(batch["index"], rows[step])
    assert (batch["index"] < 0).any()
    alone = split.batch(rows[step].reshape(-1))
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
    jax.tree.map(np.testing.assert_array_equal, flat, alone)
    for window in rows[step]:
      real = window[window >= 0]
      assert len(set(table["video"][real])) == 1
      assert (np.diff(table["frame"][real]) == 1).all()


def test_the_tail_from_a_step_and_the_parts_of_processes_are_those_of_the_whole(opened):
  config, data = opened
  split, rows = data.records("train"), experiment.order(config, data)
  whole = read(pipeline.batches(split, rows), 4)
  same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
  same(read(pipeline.batches(split, rows[2:]), 2), whole[2:])
  halves = [read(pipeline.batches(split, rows, process=p, processes=2), 4) for p in range(2)]
  same(jax.tree.map(lambda *x: np.concatenate(x), *halves), whole)


def test_an_epoch_holds_every_window_once(opened):
  config, data = opened
  windows = data.windows("train")
  assert len(windows) == 4 * 5  # of twelve frames, five at a time, every second one
  steps = len(windows) * 2 // 8
  rows = np.concatenate([experiment.order(config, data)[step] for step in range(steps)])
  for epoch in np.split(rows, 2):
    assert sorted(map(tuple, epoch)) == sorted(map(tuple, windows))


@pytest.mark.parametrize("spread", [False, True])
def test_clips_from_device_memory_are_those_from_disk(spread, opened):
  config, data = opened
  split, order, mesh = data.records("train"), experiment.order(config, data), sharding.make_mesh()
  held = resident.Resident(split, mesh, spread=spread)
  gather = jax.jit(held.batch)
  for step, rows in zip(range(3), held.rows(order), strict=False):
    found, expected = gather(held.arrays, rows), split.batch(order[step])
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), expected)
    for x in jax.tree.leaves(found):
      assert x.sharding.is_equivalent_to(sharding.split_batch(mesh), x.ndim)


def test_the_shapes_of_a_batch_are_known_from_the_config(opened):
  config, data = opened
  batch = data.records("train").batch(experiment.order(config, data)[0])
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shapes(experiment.batch_shapes(config)) == shapes(batch)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(data__clips__length=0, data__clips__stride=0), "temporal needs clips"),
    (dict(procedure__mixup_alpha=0.2), "mixup_alpha mixes images"),
    (dict(data__sampling="class_balanced"), "sampling='class_balanced' is of images"),
    (dict(model__decoder=dict(name="decoders.TaskTokens", position="encoder")), "comes before"),
    (dict(model__encoder=dict(name="features.Precomputed", width=8)), "is for features"),
  ],
)
def test_what_does_not_go_with_clips_is_refused_before_any_data_is_made(changes, message):
  config = few_config(**{k: v for k, v in changes.items() if not isinstance(v, dict)})
  for name, section in ((k, v) for k, v in changes.items() if isinstance(v, dict)):
    config["model"][name.removeprefix("model__")] = section
  with pytest.raises(ValueError, match=message):
    experiment.check_config(config)


def test_a_set_that_does_not_say_its_frames_is_refused(tiny_ferplus):
  config = few_config()
  config["data"] |= dict(name="ferplus", config="", train="train", select="dev", report=())
  data = experiment.Data(config, str(tiny_ferplus.data_dir).rpartition("/ferplus")[0])
  with pytest.raises(ValueError, match="ferplus train: clips need a video or a person"):
    data.windows("train")


# Augmentation.


def test_all_frames_of_a_clip_are_seen_through_one_view():
  images = np.random.default_rng(0).integers(0, 256, (4, 3, 24, 24, 3), np.uint8)
  options = dict(grey_rate=0.5, erase_rate=0.5, erase_area=0.3, cast=0.1)
  view = jax.jit(lambda images: augment.augment(images, jax.random.key(1), 16, **options))
  seen = view(images)
  assert seen.shape == (4, 3, 16, 16, 3)
  for time in range(3):
    np.testing.assert_allclose(seen[:, time], view(images[:, time]), atol=1e-6)
  still = view(np.repeat(images[:, :1], 3, axis=1))
  assert np.ptp(still, axis=1).max() == 0
  assert np.ptp(still, axis=0).max() > 0.1


def test_evaluation_resizes_the_frames_of_clips_as_it_does_images():
  images = np.random.default_rng(0).integers(0, 256, (2, 3, 24, 24, 3), np.uint8)
  whole, alone = (
    augment.preprocess(images, 16),
    augment.preprocess(images.reshape(6, 24, 24, 3), 16),
  )
  np.testing.assert_allclose(whole.reshape(alone.shape), alone, atol=1e-6)


def test_features_are_neither_augmented_nor_resized():
  vectors = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 7)), jnp.float32)
  np.testing.assert_array_equal(augment.augment(vectors, jax.random.key(0), 16), vectors)
  np.testing.assert_array_equal(augment.preprocess(vectors, 16), vectors)


# Scores.


def linear(images):
  """A model of single images: outputs from means of pixels."""
  x = images.astype(jnp.float32).mean((-3, -2)) / 255 - 0.5
  at = lambda n: jnp.sin(jnp.arange(3 * n).reshape(3, n) + 1.0)
  return {"va": jnp.tanh(9 * x @ at(2)), "expression": x @ at(8), "au": x @ at(12)}


@pytest.mark.parametrize(("batch_size", "step"), [(8, 1), (16, 3)])
def test_scores_of_overlapping_clips_are_those_of_images_one_by_one(batch_size, step, opened):
  config, data = opened
  mesh = sharding.make_mesh()
  split = data.records("test")
  scoring = evaluate.Scoring.of(data.labels, records.metadata(data.build))
  options = dict(batch_size=batch_size, name="test")
  of_images = evaluate.Evaluator(lambda p, s, x: linear(x), split, scoring, mesh, **options)
  cut = clips.Clips(3, 1, step).windows(*(data.table("test")[n] for n in Split._fields))
  seen = []

  def predict(params, state, images, present):
    jax.debug.callback(lambda x: seen.append(x), present)
    return linear(images)

  of_clips = evaluate.Evaluator(predict, split, scoring, mesh, windows=cut, keep=True, **options)
  expected = of_images({}, {})
  for _ in range(2):  # read, then kept
    for found, values in zip(of_clips({}, {}), expected, strict=True):
      assert found.keys() == values.keys()
      np.testing.assert_allclose(list(found.values()), list(values.values()), atol=1e-6)
  jax.effects_barrier()
  assert seen[0].shape == (batch_size, 3)
  assert (cut >= 0).sum() >= 1.5 * len(split)


def test_another_split_is_scored_by_its_own_windows(opened):
  config, data = opened
  mesh = sharding.make_mesh()
  scoring = evaluate.Scoring.of(data.labels, records.metadata(data.build))
  made = lambda split: evaluate.Evaluator(
    lambda p, s, x, present: linear(x), data.records(split), scoring, mesh,
    batch_size=8, name=split, windows=data.windows(split),
  )  # fmt: skip
  other = made("train").on(data.records("test"), "test", data.windows("test"))
  assert other({}, {}) == made("test")({}, {})


def test_windows_reach_workers(opened):
  config, data = opened
  rows = experiment.order(config, data)
  found = read(pipeline.batches(data.records("train"), rows, workers=1), 2)
  expected = read(pipeline.batches(data.records("train"), rows), 2)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert isinstance(rows, grain.MapDataset)


# A run.


@pytest.fixture(scope="module")
def finished(few_clips, tmp_path_factory):
  """A run from device memory: its config, its folder, its scores."""
  where = tmp_path_factory.mktemp("finished") / "run"
  config = few_config(steps=4, data__placement="device", evaluate__every=2, checkpoint__every=2)
  return config, where, train.run(config, where, few_clips)


def last_losses(where):
  lines = map(json.loads, (where / "metrics.jsonl").read_text().splitlines())
  return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.slow
def test_a_run_from_disk_that_is_continued_ends_as_one_from_device_memory(
  finished, few_clips, tmp_path
):
  config, where, scores = finished
  changed = lambda **changes: few_config(
    steps=4, data__placement="stream", evaluate__every=2, checkpoint__every=2, **changes
  )
  other = tmp_path / "other"
  stop = types.SimpleNamespace(
    asked=lambda step: step == 3, signal=15, where="", holds=False, saved=None
  )
  with pytest.raises(SystemExit):
    train.run(changed(), other, few_clips, stop)
  assert train.run(changed(), other, few_clips) == scores
  assert last_losses(other) == last_losses(where)


@pytest.mark.slow
def test_the_scores_of_a_run_do_not_depend_on_the_batches_of_its_evaluation(finished, few_clips):
  config, where, scores = finished
  again = evaluate.run(
    config | {"evaluate": config["evaluate"] | {"batch_size": 16}}, where, few_clips
  )
  for split, expected in scores["scores"].items():
    assert again["scores"][split] == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_a_predictor_of_a_video_gives_what_its_windows_give_in_any_order(finished, opened):
  _, data = opened
  predictor = inference.load(finished[1], "latest")
  split, table = data.records("test"), data.table("test")
  video = table["video"] == table["video"][0]
  taken = np.flatnonzero(video)[[0, 1, 2, 4, 5, 9, 10, 11]]  # of twelve frames, with gaps
  images = split.batch(taken)["image"]
  found = predictor.sequence(images, table["frame"][taken])
  mixed = np.random.default_rng(0).permutation(len(taken))
  again = predictor.sequence(images[mixed], table["frame"][taken][mixed])
  rows = clips.Clips(5).windows(*(table[n][taken] for n in Split._fields))
  seen = np.where((rows < 0)[..., None, None, None], 0, images[rows])
  model = predictor._procedure
  whole = model.predict(predictor._params, predictor._model_state, seen, rows >= 0)
  for task, values in found.items():
    assert np.isfinite(values).all()
    np.testing.assert_allclose(again[task], values[mixed], atol=1e-5)
    expected = [np.asarray(whole[task])[rows == row].mean(0) for row in range(len(taken))]
    np.testing.assert_allclose(values, expected, atol=1e-5)
  alone = predictor.outputs(images)
  assert max(np.abs(alone[task] - values).max() for task, values in found.items()) > 1e-4


@pytest.mark.slow
def test_the_first_batch_is_drawn_a_clip_a_line(finished):
  picture = cv2.imread(str(finished[1] / "first_batch.png"))
  assert picture.shape[1] == 5 * 150  # five frames beside each other
  assert picture.shape[0] % 8 == 0


@pytest.mark.slow
def test_a_run_on_features_learns_from_vectors_in_place_of_images(
  finished, few_clips, opened, tmp_path
):
  _, data = opened
  predictor = inference.load(finished[1], "latest")
  vectors, folder = {}, tmp_path / "features"
  folder.mkdir()
  for split in ("train", "validation", "test"):
    images = data.records(split).batch(np.arange(len(data.records(split))))["image"]
    vectors[split] = predictor.features(images)
    np.save(folder / f"{split}.npy", vectors[split])
  facts = {"name": "synthetic_faces", "fingerprint": data.summary["fingerprint"]}
  described = {"data": facts, "splits": {s: len(x) for s, x in vectors.items()}, "width": 128}
  (folder / "features.json").write_text(json.dumps(described))
  config = few_config(f",features={folder},temporal=transformer", steps=2, evaluate__every=2)
  where = tmp_path / "run"
  result = train.run(config, where, few_clips)
  assert "p_mtl" in result["scores"]["test"]
  assert not (where / "first_batch.png").exists()
  table = data.table("test")
  found = inference.load(where).sequence(vectors["test"][:12], table["frame"][:12])
  assert found["au"].shape == (12, 12)
  with pytest.raises(ValueError, match="the run takes features of 128 numbers, and no images"):
    inference.load(where).outputs(np.zeros((2, 32, 32, 3), np.uint8))
  config["model"]["encoder"]["width"] = 64
  with pytest.raises(ValueError, match="vectors of 128 numbers, config.model.encoder.width=64"):
    experiment.Data(config, few_clips)
