"""faiss: k-means, from `start`, and product quantization. FAISS_OPT_LEVEL holds it."""

from functools import partial

import faiss
import numpy as np

import peers

faiss.omp_set_num_threads(peers.threads)
contender = partial(peers.contender, "faiss", held_to=peers.BY_ENVIRONMENT)


def kmeans(x, start, iterations):
    options = dict(niter=iterations, min_points_per_centroid=1, max_points_per_centroid=len(x))

    def call():
        trained = faiss.Kmeans(x.shape[1], len(start), **options)
        trained.train(x, init_centroids=start)
        return trained.centroids

    return contender(call)


def index_of(book):
    """With the levels of the book."""
    m, k, d = book.levels.shape
    index = faiss.IndexPQ(m * d, m, k.bit_length() - 1)
    faiss.copy_array_to_vector(book.levels.reshape(-1), index.pq.centroids)
    index.pq.sync_transposed_centroids()
    index.is_trained = True
    return index


def dense(codes, book):
    """As faiss keeps them: codes of 4 bits two to a byte."""
    return codes if book.k == 256 else codes[:, ::2] | codes[:, 1::2] << 4


def search(queries, codes, book, k):
    index = index_of(book)
    faiss.copy_array_to_vector(dense(codes, book).reshape(-1), index.codes)
    index.ntotal = len(codes)
    return contender(lambda: index.search(queries, k), lambda: index.search(queries, k)[1])


def fast_scan(queries, codes, book, k):
    """Tables of 8 bits and sums of 16: the nearest of these, not of the distances."""
    plain = index_of(book)
    faiss.copy_array_to_vector(dense(codes, book).reshape(-1), plain.codes)
    plain.ntotal = len(codes)
    index = faiss.IndexPQFastScan(plain)
    found = contender(lambda: index.search(queries, k), lambda: index.search(queries, k)[1])
    found.name = "faiss fast scan"
    return found


def encode(x, book):
    index = index_of(book)

    def read():
        found = index.pq.compute_codes(x)
        return found if book.k == 256 else np.stack([found & 15, found >> 4], axis=-1).reshape(len(x), -1)

    return contender(lambda: index.pq.compute_codes(x), read)


def decode(codes, book):
    index, stored = index_of(book), dense(codes, book)
    return contender(lambda: index.pq.decode(stored))
