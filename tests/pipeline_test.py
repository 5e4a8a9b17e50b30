"""The position in the data is the step, whoever reads it and from wherever."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import grain
import jax
import numpy as np
import pytest
from absl import flags

from affjax import labels
from affjax.data import pipeline, records

LENGTH, BATCH = 37, 8  # the tiny FER+: no multiple of the batch


def steps(rows, first, last):
  return np.array([rows[step] for step in range(first, last)])


def read(dataset, count):
  iterator = iter(dataset)
  return [next(iterator) for _ in range(count)]


def same(ours, theirs):
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope="module")
def opened(tiny_ferplus):
  return records.records(tiny_ferplus, "train", {"expression": labels.EXPRESSION_MTL}, 48)


@pytest.fixture
def parsed_flags():
  """Grain sends the flags to its workers, so they must have been parsed."""
  was_parsed = flags.FLAGS.is_parsed()
  flags.FLAGS.mark_as_parsed()
  yield
  if not was_parsed:
    flags.FLAGS.unparse_flags()


# The order.


def test_an_epoch_is_a_permutation_and_the_next_is_another():
  epochs = steps(pipeline.order(24, 0, 8), 0, 9).reshape(3, 24)
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(24))
    assert (epoch != np.arange(24)).any()
  assert len({tuple(epoch) for epoch in epochs}) == 3


def test_batches_run_across_the_ends_of_epochs_and_drop_nothing():
  batches = steps(pipeline.order(LENGTH, 0, BATCH), 0, LENGTH)  # eight epochs exactly
  assert batches.shape == (LENGTH, BATCH)
  for epoch in batches.reshape(BATCH, LENGTH):
    np.testing.assert_array_equal(np.sort(epoch), np.arange(LENGTH))


def test_a_batch_may_be_larger_than_the_split():
  batches = steps(pipeline.order(3, 0, 8), 0, 3)
  np.testing.assert_array_equal(np.bincount(batches.ravel()), [8, 8, 8])


def test_the_order_is_a_function_of_the_seed_alone():
  first = steps(pipeline.order(LENGTH, 5, BATCH), 0, 12)
  np.testing.assert_array_equal(steps(pipeline.order(LENGTH, 5, BATCH), 0, 12), first)


def test_no_epoch_of_one_seed_is_an_epoch_of_another():
  # Grain adds the epoch to the seed; passed as it is, seed 1 would replay seed 0 one epoch late.
  epochs = [epoch for seed in range(4) for epoch in steps(pipeline.order(24, seed, 24), 0, 4)]
  assert len({tuple(epoch) for epoch in epochs}) == 16


@pytest.mark.parametrize(("length", "batch_size"), [(37, 8), (1000, 64), (5, 32), (1, 4)])
def test_the_order_is_that_of_grains_own_shuffle(length, batch_size):
  seed = int(np.random.SeedSequence([3, 0xAFF]).generate_state(1)[0])
  theirs = grain.MapDataset.range(length).shuffle(seed=seed).repeat().batch(batch_size)
  ours = pipeline.order(length, 3, batch_size)
  for step in (0, 1, 2, 17, 10**9):
    np.testing.assert_array_equal(ours[step], theirs[step])
    assert ours[step].dtype == theirs[step].dtype


@pytest.mark.parametrize("step", [1, 3, 5, 1000])
def test_the_tail_from_a_step_is_what_a_run_from_the_start_would_have_seen(step):
  rows = pipeline.order(LENGTH, 0, BATCH)
  np.testing.assert_array_equal(steps(rows[step:], 0, 6), steps(rows, step, step + 6))


@pytest.mark.parametrize("length", [1, 8, 16, 37])
def test_a_sequence_covers_every_row_once_in_order_and_pads_with_minus_one(length):
  rows = pipeline.sequence(length, BATCH)
  flat = steps(rows, 0, len(rows)).ravel()
  np.testing.assert_array_equal(flat[:length], np.arange(length))
  assert (flat[length:] == -1).all()
  assert len(flat) - length < BATCH


# Classes in equal shares.

SIZES = {-1: 20, 0: 50, 1: 7, 3: 3}  # no row of class 2
STRATA = np.random.default_rng(0).permutation(np.repeat(list(SIZES), list(SIZES.values())))


def balanced(seed=0, batch_size=BATCH):
  return pipeline.order(len(STRATA), seed, batch_size, STRATA)


def test_every_stretch_has_equal_shares_of_the_classes_and_the_usual_share_of_the_rest():
  drawn = STRATA[steps(balanced(), 0, 60).ravel()]  # 480 draws: 120 without a class
  for start in range(0, 480, BATCH):
    counts = [(drawn[start : start + BATCH] == c).sum() for c in SIZES]
    assert np.abs(np.array(counts) - 2).max() <= 1
  np.testing.assert_allclose([(drawn == c).sum() for c in SIZES], 120, atol=2)


def test_the_places_of_a_batch_are_not_tied_to_classes():
  drawn = STRATA[steps(balanced(), 0, 60)]
  assert all(set(place) == set(SIZES) for place in drawn.T)


def test_each_row_is_drawn_once_an_epoch_of_its_class():
  for last in (1, 13, 60):
    drawn = np.bincount(steps(balanced(), 0, last).ravel(), minlength=len(STRATA))
    assert all(np.ptp(drawn[np.isin(STRATA, c)]) <= 1 for c in SIZES)


@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_balanced_draws_are_a_function_of_seed_and_step(step):
  first = steps(balanced(5), step, step + 6)
  np.testing.assert_array_equal(steps(balanced(5)[step:], 0, 6), first)
  np.testing.assert_array_equal(balanced(5)[step + 3], first[3])  # no matter what was read before
  assert (steps(balanced(6), step, step + 6) != first).any()


def test_where_every_row_has_a_class_only_classes_are_drawn():
  strata = np.arange(30) % 3
  drawn = strata[steps(pipeline.order(30, 0, 6, strata), 0, 10)]
  np.testing.assert_array_equal(np.sort(drawn, 1), np.tile([0, 0, 1, 1, 2, 2], (10, 1)))


def test_a_single_class_is_the_split_itself():
  epochs = steps(pipeline.order(24, 0, 8, np.zeros(24, int)), 0, 6).reshape(2, 24)
  np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(24), (2, 1)))


def test_strata_of_another_length_are_refused():
  with pytest.raises(ValueError, match="strata of 80 rows for a split of 81"):
    pipeline.order(81, 0, BATCH, STRATA)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_a_balanced_batch(opened, processes):
  strata = np.arange(LENGTH) % 3 - 1
  rows = pipeline.order(LENGTH, 0, BATCH, strata)
  parts = [
    read(pipeline.batches(opened, rows, process=process, processes=processes), 4)
    for process in range(processes)
  ]
  for step in range(4):
    joined = np.concatenate([part[step]["index"] for part in parts])
    np.testing.assert_array_equal(joined, rows[step])


# Batches of parts.

ROWS = {"au": np.arange(0, 60, 2), "va": np.arange(17), "": range(60, 71)}  # 30, 17 and 11 rows
PLACES = {"au": 4, "va": 4, "": 3}
PARTS = [pipeline.Part(ROWS[task], PLACES[task], task) for task in ROWS]


def of_parts(rows):
  """[steps, 11] rows -> those of each part."""
  return dict(zip(ROWS, np.split(rows, [4, 8], axis=1), strict=True))


def test_every_batch_has_as_many_rows_of_each_part_as_it_is_to_have():
  drawn = of_parts(steps(pipeline.in_parts(PARTS, 0), 0, 60))
  for task, rows in drawn.items():
    assert rows.shape == (60, PLACES[task])
    assert set(rows.ravel().tolist()) == set(ROWS[task])


@pytest.mark.parametrize("last", [1, 7, 60])
def test_each_part_has_epochs_of_its_own(last):
  for task, rows in of_parts(steps(pipeline.in_parts(PARTS, 0), 0, last)).items():
    drawn = np.bincount(rows.ravel(), minlength=71)[np.array(ROWS[task])]
    whole, more = divmod(last * PLACES[task], len(drawn))
    assert sorted(drawn) == [whole] * (len(drawn) - more) + [whole + 1] * more


def test_parts_of_the_same_rows_come_in_other_orders():
  twins = [pipeline.Part(range(24), 8), pipeline.Part(range(24), 8), pipeline.Part(range(24), 8)]
  drawn = steps(pipeline.in_parts(twins, 0), 0, 3).reshape(3, 3, 8).swapaxes(0, 1).reshape(3, 24)
  assert len({tuple(epoch) for epoch in drawn}) == 3


def test_a_batch_of_one_part_is_that_of_the_order_itself():
  for strata in (None, STRATA):
    whole = pipeline.in_parts([pipeline.Part(range(80), BATCH, strata=strata)], 5)
    expected = pipeline.order(80, 5, BATCH, strata)
    np.testing.assert_array_equal(steps(whole, 0, 30), steps(expected, 0, 30))
    assert whole[3].dtype == expected[3].dtype
  windows = np.random.default_rng(0).integers(-1, 200, (30, 5))
  clips = pipeline.in_parts([pipeline.Part(windows, 4)], 5)
  expected = pipeline.of_windows(pipeline.order(30, 5, 4), windows)
  np.testing.assert_array_equal(steps(clips, 0, 10), steps(expected, 0, 10))
  np.testing.assert_array_equal(clips[2], windows[pipeline.order(30, 5, 4)[2]])


def test_a_part_may_be_balanced():
  parts = [pipeline.Part(range(80), BATCH, strata=STRATA), pipeline.Part(range(80, 90), 2)]
  drawn = steps(pipeline.in_parts(parts, 0), 0, 60)
  counts = [(STRATA[drawn[:, :BATCH]] == c).sum() for c in SIZES]
  np.testing.assert_allclose(counts, 120, atol=2)
  assert drawn[:, BATCH:].min() == 80


@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_batches_of_parts_are_a_function_of_seed_and_step(step):
  rows = pipeline.in_parts(PARTS, 5)
  first = steps(rows, step, step + 6)
  np.testing.assert_array_equal(steps(pipeline.in_parts(PARTS, 5)[step:], 0, 6), first)
  np.testing.assert_array_equal(pipeline.in_parts(PARTS, 5)[step + 3], first[3])
  assert (steps(pipeline.in_parts(PARTS, 6), step, step + 6) != first).any()


def test_places_teach_the_task_of_their_part_alone_and_those_of_no_task_teach_all():
  taught = pipeline.taught_by(PARTS, ("au", "expression", "va"))
  assert taught["au"].tolist() == [1] * 4 + [0] * 4 + [1] * 3
  assert taught["expression"].tolist() == [0] * 8 + [1] * 3
  assert taught["va"].tolist() == [0] * 4 + [1] * 7
  assert pipeline.taught_by([pipeline.Part(range(8), 4)], ("au", "va")) == {}


def test_what_a_place_does_not_teach_is_masked_and_all_else_is_as_it_was():
  rng = np.random.default_rng(0)
  drawn = lambda *shape: rng.integers(0, 2, (11, *shape)).astype(np.float32)
  mask = {"va": drawn(2), "expression": drawn(), "au": drawn(12), "expression_strict": drawn()}
  batch = {"image": drawn(3), "labels": {"va": drawn(2)}, "mask": mask, "index": np.arange(11)}
  taught = pipeline.taught_by(PARTS, ("au", "expression", "va"))
  found = pipeline.teaching(batch, taught)
  for name, values in mask.items():
    for place in range(11):
      task = (["au"] * 4 + ["va"] * 4 + [""] * 3)[place]
      stays = task in ("", name.removesuffix("_strict"))
      np.testing.assert_array_equal(found["mask"][name][place], values[place] * stays)
  same({**found, "mask": mask}, batch)
  same(jax.jit(lambda batch: pipeline.teaching(batch, taught))(batch), found)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_what_the_places_of_a_batch_teach(opened, processes):
  parts = [pipeline.Part(range(20), 4, "expression"), pipeline.Part(range(LENGTH), 4, "va")]
  rows, taught = pipeline.in_parts(parts, 0), pipeline.taught_by(parts, ("expression",))
  options = dict(processes=processes, taught=taught)
  read_by = lambda p: read(pipeline.batches(opened, rows, process=p, **options), 4)
  parts = [read_by(process) for process in range(processes)]
  labelled = 0
  for step in range(4):
    joined = jax.tree.map(lambda *x: np.concatenate(x), *[part[step] for part in parts])
    expected = opened.batch(rows[step])
    labelled += expected["mask"]["expression"][:4].sum()
    expected["mask"] = {name: x * (np.arange(8) < 4) for name, x in expected["mask"].items()}
    same(joined, expected)
  assert labelled


@pytest.mark.slow
def test_the_number_of_workers_does_not_change_batches_of_parts(opened, parsed_flags):
  parts = [pipeline.Part(np.arange(3, LENGTH), 5, "expression"), pipeline.Part(range(9), 3, "va")]
  rows, taught = pipeline.in_parts(parts, 0)[3:], pipeline.taught_by(parts, ("expression",))
  with_workers = read(pipeline.batches(opened, rows, workers=2, taught=taught), 7)
  same(with_workers, read(pipeline.batches(opened, rows, workers=0, taught=taught), 7))


# Who reads.


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_shares_of_the_processes_make_up_the_global_batch(opened, processes):
  rows = pipeline.order(LENGTH, 0, BATCH)
  read_by = lambda process: read(
    pipeline.batches(opened, rows, process=process, processes=processes), 6
  )
  parts = [read_by(process) for process in range(processes)]
  for step in range(6):
    assert all(len(part[step]["index"]) == BATCH // processes for part in parts)
    joined = jax.tree.map(lambda *x: np.concatenate(x), *[part[step] for part in parts])
    same(joined, opened.batch(rows[step]))


def test_a_batch_that_does_not_divide_among_the_processes_is_refused():
  with pytest.raises(ValueError):
    pipeline.Share(0, 3)(np.arange(8))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_stays_what_it_is_over_a_hundred_epochs(opened):
  pages = lambda: int(Path("/proc/self/statm").read_text().split()[1])
  with contextlib.closing(
    iter(pipeline.batches(opened, pipeline.order(LENGTH, 0, BATCH)))
  ) as drawn:
    taken = lambda epochs: [next(drawn)["index"][0] for _ in range(epochs * LENGTH // BATCH)]
    taken(20)
    before = pages()
    taken(120)
    grown = (pages() - before) * resource.getpagesize()
  assert grown < 4e6  # of 31 MB of images that were read


def test_the_number_of_threads_does_not_change_the_batches(opened):
  rows = pipeline.order(LENGTH, 0, BATCH)
  one = read(pipeline.batches(opened, rows, threads=1), 10)
  same(read(pipeline.batches(opened, rows, threads=3), 10), one)
  same(one, [opened.batch(rows[step]) for step in range(10)])


@pytest.mark.slow
@pytest.mark.parametrize("strata", [None, np.arange(LENGTH) % 3 - 1], ids=["uniform", "balanced"])
def test_the_number_of_workers_does_not_change_the_batches(opened, parsed_flags, strata):
  rows = pipeline.order(LENGTH, 0, BATCH, strata)
  with_workers = read(pipeline.batches(opened, rows[3:], workers=2), 7)  # as on resuming
  same(with_workers, read(pipeline.batches(opened, rows[3:], workers=0), 7))
  same(with_workers, [opened.batch(rows[3 + step]) for step in range(7)])


class Environment:
  """Stands in for `Records`: says what a worker sees. Sent to the worker by its name."""

  def labelled(self, batch):
    return batch

  def images(self, rows):
    platforms = {os.environ.get("JAX_PLATFORMS")}
    if "jax" in sys.modules:
      platforms.add(sys.modules["jax"].config.jax_platforms)
    return {"cpu": np.array([platforms == {"cpu"}]), "pid": np.array([os.getpid()])}


@pytest.mark.slow
def test_workers_keep_off_the_accelerators(monkeypatch, parsed_flags):
  monkeypatch.setenv("JAX_PLATFORMS", "cuda")  # what a worker would inherit on a machine with a GPU
  rows = pipeline.order(LENGTH, 0, BATCH)
  here, there = (
    read(pipeline.batches(Environment(), rows, workers=workers), 1)[0] for workers in (0, 1)
  )
  assert (here["pid"] == os.getpid()).all()
  assert not here["cpu"].any()
  assert (there["pid"] != os.getpid()).all()
  assert there["cpu"].all()


OWNER = """
import os, signal, sys, time
import grain
from absl import flags
from affjax.data import pipeline
from pipeline_test import Environment

flags.FLAGS.mark_as_parsed()
if __name__ == "__main__":
  batches = iter(pipeline.batches(Environment(), pipeline.order(8, 0, 4), workers=1))
  worker = int(next(batches)["pid"][0])
  print(worker, flush=True)
  os.kill(worker, signal.SIGINT)  # as a terminal does
  for _ in range(20):  # more than were made ahead
    assert next(batches)["pid"][0] == worker
  print("still works", flush=True)
  time.sleep(99)
"""


def test_a_worker_outlives_ctrl_c_and_ends_with_its_run_however_that_ends(tmp_path):
  script = tmp_path / "owner.py"
  script.write_text(OWNER)
  paths = os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parent.parent)))
  process = subprocess.Popen(
    [sys.executable, str(script)],
    env={**os.environ, "PYTHONPATH": paths},
    stdout=subprocess.PIPE,
    text=True,
  )
  worker = int(process.stdout.readline())
  assert process.stdout.readline() == "still works\n"
  process.kill()
  process.wait()
  for _ in range(100):
    try:
      if Path(f"/proc/{worker}/stat").read_text().split()[2] == "Z":
        return
    except FileNotFoundError:
      return
    time.sleep(0.1)
  os.kill(worker, signal.SIGKILL)
  raise AssertionError("the worker was still there ten seconds after its run was killed")
