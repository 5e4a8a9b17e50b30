"""Whether learned uncertainty finds noise that was planted in labels, and what it is worth.

  python -m scripts.measure_uncertainty                       # 64 runs of about a minute
  python -m scripts.measure_uncertainty --seeds 1 --steps 20  # whether it runs

Trains a small flagship on synthetic faces, each arm with the same seeds: the same first parameters
and the same images in the same order, so that arms are compared seed by seed. Labels are corrupted
where they are learnt from; scores are on the test split, whose labels are exact. Log variances have
a learning rate of their own: at the network's, Adam moves them by a thousandth a step, and a run of
this length would end before they are anywhere.

The rules, declared before the first run. An interval is Student's 95 % over the seeds.

  1. Ordering. Noise in one task's labels raises the log variance (weighting "simple") of that task,
     against the run without noise, by more than that of either other task: for each of the three
     tasks, the interval of own rise - largest other rise lies above 0.
  2. Ratio. With "kendall" per dimension and noise of .45 in valence and .15 in arousal, sigma_V /
     sigma_A is that of the noise and of what the network misses anyway (sigma of the run without
     noise), added as variances: the interval of learned / expected lies within 1 / 1.15 and 1.15.
  3. Corrupted. Of the test P of "simple" - "equal" with noise in the expressions: "gain" if the
     interval lies above 0, "loss" if below, else "not decided". The claim "at least as good" fails
     by a loss alone.
  4. Control. The same without noise: the claim "no gain" fails by a gain alone.
  5. That a gain is the noise's doing: the interval of (3) - (4) lies above 0.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from affjax import compiled, evaluate, monitor, train
from configs import vit_mtl
from scripts import sweep

TASKS = ("va", "expression", "au")
# Task -> noise in its labels alone, see `affjax.data.views`.
NOISE = {
  "va": "valence=0.5,arousal=0.5",
  "expression": "expression=0.6",
  "au": "missed=0.4,false=0.2",
}
CORRUPTED = "expression"
PLANTED = {"valence": 0.45, "arousal": 0.15}
# Arm -> weighting and noise.
ARMS = {
  "equal clean": ("equal", "clean"),
  f"equal {CORRUPTED}": ("equal", NOISE[CORRUPTED]),
  "simple clean": ("simple", "clean"),
  **{f"simple {task}": ("simple", NOISE[task]) for task in TASKS},
  "kendall clean": ("kendall", "clean"),
  "kendall planted": ("kendall", ",".join(f"{n}={x}" for n, x in PLANTED.items())),
}
RATE = 0.03  # of the log variances
TOLERANCE = 1.15


def config(weighting: str, noise: str, seed: int, steps: int) -> dict[str, Any]:
  """The flagship, smaller; arms differ by their arguments alone."""
  c = vit_mtl.get_config(f"variant=mu/8,steps={steps}")
  c.seed, c.image_size, c.data.image_size = seed, 48, 48
  c.data.view = dict(noise=noise, masks="none")
  # Numbers from the labels would differ between the arms by more than what their labels teach.
  c.losses.expression.logit_adjustment = c.losses.au.positive_weight = None
  if weighting == "kendall":
    c.losses.va.name = "losses.mean_squared_error"
    c.procedure.per_dimension = True
  c.procedure.weighting = weighting
  c.procedure.ema_decay = 0.98
  c.evaluate.every = c.checkpoint.every = steps
  c.evaluate.probe = False
  c.log_every = max(steps // 50, 1)
  plain = json.loads(c.to_json_best_effort())
  if weighting != "equal":
    plain["optimizer"]["groups"] = {
      "uncertainty": {"pattern": "^log_variance", "learning_rate": RATE}
    }
  return plain


def run(arm: str, seed: int, steps: int, where: Path, data_dir: str | None) -> dict[str, float]:
  """Scores on the test split and the learned weights of one run; of a finished one, as kept."""
  where = where / f"{arm.replace(' ', '-')}-{steps}-{seed}"
  if not (where / evaluate.SCORES).is_file():
    train.run(config(*ARMS[arm], seed, steps), where, data_dir)
  found = json.loads((where / evaluate.SCORES).read_text())["scores"]["test"]
  entries = map(json.loads, (where / monitor.LOG).read_text().splitlines())
  logged = [entry for entry in entries if entry["kind"] == "train"]
  last = logged[-max(len(logged) // 5, 1) :]
  weights = {n: np.mean([e[n] for e in last]) for n in last[0] if n.startswith("weight/")}
  return {**found, **weights}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
  """Mean and the ends of its 95 % interval."""
  mean, half = sweep.interval(values)
  return mean, mean - half, mean + half


def ordering(runs: Mapping[str, list[dict[str, float]]], task: str) -> list[float]:
  """Rule 1, for each seed: log of the ratio of variances, so the weights' the other way round."""
  rise = lambda noisy, clean, t: np.log(clean[f"weight/{t}"] / noisy[f"weight/{t}"])
  pairs = zip(runs[f"simple {task}"], runs["simple clean"], strict=True)
  others = [t for t in TASKS if t != task]
  return [rise(*pair, task) - max(rise(*pair, t) for t in others) for pair in pairs]


def ratio(runs: Mapping[str, list[dict[str, float]]]) -> list[float]:
  """Rule 2, for each seed: log of learned over expected."""
  variance = lambda of, n: 0.5 / of[f"weight/va/{n}"]  # kendall's weight is half the precision
  found = []
  for noisy, clean in zip(runs["kendall planted"], runs["kendall clean"], strict=True):
    learned = {n: variance(noisy, n) for n in PLANTED}
    expected = {n: variance(clean, n) + deviation**2 for n, deviation in PLANTED.items()}
    of = lambda x: 0.5 * np.log(x["valence"] / x["arousal"])
    found.append(of(learned) - of(expected))
  return found


def gains(runs: Mapping[str, list[dict[str, float]]], noise: str) -> list[float]:
  """Rules 3 and 4, for each seed."""
  pairs = zip(runs[f"simple {noise}"], runs[f"equal {noise}"], strict=True)
  return [simple["p_mtl"] - equal["p_mtl"] for simple, equal in pairs]


def verdicts(runs: Mapping[str, list[dict[str, float]]]) -> str:
  """The table: what was measured, its interval, and what the rule makes of it."""
  line = lambda what, m, low, high, verdict: (
    f"{what:52}{m:8.3f}  [{low:7.3f} {high:7.3f}]  {verdict}"
  )
  above = lambda low: "holds" if low > 0 else "not shown"
  lines = []
  for task in TASKS:
    m, low, high = interval(ordering(runs, task))
    lines.append(line(f"1 noise in {task}: its rise over the others'", m, low, high, above(low)))
  m, low, high = (float(np.exp(x)) for x in interval(ratio(runs)))
  within = low > 1 / TOLERANCE and high < TOLERANCE
  verdict = "holds" if within else "not shown"
  lines.append(line("2 sigma_V / sigma_A, learned / expected", m, low, high, verdict))
  changes = {noise: gains(runs, noise) for noise in (CORRUPTED, "clean")}
  for number, (noise, change) in enumerate(changes.items(), 3):
    m, low, high = interval(change)
    verdict = "gain" if low > 0 else "loss" if high < 0 else "not decided"
    lines.append(line(f"{number} P of simple - equal, {noise}", m, low, high, verdict))
  m, low, high = interval(np.subtract(*changes.values()))
  lines.append(line("5 of noise's doing: (3) - (4)", m, low, high, above(low)))
  return "\n".join(lines)


def main() -> None:
  """Trains what is not there yet and prints the table."""
  options = parse()
  compiled.keep()
  runs: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
  for seed in range(options.seeds):
    for arm, done in runs.items():
      done.append(run(arm, seed, options.steps, Path(options.workdir), options.data_dir))
      print(f"{arm}, seed {seed}: test P {done[-1]['p_mtl']:.3f}", flush=True)
  print(f"\n{options.seeds} seed(s), {options.steps} steps\n{verdicts(runs)}")


def parse() -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--seeds", type=int, default=8)
  add("--steps", type=int, default=400, help="updates of each run")
  add("--workdir", default="runs/uncertainty", help="where the runs live; finished ones are kept")
  add("--data_dir", help="where prepared data lives; TFDS's folder unless given")
  return parser.parse_args()


if __name__ == "__main__":
  main()
