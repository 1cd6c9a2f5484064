"""kmeans1d: scalar code."""

import kmeans1d
import numpy as np
from race import Contender


def cluster(x, k):
    return Contender("kmeans1d", lambda: kmeans1d.cluster(x, k), lambda: np.array(kmeans1d.cluster(x, k).centroids))
