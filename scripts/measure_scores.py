"""Whether valence and arousal are better made of scores than of features, and when they are not.

  python -m scripts.measure_scores              # 8 seeds
  python -m scripts.measure_scores --seeds 1    # whether it runs

The head of EMMA (`emma.Scores`) makes valence and arousal of the scores of units and expressions.
That should help where many faces have labels of those and few have valence and arousal, if these
are a function of those.

Planted data, in place of an encoder's features; the generator is version 2 of `planted` and does
not change. Hidden numbers of a row are drawn from N(0, 1), and 96 features are a random rotation of
them with noise half as large: 20 that units and expressions are made of, 20 others, and 56, half as
large again, that nothing depends on, as it is with the person and the light. Twelve of the first,
with noise, are units by being above .5; of the other eight the largest, with noise, is the
expression. Valence and arousal are two mixtures of twenty numbers, of variance 1, seen through
tanh. 3,000 rows are to learn from: all have units and an expression, 96 valence and arousal. 1,000
are to choose by, 3,000 to report.

Data:
  planted   the mixtures are of the twenty numbers of the units and the expressions.
  removed   they are, by the same shares, of the twenty others: the negative control. The features
            tell of these as much, so that they are as hard to learn.

Heads, of the same features: `scores` and `features` are `emma.Scores` with that for `va_from`, so
they differ in what the last two layers read. The loss of units counts 60 times and that of
expressions 5 times as much as that of valence and arousal. All are trained on all rows at once, by
AdamW with weight decay .05, 160 updates. For each seed and head, learning rate (of two) and number
of updates (of every ten) are those of the best score on the rows to choose by.

The rules, declared before the first run of the seeds that count (0 to 7; it was tried out on seeds
from 100 on). Score: CCC of valence and arousal, mean, on the rows to report. An interval is
Student's 95 % over the seeds, paired.

  1. planted: the interval of scores - features lies above 0.
  2. removed: it does not.
  3. That (1) is the doing of what was planted: the interval of the difference (1) - (2), of the
     same seed, lies above 0.

Some eight settings were tried on seeds 100 and 101 before this one was fixed. Version 1 had no
numbers that nothing depends on, noise as large as they are, 2,000 rows, and equal
weights. There the scores gained nothing (seeds 100 and 101: .34, and .39 from features): what few
labels say of valence and arousal also rewrites the scores, and 100 rows are soon known by heart.
With equal weights that is what to expect of few labels.

What it says is a direction on planted data; it is no evidence about the paper's.

Found, seeds 0 to 7: (1) holds, .080 [.041 .119], of CCC .508 and .428; (2) turns:
-.199 [-.242 -.157], of .212 and .411; (3) holds, .279 [.235 .324]. Where the scores do not know
what valence and arousal depend on, to read these from them alone costs half of the CCC.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from affjax import metrics, procedures
from affjax.models import emma
from scripts import directions

UNITS, EXPRESSIONS = 12, 8
KNOWN = UNITS + EXPRESSIONS
LABELS = {
  "va": ["valence", "arousal"],
  "expression": [f"expression {i}" for i in range(EXPRESSIONS)],
  "au": [f"unit {i}" for i in range(UNITS)],
}
DATA = ("planted", "removed")
ROWS = {"train": 3000, "select": 1000, "report": 3000}
LABELLED = 96
FEATURES = 96
NUISANCE, NOISE = 1.5, 0.5
WEIGHTS = {"expression": 5.0, "au": 60.0}
RATES = (3e-3, 1e-2)
STEPS, EVERY = 160, 10


def planted(seed: int, follows: bool) -> dict[str, dict[str, Any]]:
  """Split -> a batch of all its rows; whether valence and arousal follow units and expressions."""
  rng = np.random.default_rng(seed)
  rotation = np.linalg.qr(rng.normal(size=(FEATURES, FEATURES)))[0]
  shares = rng.normal(size=(KNOWN, 2))
  shares /= np.linalg.norm(shares, axis=0, keepdims=True)
  batches = {}
  for split, rows in ROWS.items():
    z = rng.normal(size=(rows, FEATURES))
    z[:, 2 * KNOWN :] *= NUISANCE
    features = z @ rotation + NOISE * rng.normal(size=(rows, FEATURES))
    units = z[:, :UNITS] + 0.5 * rng.normal(size=(rows, UNITS)) > 0.5
    drawn = (2 * z[:, UNITS:KNOWN] + rng.gumbel(size=(rows, EXPRESSIONS))).argmax(1)
    mixed = z[:, :KNOWN] if follows else z[:, KNOWN : 2 * KNOWN]
    known = np.ones((rows, 2), np.float32)
    if split == "train":
      known[LABELLED:] = 0
    batches[split] = {
      "image": features.astype(np.float32),
      "labels": {
        "va": np.tanh(mixed @ shares).astype(np.float32),
        "expression": np.eye(EXPRESSIONS, dtype=np.float32)[drawn],
        "au": units.astype(np.float32),
      },
      "mask": {
        "va": known,
        "expression": np.ones(rows, np.float32),
        "au": np.ones((rows, UNITS), np.float32),
      },
    }
  return batches


def config(head: str, rate: float, seed: int) -> dict[str, Any]:
  """Of a run; heads differ in what valence and arousal are read from."""
  return dict(
    seed=seed,
    steps=STEPS,
    image_size=1,  # of nothing
    dtype="float32",
    labels=LABELS,
    augment={},
    model=dict(
      name="affect.AffectModel",
      encoder=dict(name="features.Precomputed", width=FEATURES),
      decoder=dict(name="emma.Scores", width=32, va_width=32, va_from=head),
    ),
    losses=dict(
      va=dict(name="losses.ccc_loss"),
      expression=dict(
        name="losses.cross_entropy", class_weights=[WEIGHTS["expression"]] * EXPRESSIONS
      ),
      # Of these two losses the one that takes weights.
      au=dict(
        name="losses.binary_cross_entropy_and_dice",
        dice_weight=0.0,
        unit_weights=[WEIGHTS["au"]] * UNITS,
      ),
    ),
    procedure=dict(name="supervised.Supervised", weighting="equal"),
    optimizer=dict(name="optim.adamw", learning_rate=rate, schedule="constant", weight_decay=0.05),
  )


def ccc(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> jax.Array:
  """Mean CCC of valence and arousal."""
  return metrics.ccc(outputs["va"], batch["labels"]["va"]).mean()


def run(head: str, seeds: Sequence[int], batches: Sequence[Mapping[str, Any]]) -> list[float]:
  """For each seed the score on the rows to report, where it is best on those to choose by."""
  states = [procedures.from_config(config(head, RATES[0], seed)).init() for seed in seeds]
  return directions.best([config(head, r, 0) for r in RATES], states, batches, ccc, every=EVERY)


if __name__ == "__main__":
  made = lambda kind: lambda seeds: [planted(seed, kind == "planted") for seed in seeds]
  data = {kind: made(kind) for kind in DATA}
  directions.main(__doc__, data, emma.SOURCES, run, "CCC, mean", ("scores", "features"))
