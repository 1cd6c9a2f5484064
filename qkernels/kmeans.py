"""Clustering. Formulas: docs/numerics.md."""

from typing import NamedTuple

import numpy as np


class KMeansResult(NamedTuple):
    """Centroids (ascending in one dimension), the index of the nearest one for each point, and the weighted sum of squared distances."""

    centroids: np.ndarray
    labels: np.ndarray
    inertia: float
