"""scikit-learn's k-means, from `start`: OpenBLAS and compiled loops."""

from sklearn.cluster import KMeans

import peers


def kmeans(x, start, iterations):
    options = dict(n_init=1, max_iter=iterations, tol=0, algorithm="lloyd")

    def call():
        return KMeans(len(start), init=start, **options).fit(x).cluster_centers_

    return peers.contender("scikit-learn", call, held_to=peers.BY_ENVIRONMENT)
