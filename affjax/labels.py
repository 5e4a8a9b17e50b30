"""The label sets of the field, and how one is read in terms of another: by name."""

from collections.abc import Sequence

import numpy as np

TASKS = ("va", "expression", "au")

VA = ("valence", "arousal")

# Aff-Wild2's order (Kollias, 2022, arXiv:2202.10659), used by the MTL and EXPR challenges.
EXPRESSION_MTL = (
  "neutral",
  "anger",
  "disgust",
  "fear",
  "happiness",
  "sadness",
  "surprise",
  "other",
)
# ABAW1-2: without `other`.
EXPRESSION_SEVEN = EXPRESSION_MTL[:7]
# ABAW4's learning from synthetic data (Kollias, 2022, arXiv:2207.01138): alphabetical, so an index
# is one less than among the seven.
EXPRESSION_LSD = EXPRESSION_MTL[1:7]
# FER+ (Barsoum et al., 2016, arXiv:1608.01041), in the column order of fer2013new.csv.
EXPRESSION_FERPLUS = (
  "neutral",
  "happiness",
  "surprise",
  "sadness",
  "anger",
  "disgust",
  "fear",
  "contempt",
)
# AffectNet (Mollahosseini et al., 2017, arXiv:1708.03985), its codes 0 to 7.
EXPRESSION_AFFECTNET = (
  "neutral",
  "happiness",
  "sadness",
  "surprise",
  "fear",
  "disgust",
  "anger",
  "contempt",
)
# The compound expressions of ABAW6-8 (Kollias et al., 2024, arXiv:2402.19344).
EXPRESSION_COMPOUND = (
  "fearfully surprised",
  "happily surprised",
  "sadly surprised",
  "disgustedly surprised",
  "angrily surprised",
  "sadly fearful",
  "sadly angry",
)
# Every basic expression that some set names.
EXPRESSIONS = (*EXPRESSION_MTL, "contempt")

# ABAW2-11; ABAW1 had eight.
AU_MTL = ("AU1", "AU2", "AU4", "AU6", "AU7", "AU10", "AU12", "AU15", "AU23", "AU24", "AU25", "AU26")
AU_ABAW1 = ("AU1", "AU2", "AU4", "AU6", "AU12", "AU15", "AU20", "AU25")

# What the official files write where there is no label. Past `annotations` there are masks.
VA_UNLABELLED = -5.0
UNLABELLED = -1  # of an expression, of a unit


def remap(source: Sequence[str], target: Sequence[str]) -> np.ndarray:
  """Says where each label of `source` goes in `target`, by name.

  Contempt goes to `other` where the target has `other` but no `contempt`; any other
  name that the target lacks goes nowhere.

  Args:
    source: names of the labels that a data set has.
    target: names of the labels that a model has.

  Returns:
    [len(source), len(target)] float32 of zeros and ones; `values @ remap(...)` is `values` in
    the target's order. A target name that the source lacks has a column of zeros.
  """
  matrix = np.zeros((len(source), len(target)), np.float32)
  for row, name in enumerate(source):
    if name not in target and name == "contempt" and "other" in target:
      name = "other"
    if name in target:
      matrix[row, list(target).index(name)] = 1
  return matrix
