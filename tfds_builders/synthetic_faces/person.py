"""Draws people: the shape of a head, its skin, eyes, brows and hair."""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from tfds_builders.synthetic_faces import asset as assets
from tfds_builders.synthetic_faces import knobs, raster

ANCESTRIES = ("african", "asian", "caucasian")
SEXES = ("female", "male")
AGES = ("18-35", "36-55", "56-80")
# Years at which the mesh's young and old heads, and the three skins, are taken to be.
YOUNG, OLD = 25, 90
SKIN_AGES = {"young": 25, "middleage": 48, "old": 70}

# The two ends of an identity slider.
_ENDS = (
  ("decr", "incr"),
  ("in", "out"),
  ("down", "up"),
  ("backward", "forward"),
  ("concave", "convex"),
  ("compress", "uncompress"),
)
# Sliders that shift the whole head (cropping undoes that), or give what few people have.
_UNUSED = ("head-trans", "neck-", "ear-shape", "ear-flap", "nubian", "head-back", "eye-push")
# Sliders whose full range leaves the human range sooner than the others'.
_GENTLE = ("head-", "eye-scale", "eye-trans", "mouth-trans", "nose-trans", "eye-corner", "eyefold")

# Linear albedo of hair, and how common it is among the three ancestries; RECALL.
HAIR = {
  "black": ((0.012, 0.010, 0.009), (0.9, 0.85, 0.12)),
  "dark brown": ((0.035, 0.021, 0.013), (0.1, 0.15, 0.4)),
  "brown": ((0.085, 0.046, 0.025), (0, 0, 0.28)),
  "blond": ((0.26, 0.165, 0.075), (0, 0, 0.16)),
  "red": ((0.15, 0.05, 0.018), (0, 0, 0.04)),
}
GREY_HAIR = (0.34, 0.33, 0.32)
BROW_BRIGHTEST = (0.09, 0.065, 0.045)
IRIS = {
  "brown": ((0.085, 0.036, 0.014), (0.85, 0.8, 0.3)),
  "light brown": ((0.16, 0.075, 0.025), (0.15, 0.2, 0.2)),
  "green": ((0.12, 0.14, 0.06), (0, 0, 0.15)),
  "blue": ((0.12, 0.2, 0.3), (0, 0, 0.25)),
  "grey": ((0.2, 0.23, 0.24), (0, 0, 0.1)),
}
# Angle between the middle and the edge of the iris, as seen from the eyeball's centre.
IRIS_ANGLE = np.deg2rad(25)
# Brows that lie flat at rest; the others of the packages make a neutral face scowl. The last are
# plucked thin, so not for men.
BROWS = ("eyebrow001", "eyebrow009", "eyebrow012", "eyebrow006")


@dataclasses.dataclass(frozen=True)
class Person:
  """Someone.

  Attributes:
    vertices: [vertices, 3] float32, the head at rest.
    skin: [height, width, 4] float32 linear albedo and gloss.
    eye: [size, size, 3] float32 linear albedo of the eyeball.
    plain: [parts, 3] float32 linear albedo of the parts without a texture.
    brow: name of the brows.
    hair: name of the hair, or "" for none.
    hair_colour: [3] float32 linear albedo.
    brow_colour: [3] float32 linear albedo.
    wrinkled: 0 for skin that hardly folds (young) to 1 (old).
    attributes: what the data set tells of the person: age in years, group names.
  """

  vertices: np.ndarray
  skin: np.ndarray
  eye: np.ndarray
  plain: np.ndarray
  brow: str
  hair: str
  hair_colour: np.ndarray
  brow_colour: np.ndarray
  wrinkled: float
  attributes: Mapping[str, object]


def draw(rng: np.random.Generator, person: knobs.Person, asset: assets.FaceAsset) -> Person:
  """Draws a person.

  Args:
    rng: where the choices come from.
    person: distributions of the choices.
    asset: heads, skins, brows and hair to choose from.

  Returns:
    The person.
  """
  ancestry = rng.dirichlet([person.group] * 3)
  sex = rng.dirichlet([person.group] * 2)
  age = float(person.age.draw(rng))
  weights = macro_weights(
    asset, ancestry, sex, age, person.weight.draw(rng), person.muscle.draw(rng)
  )
  weights |= slider_weights(asset, rng, person)
  vertices = level(rng, asset, asset.move(asset.vertices, weights), person)
  grey = rng.random() < np.clip((age - 38) / 40, 0, 0.9)
  hair_colour = _choose(rng, HAIR, ancestry) * rng.uniform(0.75, 1.25)
  brow_colour = np.minimum(0.7 * hair_colour, BROW_BRIGHTEST)  # brows turn grey last
  if grey:
    hair_colour = hair_colour + (np.array(GREY_HAIR) - hair_colour) * rng.uniform(0.4, 1)
  return Person(
    vertices=vertices,
    skin=_skin(rng, asset, ancestry, sex, age, float(person.albedo.draw(rng))),
    eye=eyeball(rng, _choose(rng, IRIS, ancestry)),
    plain=plain_albedo(rng),
    brow=BROWS[rng.integers(len(BROWS) - int(sex.argmax()))],
    hair=_hair(rng, ancestry, sex, age),
    hair_colour=hair_colour.astype(np.float32),
    brow_colour=brow_colour.astype(np.float32),
    wrinkled=float(np.clip((age - 25) / 50, 0, 1)),
    attributes={
      "age": age,
      "ancestry": int(ancestry.argmax()),
      "sex": int(sex.argmax()),
      "age_group": int(age >= 36) + int(age >= 56),
    },
  )


def macro_weights(
  asset: assets.FaceAsset,
  ancestry: np.ndarray,
  sex: np.ndarray,
  age: float,
  weight: float,
  muscle: float,
) -> dict[str, float]:
  """Weights of the targets for ancestry, sex, age, weight and muscle, mixed by their shares."""
  old = np.clip((age - YOUNG) / (OLD - YOUNG), 0, 1)
  shares = lambda x: {
    "min": max(1 - 2 * x, 0),
    "max": max(2 * x - 1, 0),
    "average": 1 - abs(2 * x - 1),
  }
  weights = {}
  for i, gender in enumerate(SEXES):
    for stage, share in (("young", 1 - old), ("old", old)):
      for j, race in enumerate(ANCESTRIES):
        weights[f"macro/{race}-{gender}-{stage}"] = ancestry[j] * sex[i] * share
      for m, muscle_share in shares(muscle).items():
        for w, weight_share in shares(weight).items():
          name = f"macro/universal-{gender}-{stage}-{m}muscle-{w}weight"
          weights[name] = sex[i] * share * muscle_share * weight_share
  return {name: float(w) for name, w in weights.items() if name in asset.targets and w > 0}


def slider_weights(
  asset: assets.FaceAsset, rng: np.random.Generator, person: knobs.Person
) -> dict[str, float]:
  """Draws the identity sliders; both sides of the face alike, then the asymmetries."""
  weights = {}
  for scale, falling, rising in _sliders(tuple(asset.targets)):
    value = float(person.slider.draw(rng)) * scale
    weights |= dict.fromkeys(rising if value > 0 else falling, abs(value))
  for name in asset.targets:
    if name.startswith("asym/"):
      weights[name] = float(person.asymmetry.draw(rng))
  return weights


@functools.lru_cache(maxsize=2)
def _sliders(targets: tuple[str, ...]) -> list[tuple[float, list[str], list[str]]]:
  """Sorts the identity sliders: share of the range to use, targets of its lower and upper half."""
  stems: dict[str, list[str]] = {}
  for name in targets:
    if name.startswith("slider/") and not any(word in name for word in _UNUSED):
      stem = name.removeprefix("slider/").removeprefix("l-").removeprefix("r-")
      first, _, end = stem.rpartition("-")
      pair = next((ends for ends in _ENDS if end in ends), None)
      stems.setdefault(f"{first}-{'|'.join(pair)}" if pair else stem, []).append(name)
  sliders = []
  for stem, members in stems.items():
    up = lambda name, stem=stem: "|" not in stem or name.endswith(tuple(f"-{x}" for _, x in _ENDS))
    scale = 0.5 if any(word in stem for word in _GENTLE) else 1.0
    halves = ([name for name in members if up(name) == rising] for rising in (False, True))
    sliders.append((scale, *halves))
  return sliders


def level(
  rng: np.random.Generator, asset: assets.FaceAsset, vertices: np.ndarray, person: knobs.Person
) -> np.ndarray:
  """Gives a face at rest brows and mouth corners that do not look like an expression.

  The targets of age and ancestry raise the outer brows and lower the corners of the mouth: left as
  they are, most people scowl at rest, and old people look sad.

  Args:
    rng: where the choices come from.
    asset: the morph targets.
    vertices: [vertices, 3] a head.
    person: distributions of the choices.

  Returns:
    [vertices, 3] the head, with the slope of the brows and the height of the corners as drawn.
  """
  distance = np.linalg.norm(np.subtract(*(vertices[eye].mean(0) for eye in asset.eyes)))
  for wanted, upper, lower, target in (
    # Less than nothing of this slider: it raises the brows' inner ends, where a scowl sits.
    (person.brow_tilt, "outer brow", "inner brow", "slider/eyebrows-angle-down"),
    (person.mouth_corners, "corner", "lip", "slider/mouth-angles-up"),
  ):
    height = asset.height(vertices, upper, lower)
    effect = asset.height(asset.move(vertices, {target: 1.0}), upper, lower) - height
    missing = float(wanted.draw(rng)) * distance - height
    vertices = asset.move(vertices, {target: missing / effect})
  return vertices


def _choose(
  rng: np.random.Generator,
  options: Mapping[str, tuple[tuple[float, float, float], tuple[float, float, float]]],
  ancestry: np.ndarray,
) -> np.ndarray:
  """Draws a colour that goes with an ancestry."""
  shares = np.array([common for _, common in options.values()]) @ ancestry
  return np.array(list(options.values())[rng.choice(len(options), p=shares / shares.sum())][0])


def _hair(rng: np.random.Generator, ancestry: np.ndarray, sex: np.ndarray, age: float) -> str:
  """Draws a haircut; about one man in four (more when old) has none."""
  chance, african = rng.random(), rng.random() < ancestry[0]
  if sex.argmax() == 1:
    bald = 0.15 + 0.25 * np.clip((age - 35) / 45, 0, 1)
    if chance < bald:
      return ""
    return "afro01" if african and chance > 0.7 else ("short04" if chance > 0.8 else "short02")
  if african and chance > 0.5:
    return "afro01"
  return ("long01", "long01", "ponytail01", "ponytail01", "short04")[int(5 * rng.random())]


def _skin(
  rng: np.random.Generator,
  asset: assets.FaceAsset,
  ancestry: np.ndarray,
  sex: np.ndarray,
  age: float,
  albedo: float,
) -> np.ndarray:
  """Mixes the skins by the shares of ancestry and sex and by the two nearest ages."""
  ages = np.array(list(SKIN_AGES.values()))
  near = np.interp(age, ages, np.arange(3))
  mixed, total = np.zeros_like(next(iter(asset.skins.values()))), 0.0
  pick = rng.random()
  for i, race in enumerate(ANCESTRIES):
    for j, gender in enumerate(SEXES):
      for k, stage in enumerate(SKIN_AGES):
        share = float(ancestry[i] * sex[j] * max(1 - abs(near - k), 0))
        if share > 0.04:
          variants = sorted(key for key in asset.skins if key[:3] == (race, gender, stage))
          mixed += np.float32(share) * asset.skins[variants[int(pick * len(variants))]]
          total += share
  mixed *= np.float32(albedo / total)
  return np.concatenate([mixed, np.ones((*mixed.shape[:2], 1), np.float32)], -1)


def eyeball(rng: np.random.Generator, iris: np.ndarray, size: int = 96) -> np.ndarray:
  """Paints an eyeball, seen along its axis with angles as distances: [size, size, 3] float32."""
  axis = ((np.arange(size) + 0.5) / size - 0.5) * np.pi
  angle = np.hypot(axis[None, :], axis[:, None])
  turn = np.arctan2(axis[:, None], axis[None, :])
  pupil = IRIS_ANGLE * rng.uniform(0.32, 0.48)
  rays = sum(
    rng.uniform(0.03, 0.12) * np.sin(frequency * turn + rng.uniform(0, 2 * np.pi))
    for frequency in (5, 9, 14, 23, 31)
  )
  # Lighter towards the pupil, dark at the edge, with rays.
  inside = np.clip((angle - pupil) / (IRIS_ANGLE - pupil), 0, 1)
  shade = (1.35 - 0.5 * inside) * (1 + rays) * (1 - 0.7 * np.clip((inside - 0.8) / 0.2, 0, 1))
  white = np.array([0.78, 0.71, 0.67]) * rng.uniform(0.9, 1.1)
  red = np.clip((angle - 0.6) / 0.8, 0, 1)[..., None] * np.array([0.0, 0.12, 0.12])
  soft = lambda edge, width: np.clip((angle - edge) / width + 0.5, 0, 1)[..., None]
  colour = iris * shade[..., None]
  colour = colour + (white - red - colour) * soft(IRIS_ANGLE, 0.06)
  return (0.006 + (colour - 0.006) * soft(pupil, 0.05)).astype(np.float32)


def plain_albedo(rng: np.random.Generator) -> np.ndarray:
  """Albedo of the parts without a texture: [parts, 3] float32 linear. Clothes have any colour."""
  albedo = np.zeros((8, 3), np.float32)
  albedo[raster.MOUTH] = (0.12, 0.025, 0.022)
  albedo[raster.TEETH] = np.array((0.95, 0.9, 0.8)) * rng.uniform(0.85, 1.05)
  albedo[raster.TONGUE] = (0.36, 0.11, 0.1)
  albedo[raster.CLOTH] = rng.uniform(0.02, 0.6) * rng.uniform(0.6, 1, 3)
  return albedo
