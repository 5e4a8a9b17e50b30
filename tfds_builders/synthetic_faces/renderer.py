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
from tfds_builders.synthetic_faces import (
  camera,
  expression,
  knobs,
  label_model,
  landmarks,
  occluders,
  raster,
)
from tfds_builders.synthetic_faces import person as people
from tfds_builders.synthetic_faces import pose as poses
from tfds_builders.synthetic_faces.pose import SIZE

# Eyes follow the camera while the head turns, up to here (degrees: sideways, up and down).
EYE_REACH = np.array([28.0, 20.0])
# Share of the head's turn that the eyes make up for.
EYE_FOLLOWS = 0.8
LASH = np.array([0.012, 0.01, 0.009], np.float32)
OPAQUE = np.ones((2, 2, 2), np.float32)
SKIN_GLOSS = 0.05
OCCLUDER = 1  # number of the random numbers that a picture's occluder has for itself


@dataclasses.dataclass(frozen=True)
class Scene:
  """One picture's choices, apart from the person.

  Attributes:
    intensity: [21, 2] strength of the units on the face's left and right.
    framing: how the head is turned and cropped.
    eyes: [2] degrees that the eyes turn in the head: to the right of the picture, up.
    light: [5] see `camera.LIGHT`.
    background: [112, 112, 3] linear light.
    hand: a hand before the face.
  """

  intensity: np.ndarray
  framing: poses.Framing
  eyes: np.ndarray
  light: np.ndarray
  background: np.ndarray
  hand: occluders.Hand | None = None


@dataclasses.dataclass(frozen=True)
class Picture:
  """A rendered scene.

  Attributes:
    light: [112, 112, 3] float32 linear light.
    gap: distance of the lips, in eye distances.
    landmarks: [68, 2] float32 in pixels, see `landmarks`; outside of the picture too.
    landmark_seen: [68] bool, whether nothing is before them.
    landmark_open: [68] bool, whether neither hair nor hand is, in the picture.
    face: [28, 28] uint8, how much of the 4 x 4 pixels shows the face; 255 is all.
  """

  light: np.ndarray
  gap: float
  landmarks: np.ndarray
  landmark_seen: np.ndarray
  landmark_open: np.ndarray
  face: np.ndarray


@dataclasses.dataclass(frozen=True)
class Face:
  """A face of the data set and what is known of it.

  Attributes:
    jpeg: the picture, 112 x 112, quality 95, no chroma subsampling.
    expression: number of the intended class.
    pattern: name of the class and of its pattern.
    distribution: [8] posterior of the classes given the units that were drawn.
    intensity: [21, 2] strength of the units as seen.
    va: [2] valence and arousal.
    scene: how it was rendered.
    picture: what was rendered; its `light` is left out.
    faults: what the camera did to it.
    attributes: age, ancestry, sex and age group of the person.
  """

  jpeg: bytes
  expression: int
  pattern: str
  distribution: np.ndarray
  intensity: np.ndarray
  va: np.ndarray
  scene: Scene
  picture: Picture
  faults: camera.Faults
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
  drawn = label_model.draw(rng, setting.labels, identity + image)
  pattern = label_model.PATTERNS[drawn.pattern]
  scene = draw_scene(rng, label_model.draw_intensity(rng, drawn), pattern.name, setting.view)
  # From numbers of its own: turning this knob leaves all else as it is.
  apart = generator(version, seed, split, identity, image, OCCLUDER)
  hand = occluders.draw(apart, f"{pattern.expression}/{pattern.name}", setting.occluders)
  scene = dataclasses.replace(scene, hand=hand)
  faults = camera.draw_faults(rng, setting.camera)
  picture = render(person, scene)
  pixels = camera.spoil(rng, picture.light, faults)
  seen = label_model.lips_seen(scene.intensity, picture.gap > expression.PARTED)
  nothing = np.zeros((0, 0, 3), np.float32)  # rather than send pictures between processes
  return Face(
    jpeg=simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=95, colorsubsampling="444"),
    expression=drawn.expression,
    pattern=f"{pattern.expression}/{pattern.name}",
    distribution=drawn.distribution,
    intensity=seen,
    va=label_model.valence_arousal(seen),
    scene=dataclasses.replace(scene, background=nothing),
    picture=dataclasses.replace(picture, light=nothing),
    faults=faults,
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
  return Scene(
    intensity=intensity,
    framing=poses.Framing(
      head=head,
      focal=float(view.focal.draw(rng)),
      turn=float(view.turn.draw(rng)),
      zoom=float(view.zoom.draw(rng)),
      shift=view.shift.draw(rng, 2),
    ),
    eyes=np.clip(eyes, -EYE_REACH, EYE_REACH),
    light=camera.draw_light(rng, view),
    background=camera.draw_background(rng, SIZE),
  )


def render(person: people.Person, scene: Scene) -> Picture:
  """Renders a person in a scene."""
  asset = assets.load()
  face = expression.express(asset, person.vertices, scene.intensity, scene.eyes, person.wrinkled)
  pose = poses.place(asset, person.vertices, face.vertices, scene.framing)
  canvas = _draw_head(asset, person, face, pose, camera.lights(scene.light))
  for lashes, opacity in ((asset.lower_lashes, 0.35), (asset.upper_lashes, 0.8)):
    placed = (face.vertices, lashes, np.zeros((len(lashes), 3, 2), np.float32), OPAQUE)
    canvas.lay(placed, LASH, opacity, 0.004)
  canvas.lay(_bound(asset.brows[person.brow], face.vertices), person.brow_colour, 1.2, 0.006)
  if person.hair:
    hair = _bound(asset.hair[person.hair], face.vertices)
    canvas.cover_with(hair, 2.5 * person.hair_colour)  # the textures are about 0.4 bright
  points = pose.project(face.vertices[asset.ibug].mean(1))[1]
  if scene.hand is not None:
    canvas.paint(occluders.bones(scene.hand, points[:, :2]), skin_tone(person))
  small, cover = raster.halve(canvas.picture, canvas.cover)
  free = np.where(canvas.open > 0.5, canvas.depth, np.inf)
  return Picture(
    light=small + (1 - cover[..., None]) * scene.background,
    gap=face.gap,
    landmarks=points[:, :2] / 2,
    landmark_seen=landmarks.seen(points, free),
    landmark_open=landmarks.seen(points, np.where(canvas.open > 0.5, np.float32(0), np.inf)),
    face=_shrink(canvas.face * canvas.open),
  )


@dataclasses.dataclass
class _Canvas:
  """A picture in the making, at twice its size.

  Attributes:
    picture: [224, 224, 3] float32 linear light, multiplied by `cover`.
    cover: [224, 224] float32 in [0, 1].
    depth: [224, 224] float32 inverse distance of the opaque parts.
    face: [224, 224] bool, whether the opaque part is of the face.
    open: [224, 224] float32, share that hair leaves free.
    pose: where the head is.
    lights: see `camera.lights`.
  """

  picture: np.ndarray
  cover: np.ndarray
  depth: np.ndarray
  face: np.ndarray
  open: np.ndarray
  pose: poses.Pose
  lights: tuple[np.ndarray, np.ndarray]

  def lay(
    self, mesh: tuple[np.ndarray, ...], colour: np.ndarray, opacity: float, bias: float
  ) -> None:
    """Lays a translucent mesh of the head's frame (see `_bound`) over it, see `raster.layer`."""
    vertices, triangles, uv, texture = mesh
    placed, screen = self.pose.project(vertices)
    normals = raster.vertex_normals(placed, triangles)
    order = np.argsort(screen[triangles, 2].sum(1), kind="stable")
    look = (uv, texture, colour, opacity, bias, *self.lights)
    raster.layer(self.picture, self.cover, self.depth, screen, normals, triangles, order, *look)

  def cover_with(self, mesh: tuple[np.ndarray, ...], colour: np.ndarray) -> None:
    """Lays a mesh over it that hides the face."""
    behind, self.cover = self.cover, np.zeros_like(self.cover)
    self.lay(mesh, colour, 1.0, 0.0)
    self.open *= 1 - self.cover
    self.cover += (1 - self.cover) * behind

  def paint(self, parts: list[list[occluders.Rod]], albedo: np.ndarray) -> None:
    """Paints a hand over it, see `occluders.paint`."""
    hidden = occluders.paint(self.picture, parts, albedo, self.lights)
    self.open *= 1 - hidden
    self.cover += (1 - self.cover) * hidden


def skin_tone(person: people.Person) -> np.ndarray:
  """[3] linear albedo of the skin, as it is mostly."""
  return np.median(person.skin[::8, ::8, :3].reshape(-1, 3), 0)


def _shrink(shares: np.ndarray) -> np.ndarray:
  """Averages 8 x 8 pixels of [224, 224] in [0, 1]: [28, 28] uint8."""
  return np.round(255 * shares.reshape(28, 8, 28, 8).mean((1, 3))).astype(np.uint8)


def _draw_head(
  asset: assets.FaceAsset,
  person: people.Person,
  face: expression.Expressed,
  pose: poses.Pose,
  lights: tuple[np.ndarray, np.ndarray],
) -> _Canvas:
  """Draws the opaque parts."""
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
    *lights,
    SKIN_GLOSS,
  )
  # Where nothing is, the number is -1, which would read the last triangle.
  visible = asset.face[shown] & (depth > 0)
  return _Canvas(picture, cover, depth, visible, np.ones_like(cover), pose, lights)


def _bound(proxy: assets.Proxy, vertices: np.ndarray) -> tuple[np.ndarray, ...]:
  """Places brows or hair on a head: vertices, triangles, texture coordinates, texture."""
  placed = raster.bind_proxy(vertices, proxy.reference, proxy.weights, proxy.offsets)
  return placed, proxy.triangles, proxy.uv, proxy.texture
