"""Renders faces: any one of them from (version, seed, split, index) alone.

Draw a person, draw units, gaze, head, light; move the mesh; project it; fit it to the usual crop by
five points; rasterise at twice the size; lay brows, lashes and hair over it; halve; develop.
"""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
import simplejpeg

from tfds_builders.synthetic_faces import asset as assets
from tfds_builders.synthetic_faces import camera, expression, knobs, label_model, raster
from tfds_builders.synthetic_faces import person as people

SIZE = 112
# Pixels of the eyes, the nose's tip and the mouth's corners (the picture's left first) in the usual
# 112 x 112 crop of face recognition. That cropped-aligned Aff-Wild2 uses it is UNVERIFIED.
TEMPLATE = np.array(
  [
    [38.2946, 51.6963],
    [73.5318, 51.5014],
    [56.0252, 71.7366],
    [41.5493, 92.3655],
    [70.7299, 92.2041],
  ]
)
# The camera stands where the crop would fill this share of its frame's width; INFERRED.
SHARE_OF_FRAME = 0.4
# Eyes follow the camera while the head turns, up to here (degrees: sideways, up and down).
EYE_REACH = np.array([28.0, 20.0])
# Share of the head's turn that the eyes make up for.
EYE_FOLLOWS = 0.8
LASH = np.array([0.012, 0.01, 0.009], np.float32)
OPAQUE = np.ones((2, 2, 2), np.float32)
SKIN_GLOSS = 0.05


@dataclasses.dataclass(frozen=True)
class Scene:
  """One picture's choices, apart from the person.

  Attributes:
    intensity: [21, 2] strength of the units on the face's left and right.
    head: [3] yaw, pitch, roll in degrees, see `knobs.View`.
    eyes: [2] degrees that the eyes turn in the head: to the right of the picture, up.
    focal: millimetres.
    lights: see `camera.draw_lights`.
    ambient: see `camera.draw_lights`.
    background: [112, 112, 3] linear light.
    turn: jitter of the crop: degrees.
    zoom: factor.
    shift: [2] eye distances.
  """

  intensity: np.ndarray
  head: np.ndarray
  eyes: np.ndarray
  focal: float
  lights: np.ndarray
  ambient: np.ndarray
  background: np.ndarray
  turn: float
  zoom: float
  shift: np.ndarray


@dataclasses.dataclass(frozen=True)
class Face:
  """A rendered face and what is known of it.

  Attributes:
    jpeg: the picture, 112 x 112, quality 95, no chroma subsampling.
    expression: number of the intended class.
    pattern: name of the class and of its pattern.
    distribution: [8] posterior of the classes given the units that were drawn.
    intensity: [21, 2] strength of the units as seen.
    va: [2] valence and arousal.
    head: [3] yaw, pitch, roll in degrees.
    eyes: [2] degrees that the eyes turn in the head.
    gap: distance of the lips, in eye distances.
    sharpness: pixels across that the picture resolves, about.
    attributes: age, ancestry, sex and age group of the person.
  """

  jpeg: bytes
  expression: int
  pattern: str
  distribution: np.ndarray
  intensity: np.ndarray
  va: np.ndarray
  head: np.ndarray
  eyes: np.ndarray
  gap: float
  sharpness: float
  attributes: Mapping[str, object]


def generator(version: str, seed: int, split: str, *index: int) -> np.random.Generator:
  """Random numbers of one thing in the data set, the same wherever and whenever it is made.

  Args:
    version: of the data set.
    seed: of the data set.
    split: its name.
    *index: numbers that name the thing within the split.

  Returns:
    A generator of its own.
  """
  words = [int(x) for x in version.split(".")]
  entropy = [*words, seed, *split.encode(), len(index), *index]
  return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


@functools.lru_cache(maxsize=4)
def draw_person(
  version: str, seed: int, split: str, identity: int, setting: knobs.Person
) -> people.Person:
  """Draws the person with this number; kept for the next picture of the same person."""
  return people.draw(generator(version, seed, split, identity), setting, assets.load())


def render_face(
  version: str, seed: int, split: str, identity: int, image: int, setting: knobs.Knobs
) -> Face:
  """Renders one picture of one person.

  Args:
    version: of the data set, such as "0.1.0".
    seed: of the data set.
    split: name of the split; no person is in two.
    identity: number of the person in the split.
    image: number of the picture of that person.
    setting: all distributions.

  Returns:
    The face; equal arguments give equal bytes.
  """
  person = draw_person(version, seed, split, identity, setting.person)
  rng = generator(version, seed, split, identity, image)
  drawn = label_model.draw(rng, setting.mode, setting.ambiguity)
  pattern = label_model.PATTERNS[drawn.pattern]
  scene = draw_scene(rng, label_model.draw_intensity(rng, drawn), pattern.name, setting.view)
  picture, gap = render(person, scene)
  pixels, sharpness = camera.spoil(rng, picture, setting.camera)
  seen = label_model.lips_seen(scene.intensity, gap > expression.PARTED)
  return Face(
    jpeg=simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=95, colorsubsampling="444"),
    expression=drawn.expression,
    pattern=f"{pattern.expression}/{pattern.name}",
    distribution=drawn.distribution,
    intensity=seen,
    va=label_model.valence_arousal(seen),
    head=scene.head,
    eyes=scene.eyes,
    gap=gap,
    sharpness=sharpness,
    attributes=person.attributes,
  )


def draw_scene(
  rng: np.random.Generator, intensity: np.ndarray, pattern: str, view: knobs.View
) -> Scene:
  """Draws how a face is seen.

  Args:
    rng: where the choices come from.
    intensity: [21, 2] strength of the units.
    pattern: name of the pattern, which head and gaze may follow.
    view: distributions of the choices.

  Returns:
    The scene.
  """
  head, averted = label_model.follow(rng, pattern)
  head = head + [view.yaw.draw(rng), view.pitch.draw(rng), view.roll.draw(rng)]
  head[0] = np.clip(head[0], view.yaw.low, view.yaw.high)
  head[1] = np.clip(head[1], view.pitch.low, view.pitch.high)
  # Eyes that do not avoid the camera stay near it while the head turns.
  eyes = view.gaze.draw(rng, 2) + (averted if averted.any() else -EYE_FOLLOWS * head[:2])
  lights, ambient = camera.draw_lights(rng, view)
  return Scene(
    intensity=intensity,
    head=head,
    eyes=np.clip(eyes, -EYE_REACH, EYE_REACH),
    focal=float(view.focal.draw(rng)),
    lights=lights,
    ambient=ambient,
    background=camera.draw_background(rng, SIZE),
    turn=float(view.turn.draw(rng)),
    zoom=float(view.zoom.draw(rng)),
    shift=view.shift.draw(rng, 2),
  )


def render(person: people.Person, scene: Scene) -> tuple[np.ndarray, float]:
  """Renders a person in a scene.

  Args:
    person: who.
    scene: how.

  Returns:
    [112, 112, 3] float32 linear light, and the distance of the lips in eye distances.
  """
  asset = assets.load()
  face = expression.express(asset, person.vertices, scene.intensity, scene.eyes, person.wrinkled)
  pose = _pose(asset, person, face, scene)
  picture, cover, depth = _draw_head(asset, person, face, pose, scene)
  brows = _bound(asset.brows[person.brow], face.vertices)
  for lashes, opacity in ((asset.lower_lashes, 0.35), (asset.upper_lashes, 0.8)):
    placed = (face.vertices, lashes, np.zeros((len(lashes), 3, 2), np.float32), OPAQUE)
    _lay(picture, cover, depth, pose, scene, *placed, LASH, opacity, 0.004)
  _lay(picture, cover, depth, pose, scene, *brows, person.brow_colour, 1.2, 0.006)
  if person.hair:
    hair = _bound(asset.hair[person.hair], face.vertices)
    colour = 2.5 * person.hair_colour  # the textures are about 0.4 bright
    _lay(picture, cover, depth, pose, scene, *hair, colour, 1.0, 0.0)
  small, small_cover = raster.halve(picture, cover)
  return small + (1 - small_cover[..., None]) * scene.background, face.gap


@dataclasses.dataclass(frozen=True)
class _Pose:
  """Where the head is: from its own frame to the camera's, to the picture."""

  turn: np.ndarray
  pivot: np.ndarray
  eyes: np.ndarray
  distance: float
  fit: complex = 1 + 0j
  offset: complex = 0j

  def project(self, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places vertices of the head's frame, see `raster.project`; pixels at twice the size."""
    return raster.project(
      vertices,
      self.turn,
      self.pivot,
      self.eyes,
      self.distance,
      2 * self.fit,
      2 * self.offset,
    )


def rotation(head: np.ndarray) -> np.ndarray:
  """[3, 3] rotation of a head by yaw, pitch and roll in degrees, see `knobs.View`."""
  (cy, cp, cr), (sy, sp, sr) = np.cos(np.deg2rad(head)), np.sin(np.deg2rad(head))
  yaw = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
  pitch = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
  roll = np.array([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1]])
  return roll @ yaw @ pitch


def _pose(
  asset: assets.FaceAsset, person: people.Person, face: expression.Expressed, scene: Scene
) -> _Pose:
  """Turns the head, sets up the camera and fits the five points to the template."""
  eyes = np.mean([person.vertices[eye].mean(0) for eye in asset.eyes], 0).astype(np.float64)
  distance = expression.eye_distance(asset, person.vertices)
  # A head turns on its neck, below and behind the eyes.
  pivot = eyes - np.array([0, 0.8, 1.1]) * distance
  crop = SIZE / np.linalg.norm(TEMPLATE[1] - TEMPLATE[0]) * distance
  pose = _Pose(rotation(scene.head), pivot, eyes, scene.focal / 36 * crop / SHARE_OF_FRAME)
  points = _five_points(asset, face.vertices)
  flat = pose.project(points)[1][:, :2] / 2
  fit, offset = similarity(flat, TEMPLATE)
  jitter = scene.zoom * np.exp(1j * np.deg2rad(scene.turn))
  shift = complex(*(scene.shift * np.linalg.norm(TEMPLATE[1] - TEMPLATE[0])))
  centre = complex(*TEMPLATE.mean(0))
  return dataclasses.replace(
    pose, fit=fit * jitter, offset=(offset - centre) * jitter + centre + shift
  )


def _five_points(asset: assets.FaceAsset, vertices: np.ndarray) -> np.ndarray:
  """Eyes, nose's tip, mouth's corners, the picture's left first: [5, 3]."""
  left_eye, right_eye = (vertices[eye].mean(0) for eye in asset.eyes)
  rest = [vertices[asset.landmarks[name]] for name in ("nose", "right corner", "left corner")]
  return np.stack([right_eye, left_eye, *rest]).astype(np.float32)


def similarity(source: np.ndarray, target: np.ndarray) -> tuple[complex, complex]:
  """Least-squares scale, rotation and shift, as complex numbers: target = fit * source + offset.

  Args:
    source: [points, 2].
    target: [points, 2].

  Returns:
    `fit` and `offset`.
  """
  s, t = (points[:, 0] + 1j * points[:, 1] for points in (source.astype(np.float64), target))
  fit = ((s - s.mean()).conj() * (t - t.mean())).sum() / (np.abs(s - s.mean()) ** 2).sum()
  return complex(fit), complex(t.mean() - fit * s.mean())


def _draw_head(
  asset: assets.FaceAsset,
  person: people.Person,
  face: expression.Expressed,
  pose: _Pose,
  scene: Scene,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Draws the opaque parts: [224, 224, 3] linear light, [224, 224] coverage, inverse distance."""
  triangles = asset.triangles
  placed, screen = pose.project(face.vertices)
  normals = raster.vertex_normals(placed, triangles)
  depth, shown, weights = raster.rasterise(screen, triangles, 2 * SIZE, True)
  folded = np.empty_like(person.skin)
  raster.fold_skin(person.skin, asset.folds, face.folds, folded)
  picture = np.zeros((2 * SIZE, 2 * SIZE, 3), np.float32)
  cover = np.zeros((2 * SIZE, 2 * SIZE), np.float32)
  raster.shade(
    picture,
    cover,
    shown,
    weights,
    screen,
    normals,
    asset.occlusion,
    triangles,
    asset.uv,
    asset.part,
    folded,
    person.eye,
    person.plain,
    scene.lights,
    scene.ambient,
    SKIN_GLOSS,
  )
  return picture, cover, depth


def _bound(proxy: assets.Proxy, vertices: np.ndarray) -> tuple[np.ndarray, ...]:
  """Places brows or hair on a head: vertices, triangles, texture coordinates, texture."""
  placed = raster.bind_proxy(vertices, proxy.reference, proxy.weights, proxy.offsets)
  return placed, proxy.triangles, proxy.uv, proxy.texture


def _lay(
  picture: np.ndarray,
  cover: np.ndarray,
  depth: np.ndarray,
  pose: _Pose,
  scene: Scene,
  vertices: np.ndarray,
  triangles: np.ndarray,
  uv: np.ndarray,
  texture: np.ndarray,
  colour: np.ndarray,
  opacity: float,
  bias: float,
) -> None:
  """Lays a translucent mesh over the picture, in place; arguments as in `raster.layer`."""
  placed, screen = pose.project(vertices)
  normals = raster.vertex_normals(placed, triangles)
  order = np.argsort(screen[triangles, 2].sum(1), kind="stable")
  raster.layer(
    picture,
    cover,
    depth,
    screen,
    normals,
    triangles,
    order,
    uv,
    texture,
    colour,
    opacity,
    bias,
    scene.lights,
    scene.ambient,
  )
