"""Ensembles: the mean of networks that each are what one alone would be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from affjax.models import affect, ensembles

SECTIONS = dict(
  encoder=dict(
    name="vit.ViT", variant="mu/8", width=16, depth=1, num_heads=2, mask_rate=0.5, dropout_rate=0.1
  ),
  decoder=dict(name="decoders.Linear"),
)
OUTPUTS = dict(va=2, expression=6, au=3)
SIZES = dict(outputs=OUTPUTS, image_size=16)


def made(members=2, **options):
  return ensembles.Ensemble(members=members, **SIZES, **SECTIONS | options, rngs=nnx.Rngs(0))


@functools.cache
def pair():
  return made()


def alone():
  return affect.AffectModel(**SIZES, **SECTIONS, rngs=nnx.Rngs(0))


def images(batch=4):
  return jax.random.uniform(jax.random.key(0), (batch, 16, 16, 3), minval=-1)


def learning(model, **options):
  return model(images(), train=True, rngs=nnx.Rngs(dropout=0), **options)


def names(model):
  flat = nnx.traversals.flatten_mapping(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
  return {"/".join(map(str, path)): x for path, x in flat.items()}


def same(left, right):
  assert left.keys() == right.keys()
  for name, x in left.items():
    np.testing.assert_array_equal(x, right[name], err_msg=name)


def test_one_network_is_what_it_is_alone_to_the_bit():
  one, expected = made(members=1), alone()
  same(names(one), {f"members/0/{name}": x for name, x in names(expected).items()})
  same(one(images()), expected(images()))
  same(one.features(images()), expected.features(images()))
  found, trained = learning(one), learning(expected)
  same({name: found[name] for name in OUTPUTS}, trained)
  same({name: found[f"{name}/0"] for name in OUTPUTS}, trained)


def test_networks_begin_with_numbers_of_their_own_and_the_first_with_those_of_one_alone():
  found, expected = names(pair()), names(alone())
  assert found.keys() == {f"members/{i}/{name}" for i in range(2) for name in expected}
  for name, x in expected.items():
    np.testing.assert_array_equal(found[f"members/0/{name}"], x)
    drawn = np.ptp(x) > 0  # biases and scales are not
    assert (found[f"members/1/{name}"] != x).any() == drawn, name


def test_it_gives_the_mean_of_what_its_networks_give_and_the_largest_class_of_their_sum():
  model = pair()
  found = model(images())
  first, second = (member(images()) for member in model.members)
  assert found.keys() == OUTPUTS.keys()
  for name in OUTPUTS:
    assert np.abs(first[name] - second[name]).max() > 1e-3
    np.testing.assert_allclose(found[name], (first[name] + second[name]) / 2, atol=1e-6)
  total = first["expression"] + second["expression"]
  np.testing.assert_array_equal(found["expression"].argmax(1), total.argmax(1))


def test_while_learning_each_has_its_own_outputs_behind_its_own_mask():
  twins = made()
  nnx.update(twins.members[1], nnx.state(twins.members[0]))
  found = learning(twins)
  assert found.keys() == {*OUTPUTS, *(f"{name}/{i}" for name in OUTPUTS for i in range(2))}
  for name in OUTPUTS:
    # Of the same parameters, so it is the masks that differ.
    assert np.abs(found[f"{name}/0"] - found[f"{name}/1"]).max() > 1e-3
    np.testing.assert_allclose(found[name], (found[f"{name}/0"] + found[f"{name}/1"]) / 2)
  plain = twins(images())
  same(plain, {name: twins.members[0](images())[name] for name in OUTPUTS})


def test_features_are_those_of_all_one_behind_the_other():
  model = pair()
  found = model.features(images())
  each = [member.features(images()) for member in model.members]
  expected = np.concatenate([of["features"] for of in each], 1)
  np.testing.assert_array_equal(found["features"], expected)
  assert expected.shape == (4, 2 * 16)
  np.testing.assert_array_equal(found["va"], model(images())["va"])


@pytest.mark.slow
def test_clips_pass_through_with_which_frames_there_are():
  model = made(temporal=dict(name="temporal.GRU", width=8))
  clips = images(6).reshape(2, 3, 16, 16, 3)
  present = jnp.array([[True, True, True], [True, False, False]])
  found = model(clips, present)
  each = [member(clips, present) for member in model.members]
  assert found["va"].shape == (2, 3, 2)
  np.testing.assert_allclose(found["va"], (each[0]["va"] + each[1]["va"]) / 2, atol=1e-6)


@pytest.mark.slow
def test_attention_is_that_of_all_heads_side_by_side():
  decoder = dict(
    name="decoders.TaskTokens", width=8, depth=1, num_heads=2, layout="task", position_bias=False
  )
  model = made(decoder=decoder)
  outputs, maps = model(images(), attention=True)
  each = [member(images(), attention=True)[1] for member in model.members]
  assert maps["encoder"].shape == (1, 4, 4, 4, 4)
  for part in ("tokens", "image"):
    expected = np.concatenate([of["decoder"][part] for of in each], 2)
    np.testing.assert_array_equal(maps["decoder"][part], expected)
    np.testing.assert_allclose(maps["decoder"][part].sum(-1), 1, atol=1e-5)
  assert model.decoder.token_names == ("va", "expression", "au")
  assert learning(model)["va/1"].shape == (4, 2)


def test_networks_of_another_kind_are_built_from_their_own_sections():
  model = made(network="ensembles.Ensemble", members=2)
  assert len(model.members[0].members) == 2
  each = [inner(images())["va"] for outer in model.members for inner in outer.members]
  np.testing.assert_allclose(model(images())["va"], sum(each) / 4, atol=1e-6)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(members=0), "config.model.members=0: use 1 to 16"),
    (dict(members=17), "members=17"),
    (dict(encoders={}), r"affect.AffectModel takes no \['encoders'\]; it takes \['encoder'"),
    (dict(network="affect.Affect"), "'affect.Affect'.* has no 'Affect'"),
  ],
)
def test_what_does_not_fit_is_an_error_that_says_what_does(options, message):
  with pytest.raises(ValueError, match=message):
    made(**options)
