"""Who may import whom; a table, so that a change of the design is a change of a line here."""

import ast
import fnmatch
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("affjax", "configs", "tfds_builders")
LEAVES = [
  f"affjax.{name}"
  for name in (
    "losses", "metrics", "labels", "augment", "sharding", "build", "optim", "postprocess", "cost",
    "compiled", "host", "stopping", "faces", "figures", "stages", "tables", "tracking",
    "onnx_graph",
  )
]  # fmt: skip
MODES = [
  f"affjax.{name}"
  for name in (
    "train",
    "evaluate",
    "probe",
    "transfer",
    "inference",
    "predict",
    "submit",
    "calibrate",
    "card",
    "contract",
    "extract",
    "media",
    "onnx_export",
    "overlay",
    "scored",
    "stream",
    "export",
    "experiment",
    "finite",
    "initialise",
    "dry_run",
  )
]

# Modules -> what of ours they may import. The first line that fits a module counts, and every
# module needs one.
RULES = [
  (["configs", "configs.*"], ["configs.*"]),
  (["affjax.paths"], []),
  (["affjax.optim", "affjax.sharding"], ["affjax.paths"]),
  (LEAVES, []),
  (["affjax.annotations"], ["affjax.labels"]),
  (
    ["tfds_builders", "tfds_builders.*"],
    ["affjax.labels", "affjax.annotations", "tfds_builders.*"],
  ),
  (["affjax.models", "affjax.models.*"], ["affjax.models.*", "affjax.build"]),
  (
    ["affjax.data", "affjax.data.*"],
    ["affjax.labels", "affjax.data.*", "tfds_builders", "tfds_builders.*"],
  ),
  (
    [f"affjax.{name}" for name in ("state", "checkpoints", "monitor", "workdir")],
    [*LEAVES, "affjax.annotations", "affjax.paths", "affjax.state"],
  ),
  (
    ["affjax.procedures", "affjax.procedures.*"],
    ["affjax.procedures.*", "affjax.losses", "affjax.augment", "affjax.state", "affjax.build"],
  ),
  (["affjax.resident"], ["affjax.sharding", "affjax.data", "affjax.data.*"]),
  (["affjax.score"], ["affjax.labels", "affjax.annotations", "affjax.metrics"]),
  ([*MODES, "affjax.report"], ["affjax.*", "tfds_builders.*"]),  # but main: see below
  (
    ["affjax.main"],
    [*MODES, *(f"affjax.{n}" for n in ("checkpoints", "workdir", "compiled", "host", "stopping"))],
  ),
  (["affjax"], ["affjax.inference"]),  # load()
]
# Modules -> what of others they may not import, not even inside a function.
NEVER = [(["affjax.data", "affjax.data.*", "affjax.labels"], ["flax", "flax.*"])]
# They load TensorFlow, which is not there by default: inside a function at most.
HEAVY = ["tensorflow", "tensorflow.*", "clu.metric_writers*", "clu.periodic_actions*"]


def sources():
  """Module name -> its syntax tree, for all of ours."""
  for folder in OURS:
    for path in sorted((ROOT / folder).rglob("*.py")):
      parts = path.relative_to(ROOT).with_suffix("").parts
      yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), ast.parse(path.read_text())


def imported(tree, exists, at_module_level=False):
  """Names of the modules that a tree imports; `from package import module` names the module."""
  found, left = set(), [tree]
  while left:
    node = left.pop()
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, "relative import"
      for alias in node.names:
        inner = f"{node.module}.{alias.name}"
        found.add(inner if exists(inner) else node.module)
    deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    if not (at_module_level and deferred):
      left += ast.iter_child_nodes(node)
  return found


MODULES = dict(sources())


def exists(name):
  """Whether a name is a module rather than something inside one."""
  if name.partition(".")[0] in OURS:
    return name in MODULES
  return any(fnmatch.fnmatch(name, pattern) for pattern in HEAVY)


def fits(name, patterns):
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


IMPORTS = {
  name: {n for n in imported(tree, exists) if n.partition(".")[0] in OURS}
  for name, tree in MODULES.items()
}


def test_the_walk_sees_every_kind_of_import():
  tree = ast.parse("""
import numpy as np, affjax.losses
from affjax import state, load
from affjax.data import records
class A:
  from affjax.build import build
def f():
  from affjax.models import vit
  import tensorflow
if True:
  from clu import metric_writers
""")
  inside = {"affjax.models.vit", "tensorflow"}
  outside = {
    "numpy", "affjax.losses", "affjax.state", "affjax", "affjax.data.records", "affjax.build",
    "clu.metric_writers",
  }  # fmt: skip
  assert imported(tree, exists) == inside | outside
  assert imported(tree, exists, at_module_level=True) == outside


def test_the_walk_reads_the_project():
  assert {"affjax", "affjax.train", "affjax.models.vit", "configs.vit_mtl"} <= set(MODULES)
  assert "affjax.data.records" in IMPORTS["affjax.data.pipeline"]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_only_what_its_layer_may(name):
  allowed = next((allowed for modules, allowed in RULES if fits(name, modules)), None)
  assert allowed is not None, f"{name} has no line in RULES"
  beyond = {n for n in IMPORTS[name] if not fits(n, allowed)}
  assert not beyond, f"{name} may not import {sorted(beyond)}"


def test_nothing_imports_main():
  assert not [name for name, found in IMPORTS.items() if "affjax.main" in found]


def test_no_module_imports_itself_in_a_circle():
  # affjax.load() reaches down to the modes, from inside a function.
  left = {name: found - {"affjax"} for name, found in IMPORTS.items() if name != "affjax"}
  while left:
    free = [name for name, found in left.items() if not found & set(left)]
    assert free, f"a circle among {sorted(left)}"
    left = {name: found for name, found in left.items() if name not in free}


@pytest.mark.parametrize(("modules", "banned"), NEVER)
def test_some_layers_stay_free_of_some_libraries(modules, banned):
  for name in (n for n in MODULES if fits(n, modules)):
    assert not [n for n in imported(MODULES[name], exists) if fits(n, banned)], name


def test_nothing_imports_tensorflow_at_module_level():
  for name, tree in MODULES.items():
    found = imported(tree, exists, at_module_level=True)
    assert not [n for n in found if fits(n, HEAVY)], name


def test_importing_affjax_imports_no_jax():
  code = "import affjax, sys; sys.exit(sum(name in sys.modules for name in ('jax', 'numpy')))"
  assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
