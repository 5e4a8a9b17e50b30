"""What the scripts share that measure a direction: arms trained side by side, and their verdicts.

A direction is the sign of a difference between two ways of learning, on data where its cause is
planted. It is judged over paired seeds: an interval is Student's 95 % over them. A negative control
is the same data without the cause, where the difference is to vanish.
"""

import argparse
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from affjax import procedures
from scripts import sweep

Config = Mapping[str, Any]
Batch = Mapping[str, Any]
Score = Callable[[Mapping[str, jax.Array], Batch], jax.Array]
# Splits of planted data: to learn from, to choose by, to report.
SPLITS = ("train", "select", "report")


def best(
  configs: Sequence[Config],
  states: Sequence[Any],
  data: Sequence[Mapping[str, Batch]],
  score: Score,
  *,
  every: int,
) -> list[float]:
  """Trains one arm with every seed, on all rows at once; all seeds are one compiled program.

  Args:
    configs: of the arm, as of a run, alike but for what is to be chosen, such as learning rates.
    states: of each seed, that before the first update.
    data: of each seed, split of SPLITS -> one batch of all of its rows.
    score: (outputs, batch) -> scalar, larger is better.
    every: number of updates between two looks at the scores; `steps` of a config is a multiple.

  Returns:
    For each seed the score on the rows to report, of the config and the number of updates whose
    score on the rows to choose by is best.
  """
  stacked = lambda trees: jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
  given = stacked(states), *(stacked([of[split] for of in data]) for split in SPLITS)
  tried = np.concatenate([_trainer(config, score, every)(*given) for config in configs], 1)
  chosen = tried[:, :, 0].argmax(1)
  return tried[np.arange(len(tried)), chosen, 1].tolist()


def _trainer(config: Config, score: Score, every: int) -> Any:
  """[seeds, times, 2] scores on the rows to choose by and to report, of states and splits."""
  procedure = procedures.from_config(config)

  def one(state: Any, train: Batch, *scored: Batch) -> jax.Array:
    def block(state: Any, _: None) -> tuple[Any, jax.Array]:
      update = lambda state, _: (procedure.train_step(state, train)[0], None)
      state, _ = jax.lax.scan(update, state, None, every)
      predict = functools.partial(procedure.predict, state.averaged, state.model_state)
      return state, jnp.stack([score(predict(batch["image"]), batch) for batch in scored])

    return jax.lax.scan(block, state, None, config["steps"] // every)[1]

  return jax.jit(jax.vmap(one))


def means(title: str, scores: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
  """A table: a row of means for each kind of data, a column for each arm."""
  arms = list(next(iter(scores.values())))
  width = max(9, *(len(arm) + 2 for arm in arms))
  lines = [f"{title:32}" + "".join(f"{arm:>{width}}" for arm in arms)]
  for data, of_arms in scores.items():
    lines.append(f"{data:32}" + "".join(f"{np.mean(of_arms[arm]):{width}.3f}" for arm in arms))
  return "\n".join(lines)


def verdict(what: str, values: Sequence[float], said: tuple[str, str, str] = ("", "", "")) -> str:
  """A line: mean over the seeds, its interval, and what is said where that lies.

  `said` is for an interval above 0, around it, and below it.

  Of a single seed there is no interval, and nothing is said.
  """
  mean, half = sweep.interval(values)
  low, high = mean - half, mean + half
  word = "" if np.isnan(half) else said[0 if low > 0 else 2 if high < 0 else 1]
  return f"{what:32}{mean:8.4f}  [{low:7.4f} {high:7.4f}]  {word}"


def verdicts(planted: Sequence[float], removed: Sequence[float], what: str) -> str:
  """The three rules of a direction, judged.

  Args:
    planted: of each seed the difference of two scores, on data with the cause.
    removed: of the same seeds on data without: the negative control.
    what: of whom the difference is, such as "gcn - linear".
  """
  gain = np.subtract(planted, removed)
  shown = ("holds", "not shown", "the contrary")
  return "\n".join(
    [
      f"{'paired difference':32}{'mean':>8}  95 % interval",
      verdict(f"1 planted, {what}", planted, shown),
      verdict(f"2 removed, {what}", removed, ("DOES NOT VANISH", "vanishes", "turns")),
      verdict("3 (1) - (2)", gain, shown),
    ]
  )


def report(
  title: str,
  scores: Mapping[str, Mapping[str, Sequence[float]]],
  compared: tuple[str, str],
  beside: str = "",
) -> str:
  """Means, then each rule with its interval and what it makes of it.

  Args:
    title: what the scores are.
    scores: "planted", then "removed" -> arm -> of each seed.
    compared: the arm that is to be better, and the one that it is held against.
    beside: another that the first is held against, without a claim.
  """
  one, other = compared
  gain = lambda kind, against: np.subtract(scores[kind][one], scores[kind][against])
  judged = verdicts(*(gain(kind, other) for kind in scores), f"{one} - {other}")
  lines = [means(title, scores), "", judged]
  for kind in scores if beside else ():
    lines.append(verdict(f"4 {kind}, {one} - {beside}", gain(kind, beside)))
  return "\n".join(lines)


def main(
  doc: str,
  data: Mapping[str, Callable[[range], Any]],
  arms: Iterable[str],
  run: Callable[[str, range, Any], list[float]],
  *reported: Any,
) -> None:
  """The command line of a script: trains all arms on all data, and prints the tables.

  Args:
    doc: what it is, for `--help`.
    data: "planted", then "removed" -> what it is of all seeds.
    arms: names.
    run: (arm, seeds, data) -> score of each seed.
    *reported: `title`, `compared` and `beside` of `report`.
  """
  parser = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--seeds", type=int, default=8)
  parser.add_argument("--first", type=int, default=0, help="the first of the seeds")
  options = parser.parse_args()
  seeds = range(options.first, options.first + options.seeds)
  arms, scores = tuple(arms), {}
  with tqdm(total=len(data) * len(arms), unit="arm") as bar:
    for kind, make in data.items():
      given, scores[kind] = make(seeds), {}
      for arm in arms:
        scores[kind][arm] = run(arm, seeds, given)
        bar.update()
  title, *compared = reported
  said = report(title, scores, *compared)
  print(f"{options.seeds} seed(s) from {options.first} on\n{said}")
