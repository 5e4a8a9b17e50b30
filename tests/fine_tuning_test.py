"""The planted data on which fine-tuning is measured, and that its arms differ as they say."""

import jax
import numpy as np

from affjax import optim, paths, procedures
from scripts import measure_fine_tuning as measure


def test_both_data_show_the_same_images_and_no_number_of_an_image_tells_a_unit_by_itself():
  of = measure.planted(100)
  for split in ("train", "select", "report"):
    images = [of[data][split]["image"] for data in measure.DATA]
    np.testing.assert_array_equal(*images)
  x = images[0].reshape(len(images[0]), -1)
  for data in measure.DATA:
    units = of[data]["report"]["labels"]["au"]
    assert 0.4 < units.mean() < 0.6
    related = np.corrcoef(np.hstack([x, units]).T)[: x.shape[1], x.shape[1] :]
    assert np.abs(related).max() < 0.15  # a thousand rows: five standard errors


def test_products_of_the_hidden_numbers_tell_the_units_and_of_one_data_the_other_ones():
  of = measure.planted(100)
  one, other = (of[data]["report"]["labels"]["au"] for data in measure.DATA)
  x = of["planted"]["report"]["image"].reshape(1000, -1)
  # The eight directions that mean something are the largest; there units are quadratic forms.
  z = x @ np.linalg.svd(x, full_matrices=False)[2][:8].T
  products = np.stack([z[:, i] * z[:, j] for i in range(8) for j in range(i + 1)], 1)
  design = np.hstack([products, np.ones((1000, 1))])
  for units in (one, other):
    fitted = design @ np.linalg.lstsq(design, units, rcond=None)[0]
    assert ((fitted > 0.5) == units).mean() > 0.85
  assert np.abs(np.corrcoef(np.hstack([one, other]).T)[:2, 2:]).max() < 0.15


def test_one_arm_alone_freezes_the_trunk():
  for arm in measure.ARMS:
    config = measure.config(arm, 0.01, 0)
    params = jax.eval_shape(procedures.from_config(config).init).params
    section = {k: v for k, v in config["optimizer"].items() if k != "name"}
    frozen = paths.named(optim.adamw(steps=measure.STEPS, **section).frozen(params))
    expected = {name: arm == "frozen" and name.startswith(measure.TRUNK) for name in frozen}
    assert frozen == expected
