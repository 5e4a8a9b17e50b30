import jax
import jax.numpy as jnp
import numpy as np

from affjax import state


def make(ema=None):
  return state.TrainState(jnp.int32(3), {"model": {"w": jnp.ones(4)}}, {}, (), ema)


def average(values, decay):
  ema = {"w": jnp.float32(0)}
  update = jax.jit(state.update_ema, static_argnames="decay")
  for step, value in enumerate(values):
    ema = update(ema, {"w": jnp.float32(value)}, jnp.int32(step), decay=decay)
  return float(ema["w"])


def test_the_average_is_the_formula_with_a_decay_that_grows():
  values = np.random.default_rng(0).normal(size=40)
  expected = 0.0
  for step, value in enumerate(values):
    rate = min(0.5, (1 + step) / (10 + step))  # reaches .5 at step 8
    expected = rate * expected + (1 - rate) * value
  np.testing.assert_allclose(average(values, 0.5), expected, rtol=1e-5)


def test_the_average_soon_forgets_the_random_start():
  assert average([1.0] * 20, 0.9999) > 0.99
  assert average([1.0], 0.9999) == np.float32(0.9)


def test_without_a_decay_the_average_is_the_last_value():
  assert average([3.0, 5.0], 0.0) == 5.0


def test_no_average_stays_no_average():
  assert state.update_ema(None, {"w": jnp.ones(2)}, jnp.int32(0), 0.9) is None


def test_evaluation_uses_the_average_where_there_is_one():
  ema = {"model": {"w": jnp.zeros(4)}}
  assert make(ema).averaged is ema
  bare = make()
  assert bare.averaged is bare.params


def test_the_state_is_a_tree_whose_replacement_leaves_the_original():
  first = make()
  second = first.replace(step=jnp.int32(4))
  assert (int(first.step), int(second.step)) == (3, 4)
  assert second.params is first.params
  doubled = jax.jit(lambda s: jax.tree.map(lambda x: 2 * x, s))(first)
  assert isinstance(doubled, state.TrainState)
  assert int(doubled.step) == 6
  assert doubled.ema is None


def test_count_is_of_numbers_not_of_arrays():
  assert state.count({"a": jnp.ones((3, 4)), "b": {"c": jnp.ones(5), "d": jnp.float32(1)}}) == 18
