"""A part of the batch for each task, and rows of a second data set beside those of the first."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import SMALL, debug_config

from affjax import checkpoints, dry_run, experiment, finite, procedures, resident, sharding, train
from affjax.build import bind
from affjax.data import paired, pipeline, records

FIRST, SECOND = 96, 37  # rows of the tiny faces, and of the tiny FER+ that are left


@pytest.fixture(scope="module")
def both(tiny_faces, tiny_ferplus, tmp_path_factory) -> str:
  """A data_dir that holds the tiny faces and the tiny FER+."""
  root = tmp_path_factory.mktemp("both")
  (root / "synthetic_faces").symlink_to(Path(tiny_faces) / "synthetic_faces")
  (root / "ferplus").symlink_to(Path(tiny_ferplus.data_dir).parent)
  return str(root)


def config(sampling="per_task", **changes):
  """48 places: 12 of FER+ and 12 for each task, or 36 of the faces."""
  auxiliary = dict(name="ferplus", share=0.25) | changes.pop("auxiliary", {})
  return debug_config(
    batch_size=48,
    data__auxiliary=auxiliary,
    **{"data__sampling": sampling, "data__placement": "stream", **SMALL, **changes},
  )


@pytest.fixture(scope="module")
def data(both):
  return experiment.Data(config(), both)


def same(ours, theirs):
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(ours), theirs)


def drawn(config, data, count):
  order = experiment.order(config, data)
  return np.array([order[step] for step in range(count)])


def one_line(error):
  assert "\n" not in str(error.value)
  return str(error.value)


# What is drawn.


def test_rows_of_the_second_set_come_after_those_of_the_first_with_their_own_labels(data, both):
  assert len(data.training) == FIRST + SECOND
  rows = np.array([0, FIRST + 3, -1, 95, FIRST, FIRST + SECOND - 1])
  found = data.training.batch(rows)
  np.testing.assert_array_equal(found["index"], rows)
  first = data.records("train")
  second = experiment.Data(config(data__name="ferplus", data__config="", data__select="train",
                                  data__report=(), data__view={}, auxiliary=dict(name=None)),
                           both).records("train")  # fmt: skip
  for place, row in enumerate(rows):
    alone = second.batch(row[None] - FIRST) if row >= FIRST else first.batch(row[None])
    for kind in ("labels", "mask"):
      for name, values in found[kind].items():
        expected = alone[kind].get(name, np.zeros_like(values[:1]))[0]
        np.testing.assert_array_equal(values[place], expected, err_msg=f"{row} {name}")
    np.testing.assert_array_equal(found["image"][place], alone["image"][0])
  assert not found["mask"]["au"][rows >= FIRST].any()
  assert not found["mask"]["va"][rows >= FIRST].any()


def test_every_batch_has_its_share_of_each_task_and_of_the_second_set(data):
  labels, mask = data.targets
  rows = drawn(config(), data, 100)  # 4800
  for place, task in enumerate(("au", "expression", "va")):
    part = rows[:, 12 * place : 12 * (place + 1)]
    labelled = np.flatnonzero(mask[task][:FIRST].reshape(FIRST, -1).any(1))
    counts = np.bincount(part.ravel(), minlength=FIRST + SECOND)
    assert 0 < len(labelled) < FIRST
    assert set(np.flatnonzero(counts)) == set(labelled)
    assert np.ptp(counts[labelled]) <= 1
  counts = np.bincount(rows[:, 36:].ravel(), minlength=FIRST + SECOND)
  assert not counts[:FIRST].any()
  assert sorted(set(counts[FIRST:])) == [1200 // SECOND, 1200 // SECOND + 1]


@pytest.mark.parametrize("sampling", ["uniform", "class_balanced"])
def test_the_first_set_is_sampled_as_it_is_without_a_second(sampling, both):
  asked = config(sampling)
  rows = drawn(asked, experiment.Data(asked, both), 4)
  alone = debug_config(batch_size=36, data__sampling=sampling, **SMALL)
  expected = drawn(alone, experiment.Data(alone, both), 4)
  np.testing.assert_array_equal(rows[:, :36], expected)
  assert rows[:, 36:].min() >= FIRST


def test_a_place_of_a_task_has_no_labels_of_others_and_that_of_the_second_set_has_its_own(data):
  batches = train.training_batches(config(), data, sharding.make_mesh(), 2)
  batch = jax.device_get(next(batches))
  batches.close()
  whole = data.training.batch(drawn(config(), data, 3)[2])
  some = {task: batch["mask"][task].reshape(48, -1).any(1) for task in ("au", "expression", "va")}
  for place, task in enumerate(some):
    for other, labelled in some.items():
      assert labelled[12 * place : 12 * (place + 1)].all() == (other == task)
      assert labelled[12 * place : 12 * (place + 1)].any() == (other == task)
  for name, mask in batch["mask"].items():
    np.testing.assert_array_equal(mask[36:], whole["mask"][name][36:])
  assert some["expression"][36:].sum() > 6


def test_gradients_of_a_tasks_loss_are_zero_to_the_bit_where_the_batch_does_not_teach_it(data):
  asked = config()
  batch = pipeline.teaching(
    data.training.batch(drawn(asked, data, 1)[0]), experiment.taught(asked, data)
  )
  rng = np.random.default_rng(0)
  for place, task in enumerate(("au", "expression", "va")):
    loss = bind(asked["losses"][task], "affjax.losses", 3)
    labels, mask = batch["labels"][task], batch["mask"][task]
    outputs = rng.normal(size=labels.shape).astype(np.float32) / 2
    slope = np.asarray(jax.jit(jax.grad(loss))(outputs, labels, mask))
    own = slice(12 * place, 12 * (place + 1))
    assert (slope[own] != 0).any(1).all()
    others = np.delete(slope[:36], own, axis=0)
    np.testing.assert_array_equal(others, 0)
    assert (slope[36:] != 0).any() == (task == "expression")


@pytest.mark.parametrize("spread", [False, True])
def test_batches_from_device_memory_are_those_that_are_streamed(spread, data):
  asked, mesh = config(), sharding.make_mesh()
  plan = resident.Plan("spread" if spread else "whole", 0, None)
  held = experiment.hold(asked, data, mesh, plan)
  gather = jax.jit(held.batch)
  streamed, rows = (train.training_batches(asked, data, mesh, 5, h) for h in (None, held))
  for _ in range(2):
    same(gather(held.arrays, next(rows)), jax.device_get(next(streamed)))
  streamed.close()
  rows.close()


# What else goes by both sets.


def test_numbers_for_losses_are_counted_in_both_sets(data):
  asked = config(losses__expression__logit_adjustment="prior")
  found = experiment.resolve_losses(asked, data)["losses"]["expression"]["logit_adjustment"]
  every = data.training.batch(np.arange(FIRST + SECOND))
  votes = every["labels"]["expression"][every["mask"]["expression"] > 0]
  alone = data.seen("train")
  np.testing.assert_allclose(found, votes.mean(0), rtol=1e-5)
  assert len(votes) > (alone[1]["expression"] > 0).sum()


def test_the_fingerprint_is_of_both_sets_and_of_the_first_alone_without_a_second(data, both):
  alone = experiment.Data(debug_config(), both)
  assert alone.fingerprint == alone.summary["fingerprint"]
  other = config(auxiliary=dict(name="synthetic_faces", config="tiny", train="test"))
  found = {data.fingerprint, alone.fingerprint, experiment.Data(other, both).fingerprint}
  assert len(found) == 3


def test_a_check_says_how_many_images_of_what(both, capsys):
  dry_run.run(config(), both, compiles=False)
  said = capsys.readouterr().out
  assert f"\nbeside ferplus 1.0.0\n       train: {SECOND} images (va unlabelled (masked)," in said
  assert (
    "\ntrain  20 steps of 48 images = 7.5 epochs, equal parts for au, expression, va,"
    f" 12 of them of ferplus = {20 * 12 / SECOND:.1f} epochs\n"
  ) in said
  dry_run.run(config(), opens=False, compiles=False)
  said = capsys.readouterr().out
  assert "\ntrain  20 steps of 48 images equal parts for each task, 12 of them of ferplus\n" in said


def test_what_is_chosen_by_and_trained_on_is_said_whichever_set_it_is_of(both):
  beside = dict(name="synthetic_faces", config="tiny", train="validation:fold=0/2")
  said = experiment.Data(config(auxiliary=beside), both)
  learnt = len(said.auxiliary.training)
  assert 0 < learnt < 32
  assert f"warning: {learnt} of them are trained on" in said.describe()
  assert "warning" not in experiment.Data(config(), both).describe()


def test_a_row_of_the_second_set_is_named_with_its_set(data):
  asked = config()
  text = finite.explain({"loss": np.nan}, 1, asked, data, procedures.from_config(asked), None)
  row = drawn(asked, data, 1)[0][0]
  assert f"rows {row} ({data.table('train')['key'][row].decode()})" in text
  assert data.keys[FIRST].startswith("ferplus: ")
  assert len(data.keys) == FIRST + SECOND


def test_records_of_the_second_set_that_cannot_be_read_are_named_or_skipped(both, tmp_path):
  for name in ("synthetic_faces", "ferplus"):
    shutil.copytree(Path(both) / name, tmp_path / name)
  (shard,) = (tmp_path / "ferplus").rglob("ferplus-train.array_record*")
  shard.write_bytes(b"\0" * shard.stat().st_size)
  rows = np.array([1, FIRST, FIRST + 5])
  with pytest.raises(ValueError, match=r"record 0 of .*ferplus-train\.array_record") as error:
    experiment.Data(config(), str(tmp_path)).training.batch(rows)
  one_line(error)
  damaged = experiment.Data(config(data__unreadable="skip"), str(tmp_path))
  batch = damaged.training.batch(rows)
  assert batch["index"].tolist() == [1, -1, -1]
  assert not any(mask[1:].any() for mask in batch["mask"].values())
  assert not batch["image"][1:].any()
  assert batch["image"][0].any()
  (facts,) = damaged.skipped.values()
  assert (facts["count"], facts["of"]) == (2, FIRST + SECOND)


def test_only_training_asks_for_the_second_set(both):
  asked = config(auxiliary=dict(name="raf_au"))  # which nobody has here
  scored = experiment.Data(asked, both)
  assert scored.records("validation").batch(np.arange(2))["image"].any()
  with pytest.raises(
    ValueError, match=r"'raf_au' is not in .*python -m affjax.data.prepare raf_au"
  ):
    experiment.open_training(asked, both)


def test_what_learns_without_labels_may_have_a_second_set_too(both):
  asked = config("uniform", labels={}, losses={})
  found = experiment.Data(asked, both)
  batch = found.training.batch(drawn(asked, found, 1)[0])
  assert batch["labels"] == {}
  assert (batch["index"] >= FIRST).tolist() == [False] * 36 + [True] * 12


# Shares and refusals.


@pytest.mark.parametrize(
  ("share", "batch_size", "rows"),
  [(0.2, 320, 64), (0.2, 16, 3), (0.01, 16, 1), (0.99, 16, 15), (0.5, 2, 1)],
)
def test_a_share_is_whole_images_of_each_set_one_at_least(share, batch_size, rows):
  assert paired.Auxiliary("ferplus", share=share).rows(batch_size) == rows
  assert paired.Auxiliary(share=share).rows(batch_size) == 0


@pytest.mark.parametrize("auxiliary", [None, {}, {"name": None}, {"name": ""}])
def test_a_config_without_a_second_set_is_what_it_was(auxiliary, both):
  asked = debug_config(data__auxiliary=auxiliary)
  found = experiment.Data(asked, both)
  assert found.sets == [found]
  assert len(found.training) == FIRST
  expected = [pipeline.order(FIRST, asked["seed"], 16)[step] for step in range(20)]
  np.testing.assert_array_equal(drawn(asked, found, 20), expected)
  assert experiment.taught(asked, found) == {}


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"auxiliary": dict(share=1.0)}, "auxiliary.share=1.0: use a number between 0 and 1"),
    ({"auxiliary": dict(share="a")}, "auxiliary.share='a': use a number between 0 and 1"),
    ({"auxiliary": dict(rows=3)}, "use a section of name, config, train, share"),
    ({"auxiliary": dict(name=3)}, "config.data.auxiliary.name=3: use a name"),
    ({"auxiliary": dict(name="fer")}, "data set 'fer': use one of"),
    ({"auxiliary": dict(train="trian")}, "'ferplus' has no split 'trian'"),
    ({"data__features": "x", "model__encoder": dict(name="features.Precomputed", width=8)},
     "config.data.auxiliary is of images: use none with config.data.features"),
    ({"data__clips": dict(length=4), "sampling": "uniform"},
     "config.data.auxiliary is of images: use none with config.data.clips"),
    ({"data__clips": dict(length=4), "auxiliary": dict(name=None)},
     "config.data.sampling='per_task' is of images"),
    ({"batch_size": 56, "auxiliary": dict(share=0.5)},
     "batch_size=56 less 28 of config.data.auxiliary is not a multiple of the 3 tasks"),
    ({"batch_size": 16, "auxiliary": dict(name=None)},
     r"config.batch_size=16 is not a multiple of the 3 tasks .* \(au, expression, va\)"),
  ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_one_line_before_the_run(both, tmp_path, changes, said):
  sampling, size = changes.pop("sampling", "per_task"), changes.pop("batch_size", 48)
  with pytest.raises(ValueError, match=said) as error:
    train.run(config(sampling, **changes) | {"batch_size": size}, tmp_path / "run", both)
  one_line(error)
  assert not (tmp_path / "run").exists()


def test_a_second_set_that_would_teach_nothing_is_refused(both):
  asked = config("uniform")
  asked["labels"] = {"va": asked["labels"]["va"]}
  with pytest.raises(ValueError, match="ferplus train has no label of va and would teach nothing"):
    experiment.Data(asked, both).auxiliary  # noqa: B018


def test_sampling_by_task_needs_labels(both):
  asked = config(auxiliary=dict(name=None), labels={"expression": ("boredom",)})
  with pytest.raises(ValueError, match="sampling='per_task' needs labels, and synthetic_faces"):
    experiment.order(asked, experiment.Data(asked, both))


def test_balanced_classes_are_those_of_the_first_set(both):
  asked = config(
    "class_balanced", data__name="synthetic_faces", labels={"expression": ("contempt",)}
  )
  with pytest.raises(
    ValueError, match="sampling='class_balanced' needs labels.* none of expression"
  ):
    experiment.order(asked, experiment.Data(asked, both))


# Runs.


@pytest.mark.slow
def test_a_run_with_all_of_it_resumes_from_another_placement_to_the_bit(both, tmp_path, capsys):
  asked = config(accumulate=2, steps=10, losses__expression__class_weights="balanced")
  scores = train.run(asked, tmp_path, both)["scores"]
  assert (tmp_path / train.PICTURE).stat().st_size > 10_000
  assert "12 of them of ferplus" in capsys.readouterr().out
  before = state(asked, tmp_path)
  shutil.rmtree(tmp_path / "checkpoints" / "10")
  asked["data"]["placement"] = "device"
  assert train.run(asked, tmp_path, both)["scores"] == scores
  said = capsys.readouterr().out
  assert "continues from step 5" in said
  assert "training images are in the memory of each device" in said
  same(state(asked, tmp_path), before)


def state(config, where):
  """The state of step 10."""
  abstract = experiment.abstract_state(procedures.from_config(config), sharding.make_mesh())
  saved = checkpoints.Checkpoints(where / "checkpoints", read_only=True)
  found = jax.device_get(saved.restore(10, abstract)[0])
  saved.close()
  return found


def test_a_run_does_not_go_on_with_another_second_set(both, tmp_path):
  asked, where = config(), tmp_path / "run"
  where.mkdir()
  (where / "config.json").write_text(json.dumps(asked))
  shapes = jax.eval_shape(procedures.from_config(asked).init)
  blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  saved = checkpoints.Checkpoints(where / "checkpoints")
  saved.save(5, blank, {"fingerprint": experiment.Data(asked, both).fingerprint})
  saved.close()
  for name in ("synthetic_faces", "ferplus"):
    shutil.copytree(Path(both) / name, tmp_path / name)
  (kept,) = (tmp_path / "ferplus").rglob(records.SUMMARY)
  kept.write_text(json.dumps(json.loads(kept.read_text()) | {"fingerprint": "of others"}))
  with pytest.raises(
    ValueError, match="trained on other data than .*faces.* and .*ferplus"
  ) as error:
    train.run(asked, where, str(tmp_path))
  one_line(error)
