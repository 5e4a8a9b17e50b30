"""From renders to photographs: classifiers of an encoder's features that need no real label.

`learn` fits labelled renders. `adapt` then moves the classes to where unlabelled photographs lie:
each class is a Gaussian in a few features, all with one covariance, and expectation maximisation
starts from what the renders taught. Both give linear classifiers, so what was adapted to one set of
photographs can answer for others.
"""

import dataclasses

import jax
import numpy as np

from affjax import probe

# Of the squared weights against the sum over the rows.
STRENGTH = 4000.0
READING_STRENGTH = 2000.0


@dataclasses.dataclass(frozen=True)
class Axes:
  """Standardised principal axes of a set of features.

  Attributes:
    mean: [features] of that set.
    axes: [features, components], each feature divided by its standard deviation first.
  """

  mean: np.ndarray
  axes: np.ndarray

  @classmethod
  def of(cls, x: np.ndarray, components: int) -> "Axes":
    """The first axes of [rows, features], with the standard deviation of each feature made 1."""
    mean = x.mean(0)
    scale = 1 / (x.std(0) + 1e-3)
    z = (x - mean) * scale
    axes = np.linalg.eigh(z.T @ z)[1][:, ::-1][:, :components]
    return cls(mean, axes * scale[:, None])

  def __call__(self, x: np.ndarray) -> np.ndarray:
    """[rows, features] -> [rows, components] float32."""
    return ((x - self.mean) @ self.axes).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Learnt:
  """What renders taught.

  Attributes:
    axes: of the renders' features.
    classes: weights and bias of the classes' logits.
    readings: weights and bias of what else the renders know, such as action units.
  """

  axes: Axes
  classes: probe.Linear
  readings: probe.Linear

  def __call__(self, x: np.ndarray) -> np.ndarray:
    """[rows, features] -> [rows, classes] logits."""
    return _apply(self.classes, self.axes(x))

  def semantics(self, x: np.ndarray) -> np.ndarray:
    """[rows, features] -> [rows, readings + classes]: the readings, then the logits."""
    z = self.axes(x)
    return np.concatenate([_apply(self.readings, z), _apply(self.classes, z)], 1)


def learn(
  x: np.ndarray,
  classes: np.ndarray,
  readings: np.ndarray,
  shares: np.ndarray,
  *,
  components: int = 768,
) -> Learnt:
  """Fits labelled renders: logistic regression of the classes, ridge regression of the readings.

  Args:
    x: [rows, features] of renders.
    classes: [rows, classes] distributions.
    readings: [rows, readings] numbers.
    shares: [classes] how often each class counts.
    components: how many principal axes are kept.
  """
  axes = Axes.of(x, components)
  z = axes(x)
  weight = classes @ (shares / np.maximum(classes.mean(0), 1e-9))
  return Learnt(
    axes,
    probe.logistic_classes(z, classes, (weight / weight.mean()).astype(np.float32), STRENGTH),
    probe.ridge(z, readings, np.ones_like(readings), READING_STRENGTH),
  )


@dataclasses.dataclass(frozen=True)
class Adapted:
  """Classes where photographs lie.

  Attributes:
    learnt: what renders taught.
    axes: of the photographs' features.
    centre: [semantics + components] mean over the photographs.
    scale: [semantics + components] what the deviations from it are divided by.
    classes: weights and bias of the classes' logits.
  """

  learnt: Learnt
  axes: Axes
  centre: np.ndarray
  scale: np.ndarray
  classes: probe.Linear

  def __call__(self, x: np.ndarray) -> np.ndarray:
    """[rows, features] -> [rows, classes] logits."""
    return _apply(self.classes, (_joint(self.learnt, self.axes, x) - self.centre) / self.scale)


def adapt(
  learnt: Learnt,
  x: np.ndarray,
  axes: Axes,
  shares: np.ndarray,
  *,
  rounds: int = 4,
  ridge: float = 0.1,
) -> Adapted:
  """Fits a mixture of Gaussians, one a class, to unlabelled photographs.

  Args:
    learnt: what renders taught; its answers are where the mixture starts.
    x: [rows, features] of photographs.
    axes: of them; they stand beside the learnt semantics. At 64 or 128 a class is still found where
      it is, and what the renders do not know counts too.
    shares: [classes] of the mixture, kept.
    rounds: of expectation maximisation. Many lose the start: clusters of people are larger than
      those of expressions.
    ridge: added to the covariance, as a share of its diagonal.
  """
  z = _joint(learnt, axes, x)
  centre, scale = z.mean(0), z.std(0) + 1e-6
  z = (z - centre) / scale
  answers = np.asarray(jax.nn.softmax(learnt(x), -1), np.float64)
  for _ in range(rounds):
    classes = _mixture(z, answers, shares, ridge)
    answers = np.asarray(jax.nn.softmax(_apply(classes, z), -1), np.float64)
  return Adapted(learnt, axes, centre, scale, classes)


def _joint(learnt: Learnt, axes: Axes, x: np.ndarray) -> np.ndarray:
  return np.concatenate([learnt.semantics(x), axes(x)], 1)


def _mixture(z: np.ndarray, answers: np.ndarray, shares: np.ndarray, ridge: float) -> probe.Linear:
  """The linear classifier of Gaussians with one covariance, from soft answers."""
  means = answers.T @ z / answers.sum(0)[:, None]
  covariance = z.T @ z / len(z) - (means.T * answers.mean(0)) @ means
  covariance += ridge * np.diag(np.diag(covariance))
  weights = np.linalg.solve(covariance, means.T)
  return weights, np.log(shares) - (means * weights.T).sum(1) / 2


def _apply(model: probe.Linear, z: np.ndarray) -> np.ndarray:
  return z @ np.asarray(model[0]) + np.asarray(model[1])
