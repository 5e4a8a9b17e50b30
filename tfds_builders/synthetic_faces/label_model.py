"""What the synthetic faces show and how it is labelled: classes, patterns, units, valence, arousal.

A class is drawn, then one of its patterns, then the presence of 21 action units, then how strong
each is on both sides of the face. Units are exact, because they drive the geometry. Valence,
arousal and the expression are definitions (functions of what was drawn), not measured feeling.

The numbers are this project's own. The emotion tables of FACS (Ekman, Friesen & Hager, 2002), the
unit shares of Du, Tao & Martinez (2014, PNAS; RECALL) and of Kollias, Sharmanska & Zafeiriou (2021,
arXiv:2105.03790; RECALL) shaped the patterns; class prior and unit rates of the natural mode are
those of s-Aff-Wild2's training set. The sizes of the weights of valence and arousal are INFERRED: a
ridge fit of the patterns to anchors near the term means of Russell & Mehrabian (1977).
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping

import numpy as np

from affjax import labels
from tfds_builders.synthetic_faces import knobs

# FACS numbers: first the twelve that are labelled, then nine that are shown and never labelled.
LABELLED = tuple(int(name.removeprefix("AU")) for name in labels.AU_MTL)
HIDDEN = (5, 9, 14, 17, 18, 20, 27, 28, 43)
UNITS = LABELLED + HIDDEN
CLASSES = labels.EXPRESSION_MTL
# From this strength on a unit counts as there: about letter B of FACS.
PRESENT = 0.2

_COLUMN = {unit: column for column, unit in enumerate(UNITS)}


@dataclasses.dataclass(frozen=True)
class Pattern:
  """One way in which a class looks.

  Attributes:
    expression: the class it belongs to.
    name: unique within the class.
    weight: mode -> its share of the class.
    strength: mean intensity of the units that are there, in [0, 1].
    units: FACS number -> probability that the unit is there, before `apply_rules`.
    talking: whether clips of it move the lips as in speech.
  """

  expression: str
  name: str
  weight: Mapping[str, float]
  strength: float
  units: Mapping[int, float]
  talking: bool = False


# Share of each class: of s-Aff-Wild2's training set (rounded, so normalised below); all alike; none
# but that of faces of no emotion.
PRIOR = {
  "natural": (0.2645, 0.0503, 0.0350, 0.0344, 0.2001, 0.0839, 0.0577, 0.2742),
  "strong": (0.125,) * 8,
  "posed": (1 / 7,) * 7 + (0,),
  "independent": (0,) * 7 + (1,),
}

# expression | pattern | share, natural | share, strong | strength | unit:probability ...
_TABLE = """
neutral | rest | .45 | .6 | .3 | 1:.04 4:.05 6:.03 7:.1 10:.05 23:.02 24:.1 25:.15 14:.03
neutral | speaking | .55 | .4 | .35 | \
  1:.14 2:.09 4:.1 6:.16 7:.26 10:.38 12:.06 23:.03 24:.1 25:.92 26:.14 14:.05 18:.15
anger | closed | .25 | .45 | .6 | 4:.95 7:.75 10:.12 15:.06 23:.5 24:.5 5:.3 9:.1 17:.5
anger | open | .35 | .4 | .65 | 4:.9 6:.15 7:.6 10:.65 23:.12 25:1 26:.25 5:.4 9:.25 20:.1 27:.08
anger | mild | .4 | .15 | .4 | 1:.08 4:.5 7:.3 10:.2 23:.08 24:.08 25:.55 26:.03 17:.1
disgust | nose | .3 | .45 | .6 | 4:.7 6:.5 7:.85 10:.6 15:.1 24:.06 25:.45 9:.95 17:.45
disgust | lip | .5 | .45 | .55 | 4:.5 6:.3 7:.7 10:.97 15:.04 25:.9 26:.1 9:.35 17:.2 20:.1
disgust | mild | .2 | .1 | .4 | 4:.35 6:.15 7:.45 10:.6 25:.75 9:.15
fear | prototype | .3 | .5 | .65 | 1:.95 2:.5 4:.75 7:.4 10:.35 25:.9 26:.35 5:.9 20:.75
fear | gasp | .3 | .3 | .6 | 1:.6 2:.25 4:.3 7:.4 10:.45 25:.95 26:.45 5:.75 20:.2 27:.1
fear | tense | .4 | .2 | .4 | 1:.35 4:.4 6:.15 7:.55 10:.45 25:.75 5:.3 20:.4
happiness | closed | .2 | .2 | .5 | 6:.55 7:.55 10:.1 12:.97 24:.03 25:.04 14:.15
happiness | open | .55 | .6 | .6 | 6:.8 7:.75 10:.75 12:.97 25:1 26:.08
happiness | laugh | .1 | .2 | .75 | 6:.97 7:.85 10:.8 12:1 25:1 26:.5 27:.1 43:.2
happiness | weak | .15 | 0 | .35 | 1:.2 2:.1 6:.3 7:.45 10:.4 12:.6 25:.75
sadness | prototype | .15 | .5 | .6 | 1:.9 4:.8 6:.15 7:.15 15:.8 24:.2 25:.1 17:.6 43:.2
sadness | crying | .15 | .25 | .6 | \
  1:.55 4:.8 6:.6 7:.6 10:.5 15:.2 25:.8 26:.1 17:.4 20:.25 43:.4
sadness | downcast | .7 | .25 | .4 | \
  1:.25 4:.4 6:.1 7:.12 10:.12 15:.08 23:.03 24:.2 25:.5 17:.12 43:.35
surprise | prototype | .35 | .6 | .65 | 1:.92 2:.85 25:1 26:.75 5:.85 27:.15
surprise | brows | .35 | .25 | .5 | 1:.7 2:.35 7:.1 25:.65 26:.12 5:.55
surprise | pleasant | .3 | .15 | .5 | 1:.25 2:.1 6:.3 7:.3 10:.4 12:.4 25:.95 26:.35 5:.35
other | talking | .42 | .3 | .45 | \
  1:.22 2:.13 4:.12 6:.36 7:.43 10:.5 12:.18 23:.04 24:.1 25:.92 26:.15 14:.08 18:.15
other | amused | .2 | .2 | .45 | 6:.6 7:.6 10:.45 12:.65 23:.06 24:.3 25:.6 14:.25 28:.06 43:.1
other | confused | .14 | .2 | .45 | 1:.15 2:.1 4:.85 6:.1 7:.55 10:.2 23:.1 24:.25 25:.45 17:.15
other | interested | .1 | .1 | .45 | 1:.9 2:.45 10:.15 12:.15 25:.6 26:.08 5:.15
other | pain | .06 | .08 | .6 | 4:.85 6:.8 7:.8 10:.7 12:.1 25:.7 26:.1 9:.45 20:.15 43:.45
other | tired | .05 | .07 | .4 | 1:.2 15:.12 25:.4 26:.22 17:.1 27:.05 43:.75
other | contempt | .03 | .05 | .45 | 7:.2 10:.15 12:.35 23:.05 24:.12 14:.95 17:.15
"""


# expression | pattern | share, posed | strength | unit:probability ...
# Faces as people put them on for a camera: strong, most mouths wide open, teeth shown. Widths of
# lips, mouths and eyes were compared with those of FER+'s training images, and the table was chosen
# by how well classifiers of them, trained on renders, do on those images.
_POSED = """
neutral | still | .8 | .3 | 1:.04 4:.05 6:.03 7:.1 10:.05 23:.02 24:.1 25:.15 14:.03
neutral | saying | .2 | .35 | \
  1:.14 2:.09 4:.1 6:.16 7:.26 10:.38 12:.06 23:.03 24:.1 25:.92 26:.14 14:.05 18:.15
anger | glare | .3 | .85 | 4:.98 7:.75 10:.12 15:.06 23:.5 24:.5 5:.3 9:.3 17:.5
anger | shout | .4 | .85 | 4:.98 7:.6 10:.9 25:1 26:.3 27:.6 5:.4 9:.6 20:.3
anger | teeth | .3 | .85 | 4:.98 6:.2 7:.7 10:.9 25:1 26:.2 9:.6 20:.5
disgust | wrinkle | .5 | .85 | 4:.7 6:.5 7:.85 10:.8 15:.1 25:.6 9:.98 17:.3
disgust | sneer | .5 | .85 | 4:.5 6:.3 7:.7 10:.97 25:.95 26:.3 9:.8 17:.2 20:.1
fear | stare | .6 | .85 | 1:.98 2:.6 4:.75 7:.2 10:.2 25:.95 26:.4 5:.95 20:.8
fear | scream | .4 | .85 | 1:.8 2:.5 4:.4 7:.2 10:.3 25:.95 26:.5 5:.95 20:.4 27:.2
happiness | smile | .2 | .7 | 6:.65 7:.55 10:.1 12:.99 14:.15
happiness | grin | .5 | .85 | 6:.9 7:.6 10:.75 12:.99 25:1 26:.3
happiness | roar | .3 | .9 | 6:.97 7:.7 10:.8 12:1 25:1 26:.5 27:.4 43:.2
sadness | pout | .5 | .85 | 1:.95 4:.8 6:.15 7:.15 15:.8 24:.2 25:.1 17:.6 43:.2
sadness | weeping | .2 | .85 | 1:.6 4:.9 6:.6 7:.6 10:.5 15:.3 25:.8 26:.2 17:.4 20:.25 43:.4
sadness | hanging | .3 | .6 | 1:.5 4:.5 6:.1 7:.12 10:.12 15:.3 24:.2 25:.2 17:.2 43:.45
surprise | gape | .9 | .85 | 1:.97 2:.95 25:1 26:.4 5:.95 27:.55
surprise | lift | .1 | .7 | 1:.9 2:.8 25:.65 26:.3 5:.7
"""


# Of no emotion. The other units say nothing about one, but for what `apply_rules` forbids: only its
# own place shows whether it is there.
_INDEPENDENT = """
other | any | 1 | .75 | \
  1:.3 2:.3 4:.3 6:.3 7:.3 10:.3 12:.3 15:.4 23:.4 24:.5 25:.3 26:.3 \
  5:.1 9:.1 14:.1 17:.1 18:.1 20:.1 27:.1 28:.1 43:.1
"""


def _read_table(table: str, modes: tuple[str, ...]) -> Iterator[Pattern]:
  for line in table.strip().splitlines():
    expression, name, *shares, strength, units = (x.strip() for x in line.split("|"))
    pairs = (pair.split(":") for pair in units.split())
    yield Pattern(
      expression,
      name,
      dict.fromkeys(PRIOR, 0.0) | dict(zip(modes, map(float, shares), strict=True)),
      float(strength),
      {int(unit): float(probability) for unit, probability in pairs},
      talking=name in ("speaking", "talking", "saying"),
    )


PATTERNS = (
  *_read_table(_TABLE, ("natural", "strong")),
  *_read_table(_POSED, ("posed",)),
  *_read_table(_INDEPENDENT, ("independent",)),
)


def class_prior(setting: knobs.Labels) -> np.ndarray:
  """Returns [8] the probability of each class.

  Raises:
    ValueError: the prior asks for a class that the mode does not show.
  """
  weight = np.array(setting.prior or PRIOR[setting.mode], np.float64)
  unknown = [
    c for c, w, own in zip(CLASSES, weight, PRIOR[setting.mode], strict=True) if w > own == 0
  ]
  if unknown:
    raise ValueError(f"Labels.prior asks for {unknown}, which mode {setting.mode!r} does not show")
  weight = (weight > 0) * 1.0 if setting.walk else weight
  return weight / weight.sum()


def shown_classes(setting: knobs.Labels) -> tuple[str, ...]:
  """Returns the classes that a data set has, in the order of `CLASSES`."""
  return tuple(np.array(CLASSES)[class_prior(setting) > 0].tolist())


@functools.cache
def probabilities() -> np.ndarray:
  """Returns [patterns, 21] P(unit drawn | pattern), before the rules."""
  table = np.zeros((len(PATTERNS), len(UNITS)))
  for row, pattern in enumerate(PATTERNS):
    for unit, probability in pattern.units.items():
      table[row, _COLUMN[unit]] = probability
  return table


def apply_rules(present: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Makes drawn units possible together. The order of the rules matters.

  Args:
    present: [faces, 21] bool, units as drawn.
    rng: decides between 23 and 24.

  Returns:
    [faces, 21] bool, units as shown.
  """
  present = present.copy()
  at = lambda unit: present[:, _COLUMN[unit]]
  at(26)[at(27)] = False
  at(25)[at(26) | at(27)] = True
  both = at(23) & at(24)
  first = rng.random(len(present)) < 0.5
  at(23)[both & ~first] = False
  at(24)[both & first] = False
  # Lips that are pressed together or sucked in are closed.
  at(24)[at(25)] = False
  at(28)[at(25)] = False
  at(5)[at(43)] = False
  at(15)[at(12)] = False
  return present


def probabilities_after_rules() -> np.ndarray:
  """Returns [patterns, 21] P(unit shown | pattern): what `apply_rules` makes of `probabilities`.

  Exact, because units are drawn independently; many draws converge to it.
  """
  table = probabilities()
  p = {unit: table[:, _COLUMN[unit]].copy() for unit in UNITS}
  p[25] = 1 - (1 - p[25]) * (1 - p[26]) * (1 - p[27])
  p[26] = p[26] * (1 - p[27])
  p[23], p[24] = p[23] * (1 - p[24] / 2), p[24] * (1 - p[23] / 2)
  p[24] = p[24] * (1 - p[25])
  p[28] = p[28] * (1 - p[25])
  p[5] = p[5] * (1 - p[43])
  p[15] = p[15] * (1 - p[12])
  return np.stack([p[unit] for unit in UNITS], 1)


def posterior(present: np.ndarray, mode: str) -> np.ndarray:
  """How probable each class is when only the presence of the units is known.

  Classes are taken as equally frequent, patterns as frequent within their class as in `mode`, and
  units as independent given the pattern, with the probabilities they have after the rules.

  Args:
    present: [faces, 21] bool.
    mode: of `PRIOR`.

  Returns:
    [faces, 8] float64, each row a distribution over `CLASSES`.
  """
  there, away, member = _posterior_tables(mode)
  likelihood = present @ there.T + (1.0 - present) @ away.T
  likelihood[:, ~member.any(1)] = -np.inf  # patterns of other modes
  likelihood = np.exp(likelihood - likelihood.max(1, keepdims=True))
  classes = likelihood @ member
  return classes / classes.sum(1, keepdims=True)


@functools.cache
def _posterior_tables(mode: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  # No unit is quite impossible: a face that no pattern could make has a posterior too.
  table = np.clip(probabilities_after_rules(), 1e-6, 1 - 1e-6)
  member = np.array([[p.weight[mode] * (p.expression == c) for c in CLASSES] for p in PATTERNS])
  return np.log(table), np.log1p(-table), member


@dataclasses.dataclass(frozen=True)
class Drawn:
  """The units of one face, before it is rendered.

  Attributes:
    expression: number of the intended class.
    pattern: number of the pattern in `PATTERNS`.
    present: [21] bool.
    distribution: [8] posterior of the classes given `present`.
  """

  expression: int
  pattern: int
  present: np.ndarray
  distribution: np.ndarray


def draw(rng: np.random.Generator, setting: knobs.Labels, turn: int = 0) -> Drawn:
  """Draws class, pattern and units of a face.

  Faces that are not left ambiguous are drawn again, pattern included, until their posterior is
  highest at the intended class, 50 times at most. An ambiguity of 1 turns this off.

  Args:
    rng: where the choices come from.
    setting: distributions of the choices.
    turn: which class it is the turn of, where the classes come in turn.

  Returns:
    The face's units.
  """
  prior = class_prior(setting)
  members = np.flatnonzero(prior)
  expression = int(
    members[turn % len(members)] if setting.walk else rng.choice(len(prior), p=prior)
  )
  mode, table = setting.mode, probabilities()
  patterns, shares = _patterns_of(expression, mode)
  ambiguous = rng.random() < setting.ambiguity
  for _ in range(50):
    pattern = patterns[rng.choice(len(patterns), p=shares)]
    present = apply_rules(rng.random((1, len(UNITS))) < table[pattern], rng)
    distribution = posterior(present, mode)[0]
    if ambiguous or distribution.argmax() == expression:
      break
  return Drawn(expression, int(pattern), present[0], distribution)


def _patterns_of(expression: int, mode: str) -> tuple[np.ndarray, np.ndarray]:
  """Numbers of a class's patterns, and their shares."""
  weight = np.array([p.weight[mode] * (p.expression == CLASSES[expression]) for p in PATTERNS])
  numbers = np.flatnonzero(weight)
  return numbers, weight[numbers] / weight[numbers].sum()


@functools.cache
def acceptance(mode: str, draws: int = 20_000) -> np.ndarray:
  """Returns [8] how often the posterior of a class's face is highest at that class, by `draws`.

  1 for a class that the mode does not show.
  """
  rng, table = np.random.default_rng(0), probabilities()
  shares = []
  for expression in range(len(CLASSES)):
    if not PRIOR[mode][expression]:
      shares.append(1.0)
      continue
    numbers, share = _patterns_of(expression, mode)
    chances = table[rng.choice(numbers, draws, p=share)]
    shown = apply_rules(rng.random((draws, len(UNITS))) < chances, rng)
    shares.append((posterior(shown, mode).argmax(1) == expression).mean())
  return np.array(shares)


def draw_intensity(rng: np.random.Generator, drawn: Drawn) -> np.ndarray:
  """Draws how strong each unit is on the left and on the right side of the face.

  Args:
    rng: where the choices come from.
    drawn: the units that are there.

  Returns:
    [21, 2] float64 in [0, 1]; the larger side is at least `PRESENT` where the unit is there and
    below it elsewhere.
  """
  pattern = PATTERNS[drawn.pattern]
  strength = np.clip(rng.normal(pattern.strength, 0.12), 0.22, 0.95)
  mean = np.clip((strength - PRESENT) / (1 - PRESENT), 0.03, 0.95)
  there = PRESENT + (1 - PRESENT) * rng.beta(8 * mean, 8 * (1 - mean), len(UNITS))
  trace = PRESENT * rng.beta(1, 3, len(UNITS)) * (rng.random(len(UNITS)) < 0.3)
  intensity = np.where(drawn.present, there, trace)
  if not drawn.present[_COLUMN[25]]:
    # Even a trace of a dropped jaw would part the lips.
    intensity[[_COLUMN[25], _COLUMN[26], _COLUMN[27]]] = 0
  tilt = rng.normal(0, 0.08, len(UNITS))
  sides = np.stack([intensity * (1 + tilt), intensity * (1 - tilt)], 1)
  side = rng.integers(2)
  if pattern.name == "contempt":
    sides[[_COLUMN[12], _COLUMN[14]], side] = 0
  elif pattern.name in ("confused", "interested") and rng.random() < 0.15:
    sides[_COLUMN[2], side] = 0
  # A one-sided unit keeps the side that was at least as strong as its label asks for.
  low = drawn.present & (sides.max(1) < PRESENT)
  sides[low] = np.where(sides[low] > 0, PRESENT, 0)
  return np.where(drawn.present[:, None], np.clip(sides, 0, 1), np.minimum(sides, PRESENT - 1e-3))


def lips_seen(intensity: np.ndarray, parted: bool) -> np.ndarray:
  """Makes unit 25 what the picture shows, whatever was drawn.

  Args:
    intensity: [21, 2].
    parted: whether the rendered lips are parted.

  Returns:
    [21, 2], with unit 25 on the side of `PRESENT` that `parted` says.
  """
  seen = intensity.copy()
  row = seen[_COLUMN[25]]
  seen[_COLUMN[25]] = np.maximum(row, PRESENT) if parted else np.minimum(row, PRESENT - 1e-3)
  return seen


def valence_arousal(intensity: np.ndarray) -> np.ndarray:
  """Valence and arousal of a face: a definition, a squashed sum over its units.

  Args:
    intensity: [21, 2] strength per unit and side.

  Returns:
    [2] float64 in [-1, 1].
  """
  a = dict(zip(UNITS, intensity.mean(1), strict=True))
  frown = 1 - a[12]  # what a smile takes back
  valence = (
    0.05
    + 1.45 * a[12]
    + 1.0 * a[6] * a[12]
    - 0.80 * a[4]
    - 0.50 * a[9]
    - 0.30 * a[10] * frown
    - 0.50 * a[15]
    - 0.25 * a[17]
    - 0.65 * a[20]
    - 0.20 * a[23]
    - 0.15 * a[24] * frown
    - 0.35 * a[1] * a[4]
    + 0.25 * a[2]
    - 0.05 * a[5] * frown
    - 1.0 * a[14]
    - 0.40 * a[43]
  )
  arousal = (
    -0.15
    + 0.95 * a[5]
    + 0.60 * a[26]
    + 0.85 * a[27]
    + 0.10 * a[25]
    + 0.20 * a[2]
    + 0.35 * a[1]
    + 0.50 * a[4]
    + 0.40 * a[7]
    + 0.30 * a[9]
    + 0.30 * a[10]
    + 0.35 * a[12]
    + 0.30 * a[6] * a[12]
    + 0.40 * a[20]
    + 0.30 * a[23]
    - 0.40 * a[15]
    - 0.35 * a[17]
    - 1.10 * a[43]
    - 0.60 * a[1] * a[4] * (1 - a[5])
  )
  return np.tanh([valence, arousal])


def follow(rng: np.random.Generator, pattern: str) -> tuple[np.ndarray, np.ndarray]:
  """How head and eyes go with a pattern, in degrees, on top of their usual spread.

  Args:
    rng: where the choices come from.
    pattern: name of the pattern.

  Returns:
    [3] yaw, pitch (up is positive) and roll of the head, [2] yaw and pitch of the gaze.
  """
  head, gaze = np.zeros(3), np.zeros(2)
  sign = 1 if rng.random() < 0.5 else -1
  chance = rng.random()
  if pattern in ("downcast", "crying", "hanging", "weeping"):
    head[1] = rng.normal(-12, 6)
    if chance < 0.6:
      gaze[1] = -15
  elif pattern == "amused" and chance < 0.6:
    head[0] = sign * rng.uniform(10, 20)
    gaze[:] = (0, -15) if rng.random() < 0.5 else (sign * 15, 0)
  elif pattern == "confused" and chance < 0.5:
    head[2] = sign * 8
  elif pattern in ("gasp", "scream") and chance < 0.3:
    head[1] = 5
  return head, gaze
