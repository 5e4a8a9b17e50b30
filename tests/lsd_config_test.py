import jax
import numpy as np
import pytest

from affjax import procedures
from affjax.labels import EXPRESSION_LSD, EXPRESSION_SEVEN
from configs import lsd


@pytest.mark.parametrize(("classes", "names"), [(7, EXPRESSION_SEVEN), (6, EXPRESSION_LSD)])
def test_it_builds_a_model_of_the_classes_asked_for(classes, names):
  config = lsd.get_config(f"classes={classes},debug")
  assert tuple(config.labels.expression) == names
  procedure = procedures.from_config(config.to_dict())
  state = jax.eval_shape(procedure.init)
  images = jax.ShapeDtypeStruct((2, 48, 48, 3), np.uint8)
  out = jax.eval_shape(procedure.predict, state.params, state.model_state, images)
  assert {task: x.shape for task, x in out.items()} == {"expression": (2, classes)}


def test_its_default_learns_from_renders_framed_as_ferplus_is_and_from_nothing_real():
  data = lsd.get_config().data
  assert (data.name, data.config) == ("synthetic_faces", "lsd7")
  assert {data.train, data.select, *data.report} == {"train", "validation", "test"}


def test_other_numbers_of_classes_are_refused():
  with pytest.raises(ValueError, match="classes=8: use one of 6, 7"):
    lsd.get_config("classes=8")
