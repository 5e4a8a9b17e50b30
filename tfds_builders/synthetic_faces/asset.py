"""Reads `face_asset.npz` into the arrays that the renderer works with.

What is in it and where it comes from: `PROVENANCE.md`. Lengths are decimetres; x points to the
face's left (the right of a picture of it), y up, z out of the face.
"""

import dataclasses
import functools
import importlib.resources
from collections.abc import Mapping

import cv2
import numpy as np

from tfds_builders.synthetic_faces import folds, landmarks, raster

# Vertex numbers of MakeHuman's base mesh (hm08).
NOSE_TIP = 297
MOUTH_CORNERS = (7182, 422)  # the face's left, right
UPPER_LIP, LOWER_LIP = 474, 493  # where the lips meet, in the middle
# Under the inner and the outer ends of the brows, the face's left and right.
INNER_BROWS, OUTER_BROWS = (6957, 181), (6987, 212)
# Where the middle of a brow runs at rest: (x, y) in decimetres, the face's left half.
BROW_LINE = ((0.0, 7.39), (0.148, 7.405), (0.277, 7.44), (0.382, 7.435), (0.469, 7.4), (0.6, 7.35))
# The mesh's brows lie low over narrow eyes, which looks like a scowl: raised and opened at rest.
AT_REST = {"browInnerUp": 0.4, "browOuterUp": 0.4, "eyeWide": 0.12}
# What the package's face units do too little of: name -> centre and radius of a patch of the face's
# left half in the frontal plane, and its movement at weight 1.
BUMPS = {
  "cheekUp": ((0.36, 7.0), (0.13, 0.1), (-0.01, 0.05, 0.04)),
  "wingUp": ((0.155, 6.86), (0.06, 0.09), (0.01, 0.05, 0.01)),
}
# How far lower and upper teeth are moved (decimetres; up, out): as the mesh has them, the lower
# teeth stand before the upper ones, which hardly show in a smile.
TEETH_MOVES = ((-0.045, -0.05), (-0.035, 0.0))


@dataclasses.dataclass(frozen=True)
class Proxy:
  """A mesh that hangs on the head: brows or hair.

  Attributes:
    reference: [vertices, 3] the head's vertices that it hangs on.
    weights: [vertices, 3] float32 their weights.
    offsets: [vertices, 3] float32 added to the weighted mean.
    triangles: [triangles, 3] int32.
    uv: [triangles, 3, 2] float32.
    texture: [height, width, 2] float32 brightness and alpha in [0, 1].
  """

  reference: np.ndarray
  weights: np.ndarray
  offsets: np.ndarray
  triangles: np.ndarray
  uv: np.ndarray
  texture: np.ndarray


@dataclasses.dataclass(frozen=True)
class FaceAsset:
  """The head at rest, its morph targets, skins, brows, hair and folds.

  Attributes:
    vertices: [vertices, 3] float32 at rest.
    triangles: [triangles, 3] int32, the opaque parts.
    uv: [triangles, 3, 2] float32 into the skins, or into the eyeball's texture.
    part: [triangles] uint8, see `raster`.
    upper_lashes: [lashes, 3] int32 triangles, not among `triangles`.
    lower_lashes: [lashes, 3] int32.
    occlusion: [vertices] float32, share of its surroundings that a vertex sees.
    eyes: vertices of the eyeball on the face's left and right.
    lids: vertices of the skin around it.
    landmarks: name -> vertex.
    ibug: [68, 2] vertices of the landmarks of iBUG, see `landmarks`.
    face: [triangles] bool, whether a triangle is of the face: no ear, neck or scalp.
    targets: name -> number of a morph target.
    starts: [targets + 1] where each target's rows begin.
    indices: [rows] int32 vertex of a row.
    deltas: [rows, 3] float32 movement of a row at weight 1.
    skins: (ancestry, sex, age, variant) -> [height, width, 3] float32 linear albedo.
    brows: meshes of eyebrows, by name.
    hair: meshes of hair, by name.
    folds: [height, width, folds] float32, see `folds.paint`.
  """

  vertices: np.ndarray
  triangles: np.ndarray
  uv: np.ndarray
  part: np.ndarray
  upper_lashes: np.ndarray
  lower_lashes: np.ndarray
  occlusion: np.ndarray
  eyes: tuple[np.ndarray, np.ndarray]
  lids: tuple[np.ndarray, np.ndarray]
  landmarks: Mapping[str, int]
  ibug: np.ndarray
  face: np.ndarray
  targets: Mapping[str, int]
  starts: np.ndarray
  indices: np.ndarray
  deltas: np.ndarray
  skins: Mapping[tuple[str, str, str, str], np.ndarray]
  brows: Mapping[str, Proxy]
  hair: Mapping[str, Proxy]
  folds: np.ndarray

  def height(self, vertices: np.ndarray, upper: str, lower: str) -> float:
    """How much higher a landmark lies than another, mean of both sides, in decimetres.

    Args:
      vertices: [vertices, 3].
      upper: name of a landmark without its side, or of one in the middle.
      lower: likewise.
    """
    both = lambda name: [i for key, i in self.landmarks.items() if key.endswith(name)]
    return float(vertices[both(upper), 1].mean() - vertices[both(lower), 1].mean())

  def move(self, vertices: np.ndarray, weights: Mapping[str, float]) -> np.ndarray:
    """Returns vertices moved by morph targets: target's name -> weight."""
    moved = vertices.copy()
    chosen = np.array([self.targets[name] for name in weights], np.int64)
    amounts = np.array(list(weights.values()), np.float64)
    raster.add_targets(moved, self.starts, self.indices, self.deltas, chosen, amounts)
    return moved


@functools.cache
def load() -> FaceAsset:
  """Reads the asset once per process."""
  path = importlib.resources.files("tfds_builders.synthetic_faces") / "face_asset.npz"
  with path.open("rb") as file, np.load(file) as archive:
    data = dict(archive)
  number = {int(n): i for i, n in enumerate(data["number"])}
  vertices = data["vertices"].copy()
  triangles = data["triangles"].astype(np.int32)
  part = data["part"]
  # Lower and upper teeth are two meshes, numbered one after the other.
  teeth = np.split(np.unique(triangles[part == raster.TEETH]), 2)
  for row, move in zip(teeth, TEETH_MOVES, strict=True):
    vertices[row, 1:] += np.array(move, np.float32)
  eyes = _eyes(vertices, triangles, part)
  uv = data["uv"].astype(np.float32) / 65535
  uv[part == raster.EYE] = eye_coordinates(vertices, eyes)[triangles[part == raster.EYE]]
  crown = np.stack([np.zeros(len(vertices)), _crowns(vertices, teeth)], -1)
  uv[part == raster.TEETH] = crown[triangles[part == raster.TEETH]]
  solid = ~np.isin(part, (raster.UPPER_LASH, raster.LOWER_LASH))
  solid &= ~_molars(vertices, triangles, teeth[0])
  skin = np.isin(np.arange(len(vertices)), triangles[part == raster.SKIN])
  names, starts, indices, deltas = _targets(data, vertices, np.concatenate(eyes), skin)
  moves = [names[f"unit/{name}{side}"] for side in ("Left", "Right") for name in AT_REST]
  amounts = np.array([*AT_REST.values()] * 2)
  raster.add_targets(vertices, starts, indices, deltas, np.array(moves), amounts)
  skins = {
    tuple(key.split("/")[1:]): linear(cv2.imdecode(value, cv2.IMREAD_COLOR)[..., ::-1])
    for key, value in data.items()
    if key.startswith("skin/")
  }
  return FaceAsset(
    vertices=vertices,
    triangles=triangles[solid],
    uv=uv[solid],
    part=part[solid],
    upper_lashes=triangles[part == raster.UPPER_LASH],
    lower_lashes=triangles[part == raster.LOWER_LASH],
    occlusion=_occlusion(data["occlusion"], vertices, triangles, part, teeth),
    eyes=eyes,
    lids=tuple(_around(vertices, eye, skin) for eye in eyes),
    landmarks={
      "nose": number[NOSE_TIP],
      "left corner": number[MOUTH_CORNERS[0]],
      "right corner": number[MOUTH_CORNERS[1]],
      "upper lip": number[UPPER_LIP],
      "lower lip": number[LOWER_LIP],
      "left inner brow": number[INNER_BROWS[0]],
      "right inner brow": number[INNER_BROWS[1]],
      "left outer brow": number[OUTER_BROWS[0]],
      "right outer brow": number[OUTER_BROWS[1]],
    },
    ibug=landmarks.vertices(number, vertices),
    face=landmarks.face(vertices, triangles, part)[solid],
    targets=names,
    starts=starts,
    indices=indices,
    deltas=deltas,
    skins=skins,
    brows=_proxies(data, "brow/"),
    hair=_proxies(data, "hair/"),
    folds=folds.paint(vertices, triangles, uv, part, next(iter(skins.values())).shape[:2]),
  )


def _crowns(vertices: np.ndarray, teeth: list[np.ndarray]) -> np.ndarray:
  """Tells teeth from gums, which are one mesh: [vertices] 1 at the biting edge, 0 at the gum."""
  crown = np.zeros(len(vertices))
  for row, sign in zip(teeth, (1, -1), strict=True):
    height, depth = sign * vertices[row, 1], vertices[row, 2]
    beside = np.abs(depth[:, None] - depth[None, :]) < 0.06
    edge = np.where(beside, height[None, :], -np.inf).max(1)
    # A crown is about nine millimetres high.
    crown[row] = np.clip(1.5 - (edge - height) / 0.09, 0, 1)
  return crown


def _molars(vertices: np.ndarray, triangles: np.ndarray, lower: np.ndarray) -> np.ndarray:
  """Triangles of the lower back teeth, which would stand above the tongue of a dropped jaw."""
  behind = vertices[triangles, 2].min(1) < vertices[lower, 2].max() - 0.15
  return np.isin(triangles, lower).all(1) & behind


def linear(image: np.ndarray) -> np.ndarray:
  """Turns sRGB, [..., 3] uint8, into linear light, float32 in [0, 1]."""
  values = np.arange(256) / 255
  table = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
  return table.astype(np.float32)[image]


def _eyes(
  vertices: np.ndarray, triangles: np.ndarray, part: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Vertices of the eyeball on the face's left and right."""
  both = np.unique(triangles[part == raster.EYE])
  left = vertices[both, 0] > 0
  return both[left], both[~left]


def _around(vertices: np.ndarray, eye: np.ndarray, skin: np.ndarray) -> np.ndarray:
  """Vertices of the skin within a centimetre of an eyeball."""
  centre = vertices[eye].mean(0)
  distance = np.linalg.norm(vertices - centre, axis=1)
  near = distance < distance[eye].max() + 0.1
  return np.flatnonzero(skin & near & (vertices[:, 2] > centre[2]))


def eye_coordinates(vertices: np.ndarray, eyes: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
  """Texture coordinates of eyeballs: 0.5 ahead, 0 and 1 a quarter turn away: [vertices, 2]."""
  coordinates = np.full((len(vertices), 2), 0.5, np.float32)
  for eye in eyes:
    low, high = vertices[eye].min(0), vertices[eye].max(0)
    # The cornea bulges ahead, so only width and height tell the centre and the radius.
    radius = (high[0] - low[0]) / 2
    centre = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2] + radius])
    direction = vertices[eye] - centre
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    angle = np.arccos(np.clip(direction[:, 2], -1, 1))
    ring = np.maximum(np.hypot(direction[:, 0], direction[:, 1]), 1e-6)
    coordinates[eye] = 0.5 + (angle / np.pi / ring)[:, None] * direction[:, :2]
  return coordinates


def _targets(
  data: Mapping[str, np.ndarray], vertices: np.ndarray, eyes: np.ndarray, skin: np.ndarray
) -> tuple[dict[str, int], np.ndarray, np.ndarray, np.ndarray]:
  """Unpacks the morph targets; eyeballs are turned, not morphed, by the units of gaze."""
  bounds = np.concatenate([[0], np.cumsum(data["target_sizes"])])
  names, indices, deltas = [], [], []
  for i, name in enumerate(data["target_names"].tolist()):
    rows = slice(bounds[i], bounds[i + 1])
    index = np.cumsum(data["target_steps"][rows].astype(np.int64)).astype(np.int32)
    delta = data["target_deltas"][rows].astype(np.float32) / 1000
    if name.startswith("unit/brow"):
      continue  # see `brow_targets`
    if name.startswith("unit/eyeLook"):
      keep = ~np.isin(index, eyes)
      index, delta = index[keep], delta[keep]
    if name.startswith("unit/noseSneer"):
      # It also lowers the brows, which unit 4 is there for.
      delta = delta * (1 - _rise(vertices[index, 1], 7.3, 7.42))[:, None]
    names.append(name)
    indices.append(index)
    deltas.append(delta)
  made = brow_targets(vertices, skin) | bump_targets(vertices, skin)
  for name, (index, delta) in made.items():
    names.append(name)
    indices.append(index)
    deltas.append(delta)
  starts = np.concatenate([[0], np.cumsum([len(i) for i in indices])]).astype(np.int64)
  numbers = {name: i for i, name in enumerate(names)}
  return numbers, starts, np.concatenate(indices), np.concatenate(deltas).astype(np.float32)


def brow_targets(
  vertices: np.ndarray, skin: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Morph targets that move the brows as a whole, made here.

  The face units of the package move a brow's upper edge and not its lower one: frowns flatten
  brows to a line. These move it as a band that keeps its height; the skin between brow and lid, and
  the forehead's, take up the movement. Movement at weight 1 is a tenth of a decimetre.

  Args:
    vertices: [vertices, 3] the head at rest.
    skin: [vertices] bool.

  Returns:
    Name -> vertices and their movement: the inner end up, the outer end up, all of it inwards.
  """
  x, y, z = vertices.T
  middle = np.interp(np.abs(x), *zip(*BROW_LINE, strict=True))
  band = _rise(y, middle - 0.1, middle - 0.025) * (1 - _rise(y, middle + 0.07, middle + 0.42))
  band = band * skin * (z > 0.9)
  inner = 1 - _rise(np.abs(x), 0.1, 0.52)
  outer = _rise(np.abs(x), 0.16, 0.46) * (1 - _rise(np.abs(x), 0.56, 0.72))
  targets = {}
  for side, sign in (("Left", 1), ("Right", -1)):
    # Between the brows both sides pull.
    own = band * np.clip(sign * x / 0.12 + 0.5, 0, 1)
    for name, share, direction in (
      ("browInnerUp", inner, (0, 0.1, 0)),
      ("browOuterUp", outer, (0, 0.1, 0)),
      ("browIn", inner, (-0.1 * sign, 0, 0.02)),
    ):
      weight = own * share * (np.clip(np.abs(x) / 0.1, 0, 1) if name == "browIn" else 1)
      index = np.flatnonzero(weight > 1e-3).astype(np.int32)
      delta = weight[index, None] * np.array(direction)
      targets[f"unit/{name}{side}"] = (index, delta.astype(np.float32))
  return targets


def bump_targets(
  vertices: np.ndarray, skin: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Morph targets that push a round patch of the skin, see `BUMPS`; otherwise as `brow_targets`."""
  targets = {}
  for name, (centre, radius, direction) in BUMPS.items():
    for side, sign in (("Left", 1), ("Right", -1)):
      mirror = np.array([sign, 1, 1])
      away = (vertices[:, :2] * mirror[:2] - centre) / radius
      weight = np.exp(-0.5 * (away**2).sum(1)) * skin * (vertices[:, 2] > 0.9)
      index = np.flatnonzero(weight > 0.02).astype(np.int32)
      delta = weight[index, None] * (np.array(direction) * mirror)
      targets[f"unit/{name}{side}"] = (index, delta.astype(np.float32))
  return targets


def _rise(x: np.ndarray, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
  """A smooth step from 0 at `low` to 1 at `high`."""
  share = np.clip((x - low) / (high - low), 0, 1)
  return share * share * (3 - 2 * share)


def _occlusion(
  measured: np.ndarray,
  vertices: np.ndarray,
  triangles: np.ndarray,
  part: np.ndarray,
  teeth: list[np.ndarray],
) -> np.ndarray:
  """Occlusion in [0, 1]; the mouth's inside gets what it has when the mouth is open."""
  sky = np.maximum(measured.astype(np.float32) / 255, 0.2)
  for kind, value in ((raster.TONGUE, 0.25), (raster.MOUTH, 0.15)):
    sky[np.unique(triangles[part == kind])] = value
  for row in teeth:
    depth = vertices[row, 2].max() - vertices[row, 2]
    sky[row] = np.clip(1 - depth / 0.25, 0.1, 1)  # molars lie in the dark
  return sky


def _proxies(data: Mapping[str, np.ndarray], prefix: str) -> dict[str, Proxy]:
  proxies = {}
  for name in sorted({key.split("/")[1] for key in data if key.startswith(prefix)}):
    at = lambda field, name=name: data[f"{prefix}{name}/{field}"]
    image = cv2.imdecode(at("texture"), cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
    half = image.shape[0] // 2
    planes = (image[:half], image[half:])
    if prefix == "brow/":
      planes = (np.ones_like(image), _balance(image, at("uv")))
    proxies[name] = Proxy(
      reference=at("reference").astype(np.int32),
      weights=at("weights").astype(np.float32),
      offsets=at("offsets").astype(np.float32),
      triangles=at("triangles").astype(np.int32),
      uv=at("uv").astype(np.float32) / 65535,
      texture=np.ascontiguousarray(np.stack(planes, -1)),
    )
  return proxies


def _balance(alpha: np.ndarray, uv: np.ndarray) -> np.ndarray:
  """Makes both brows equally dense: one lies in the upper rows of the texture, one in the lower."""
  row = round(uv[..., 1].mean() / 65535 * alpha.shape[0])
  halves = alpha[:row], alpha[row:]
  level = alpha.sum() / 2
  return np.clip(np.concatenate([half * level / half.sum() for half in halves]), 0, 1)
