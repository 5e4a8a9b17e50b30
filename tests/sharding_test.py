import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affjax import sharding


@pytest.mark.parametrize(
  ("given", "shape"),
  [
    (dict(), (8, 1)),
    (dict(data=-1, model=2), (4, 2)),
    (dict(data=2, model=4), (2, 4)),
    (dict(data=1, model=8), (1, 8)),
  ],
)
def test_a_mesh_covers_all_devices(given, shape):
  mesh = sharding.make_mesh(**given)
  assert tuple(mesh.shape.values()) == shape
  assert mesh.axis_names == ("data", "model")
  assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
  ("data", "model"), [(3, 1), (-1, 3), (8, 2), (4, 1), (-1, 0), (0, 8), (-1, -1), (-8, -1), (-2, 1)]
)
def test_a_mesh_that_does_not_cover_the_devices_is_refused(data, model):
  with pytest.raises(ValueError, match="does not cover 8 devices: set config.mesh.data=-1"):
    sharding.make_mesh(data, model)


def test_batches_must_divide_over_the_data_axis():
  mesh = sharding.make_mesh(-1, 2)
  sharding.check_batch(12, mesh, "config.batch_size")
  for size in (0, 6, -4):
    with pytest.raises(ValueError, match=f"config.batch_size={size} is not a multiple of the 4"):
      sharding.check_batch(size, mesh, "config.batch_size")


def test_a_global_batch_is_split_over_the_devices_and_holds_the_same_rows():
  mesh = sharding.make_mesh()
  batch = {"image": np.arange(16 * 6, dtype=np.uint8).reshape(16, 2, 3), "mask": np.arange(16.0)}
  spread = sharding.global_batch(batch, mesh)
  for name, array in spread.items():
    assert array.shape == batch[name].shape
    np.testing.assert_array_equal(array, batch[name])
    shards = sorted(array.addressable_shards, key=lambda s: s.index[0].start)
    assert len({shard.device for shard in shards}) == 8
    for i, shard in enumerate(shards):
      np.testing.assert_array_equal(shard.data, batch[name][2 * i : 2 * i + 2])
  assert spread["image"].dtype == np.uint8


def test_along_the_model_axis_rows_are_repeated():
  spread = sharding.global_batch(np.arange(8), sharding.make_mesh(-1, 2))
  assert [shard.data.shape for shard in spread.addressable_shards] == [(2,)] * 8


def test_replicated_arrays_are_whole_on_every_device():
  array = jax.device_put(np.arange(4), sharding.replicated(sharding.make_mesh()))
  assert len(array.addressable_shards) == 8
  for shard in array.addressable_shards:
    np.testing.assert_array_equal(shard.data, np.arange(4))


def test_a_learned_token_can_be_joined_to_a_batch_that_is_split():
  mesh = sharding.make_mesh()
  patches = sharding.global_batch(np.ones((8, 3, 2), np.float32), mesh)
  token = jax.device_put(np.zeros((1, 1, 2), np.float32), sharding.replicated(mesh))
  join = lambda t, x: jnp.concatenate([jnp.broadcast_to(t, (8, 1, 2)), x], axis=1)
  assert jax.jit(join)(token, patches).shape == (8, 4, 2)
