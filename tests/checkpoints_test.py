"""Saved steps: what counts, what is refused, what stays; and a run of an earlier version."""

import errno
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from conftest import remount
from jax.sharding import NamedSharding, PartitionSpec

import affjax
from affjax import checkpoints, paths, sharding
from scripts import make_golden_run

ROOT = Path(__file__).parent.parent


def state(value=0.0, width=8):
  return {
    "params": {"model": {"kernel": jnp.arange(16.0 * width).reshape(16, width) + value}},
    "ema": None,
    "step": jnp.int32(value),
  }


WHOLE = PartitionSpec()


def abstract(tree, mesh=None, spec=WHOLE):
  where = NamedSharding(mesh or sharding.make_mesh(), spec)
  whole = NamedSharding(where.mesh, WHOLE)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where if x.ndim else whole), tree
  )


def save(root, *steps, scores=(), **options):
  saved = checkpoints.Checkpoints(root, **options)
  for step in steps:
    saved.save(step, state(step), {"step": step})
    if step in scores:
      saved.score(step, scores[step])
  saved.close()
  return root


def on_disk(root):
  return sorted(int(path.name) for path in root.iterdir() if path.name.isdigit())


def opened(root, **options):
  saved = checkpoints.Checkpoints(root, **options)
  saved.close()
  return saved


# Which steps stay.


def test_a_saved_step_is_restored_to_the_bit_with_its_position(tmp_path):
  saved = checkpoints.Checkpoints(save(tmp_path, 3))
  found, position = saved.restore(3, abstract(state()))
  saved.close()
  assert position == {"step": 3}
  assert jax.tree.structure(found) == jax.tree.structure(state())
  jax.tree.map(np.testing.assert_array_equal, found, state(3))


def test_the_latest_and_the_best_stay(tmp_path):
  save(tmp_path, 1, 2, 3, 4, 5, scores={1: 0.1, 2: 0.9, 3: 0.5}, keep_last=2, keep_best=1)
  assert on_disk(tmp_path) == [2, 4, 5]
  assert checkpoints.pick(tmp_path, "best") == 2
  assert checkpoints.pick(tmp_path, "latest") == 5


def test_the_later_of_two_equal_scores_is_the_best(tmp_path):
  save(tmp_path, 1, 2, 3, 4, scores={1: 0.5, 2: 0.5}, keep_last=2)
  assert on_disk(tmp_path) == [2, 3, 4]


def test_without_scores_the_latest_is_the_best(tmp_path):
  assert checkpoints.pick(save(tmp_path, 1, 2), "best") == 2


def test_a_step_knows_whether_it_has_its_score(tmp_path):
  assert not opened(save(tmp_path, 1)).scored
  saved = checkpoints.Checkpoints(tmp_path)
  saved.score(1, 0.25)
  saved.close()
  assert opened(tmp_path).scored
  assert checkpoints.score_of(tmp_path / "1") == 0.25
  assert checkpoints.damage(tmp_path / "1") is None


def test_a_score_counts_only_once_it_is_in_the_manifest(tmp_path):
  save(tmp_path, 1)
  (tmp_path / "1" / "score.json").write_text('{"score": 0.5}')  # killed before the manifest
  assert not opened(tmp_path).scored
  assert checkpoints.damage(tmp_path / "1") is None


def test_scores_of_runs_before_they_were_files_of_ours_are_read(tmp_path):
  save(tmp_path, 1)
  (tmp_path / "1" / "metrics").mkdir()
  (tmp_path / "1" / "metrics" / "metrics").write_text('{"score": 0.75}')
  checkpoints.seal(tmp_path / "1")
  assert checkpoints.score_of(tmp_path / "1") == 0.75


def test_one_step_that_stays_is_too_few(tmp_path):
  with pytest.raises(ValueError, match="keep_last=1: at least 2"):
    checkpoints.Checkpoints(tmp_path, keep_last=1)


# What is not as it was written.


def largest(folder):
  return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


FAULTS = {
  "flipped bit in an array": lambda step: flip(largest(step / "state" / "ocdbt.process_0")),
  "flipped bit in Orbax's metadata": lambda step: flip(step / "state" / "_METADATA"),
  "flipped bit in the position": lambda step: flip(step / "position" / "metadata"),
  "flipped bit in the score": lambda step: flip(step / "score.json"),
  "truncated array": lambda step: os.truncate(largest(step / "state"), 10),
  "empty file": lambda step: os.truncate(step / "state" / "_METADATA", 0),
  "missing file": lambda step: (step / "state" / "manifest.ocdbt").unlink(),
  "missing state": lambda step: shutil.rmtree(step / "state"),
  "flipped bit in the manifest": lambda step: flip(step / "manifest.json"),
  "truncated manifest": lambda step: os.truncate(step / "manifest.json", 40),
  "empty manifest": lambda step: os.truncate(step / "manifest.json", 0),
  "manifest of nothing": lambda step: (step / "manifest.json").write_text("{}"),
  "manifest of another kind": lambda step: (step / "manifest.json").write_text("[1, 2]"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_step_is_named_and_the_one_before_is_used(fault, tmp_path, capsys):
  save(tmp_path, 1, 2, scores={1: 0.1, 2: 0.2})
  FAULTS[fault](tmp_path / "2")
  assert checkpoints.pick(tmp_path, "best") == 1
  with pytest.raises(ValueError, match="2 refused"):
    checkpoints.pick(tmp_path, "2")
  capsys.readouterr()
  saved = checkpoints.Checkpoints(tmp_path)
  said = capsys.readouterr().err
  assert saved.latest == 1
  assert f"{tmp_path / '2'} refused" in said
  assert on_disk(tmp_path) == [1]
  assert (tmp_path / "damaged" / "2").is_dir()
  found, _ = saved.restore(1, abstract(state()))
  jax.tree.map(np.testing.assert_array_equal, found, state(1))
  saved.save(2, state(2), {"step": 2})  # and it is made anew
  saved.close()
  assert opened(tmp_path).latest == 2


def test_a_save_that_was_interrupted_is_removed_and_named(tmp_path, capsys):
  save(tmp_path, 1, 2)
  (tmp_path / "2" / "manifest.json").unlink()
  (tmp_path / "3.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
  assert opened(tmp_path).latest == 1
  said = capsys.readouterr().err
  assert f"{tmp_path / '2'} was not finished" in said
  assert "3.orbax-checkpoint-tmp was not finished" in said
  assert on_disk(tmp_path) == [1]


def test_a_reader_leaves_all_as_it_is(tmp_path):
  save(tmp_path, 1, 2, 3)
  flip(tmp_path / "3" / "position" / "metadata")
  (tmp_path / "2" / "manifest.json").rename(tmp_path / "aside")
  before = sorted(tmp_path.rglob("*"))
  assert opened(tmp_path, read_only=True).latest is None
  assert sorted(tmp_path.rglob("*")) == before


def test_where_all_are_damaged_there_is_none(tmp_path):
  save(tmp_path, 1, 2)
  for step in "12":
    flip(tmp_path / step / "state" / "_METADATA")
  assert opened(tmp_path).latest is None
  assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["1", "2"]


# Other devices.

LAYOUTS = {
  "1": (1, PartitionSpec()),
  "4": (4, PartitionSpec()),
  "8": (8, PartitionSpec()),
  "4 split": (4, PartitionSpec("data")),
  "8 split": (8, PartitionSpec("data")),
}


@pytest.mark.parametrize("after", LAYOUTS)
@pytest.mark.parametrize("before", LAYOUTS)
def test_a_step_restores_onto_any_devices_to_the_bit(before, after, tmp_path):
  def placed(layout):
    devices, spec = LAYOUTS[layout]
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    return abstract(state(), mesh, spec)

  there = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), state(5), placed(before))
  saved = checkpoints.Checkpoints(tmp_path)
  saved.save(5, there, {"step": 5})
  saved.wait()
  found, position = saved.restore(5, placed(after))
  saved.close()
  assert position == {"step": 5}
  jax.tree.map(np.testing.assert_array_equal, found, state(5))
  for array, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(placed(after)), strict=True):
    assert array.sharding == wanted.sharding


# Checkpoints of strangers.


def test_arrays_of_another_shape_are_refused_by_name(tmp_path):
  saved = checkpoints.Checkpoints(save(tmp_path, 1))
  with pytest.raises(
    ValueError, match=r"params/model/kernel is float32 \(16, 8\) there, .*\(16, 4\)"
  ):
    saved.restore(1, abstract(state(width=4)))
  other = abstract({**state(), "more": jnp.zeros(3)})
  with pytest.raises(ValueError, match="more is absent there"):
    saved.restore(1, other)
  saved.close()


def inflate(step, size):
  """Has one array of a saved state be of another size, of which no byte is stored."""
  store = {"driver": "ocdbt", "base": f"file://{step / 'state'}/", "path": "params.model.kernel/"}
  opened = tensorstore.open(
    {"driver": "zarr", "kvstore": store}, create=True, delete_existing=True,
    dtype=tensorstore.float32, shape=[size],
  )  # fmt: skip
  opened.result()
  checkpoints.seal(step)


def test_sizes_that_the_files_cannot_hold_are_refused_before_memory_is_asked_for(tmp_path):
  inflate(save(tmp_path, 1) / "1", 10**13)
  saved = checkpoints.Checkpoints(tmp_path)
  with pytest.raises(ValueError, match=r"says that its arrays take 4e\+13 bytes"):
    saved.restore(1, abstract(state()))
  saved.close()
  with pytest.raises(ValueError, match=r"says that its arrays take 4e\+13 bytes"):
    checkpoints.read(tmp_path / "1", ("params",))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"tree_metadata": 1}'])
def test_a_state_that_is_none_is_refused_in_one_line(content, tmp_path):
  save(tmp_path, 1)
  (tmp_path / "1" / "state" / "_METADATA").write_bytes(content)
  checkpoints.seal(tmp_path / "1")
  saved = checkpoints.Checkpoints(tmp_path)
  for read in (
    lambda: saved.restore(1, abstract(state())),
    lambda: checkpoints.read(tmp_path / "1", ("params",)),
  ):
    with pytest.raises(ValueError, match="checkpoint .*1 ") as refused:
      read()
    assert "\n" not in str(refused.value)
  saved.close()


# A place that cannot be written to.


def test_a_full_disk_is_said_with_what_is_on_disk_and_loses_nothing(disk):
  root = disk("size=1m")
  save(root, 1)
  saved = checkpoints.Checkpoints(root)
  large = {"noise": jax.random.normal(jax.random.key(0), (600, 1000))}
  saved.save(2, large, {"step": 2})
  with pytest.raises(
    checkpoints.SaveError, match=f"step 2 .*{os.strerror(errno.ENOSPC)}; step 1 is"
  ):
    saved.wait()
  with pytest.raises(checkpoints.SaveError):
    saved.close()
  again = checkpoints.Checkpoints(root)  # which makes room
  assert again.latest == 1
  again.save(2, state(2), {"step": 2})
  again.close()
  assert opened(root).latest == 2


def test_a_save_that_failed_in_the_background_is_noticed_without_waiting(disk):
  root = disk("size=1m")
  saved = checkpoints.Checkpoints(root)
  saved.check()
  saved.save(2, {"noise": jax.random.normal(jax.random.key(0), (600, 1000))}, {"step": 2})
  while not saved._sealing.done():
    pass
  with pytest.raises(checkpoints.SaveError, match="no step is on disk yet"):
    saved.check()
  with pytest.raises(checkpoints.SaveError):
    saved.close()


def test_a_disk_that_became_read_only_is_said(disk):
  root = disk("size=1m")
  saved = checkpoints.Checkpoints(save(root, 1))
  remount(root, "ro")
  with pytest.raises(checkpoints.SaveError, match=os.strerror(errno.EROFS)):
    saved.score(1, 0.5)
  with pytest.raises(checkpoints.SaveError, match=os.strerror(errno.EROFS)):
    saved.save(2, state(2), {"step": 2})
  remount(root, "rw")
  assert opened(root).latest == 1


# A run of an earlier version: it must open for ever, see scripts/make_golden_run.py.


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
  return shutil.copytree(make_golden_run.GOLDEN, tmp_path_factory.mktemp("golden") / "run")


def test_the_state_of_the_golden_run_is_restored_to_the_bit(golden):
  found, position = make_golden_run.state_of(golden)
  assert position["step"] == 2
  with np.load(golden / "state.npz") as expected:
    assert set(found) == set(expected)
    for name, array in expected.items():
      np.testing.assert_array_equal(found[name], array)


def test_the_golden_run_predicts_what_it_did(golden):
  found = affjax.load(str(golden)).outputs(make_golden_run.images())
  with np.load(golden / "outputs.npz") as expected:
    for task in expected:
      np.testing.assert_allclose(found[task], expected[task], atol=1e-5)


def test_the_golden_run_can_be_taken_as_a_start(golden):
  found = checkpoints.read(golden / "checkpoints" / "2", ("params",))
  with np.load(golden / "state.npz") as expected:
    for name, array in paths.named(found).items():
      np.testing.assert_array_equal(array, expected[name])
  assert checkpoints.score_of(golden / "checkpoints" / "2") is not None
