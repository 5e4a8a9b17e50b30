import jax
import jax.numpy as jnp
import numpy as np
import public_weights
import pytest
from flax import nnx

from affjax.models import affect, vgg, weights


def shapes(**options):
  return nnx.eval_shape(lambda: vgg.VGG(**({"image_size": 224} | options), rngs=nnx.Rngs(0)))


def count(model):
  return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_it_has_as_many_parameters_as_are_published():
  assert count(shapes()) == 14_714_688
  model = shapes(dense=(4096, 4096))
  assert count(model) + 4096 * 1000 + 1000 == 138_357_544
  assert (model.width, model.num_tokens) == (4096, 1)
  assert model.dense[0].kernel.shape == (7 * 7 * 512, 4096)


def test_the_last_map_becomes_a_grid_or_one_token_in_the_dtype_that_is_asked_for():
  for options, expected in (
    (dict(grid=0), (2, 9, 64)),
    (dict(grid=3, norm="batch"), (2, 9, 64)),
    (dict(norm="group"), (2, 1, 64)),
    (dict(dense=(48, 32)), (2, 1, 32)),
    (dict(grid=0, stages=4, norm="batch"), (2, 49, 64)),
    (dict(grid=0, stages=2), (2, 784, 16)),
  ):
    model = shapes(image_size=112, multiplier=0.125, dtype="bfloat16", **options)
    graph, state = nnx.split(model)
    run = lambda state, x, graph=graph: nnx.merge(graph, state)(x, attention=True)
    tokens, maps = jax.eval_shape(run, state, jnp.zeros((2, 112, 112, 3)))
    assert tokens.shape == expected == (2, model.num_tokens, model.width)
    assert tokens.dtype == jnp.bfloat16
    assert maps == {}


def test_wrong_options_are_refused_by_name():
  for options, says in (
    (dict(norm="layer"), "norm 'layer' of a VGG.*'batch', 'group', 'none'"),
    (dict(grid=8), "grid 8 of VGG: its last map of 224 x 224 pixels is 7 x 7"),
    (dict(image_size=31), "last map of 31 x 31 pixels is 0 x 0"),
    (dict(image_size=31, dense=(8,)), "last map of 31 x 31 pixels is 0 x 0"),
    (dict(dense=(8,), grid=2), "last map of 224 x 224 pixels is 1 x 1"),
    (dict(stages=6), "stages 6 of a VGG: it has 1 to 5"),
    (dict(dense=(8, 0)), r"dense \(8, 0\) of a VGG"),
  ):
    with pytest.raises(ValueError, match=says):
      shapes(**options)


def test_narrow_networks_with_public_names_answer_as_in_pytorch():
  public_weights.check_golden("vgg")


def test_dropout_is_on_while_training_and_follows_every_dense_layer():
  options = dict(image_size=32, multiplier=0.125, dense=(64, 64))
  model = public_weights.drawn(lambda: vgg.VGG(**options, rngs=nnx.Rngs(0)))
  model.dense[1].bias[...] = jnp.ones(64)  # what is 0 was dropped
  graph, state = nnx.split((model, nnx.Rngs(dropout=1)))

  @jax.jit
  def run(state, x):
    model, rngs = nnx.merge(graph, state)
    return model(x, train=True, rngs=rngs), model(x)

  trained, still = run(state, public_weights.images(32, batch=8))
  assert 0.35 < float((trained == 0).mean()) < 0.65
  assert float((still == 0).mean()) < 0.2


def test_it_is_an_encoder_whose_convolutions_have_names_that_can_be_frozen():
  make = lambda: affect.AffectModel(
    encoder=dict(name="vgg.VGG", dense=(64, 64), multiplier=0.125),
    decoder=dict(name="decoders.Linear"), outputs={"va": 2}, image_size=64, rngs=nnx.Rngs(0),
  )  # fmt: skip
  flat = nnx.to_flat_state(nnx.state(nnx.eval_shape(make), nnx.Param))
  names = ["/".join(map(str, path)) for path, _ in flat]
  own = [name for name in names if name.startswith("encoder/")]
  convolutions = [n for n in own if n.startswith(("encoder/stem/", "encoder/blocks/"))]
  assert len(convolutions) == 2 * 13
  assert sorted(set(own) - set(convolutions)) == [
    f"encoder/dense/{i}/{part}" for i in (0, 1) for part in ("bias", "kernel")
  ]


def torchvision(dense=True):
  """Shapes under torchvision's names, of a network an eighth as wide."""
  found, inner, place = {}, 3, 0
  for outer, repeats in ((8, 2), (16, 2), (32, 3), (64, 3), (64, 3)):
    for _ in range(repeats):
      found |= {
        f"features.{place}.weight": (outer, inner, 3, 3),
        f"features.{place}.bias": (outer,),
      }
      inner, place = outer, place + 2
    place += 1
  for number, sizes in ((0, (40, 49 * 64)), (3, (24, 40)), (6, (10, 24))) if dense else ():
    found |= {f"classifier.{number}.weight": sizes, f"classifier.{number}.bias": sizes[:1]}
  return found


def test_public_names_say_which_encoder_they_need():
  arrays = public_weights.draw(torchvision())
  public = weights.convert({f"module.{name}": array for name, array in arrays.items()})
  expected = dict(name="vgg.VGG", multiplier=0.125, dense=[40, 24], norm="none")
  assert public.encoder == expected
  np.testing.assert_array_equal(
    public.arrays["blocks/11/kernel"][2, 1, 5], arrays["features.28.weight"][:, 5, 2, 1]
  )
  # Channels, rows, columns there; rows, columns, channels here.
  there = arrays["classifier.0.weight"].reshape(40, 64, 7, 7)
  here = public.arrays["dense/0/kernel"].reshape(7, 7, 64, 40)
  np.testing.assert_array_equal(here[3, 5, 7], there[:, 7, 3, 5])
  assert weights.convert(public_weights.draw(torchvision(dense=False))).encoder["dense"] == []


def test_what_is_no_vgg16_is_said():
  arrays = public_weights.draw(torchvision())
  one = np.ones(3, np.float32)
  without = {name: array for name, array in arrays.items() if name != "features.0.bias"}
  odd = {"classifier.0.weight": np.ones((40, 50 * 64), np.float32)}
  for wrong, says in (
    (arrays | {"features.34.weight": one}, "^features.34.weight: no parameters of a VGG16"),
    (without, "named as in torchvision's VGG16, lack stem/bias"),
    (arrays | odd, r"dense/0/kernel of shape \(40, 3200\): .*64 channels"),
    (arrays | {"classifier.0.weight": one}, r"dense/0/kernel of shape \(3,\)"),
    (arrays | {"features.28.bias": one[:0]}, "dense/0/kernel of shape .*0 channels"),
  ):
    with pytest.raises(ValueError, match=says):
      weights.convert(wrong)
