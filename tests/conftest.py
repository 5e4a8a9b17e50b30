"""Eight fake CPU devices, a cache of compiled programs, errors on silent broadcasts; tiny data."""

import csv
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A compiler that tries less hard: two systems that learn by heart took a fifth less CPU time.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1",
)
# Most of the time of a run of twenty steps is compilation. Workers and the processes they start
# share what is compiled, for as long as the tests last: pytest's own process makes the folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  compiled = tempfile.TemporaryDirectory(prefix="affjax-tests-")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Files with long tests come first, so that no worker has one of them to itself at the end."""
  long = {item.path for item in items if item.get_closest_marker("slow")}
  items.sort(key=lambda item: item.path not in long)


FERPLUS = "AFFJAX_FERPLUS"  # environment variable: the folder of the real FER+


@pytest.fixture(scope="session")
def ferplus_source() -> Path:
  """The folder of the real FER+; where the environment names none, the test is skipped."""
  folder = os.environ.get(FERPLUS)
  if not folder:
    pytest.skip(f"set {FERPLUS} to the folder of the real FER+ (fer2013new.csv and its images)")
  if not (Path(folder) / "fer2013new.csv").is_file():
    pytest.fail(f"{FERPLUS}={folder} has no fer2013new.csv")
  return Path(folder)


# Of fer2013new.csv.
COLUMNS = ["neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"]
COLUMNS += ["unknown", "NF"]


def write_ferplus(folder: Path, *, zipped: bool = False, seed: int = 0) -> Path:
  """Writes a tiny FER+ of noise: 40 training and 12 validation images, each with ten votes."""
  rng = np.random.default_rng(seed)
  rows = []
  for start, count, part, usage in ((0, 40, "Train", "Training"), (100, 12, "Valid", "PublicTest")):
    (folder / f"FER2013{part}").mkdir(parents=True)
    for number in range(start, start + count):
      name = f"fer{number:07d}.png"
      pixels = rng.integers(0, 256, (48, 48), np.uint8)
      (folder / f"FER2013{part}" / name).write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
      shares = rng.dirichlet(np.full(len(COLUMNS), 0.2))
      rows.append([usage, name, *rng.multinomial(10, shares)])
  with (folder / "fer2013new.csv").open("w", newline="") as f:
    csv.writer(f).writerows([["Usage", "Image name", *COLUMNS], *rows])
  if zipped:
    zip_up(folder)
  return folder


def zip_up(folder: Path) -> None:
  """Replaces the folders of images by zips of them."""
  for images in [path for path in folder.iterdir() if path.is_dir()]:
    with zipfile.ZipFile(f"{images}.zip", "w") as archive:
      for path in images.iterdir():
        archive.write(path, f"{images.name}/{path.name}")
        path.unlink()
    images.rmdir()


@pytest.fixture(scope="session")
def tiny_ferplus(tmp_path_factory):
  """The builder of the tiny FER+, prepared."""
  from affjax.data import prepare, records

  root = tmp_path_factory.mktemp("tiny_ferplus")
  build = records.builder("ferplus", "", str(root / "data"))
  prepare.prepare(build, str(write_ferplus(root / "source")))
  return build


@pytest.fixture(scope="session")
def tiny_faces(tmp_path_factory) -> str:
  """A data_dir that holds the tiny synthetic faces."""
  from affjax.data import prepare, records

  data_dir = str(tmp_path_factory.mktemp("tiny_faces"))
  prepare.prepare(records.builder("synthetic_faces", "tiny", data_dir))
  return data_dir


# The flagship with task tokens, as small as it gets: changes of `debug_config`.
SMALL = dict(
  image_size=32,
  data__image_size=32,
  model__encoder=dict(name="vit.ViT", variant="mu/16", depth=1),
)


def debug_config(argument: str = "debug", **changes) -> dict:
  """The flagship's config as plain types; `optimizer__learning_rate=1.0` changes a leaf.

  Its losses ask nothing of the training split, so that a procedure can be built without one; its
  runs draw no report, which takes them longer than the rest.
  """
  import json

  from configs import vit_mtl

  config = vit_mtl.get_config(argument)
  config.losses.expression.logit_adjustment = config.losses.au.positive_weight = None
  config.draw_report = False
  for name, value in changes.items():
    section, leaf = config, name.split("__")
    for key in leaf[:-1]:
      section = section[key]
    section[leaf[-1]] = value
  return json.loads(config.to_json_best_effort())


def save_run(where: Path, config: dict, seed: int = 0, near: float = 1) -> Path:
  """A run whose model says something else of every image: its weights are drawn, not learnt.

  Scales and variances of normalisations are drawn near `near`, other weights near 0.
  """
  import json

  from affjax import checkpoints, procedures

  rng = np.random.default_rng(seed)

  def drawn(path, leaf):
    scale = any(name in jax.tree_util.keystr(path) for name in ("scale", "'var'"))
    return (near * scale + 0.1 * rng.normal(size=leaf.shape)).astype(leaf.dtype)

  shapes = jax.eval_shape(procedures.from_config(config).init)
  where.mkdir()
  (where / "config.json").write_text(json.dumps(config))
  saved = checkpoints.Checkpoints(where / "checkpoints")
  saved.save(3, jax.tree_util.tree_map_with_path(drawn, shapes), {})
  saved.score(3, 0.5)
  saved.close()
  return where


@pytest.fixture
def disk(tmp_path):
  """Mounts a small file system, and mounts it again with other options."""
  place = tmp_path / "disk"
  place.mkdir()
  mounted = []

  def mount(options):
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
    try:
      done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
      pytest.skip("there is no mount here")
    if done.returncode:
      pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.strip()}")
    mounted.append(place)
    return place

  yield mount
  if mounted:
    # Lazily: readers of files in it may not have been collected.
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def remount(place, options):
  command = ["mount", "-o", f"remount,{options}", str(place)]
  subprocess.run(command, check=True, capture_output=True)


def launch(where, data_dir, *arguments: str, devices: int = 1, **options) -> subprocess.Popen:
  """Starts the debug config's command line in another process, without a report at its end.

  Its output is one pipe.
  """
  flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=1"
  return subprocess.Popen(
    [sys.executable, "-m", "affjax.main", "--config=configs/vit_mtl.py:debug",
     f"--workdir={where}", f"--data_dir={data_dir}",
     "--config.draw_report=false", *arguments],
    cwd=Path(__file__).parent.parent,
    env={**os.environ, "XLA_FLAGS": flags},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    **options,
  )  # fmt: skip
