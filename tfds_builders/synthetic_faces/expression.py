"""From action units to the movement of the mesh: recipes, gaze, the lips, folds of the skin.

The recipes were chosen by looking at renders. A unit must be seen: at full strength, raised inner
brows (1) slope, raised whole brows (1 + 2) do not slope the other way, and so on. Between rounds of
looking, a network trained on photographs was asked what it saw (`scripts/measure_agreement.py`), so
what it says of these faces is optimistic.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from tfds_builders.synthetic_faces import asset as assets
from tfds_builders.synthetic_faces import folds as fold_maps
from tfds_builders.synthetic_faces import label_model

# Unit -> weights of face units at full strength. A name without a side stands for both sides, each
# with its own strength; `BOTH` holds those that move the whole mouth, which get the mean.
RECIPES: Mapping[int, Mapping[str, float]] = {
  1: {"browInnerUp": 0.95, "browOuterUp": 0.1},
  2: {"browOuterUp": 0.8, "browInnerUp": 0.1},
  4: {"browInnerUp": -0.85, "browOuterUp": -0.55, "browIn": 0.45, "eyeWide": -0.3},
  6: {"cheekSquint": 1.0, "eyeSquint": 0.35, "cheekUp": 0.6},
  7: {"eyeSquint": 1.1, "eyeBlink": 0.12},
  10: {"mouthUpperUp": 1.2, "wingUp": 0.5},
  12: {"mouthSmile": 1.15, "cheekUp": 0.4},
  15: {"mouthFrown": 1.35},
  23: {"mouthRollLower": 0.5, "mouthRollUpper": 0.5, "mouthPucker": 0.6},
  24: {
    "mouthRollLower": 0.45,
    "mouthRollUpper": 0.45,
    "mouthShrugLower": 0.9,
    "mouth-compression": 0.4,
    "mouthFrown": 0.15,
  },
  25: {"mouthLowerDown": 0.6, "mouthUpperUp": 0.15, "jawOpen": 0.05},
  26: {"jawOpen": 0.5},
  5: {"eyeWide": 0.95},
  9: {"noseSneer": 1.3, "wingUp": 0.8, "cheekUp": 0.4, "browInnerUp": -0.35, "browIn": 0.3},
  14: {"mouthDimple": 1.0},
  17: {"mouthShrugLower": 1.5},
  18: {"mouthPucker": 1.2, "mouthFunnel": 0.3},
  20: {"mouthStretch": 1.8, "mouthLowerDown": 0.5},
  27: {"jawOpen": 1.0},
  28: {"mouthRollLower": 0.9, "mouthRollUpper": 0.9},
  43: {"eyeBlink": 1.0},
}
# How much less unit 4 lowers brows that unit 1 raises: between them they pull the brows together.
RAISED_4 = 0.5
# How much less unit 10 raises the lip that unit 12 pulls aside, so that a smile stays one.
SMILING_10 = 0.5
# Raising the upper lip would part lips that are to stay closed.
CLOSED_10 = {"mouthUpperUp": 0.8, "wingUp": 0.7}
# How much less units 6 and 7 raise the lower lid that the upper one comes down to.
CLOSED_67 = 0.6
# Units that pull the same way do not add up beyond these weights.
LIMITS = {"eyeSquint": 1.2, "eyeBlink": 1.0, "wingUp": 1.1, "cheekUp": 1.0}
BOTH = (
  "mouthRollLower",
  "mouthRollUpper",
  "mouthPucker",
  "mouthFunnel",
  "mouthShrugLower",
  "mouth-compression",
  "jawOpen",
)

# Unit -> how deep folds are at full strength.
FOLDS: Mapping[int, Mapping[str, float]] = {
  1: {"forehead": 0.35},
  2: {"forehead": 0.3},
  4: {"frown": 0.9},
  6: {"cheek": 0.7, "crow": 0.6},
  7: {"cheek": 0.35},
  9: {"bridge": 0.9, "nasolabial": 0.5},
  10: {"nasolabial": 0.6, "bridge": 0.15},
  12: {"nasolabial": 0.75},
  14: {"dimple": 0.9},
  15: {"marionette": 0.6},
  17: {"chin": 0.6},
  24: {"chin": 0.3},
}

# Below 1: skin folds early, so that weak units are seen too.
FOLD_EXPONENT = 0.75

# Unit 25 is labelled where the lips' inner edges are further apart than this, in eye distances:
# about one pixel of a crop at 112 x 112.
PARTED = 0.025
# How far the lips stand apart at strength 0.2 and 1 of unit 25, at least.
GAP_LOW, GAP_HIGH = 0.04, 0.15
# Closed lips rest with their edges this far apart on the mesh; below the first they would sink in.
CLOSED = (-0.02, 0.012)
# Skin before an eyeball stays this far from it, in decimetres.
LID_THICKNESS = 0.018
# Turning an eye by this much lowers or raises the lid all the way.
LID_ANGLE = 30.0


@dataclasses.dataclass(frozen=True)
class Expressed:
  """A face with an expression.

  Attributes:
    vertices: [vertices, 3] float32 in the head's own frame, decimetres.
    folds: [folds] depth of each fold of `folds.NAMES`.
    gap: distance of the lips' inner edges, in eye distances.
  """

  vertices: np.ndarray
  folds: np.ndarray
  gap: float


def express(
  asset: assets.FaceAsset,
  rest: np.ndarray,
  intensity: np.ndarray,
  gaze: np.ndarray,
  wrinkled: float = 0.5,
) -> Expressed:
  """Moves a head at rest.

  Args:
    asset: the morph targets.
    rest: [vertices, 3] the person's head at rest.
    intensity: [21, 2] strength of each unit of `label_model.UNITS` on the face's left and right.
    gaze: [2] degrees that the eyes turn in the head: to the right of the picture, up.
    wrinkled: how readily the skin folds, in [0, 1].

  Returns:
    The moved head.
  """
  strength = dict(zip(label_model.UNITS, intensity, strict=True))
  weights = unit_weights(strength)
  for side in ("Left", "Right"):
    direction = "Up" if gaze[1] > 0 else "Down"
    weights[f"unit/eyeLook{direction}{side}"] = abs(gaze[1]) / LID_ANGLE
  vertices = asset.move(rest, weights)
  vertices = _set_lips(asset, vertices, strength)
  _keep_lids_out(asset, rest, vertices)
  for eye in asset.eyes:
    turn_eye(vertices, eye, gaze)
  folds = np.zeros(len(fold_maps.NAMES))
  for unit, recipe in FOLDS.items():
    for name, depth in recipe.items():
      for side in range(2):
        folds[fold_maps.NAMES.index(f"{name} {('left', 'right')[side]}")] += (
          depth * strength[unit][side] ** FOLD_EXPONENT
        )
  # Old skin folds deeper, and keeps some of its folds at rest: those are in the texture.
  folds = np.minimum(folds, 1.2) * (0.65 + 0.5 * wrinkled)
  return Expressed(vertices, folds, lip_gap(asset, vertices))


def unit_weights(strength: Mapping[int, np.ndarray]) -> dict[str, float]:
  """Turns units (number -> [2] strength on the left and right) into weights of morph targets."""
  parted = max(strength[25]) >= label_model.PRESENT or max(strength[20]) >= label_model.PRESENT
  strength = dict(strength) | {
    6: strength[6] * (1 - CLOSED_67 * strength[43]),
    7: strength[7] * (1 - CLOSED_67 * strength[43]),
    10: strength[10] * (1 - SMILING_10 * strength[12]),
  }
  frown = strength[4] * (1 - RAISED_4 * strength[1])
  weights: dict[str, float] = {}
  for unit, recipe in RECIPES.items():
    if not strength[unit].any():
      continue
    for name, full in (CLOSED_10 if unit == 10 and not parted else recipe).items():
      if name in BOTH:
        targets = {f"unit/{name}": float(strength[unit].mean())}
      else:
        amounts = frown if unit == 4 and name != "browIn" else strength[unit]
        targets = {f"unit/{name}{s}": float(amounts[i]) for i, s in enumerate(("Left", "Right"))}
      for target, amount in targets.items():
        weights[target] = min(weights.get(target, 0.0) + full * amount, LIMITS.get(name, np.inf))
  return weights


def eye_distance(asset: assets.FaceAsset, vertices: np.ndarray) -> float:
  """Distance between the centres of the eyeballs, in decimetres."""
  left, right = (vertices[eye].mean(0) for eye in asset.eyes)
  return float(np.linalg.norm(left - right))


def lip_gap(asset: assets.FaceAsset, vertices: np.ndarray) -> float:
  """How far the lips' inner edges stand apart, in eye distances; negative where they overlap."""
  upper, lower = (vertices[asset.landmarks[f"{lip} lip"], 1] for lip in ("upper", "lower"))
  return float(upper - lower) / eye_distance(asset, vertices)


def _set_lips(
  asset: assets.FaceAsset, vertices: np.ndarray, strength: Mapping[int, np.ndarray]
) -> np.ndarray:
  """Parts the lips as far as unit 25 asks, or closes them, whatever the other units did.

  A smile alone pushes the lower lip into the upper one, a sneer alone bares the teeth: the same
  unit 25 must be seen in both.
  """
  gap = lip_gap(asset, vertices)
  parted = any(max(strength[unit]) >= label_model.PRESENT for unit in (25, 26, 27))
  if parted:
    share = max(strength[25].max() - label_model.PRESENT, 0) / (1 - label_model.PRESENT)
    wanted = max(gap, GAP_LOW + (GAP_HIGH - GAP_LOW) * share)
    # Mostly the jaw: lips that pull apart by themselves turn a smile into a grimace.
    opener = {f"unit/mouthLowerDown{side}": 0.3 for side in ("Left", "Right")}
    opener |= {f"unit/mouthUpperUp{side}": 0.15 for side in ("Left", "Right")}
    opener["unit/jawOpen"] = 0.12
  else:
    if max(strength[20]) >= label_model.PRESENT:
      return vertices  # stretched lips part by themselves, and are labelled by what is seen
    pressed = max(strength[u].max() for u in (17, 23, 24, 28)) > 0
    wanted = min(gap, CLOSED[1]) if pressed else float(np.clip(gap, *CLOSED))
    opener = {f"unit/mouthLowerDown{side}": 1.0 for side in ("Left", "Right")}
  if abs(wanted - gap) < 1e-4:
    return vertices
  moved = asset.move(vertices, opener)
  factor = (wanted - gap) / (lip_gap(asset, moved) - gap)
  return asset.move(vertices, {name: weight * factor for name, weight in opener.items()})


def _keep_lids_out(asset: assets.FaceAsset, rest: np.ndarray, vertices: np.ndarray) -> None:
  """Pushes the skin around the eyes, in place, out of the eyeballs that squints press it into."""
  for eye, lids in zip(asset.eyes, asset.lids, strict=True):
    centre = rest[eye].mean(0)
    radius = np.linalg.norm(rest[eye] - centre, axis=1).max()
    before = np.linalg.norm(rest[lids] - centre, axis=1)
    away = vertices[lids] - centre
    # The lids' inner side lies within the eyeball's outline, and stays there.
    least = np.where(before > radius, np.minimum(before, radius + LID_THICKNESS), 0)
    factor = np.maximum(least / np.linalg.norm(away, axis=1), 1)
    vertices[lids] = centre + away * factor[:, None].astype(np.float32)


def turn_eye(vertices: np.ndarray, eye: np.ndarray, gaze: np.ndarray) -> None:
  """Turns an eyeball about its centre, in place; `gaze` as in `express`."""
  centre = vertices[eye].mean(0)
  yaw, pitch = np.deg2rad(gaze)
  cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
  turn = np.array([[cy, -sy * sp, sy * cp], [0, cp, sp], [-sy, -cy * sp, cy * cp]])
  vertices[eye] = centre + (vertices[eye] - centre) @ turn.T.astype(np.float32)
