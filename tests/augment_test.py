import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from affjax import augment, sharding

OFF = dict(
  flip_rate=0.0, scale=0.0, shift=0.0, brightness=0.0, contrast=0.0, cast=0.0, grey_rate=0.0,
  erase_rate=0.0, erase_area=0.2,
)  # fmt: skip
ALL = OFF | dict(
  flip_rate=0.5, scale=0.2, shift=0.1, brightness=0.3, contrast=0.3, cast=0.1, grey_rate=0.3,
  erase_rate=0.5,
)  # fmt: skip
KEY = jax.random.key(7)


def faces(rows=64, size=32, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (rows, size, size, 3), np.uint8)


def plain(rows=64, size=32, level=255):
  return np.full((rows, size, size, 3), level, np.uint8)


@functools.partial(jax.jit, static_argnames="size")
def compiled(images, key, size, options):
  return augment.augment(images, key, size, **options)


def views(images, key=KEY, size=None, **options):
  return np.asarray(compiled(images, key, size or images.shape[1], options))


# Preparation without chance.


def test_normalise_maps_bytes_to_minus_one_to_one():
  values = augment.normalise(jnp.array([0, 51, 255], jnp.uint8))
  np.testing.assert_allclose(values, [-1, -0.6, 1], atol=1e-6)
  assert values.dtype == jnp.float32


def test_preprocess_leaves_the_pixels_of_images_of_the_right_size():
  images = faces()
  np.testing.assert_array_equal(
    augment.preprocess(jnp.asarray(images), 32), augment.normalise(jnp.asarray(images))
  )


def test_preprocess_averages_when_it_shrinks_and_keeps_constants():
  ramp = jnp.asarray(np.arange(0, 256, 4, dtype=np.uint8).reshape(1, 1, 64, 1))
  images = jnp.broadcast_to(ramp, (1, 64, 64, 3))
  halved = augment.preprocess(images, 32)
  assert halved.shape == (1, 32, 32, 3)
  pairs = (np.arange(0, 256, 4).reshape(32, 2).mean(1) / 127.5 - 1)[1:-1]
  np.testing.assert_allclose(halved[0, 5, 1:-1, 0], pairs, atol=1e-5)
  np.testing.assert_allclose(augment.preprocess(jnp.asarray(plain(1)), 20), 1.0, atol=1e-6)


# Random views.


@pytest.mark.parametrize("size", [32, 24, 64])
def test_with_everything_off_a_view_is_what_evaluation_sees(size):
  images = faces()
  expected = augment.preprocess(jnp.asarray(images), size)
  np.testing.assert_allclose(views(images, size=size, **OFF), expected, atol=1e-5)


@pytest.mark.parametrize("size", [32, 24])
def test_views_have_the_shape_the_type_and_the_range_of_the_models_input(size):
  out = views(faces(), size=size, **ALL)
  assert out.shape == (64, size, size, 3)
  assert out.dtype == np.float32
  assert np.isfinite(out).all()
  assert out.min() >= -1
  assert out.max() <= 1


def test_views_are_a_function_of_the_key():
  images = faces()
  np.testing.assert_array_equal(views(images, **ALL), views(images, **ALL))
  other = views(images, jax.random.key(8), **ALL)
  assert all((a != b).any() for a, b in zip(views(images, **ALL), other, strict=True))


def test_rows_with_equal_images_get_different_views():
  out = views(np.repeat(faces(1), 64, axis=0), **ALL)
  assert len({row.tobytes() for row in out}) == 64


def test_a_rows_view_does_not_depend_on_the_batch_around_it():
  images = faces()
  whole = views(images, **ALL)
  crowd = np.concatenate([images[:3], faces(13, seed=1)])
  np.testing.assert_allclose(views(crowd, **ALL)[:3], whole[:3], atol=1e-6)


def test_views_and_mixtures_do_not_depend_on_the_sharding():
  images = faces(16)
  labels = {"va": np.random.default_rng(0).uniform(-1, 1, (16, 2)).astype(np.float32)}
  mask = {"va": np.ones((16, 2), np.float32)}

  @jax.jit
  def prepare(images, labels, mask, key):
    seen = augment.augment(images, key, 32, **ALL)
    return seen, augment.mixup(seen, labels, mask, key, 0.4)

  alone = prepare(images, labels, mask, KEY)
  assert jax.device_count() == 8
  spread = sharding.global_batch((images, labels, mask), sharding.make_mesh())
  split = prepare(*spread, KEY)
  assert len(split[0].sharding.device_set) == 8
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), split, alone)


def test_a_flip_is_a_mirror():
  images = faces()
  mirrored = augment.preprocess(jnp.asarray(images[:, :, ::-1]), 32)
  np.testing.assert_allclose(views(images, **OFF | dict(flip_rate=1.0)), mirrored, atol=1e-5)


def test_about_the_stated_share_is_flipped():
  images = faces(256, size=8)
  out = views(images, **OFF | dict(flip_rate=0.25))
  straight = np.abs(out - images / 127.5 + 1).max((1, 2, 3)) < 1e-4
  mirrored = np.abs(out - images[:, :, ::-1] / 127.5 + 1).max((1, 2, 3)) < 1e-4
  assert (straight ^ mirrored).all()
  assert 0.17 < mirrored.mean() < 0.33


def dot():
  """A bright dot in the middle of mid grey."""
  images = plain(level=128)
  images[:, 14:18, 14:18] = 255
  return images


def places(out):
  """[rows, 2] centre of the dot, in shares of the image from its middle."""
  weight = np.clip(out[..., 0], 0.05, None) - 0.05
  at = (np.arange(out.shape[1]) + 0.5) / out.shape[1] - 0.5
  total = weight.sum((1, 2))
  return np.stack([weight.sum(2) @ at / total, weight.sum(1) @ at / total], 1)


@pytest.mark.parametrize("size", [32, 64])  # a share of the image, whatever the output's size
def test_a_shift_moves_content_up_to_the_stated_share_in_all_directions(size):
  out = places(views(dot(), size=size, **OFF | dict(shift=0.25)))
  assert np.abs(out).max() < 0.25 + 1e-3
  assert (out.min(0) < -0.15).all()
  assert (out.max(0) > 0.15).all()
  assert abs(np.corrcoef(out.T)[0, 1]) < 0.4  # the axes move independently


def test_what_a_shift_leaves_empty_is_mid_plain():
  out = views(plain(), **OFF | dict(shift=0.25))
  corners = out[:, [0, 0, -1, -1], [0, -1, 0, -1]].reshape(64, -1)
  # At least one corner of every moved image is empty, and nothing is between grey and white but
  # the one line that is interpolated.
  assert (np.abs(corners).min(1) < 1e-6).mean() > 0.9
  assert ((out > 1e-3) & (out < 1 - 1e-3)).mean() < 0.1


def test_a_zoom_stays_centred_and_within_its_bounds():
  out = views(dot(), **OFF | dict(scale=0.3))
  np.testing.assert_allclose(places(out), 0, atol=0.01)
  area = np.clip(out[..., 0] - 0.05, 0, None).sum((1, 2))
  unchanged = np.clip(views(dot(), **OFF)[0, ..., 0] - 0.05, 0, None).sum()
  ratio = area / unchanged  # zoom squared; the aspect keeps the area
  assert ratio.min() > 1 / 1.3**2 - 0.05
  assert ratio.max() < 1.3**2 + 0.05
  assert ratio.min() < 0.8
  assert ratio.max() > 1.25


def test_brightness_contrast_and_cast_stay_within_their_bounds():
  images = plain(256, size=8, level=128)
  middle = 128 / 127.5 - 1
  bright = views(images, **OFF | dict(brightness=0.3)) - middle
  assert np.abs(bright).max() <= 0.3 + 1e-5
  assert bright.min() < -0.25
  assert bright.max() > 0.25
  np.testing.assert_allclose(bright, np.broadcast_to(bright[:, :1, :1, :1], bright.shape))
  cast = views(images, **OFF | dict(cast=0.1)) - middle
  assert np.abs(cast).max() <= 0.1 + 1e-5
  assert (cast.std(-1) > 0.005).mean() > 0.9  # colours differ
  np.testing.assert_allclose(cast.std((1, 2)), 0, atol=1e-6)  # pixels do not
  images = images + np.arange(-32, 32, dtype=np.int8).reshape(1, 8, 8, 1).view(np.uint8)
  spread = views(images, **OFF | dict(contrast=0.4)).std((1, 2, 3))
  ratio = spread / views(images, **OFF).std((1, 2, 3))
  assert 0.6 - 1e-4 < ratio.min() < 0.7
  assert 1.3 < ratio.max() < 1.4 + 1e-4


def test_grey_views_have_equal_channels():
  out = views(faces(256, size=8), **OFF | dict(grey_rate=0.3))
  equal = (np.ptp(out, axis=-1) < 1e-6).all((1, 2))
  assert 0.2 < equal.mean() < 0.4


def test_erasing_leaves_a_rectangle_of_mid_grey_of_bounded_area():
  area = 0.15
  out = views(plain(), **OFF | dict(erase_rate=1.0, erase_area=area))
  areas = []
  for image in out:
    erased = (image == 0).all(-1)
    np.testing.assert_allclose(image[~erased], 1.0)
    rows, columns = np.flatnonzero(erased.any(1)), np.flatnonzero(erased.any(0))
    assert erased[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    # A side of n pixels is longer than n - 1.
    assert (len(rows) - 1) * (len(columns) - 1) <= area * 32**2
    areas.append(erased.mean())
  assert max(areas) > area / 2
  assert len({np.flatnonzero((image == 0).all(-1).ravel())[0] for image in out}) > 32


def test_about_the_stated_share_is_erased():
  out = views(plain(256, 8), **OFF | dict(erase_rate=0.3))
  assert 0.22 < (out == 0).any((1, 2, 3)).mean() < 0.38


# Views that are off unless they are asked for; whether they are is part of the program.


def asked(images, key=KEY, **options):
  """As `views`, with everything else off."""
  whole = OFF | options
  return np.asarray(jax.jit(lambda x: augment.augment(x, key, x.shape[1], **whole))(images))


def spot(rows=128):
  """A bright dot right of the middle of mid grey."""
  images = plain(rows, level=128)
  images[:, 14:18, 23:27] = 255
  return images


def test_turns_go_both_ways_about_the_centre_up_to_the_stated_share():
  y, x = places(asked(spot(), rotation=0.1)).T
  radius, share = np.hypot(x, y), np.arctan2(y, x) / (2 * np.pi)
  before = places(asked(spot()))[0]
  np.testing.assert_allclose(radius, np.hypot(*before), atol=0.01)
  assert np.abs(share).max() < 0.1 + 1e-3
  assert share.min() < -0.08
  assert share.max() > 0.08
  assert abs(share.mean()) < 0.02


def test_a_turn_is_that_of_scipy():
  image = faces(1)[0]
  turned = np.asarray(augment._turn(augment.normalise(jnp.asarray(image)), KEY, 0.2))
  share = float(jax.random.uniform(KEY, (), minval=-0.2, maxval=0.2))
  expected = ndimage.rotate(
    image / 127.5 - 1, -360 * share, reshape=False, order=1, mode="constant", cval=0.0
  )
  # Beyond the edge pixels fade there and end here.
  inner = np.hypot(*(np.indices((32, 32)) - 15.5)) < 14
  np.testing.assert_allclose(turned[inner], expected[inner], atol=1e-4)


def test_what_a_turn_brings_in_is_mid_grey():
  out = asked(plain(), rotation=0.125)
  assert np.abs(out[:, 16, 16] - 1).max() < 1e-5
  assert (np.abs(out[:, 0, 0]) < 1e-5).mean() > 0.8
  assert out.min() > -1e-5


def test_dropped_channels_are_black_each_on_its_own_and_the_rest_is_as_it_was():
  images = np.maximum(faces(256, size=8), 1)  # nothing else is black
  before = asked(images, flip_rate=0.5)
  out = asked(images, flip_rate=0.5, channel_drop_rate=0.3)
  dropped = (out == -1).all((1, 2))
  np.testing.assert_array_equal(out, np.where(dropped[:, None, None], -1, before))
  np.testing.assert_allclose(dropped.mean(0), 0.3, atol=0.1)
  assert 0.01 < dropped.all(1).mean() < 0.06  # 0.027: all three


def test_rates_of_zero_leave_every_bit_of_a_view():
  off = asked(faces(), **ALL, rotation=0.0, channel_drop_rate=0.0)
  np.testing.assert_array_equal(off, asked(faces(), **ALL))


# Mixup.


def mixture(alpha, rows=8):
  images = jnp.asarray(np.eye(rows, dtype=np.float32).reshape(rows, rows, 1, 1).repeat(3, -1))
  labels = {
    "va": jnp.asarray(np.linspace(-1, 1, 2 * rows, dtype=np.float32).reshape(rows, 2)),
    "expression": jnp.eye(rows),
  }
  mask = {
    "va": jnp.ones((rows, 2)).at[0, 1].set(0),
    "expression": jnp.ones(rows).at[jnp.array([1, 4])].set(0),
  }
  return (images, labels, mask), augment.mixup(images, labels, mask, KEY, alpha)


def test_mixup_with_alpha_0_changes_nothing():
  given, mixed = mixture(0.0)
  jax.tree.map(np.testing.assert_array_equal, mixed, given)


def test_mixup_mixes_images_and_labels_of_a_row_and_its_mirror_row_by_one_share():
  (_, labels, _), (images, mixed, _) = mixture(1.0, rows=8)
  shares = np.diagonal(images[:, :, 0, 0])
  assert len(set(shares.tolist())) == 8  # each row draws its own
  partner = 7 - np.arange(8)
  np.testing.assert_allclose(images[np.arange(8), partner, 0, 0], 1 - shares, atol=1e-6)
  np.testing.assert_allclose(np.asarray(images).sum((1, 2)), 1, atol=1e-6)
  for task in labels:
    own, other = np.asarray(labels[task]), np.asarray(labels[task])[::-1]
    expected = shares[:, None] * own + (1 - shares[:, None]) * other
    np.testing.assert_allclose(mixed[task], expected, atol=1e-6)
  np.testing.assert_allclose(mixed["expression"].sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_a_row_stays_the_larger_part_of_its_mixture(alpha):
  _, (images, _, _) = mixture(alpha, rows=64)
  shares = np.diagonal(images[:, :, 0, 0])
  assert shares.min() >= 0.5
  assert shares.max() <= 1
  # E max(b, 1 - b) for Beta(a, a): 0.75 at 1, and 0.8985 (by simulation) at 0.2.
  expected = {0.2: 0.8985, 1.0: 0.75}[alpha]
  assert abs(shares.mean() - expected) < 0.06


def test_a_mixed_label_counts_only_where_both_rows_have_one():
  (_, _, mask), (_, _, mixed) = mixture(1.0)
  np.testing.assert_array_equal(mixed["va"], np.array(mask["va"]) * np.array(mask["va"])[::-1])
  np.testing.assert_array_equal(mixed["va"][:, 1], [0, 1, 1, 1, 1, 1, 1, 0])
  np.testing.assert_array_equal(mixed["va"][:, 0], np.ones(8))
  np.testing.assert_array_equal(mixed["expression"], [1, 0, 1, 0, 0, 1, 0, 1])
