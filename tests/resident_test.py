"""A split in device memory gives what streaming gives."""

import jax
import numpy as np
import pytest
from conftest import debug_config

from affjax import experiment, procedures, resident, sharding, train
from affjax.data import pipeline, records


@pytest.fixture(scope="module")
def opened(tiny_ferplus):
  """The tiny FER+, whose splits eight devices cannot share evenly."""
  wants = {"expression": ("anger", "happiness", "boredom"), "au": ("AU1", "AU2")}
  return {s: records.records(tiny_ferplus, s, wants, 40) for s in ("train", "validation")}


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_batches_from_device_memory_are_those_from_disk(spread, split, opened):
  mesh = sharding.make_mesh()
  held = resident.Resident(opened[split], mesh, spread=spread)
  assert all(len(x.sharding.spec) == spread for x in jax.tree.leaves(held.arrays))
  order = pipeline.order(len(opened[split]), 3, 16)
  gather = jax.jit(held.batch)
  for step, rows in zip(range(4), held.rows(order), strict=False):
    expected = opened[split].batch(order[step])
    found = gather(held.arrays, rows)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), expected)
    for x in jax.tree.leaves(found):
      assert x.sharding.is_equivalent_to(sharding.split_batch(mesh), x.ndim)


def test_a_device_holds_its_share_of_a_spread_split(opened):
  held = resident.Resident(opened["validation"], sharding.make_mesh(), spread=True)
  images = held.arrays["image"]
  assert images.shape == (16, 40, 40, 3)  # of 9 to 12 rows, padded to two a device
  assert {shard.data.shape for shard in images.addressable_shards} == {(2, 40, 40, 3)}


def plan(opened, monkeypatch, placement, free):
  monkeypatch.setattr(resident, "_free", lambda mesh: free)
  return resident.plan(placement, opened["train"], sharding.make_mesh())


def test_auto_takes_device_memory_where_the_split_takes_a_quarter_of_it(opened, monkeypatch):
  size = plan(opened, monkeypatch, "stream", None).size
  batch = opened["train"].batch(np.arange(len(opened["train"])))
  assert size == sum(x.nbytes for x in jax.tree.leaves(batch))
  where = lambda placement, free: plan(opened, monkeypatch, placement, free).where
  assert where("auto", 4 * size) == "whole"
  assert where("auto", 4 * size - 8) == "spread"
  assert where("auto", size // 2) == "spread"
  assert where("auto", size // 2 - 8) == "stream"
  assert where("auto", None) == "stream"
  assert where("stream", 100 * size) == "stream"
  assert where("device", size) == "whole"
  assert where("device", size - 1) == "spread"
  assert where("device", None) == "whole"


def test_what_does_not_fit_is_refused(opened, monkeypatch):
  with pytest.raises(ValueError, match=r"placement='device': the split takes .* GB free: use 'str"):
    plan(opened, monkeypatch, "device", 1000)
  with pytest.raises(ValueError, match="placement='disk': use one of auto, stream, device"):
    plan(opened, monkeypatch, "disk", 1000)


def test_free_memory_is_shared_by_fake_devices():
  free = resident._free(sharding.make_mesh())
  assert 1e6 < free < resident._host_memory() / 7


@pytest.mark.parametrize(
  ("others", "expected"), [([5e9, 3e9], 3 * 10**9), ([5e9, -1], None), ([-1, -1], None)]
)
def test_processes_plan_with_what_the_poorest_of_them_has(others, expected, monkeypatch):
  monkeypatch.setattr(resident.jax, "process_count", lambda: len(others))
  gathered = np.array(others, np.float32)
  monkeypatch.setattr(resident.multihost_utils, "process_allgather", lambda own: gathered)
  assert resident._free(sharding.make_mesh()) == expected


@pytest.mark.parametrize("spread", [False, True])
def test_training_from_device_memory_takes_the_same_steps_to_the_bit(spread, tiny_faces):
  config = debug_config()
  data = experiment.Data(config, tiny_faces)
  mesh = sharding.make_mesh()
  procedure = procedures.from_config(config)
  abstract = experiment.abstract_state(procedure, mesh)
  split = data.records(data.train_split)
  after = []
  for held in (None, resident.Resident(split, mesh, spread=spread)):
    step = experiment.train_step(procedure, abstract, mesh, held)
    batches = train.training_batches(config, data, mesh, 0, held)
    placed = jax.tree.map(lambda x: x.sharding, abstract)
    state = jax.jit(procedure.init, out_shardings=placed)()
    for _ in range(2):
      state, metrics = step(state, next(batches))
    batches.close()
    after.append(jax.device_get((state, metrics)))
  jax.tree.map(np.testing.assert_array_equal, *after)
