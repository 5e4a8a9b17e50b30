import math
import sys

import pytest
from flax import nnx

from affjax.build import build, chain
from configs import cotex, emma, mae, temporal, vit_mtl

MODULE = """
import dataclasses
from collections.abc import Sequence
from flax import nnx

class Net(nnx.Module):
  def __init__(self, *, width, depth=2, rngs):
    self.width, self.depth = width, depth

@dataclasses.dataclass
class Point:
  x: int
  y: int = 0

def any_options(**options):
  return options

def typed(
  count: int = 0, rate: float = 0.0, flag: bool = False, text: str = "", maybe: int | None = 0,
  several: Sequence[float] = (), anything=0
):
  return dict(locals())

def _hidden():
  return 0

NUMBER = 3
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
  folder = tmp_path / "somepackage"
  (folder / "inner").mkdir(parents=True)
  (folder / "__init__.py").write_text("")
  (folder / "inner" / "__init__.py").write_text("")
  (folder / "nets.py").write_text(MODULE)
  (folder / "inner" / "deep.py").write_text(MODULE)
  (folder / "broken.py").write_text("import a_library_that_is_not_there\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  yield "somepackage"
  for name in [name for name in sys.modules if name.split(".")[0] == "somepackage"]:
    del sys.modules[name]


def test_builds_modules_dataclasses_and_functions_of_nested_modules(package):
  net = build(dict(name="nets.Net", width=8), package, rngs=nnx.Rngs(0))
  assert (net.width, net.depth) == (8, 2)
  assert build(dict(name="inner.deep.Point", x=1), package).x == 1
  assert build(dict(name="nets.any_options", a=1), package, b=2) == dict(a=1, b=2)


def test_one_module_may_be_given_instead_of_a_package(package):
  assert build(dict(name="nets.Point", x=1), f"{package}.nets").x == 1
  for name in ("deep.Point", "inner.deep.Point", "nets.nets.Point"):
    with pytest.raises(ValueError, match=r"has no module .*; it has \['nets'\]"):
      build(dict(name=name, x=1), f"{package}.nets")


@pytest.mark.parametrize(
  ("argument", "good", "bad", "what"),
  [
    ("count", (3, 0), (3.0, "3", True, None, [3]), "use int"),
    ("rate", (0.5, 1), ("0.5", True, None), "use float"),
    ("flag", (True, False), (1, 0, "true", None), "use bool"),
    ("text", ("a", ""), (1, ["a"]), "use str"),
    ("maybe", (3, None), ("3", False, 1.5), "use int or None"),
    ("anything", (3, "a", None, [1]), (), ""),
  ],
)
def test_plain_types_are_held_against_what_a_call_takes(package, argument, good, bad, what):
  for value in good:
    assert build({"name": "nets.typed", argument: value}, package)[argument] is value
  for value in bad:
    with pytest.raises(ValueError, match=rf"nets.typed: {argument}=.*: {what}"):
      build({"name": "nets.typed", argument: value}, package)


def test_what_a_module_imports_and_hides_is_not_found(package):
  for name in ("nets.dataclasses", "nets.nnx", "nets.dataclasses.dataclass", "nets._hidden"):
    with pytest.raises(ValueError, match="has no|needs name="):
      build(dict(name=name), package)


def test_leaves_the_section_as_it_was(package):
  section = dict(name="nets.Point", x=1)
  build(section, package)
  assert section == dict(name="nets.Point", x=1)


@pytest.mark.parametrize(
  ("section", "message"),
  [
    (dict(width=8), r"name None: .* needs name='module.Attribute'"),
    (dict(name="Net"), r"name 'Net'"),
    (dict(name="netz.Net"), r"no module 'netz'; it has \['broken', 'inner', 'nets'\]"),
    (dict(name="nets.Nett"), r"no 'Nett'; it has \['Net', 'Point', 'any_options', 'typed'\]"),
    (dict(name="nets.NUMBER"), r"no 'NUMBER'"),
    (dict(name="nets.Net", widht=8), r"takes no \['widht'\]; it takes \['width', 'depth'\]"),
    (dict(name="nets.Net"), r"also needs \['width'\]; it takes \['width', 'depth'\]"),
    (dict(name="nets.Net", width=8, rngs=0), r"given \['rngs'\] by the code already"),
  ],
)
def test_a_mistake_in_a_section_is_an_error_that_names_what_is_allowed(package, section, message):
  with pytest.raises(ValueError, match=message) as error:
    build(section, package, rngs=nnx.Rngs(0))
  assert "\n" not in str(error.value)


def test_a_missing_package_is_reported_as_a_name(package):
  with pytest.raises(ValueError, match="no module 'x'"):
    build(dict(name="x.Y"), f"{package}.nowhere")


def test_an_import_that_fails_inside_a_module_stays_visible(package):
  with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_there"):
    build(dict(name="broken.Net"), package)


def test_several_numbers_may_be_given_for_a_sequence(package):
  section = dict(name="nets.typed", several=[0.5, 1.0])
  assert build(section, package)["several"] == [0.5, 1.0]


@pytest.mark.parametrize(
  ("argument", "value"),
  [
    ("dropout_rate", 1.0),
    ("dropout_rate", -0.1),
    ("drop_path_rate", math.nan),
    ("ema_decay", 1.0),
    ("flip_rate", 2),
    ("mixup_alpha", -1.0),
    ("scale", math.nan),
    ("multiplier", 0.0),
    ("multiplier", math.inf),
  ],
)
def test_a_number_that_cannot_be_is_refused_whoever_takes_it(package, argument, value):
  section = dict(name="nets.any_options", **{argument: value})
  with pytest.raises(ValueError, match=f"nets.any_options: {argument}={value}: use a "):
    build(section, package)
  assert build(section | {argument: 0.5}, package)[argument] == 0.5
  assert build(section | {argument: "text"}, package)[argument] == "text"  # of unknown kind


@pytest.mark.parametrize(
  ("config", "said"),
  [
    (vit_mtl.get_config(), "vit.ViT mu/16 -> decoders.TaskTokens"),
    (temporal.get_config(), "vit.ViT mu/16 -> temporal.GRU -> decoders.Linear"),
    (mae.get_config(), "vit.ViT mu/16 -> masked.PixelDecoder"),
    (cotex.get_config("networks=1"), "vit.ViT mu/16 -> decoders.Linear"),
    (cotex.get_config("networks=3"), "3 x (vit.ViT mu/16 -> decoders.Linear)"),
    (emma.get_config("stage=prior"), "resnet.ResNet -> attention.DAN"),
    (
      emma.get_config("prior=runs/x"),
      "vit.ViT mu/16 -> emma.Scores beside resnet.ResNet -> attention.DAN",
    ),
  ],
)
def test_all_networks_of_a_model_are_named(config, said):
  assert chain(config.model.to_dict()) == said
