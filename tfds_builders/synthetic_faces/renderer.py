"""Renders faces: any one of them from (version, seed, split, index) alone.

Draw a person, draw units, gaze, head, light; move the mesh; project it; fit it to the usual crop by
five points; rasterise at twice the size; lay brows, lashes and hair over it; halve; develop.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import cv2
import numpy as np
import simplejpeg

from tfds_builders.synthetic_faces import asset as assets
from tfds_builders.synthetic_faces import (
  camera,
  clips,
  expression,
  knobs,
  label_model,
  landmarks,
  occluders,
  raster,
)
from tfds_builders.synthetic_faces import canvas as canvases
from tfds_builders.synthetic_faces import glasses as eyewear
from tfds_builders.synthetic_faces import person as people
from tfds_builders.synthetic_faces import pose as poses
from tfds_builders.synthetic_faces import spoof as spoofs
from tfds_builders.synthetic_faces.pose import SIZE

# Eyes follow the camera while the head turns, up to here (degrees: sideways, up and down).
EYE_REACH = np.array([28.0, 20.0])
# Share of the head's turn that the eyes make up for.
EYE_FOLLOWS = 0.8
LASH = np.array([0.012, 0.01, 0.009], np.float32)
OPAQUE = np.ones((2, 2, 2), np.float32)
# Numbers of the random numbers that each of these has for itself: turning its knob leaves all else
# as it is.
HAND, GLASSES, LOCK, SPOOF, CLIP = range(1, 6)


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
    glasses: what the person wears.
    lock: hair over an eye.
    spoof: what shows the face instead of a person.
  """

  intensity: np.ndarray
  framing: poses.Framing
  eyes: np.ndarray
  light: np.ndarray
  background: np.ndarray
  hand: occluders.Hand | None = None
  glasses: eyewear.Glasses | None = None
  lock: occluders.Lock | None = None
  spoof: spoofs.Spoof | None = None


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
    distribution: [8] posterior of the classes given the units that were drawn, or that a frame of
      a clip shows.
    intensity: [21, 2] strength of the units as seen.
    va: [2] valence and arousal.
    scene: how it was rendered.
    picture: what was rendered; its `light` is left out.
    faults: what the camera did to it.
    attributes: age, ancestry, sex and age group of the person.
    clip: number of the clip that it is a frame of; -1 where it is of none.
    frame: number of the frame in its clip.
    blink: how far a blink closes the lids, in [0, 1]; it is in none of the labels.
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
  clip: int = -1
  frame: int = 0
  blink: float = 0.0


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
    image: number of the picture of that person; in clips, frames of one after those of another.
    setting: all distributions.

  Returns:
    The face; equal arguments give equal bytes.
  """
  person = draw_person(version, seed, split, identity, setting.person)
  if setting.clips.frames:
    shot = _draw_frame(version, seed, split, identity, image, setting)
  else:
    shot = _draw_still(version, seed, split, identity, image, setting)
  if not person.hair:
    shot = dataclasses.replace(shot, scene=dataclasses.replace(shot.scene, lock=None))
  picture = render(person, shot.scene)
  pixels = camera.spoil(shot.rng, picture.light, shot.faults)
  seen = label_model.lips_seen(shot.intensity, picture.gap > expression.PARTED)
  nothing = np.zeros((0, 0, 3), np.float32)  # rather than send pictures between processes
  return Face(
    jpeg=simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=95, colorsubsampling="444"),
    expression=shot.drawn.expression,
    pattern=_full_name(shot.drawn),
    distribution=shot.distribution,
    intensity=seen,
    va=label_model.valence_arousal(seen),
    scene=dataclasses.replace(shot.scene, background=nothing),
    picture=dataclasses.replace(picture, light=nothing),
    faults=shot.faults,
    attributes=person.attributes,
    clip=shot.clip,
    frame=shot.frame,
    blink=shot.blink,
  )


@dataclasses.dataclass(frozen=True)
class _Shot:
  """What is drawn of a picture before it is rendered.

  Attributes:
    rng: where the camera's noise comes from.
    drawn: class, pattern and units.
    intensity: [21, 2] strength of the units as labelled: without a blink.
    distribution: see `Face`.
    scene: what is rendered.
    faults: what the camera does.
    clip: see `Face`.
    frame: see `Face`.
    blink: see `Face`.
  """

  rng: np.random.Generator
  drawn: label_model.Drawn
  intensity: np.ndarray
  distribution: np.ndarray
  scene: Scene
  faults: camera.Faults
  clip: int = -1
  frame: int = 0
  blink: float = 0.0


def _draw_still(
  version: str, seed: int, split: str, identity: int, image: int, setting: knobs.Knobs
) -> _Shot:
  """Draws a picture that stands for itself; arguments as of `render_face`."""
  place = (version, seed, split, identity, image)
  rng = generator(*place)
  drawn = label_model.draw(rng, setting.labels, identity + image)
  intensity = label_model.draw_intensity(rng, drawn)
  scene = draw_scene(rng, intensity, label_model.PATTERNS[drawn.pattern].name, setting.view)
  scene = _cover(scene, functools.partial(generator, *place), _full_name(drawn), setting)
  faults = camera.draw_faults(rng, setting.camera)
  return _Shot(rng, drawn, intensity, drawn.distribution, scene, faults)


def _draw_frame(
  version: str, seed: int, split: str, identity: int, image: int, setting: knobs.Knobs
) -> _Shot:
  """Draws a frame of a clip; arguments as of `render_face`."""
  clip, frame = divmod(image, setting.clips.frames)
  chain, scene, faults = _draw_clip(version, seed, split, identity, clip, setting)
  moment = clips.at(chain, frame / setting.clips.rate)
  head = scene.framing.head + moment.head
  head[:2] = np.clip(
    head[:2],
    [setting.view.yaw.low, setting.view.pitch.low],
    [setting.view.yaw.high, setting.view.pitch.high],
  )
  # How the clip's gaze differs from following the camera; patterns avert it by 15 degrees.
  stray = scene.eyes + EYE_FOLLOWS * scene.framing.head[:2]
  follows = EYE_FOLLOWS * (1 - min(np.linalg.norm(moment.gaze) / 15, 1))
  eyes = stray + moment.wander + moment.gaze - follows * head[:2]
  present = moment.intensity.max(1, keepdims=True).T >= label_model.PRESENT
  return _Shot(
    rng=generator(version, seed, split, identity, image),
    drawn=moment.drawn,
    intensity=moment.intensity,
    distribution=label_model.posterior(present, setting.labels.mode)[0],
    scene=dataclasses.replace(
      scene,
      intensity=clips.blinking(moment),
      framing=dataclasses.replace(scene.framing, head=head),
      eyes=np.clip(eyes, -EYE_REACH, EYE_REACH),
    ),
    faults=faults,
    clip=clip,
    frame=frame,
    blink=moment.blink,
  )


@functools.lru_cache(maxsize=2)
def _draw_clip(
  version: str, seed: int, split: str, identity: int, clip: int, setting: knobs.Knobs
) -> tuple[clips.Chain, Scene, camera.Faults]:
  """Draws what a clip's frames have in common; kept for the next frame of the same clip."""
  place = (version, seed, split, identity, clip, CLIP)
  rng = generator(*place)
  chain = clips.draw(rng, setting.labels, setting.clips, identity + clip)
  scene = draw_scene(rng, np.zeros_like(chain.beats[0].apex), "", setting.view)
  first = _full_name(chain.beats[0].drawn)
  scene = _cover(scene, functools.partial(generator, *place), first, setting)
  return chain, scene, camera.draw_faults(rng, setting.camera)


def _cover(
  scene: Scene,
  apart: Callable[[int], np.random.Generator],
  pattern: str,
  setting: knobs.Knobs,
) -> Scene:
  """Draws what stands before a face and what shows it.

  Args:
    scene: without these.
    apart: gives each of them random numbers of its own.
    pattern: class and pattern of the face.
    setting: distributions of the choices.
  """
  # Random numbers cost time: none are asked for where a knob is off.
  before, shown, drawn = setting.occluders, setting.spoof, {}
  if before.hand_often or before.hand_seldom:
    drawn["hand"] = occluders.draw(apart(HAND), pattern, before)
  if before.glasses:
    drawn["glasses"] = eyewear.draw(apart(GLASSES), before)
  if before.lock:
    drawn["lock"] = occluders.draw_lock(apart(LOCK), before)
  if shown.print or shown.screen or shown.cut_out:
    drawn["spoof"] = spoofs.draw(apart(SPOOF), shown)
  return dataclasses.replace(scene, **drawn)


def _full_name(drawn: label_model.Drawn) -> str:
  """Class and pattern, such as "sadness/downcast"."""
  pattern = label_model.PATTERNS[drawn.pattern]
  return f"{pattern.expression}/{pattern.name}"


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
  canvas = canvases.begin(asset, face.vertices, pose, camera.lights(scene.light))
  points = pose.project(face.vertices[asset.ibug].mean(1))[1]
  hand = _hand(person, scene, points, canvas)
  _lay_hair(asset, person, scene, face.vertices, canvas)
  free = (1 - canvas.veil) * (1 - hand.veil)
  canvas.lay(_bound(asset.brows[person.brow], face.vertices), person.brow_colour, 1.2, 0.006)
  for (rows, triangles), opacity in zip(_lashes(), (0.8, 0.35), strict=True):
    uv = np.zeros((len(triangles), 3, 2), np.float32)
    canvas.lay((face.vertices[rows], triangles, uv, OPAQUE), LASH, opacity, 0.004)
  skin = raster.fold_skin(person.skin, *_folding_skin(), face.folds.astype(np.float32))
  picture, cover = canvas.colour(asset, skin, person.eye, person.plain, hand.veil > raster.FULL)
  if scene.hand is not None:
    raster.darken(picture, hand.shadow)
    raster.lay_over(picture, cover, hand.light, hand.veil)
  seen, unhidden = landmarks.seen(points, canvas.depth, free)
  found = Picture(
    light=raster.halve(picture, cover, scene.background),
    gap=face.gap,
    landmarks=points[:, :2] / 2,
    landmark_seen=seen,
    landmark_open=unhidden,
    # Where nothing is, the number is -1, which would read the last triangle.
    face=_shrink(asset.face[canvas.shown] * (canvas.shown >= 0) * free),
  )
  if scene.spoof is None:
    return found
  shown = spoofs.show(scene.spoof, found.light, found.landmarks, found.face)
  return dataclasses.replace(
    found,
    light=shown.light,
    landmarks=shown.landmarks,
    landmark_seen=found.landmark_seen & shown.inside,
    landmark_open=found.landmark_open & shown.inside,
    face=shown.face,
  )


def _hand(
  person: people.Person, scene: Scene, points: np.ndarray, canvas: canvases.Canvas
) -> occluders.Painted:
  """Paints the scene's hand, if it has one."""
  if scene.hand is None:
    nothing = np.zeros_like(canvas.veil)
    return occluders.Painted(canvas.front, nothing, nothing)
  tone = np.median(person.skin[::8, ::8, :3].reshape(-1, 3), 0)
  return occluders.paint(occluders.bones(scene.hand, points[:, :2]), tone, canvas.lights)


def _lay_hair(
  asset: assets.FaceAsset,
  person: people.Person,
  scene: Scene,
  vertices: np.ndarray,
  canvas: canvases.Canvas,
) -> None:
  """Lays hair and glasses, near things first."""
  colour = 2.5 * person.hair_colour  # the textures are about 0.4 bright
  if scene.glasses is not None:
    glasses = eyewear.build(asset, person.vertices, scene.glasses)
    frame, reflected, lens = (
      np.array(x, np.float32) for x in (scene.glasses.colour, eyewear.REFLECTION, eyewear.LENS)
    )
    canvas.block(glasses.frame)
  if scene.lock is not None:
    canvas.lay(occluders.strands(asset, person.vertices, scene.lock), colour, 1.0, 0.0)
  if person.hair:
    canvas.lay(_bound(asset.hair[person.hair], vertices), colour, 1.0, 0.0)
  if scene.glasses is not None:
    canvas.lay(glasses.frame, frame, 1.0, 1e-4)
    canvas.lay(glasses.reflection, reflected, scene.glasses.reflection, 0.0)
    canvas.lay(glasses.lenses, lens, scene.glasses.tint, 0.0)


def _shrink(shares: np.ndarray) -> np.ndarray:
  """Averages 8 x 8 pixels of [224, 224] in [0, 1]: [28, 28] uint8."""
  small = cv2.resize(shares, (SIZE // 4, SIZE // 4), interpolation=cv2.INTER_AREA)
  return np.round(255 * small).astype(np.uint8)


@functools.cache
def _folding_skin() -> tuple[np.ndarray, np.ndarray]:
  """Where the skin folds: [texels, 2] rows and columns, and [texels, folds] as `asset.folds`."""
  maps = assets.load().folds
  texels = np.argwhere(np.abs(maps).max(-1) > 0.004)  # less is less than a grey level
  return texels, maps[texels[:, 0], texels[:, 1]]


@functools.cache
def _lashes() -> list[tuple[np.ndarray, np.ndarray]]:
  """Rows of the head's vertices and triangles of the upper and the lower lashes."""
  meshes = []
  for lashes in (assets.load().upper_lashes, assets.load().lower_lashes):
    rows, triangles = np.unique(lashes, return_inverse=True)
    meshes.append((rows, triangles.reshape(-1, 3).astype(np.int32)))
  return meshes


def _bound(proxy: assets.Proxy, vertices: np.ndarray) -> tuple[np.ndarray, ...]:
  """Places brows or hair on a head: vertices, triangles, texture coordinates, texture."""
  placed = raster.bind_proxy(vertices, proxy.reference, proxy.weights, proxy.offsets)
  return placed, proxy.triangles, proxy.uv, proxy.texture
