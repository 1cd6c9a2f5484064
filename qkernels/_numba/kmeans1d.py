"""The loops of `kmeans1d`, compiled by Numba: docs/numerics.md, section 13, whose symbols these names follow.

Every function that Python calls has a written signature: nothing is compiled for a second kind of array. The others are
inlined into them, once for plain doubles and, where arrays of low halves are not None, once for pairs of doubles.
"""

import math

import numpy as np
from numba import njit

from .cache import compiled

# Called by compiled code only: less to compile. No division is by zero, and looking for one would keep loops from being vectors.
inner = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")

# NaN cannot occur either, so the smallest of several costs is the same in any order: this, too, lets the compiler use vectors.
scanning = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy", fastmath={"nnan", "nsz"})

GROUPS_PER_CLUSTER = 16   # of the coarse problem that finds the multiplier
TOLERANCE = 1e-11         # a clustering within this of the lower bound is the optimum
PAIRS_BELOW = 2e-8        # of the sum of squares, times k: where the optimum costs less, plain doubles might miss it


# ---- pairs of doubles: the unevaluated sum high + low, about 32 digits ----


@inner
def two_sum(a, b):
    """Knuth: a + b = high + low exactly."""
    high = a + b
    part = high - a
    return high, (a - (high - part)) + (b - part)


@inner
def split(a):
    """Veltkamp: two halves of 26 bits."""
    wide = 134217729.0 * a
    high = wide - (wide - a)
    return high, a - high


@inner
def two_product(a, b):
    """Dekker: a * b = high + low exactly."""
    product = a * b
    a_high, a_low = split(a)
    b_high, b_low = split(b)
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


@inner
def pair_sum(a, a_low, b, b_low):
    high, low = two_sum(a, b)
    low += a_low + b_low
    total = high + low
    return total, low - (total - high)


@inner
def pair_product(a, a_low, b, b_low):
    high, low = two_product(a, b)
    low += a * b_low + a_low * b
    total = high + low
    return total, low - (total - high)


@inner
def pair_quotient(a, a_low, b, b_low):
    first = a / b
    product, product_low = pair_product(first, 0.0, b, b_low)
    rest, rest_low = pair_sum(a, a_low, -product, -product_low)
    second = rest / b
    total = first + second
    return total, second - (total - first)


# ---- the relaxed problem: each cluster costs `penalty` ----


@scanning
def scan(W, W_low, S, S_low, F, F_low, first, last, j, costs):
    """Where the last cluster of the first j points best begins, among first .. last-1, and their cost less the penalty.

    In plain doubles a part at a time, as long as `costs`, in loops that the compiler makes into vectors.
    """
    if W_low is not None:
        return scan_pairs(W, W_low, S, S_low, F, F_low, first, last, j, costs)
    w, s = W[j], S[j]
    at, lowest = first, np.inf
    while first < last:
        count = min(last - first, len(costs))
        low = np.inf
        for i in range(count):
            difference = s - S[first + i]
            cost = F[first + i] - difference * difference / (w - W[first + i])
            costs[i] = cost
            low = min(low, cost)
        if low < lowest:
            lowest, i = low, 0
            while costs[i] != low:
                i += 1
            at = first + i
        first += count
    return at, lowest, 0.0


@scanning
def scan_few(W, W_low, S, S_low, F, F_low, first, last, j, costs):
    """The same for a few candidates."""
    if W_low is not None:
        return scan_pairs(W, W_low, S, S_low, F, F_low, first, last, j, costs)
    w, s = W[j], S[j]
    at, lowest = first, np.inf
    for i in range(first, last):
        difference = s - S[i]
        cost = F[i] - difference * difference / (w - W[i])
        at = i if cost < lowest else at
        lowest = min(lowest, cost)
    return at, lowest, 0.0


@inner
def pair_cost(W, W_low, S, S_low, F, F_low, i, w, w_low, s, s_low):
    """F'_i - (s - S_i)^2 / (w - W_i) as a pair."""
    s, s_low = pair_sum(s, s_low, -S[i], -S_low[i])
    w, w_low = pair_sum(w, w_low, -W[i], -W_low[i])
    s, s_low = pair_product(s, s_low, s, s_low)
    s, s_low = pair_quotient(s, s_low, w, w_low)
    return pair_sum(F[i], F_low[i], -s, -s_low)


@scanning
def scan_pairs(W, W_low, S, S_low, F, F_low, first, last, j, costs):
    """The same in pairs of doubles. Low halves count where the high ones are equal, and are worked out again there."""
    w, w_low, s, s_low = W[j], W_low[j], S[j], S_low[j]
    at, lowest, lowest_low = first, np.inf, np.inf
    while first < last:
        count = min(last - first, len(costs))
        low = np.inf
        for i in range(count):
            cost, _ = pair_cost(W, W_low, S, S_low, F, F_low, first + i, w, w_low, s, s_low)
            costs[i] = cost
            low = min(low, cost)
        if low < lowest:
            lowest, lowest_low = low, np.inf
        if low == lowest:
            for i in range(count):
                if costs[i] == low:
                    _, cost_low = pair_cost(W, W_low, S, S_low, F, F_low, first + i, w, w_low, s, s_low)
                    if cost_low < lowest_low:
                        at, lowest_low = first + i, cost_low
        first += count
    return at, lowest, lowest_low


@inner
def store(F, F_low, j, cost, cost_low, penalty):
    if F_low is None:
        F[j] = cost + penalty
    else:
        F[j], F_low[j] = pair_sum(cost, cost_low, penalty, 0.0)


@inner
def less_than(F, F_low, j, cost, cost_low, penalty):
    """Whether a cost, and the penalty, are less than F of j."""
    if F_low is None:
        return cost + penalty < F[j]
    cost, cost_low = pair_sum(cost, cost_low, penalty, 0.0)
    return cost < F[j] or (cost == F[j] and cost_low < F_low[j])


@inner
def relax(W, W_low, S, S_low, penalty, F, F_low, begin):
    """Fill F (cost of the first j points) and begin (where their last cluster begins), for j = 1 .. n.

    begin ascends, so that of j lies between those of any j before and after it: a block of j is done by halves. The
    clusters of a block are taken to begin at or before its base, where F is known. Once better, a later candidate
    stays better: so if none is at the end of the block, none was within it, and else bisection finds how far that is so.
    """
    n = len(W) - 1
    costs = np.empty(512)
    F[0] = 0.0
    if F_low is not None:
        F_low[0] = 0.0
    begin[0] = 0
    base = 0
    while base < n:
        size = max(1, min((base - begin[base]) // 2, n - base))
        last = base + size
        begin[last], cost, cost_low = scan(W, W_low, S, S_low, F, F_low, begin[base], base + 1, last, costs)
        store(F, F_low, last, cost, cost_low, penalty)
        stride = 1
        while 2 * stride < size:
            stride *= 2
        while stride > 0:
            for j in range(base + stride, last, 2 * stride):
                left, right = begin[j - stride], begin[min(j + stride, last)] + 1
                if stride < 8:
                    begin[j], cost, cost_low = scan_few(W, W_low, S, S_low, F, F_low, left, right, j, costs)
                else:
                    begin[j], cost, cost_low = scan(W, W_low, S, S_low, F, F_low, left, right, j, costs)
                store(F, F_low, j, cost, cost_low, penalty)
            stride //= 2
        good, bad, at = 1, size + 1, size
        while bad - good > 1:
            j = base + at
            _, cost, cost_low = scan(W, W_low, S, S_low, F, F_low, base + 1, j, j, costs)
            if less_than(F, F_low, j, cost, cost_low, penalty):
                bad = at
            else:
                good = at
            at = (good + bad) // 2
        base += good


@inner
def trace(begin):
    """Where the clusters begin, and n: an array of one more than there are clusters."""
    n = len(begin) - 1
    count, j = 0, n
    while j > 0:
        j = begin[j]
        count += 1
    splits = np.empty(count + 1, np.int32)
    j = n
    for i in range(count, -1, -1):
        splits[i] = j
        j = begin[j]
    return splits


@inner
def join(few, many, k):
    """k clusters out of two optimal clusterings for one penalty: one with fewer, one with more."""
    skip = k - (len(few) - 1)
    r = 0
    while many[r + 1 + skip] > few[r + 1]:
        r += 1
    return np.concatenate((many[: r + 1 + skip], few[r + 1 :]))


# ---- costs without cancellation ----


@inner
def weight_of(weights, W, i):
    """Differences of W are exact where they count points; elsewhere the weights are at hand."""
    return weights[i] if len(weights) else W[i + 1] - W[i]


@inner
def mean_and_cost(v, weights, W, S, centre, first, last):
    """Of points first .. last-1, about a number near their mean: again, about a nearer one, where half of the sum cancels."""
    about = centre + (S[last] - S[first]) / (W[last] - W[first])
    for _ in range(3):
        about = min(max(about, v[first]), v[last - 1])
        total = moment = second = 0.0
        for i in range(first, last):
            w = weight_of(weights, W, i)
            d = v[i] - about
            total += w
            moment += w * d
            second += w * d * d
        shift = moment / total
        if shift * moment <= 0.5 * second:
            break
        about += shift
    return about + shift, max(0.0, second - shift * moment)


@inner
def cost_of(v, weights, W, S, centre, splits):
    total = 0.0
    for i in range(len(splits) - 1):
        total += mean_and_cost(v, weights, W, S, centre, splits[i], splits[i + 1])[1]
    return total


# ---- the penalty that gives k clusters ----


@inner
def every_point(n):
    """Splits into clusters of one point each."""
    splits = np.empty(n + 1, np.int32)
    for i in range(n + 1):
        splits[i] = i
    return splits


@inner
def search(v, weights, W, W_low, S, S_low, centre, k, penalty, F, F_low, begin):
    """The best k clusters of n > k points, where they begin; and a penalty that asks for them."""
    n = len(v)
    few, many = np.array([0, n], np.int32), np.empty(0, np.int32)
    few_count, many_count = 1, n
    cost_few, cost_many = cost_of(v, weights, W, S, centre, few), 0.0
    trial, low, high, bound = 0, 0.0, np.inf, 0.0  # `many` is of the penalty low, `few` of high; no k clusters cost less than bound
    if k == 1:
        return few, cost_few
    while True:
        trial += 1
        on_chord = trial > 8 or not low < penalty < high or many_count - few_count <= 3
        if on_chord:
            penalty = (cost_few - cost_many) / (many_count - few_count)
        relax(W, W_low, S, S_low, penalty, F, F_low, begin)
        splits = trace(begin)
        count = len(splits) - 1
        cost = cost_of(v, weights, W, S, centre, splits)
        if count == k:
            return splits, penalty
        bound = max(bound, cost + penalty * (count - k))
        inside = few_count < count < many_count
        if count < k and count >= few_count:
            few, few_count, cost_few, high = splits, count, cost, penalty
        elif count > k and count <= many_count:
            many, many_count, cost_many, low = splits, count, cost, penalty
        if on_chord:
            if many_count == n:
                many = every_point(n)
            joined = join(few, many, k)
            if not inside or cost_of(v, weights, W, S, centre, joined) <= bound * (1.0 + TOLERANCE):
                return joined, penalty
        penalty *= (count / k) ** 3


@inner
def density_cost(v, W, size):
    """(W h^2)^(1/3) of each run of `size` points, h being its extent."""
    n = len(v)
    runs = np.empty((n + size - 1) // size)
    for r in range(len(runs)):
        first, last = r * size, min((r + 1) * size, n)
        h = v[min(last, n - 1)] - v[first]
        runs[r] = np.cbrt((W[last] - W[first]) * h * h)
    return runs


@inner
def coarse_splits(runs, size, n, groups):
    """Where groups of points begin that would make good clusters: neither many points nor much of the density cost."""
    share = runs.sum() / groups
    most = 2 * n // groups
    splits = np.empty(n + 1, np.int32)
    splits[0] = 0
    count, sum_, last = 1, 0.0, 0
    for r in range(len(runs)):
        begin, end = r * size, min((r + 1) * size, n)
        if runs[r] > share:  # a gap somewhere: every point by itself
            for i in range(max(begin, last + 1), end + 1):
                splits[count] = i
                count += 1
            last, sum_ = end, 0.0
            continue
        sum_ += runs[r]
        if sum_ >= share or end - last >= most or end == n:
            splits[count] = end
            count += 1
            last, sum_ = end, 0.0
    return splits[:count]


@inner
def estimate_penalty(v, W, S, centre, k):
    """A penalty that asks for about k clusters: by high-resolution theory, then by the problem of grouped points."""
    n = len(v)
    size = 8 if n > 256 else 1
    runs = density_cost(v, W, size)
    penalty = runs.sum() ** 3 / 6.0 / float(k) ** 3
    groups = GROUPS_PER_CLUSTER * k
    if groups * 4 > n:
        return penalty
    ends = coarse_splits(runs, size, n, groups)
    m = len(ends) - 1
    if m <= 2 * k or m > n // 2:
        return penalty
    W_of, S_of = W[ends], S[ends]
    means = centre + (S_of[1:] - S_of[:-1]) / (W_of[1:] - W_of[:-1])
    F, begin, none = np.empty(m + 1), np.empty(m + 1, np.int32), np.empty(0)
    splits, penalty = search(means, none, W_of, None, S_of, None, centre, k, penalty, F, None, begin)
    middle = 2.0 * cost_of(means, none, W_of, S_of, centre, splits) / k
    if abs(middle - penalty) * k < penalty:
        penalty = middle
    return penalty


# ---- one line ----


@inner
def sort(values, weights):
    """Ascending, by radix, in place, and the weights along; NaN comes first or last, -0.0 becomes 0.0."""
    n, sign = len(values), np.uint64(1) << np.uint64(63)
    for i in range(n):
        values[i] += 0.0
    keys = values.view(np.uint64)
    counts = np.zeros((8, 256), np.int64)
    for i in range(n):  # as unsigned numbers in the order of the values: all bits of negative ones flipped, else the sign
        key = keys[i] ^ (~np.uint64(0) if keys[i] & sign else sign)
        keys[i] = key
        for digit in range(8):
            counts[digit, (key >> np.uint64(8 * digit)) & np.uint64(255)] += 1
    others, other_weights = np.empty_like(keys), np.empty_like(weights)
    source, target, source_weights, target_weights = keys, others, weights, other_weights
    for digit in range(8):
        shift = np.uint64(8 * digit)
        if counts[digit, (source[0] >> shift) & np.uint64(255)] == n:
            continue  # all alike: the low digits of what was float32, say
        place = 0
        for value in range(256):
            count = counts[digit, value]
            counts[digit, value] = place
            place += count
        for i in range(n):
            key = source[i]
            value = (key >> shift) & np.uint64(255)
            place = counts[digit, value]
            counts[digit, value] = place + 1
            target[place] = key
            if len(weights):
                target_weights[place] = source_weights[i]
        source, target = target, source
        source_weights, target_weights = target_weights, source_weights
    for i in range(n):
        keys[i] = source[i] ^ (sign if source[i] & sign else ~np.uint64(0))
    weights[:] = source_weights


@inner
def merge(values, weights):
    """Sorted values to the distinct ones of positive weight, in place; their weights too, or W for lack of weights.

    Returns their number and W, the sum of the weights before each."""
    m = 0
    if len(weights):
        for i in range(len(values)):
            x, w = values[i], weights[i]
            if w == 0.0:
                continue
            if m and values[m - 1] == x:
                weights[m - 1] += w
            else:
                values[m], weights[m] = x, w
                m += 1
        W = np.empty(m + 1)
        W[0] = 0.0
        for i in range(m):
            W[i + 1] = W[i] + weights[i]
        return m, W
    for i in range(len(values)):
        m += i == 0 or values[i] != values[i - 1]
    W = np.empty(m + 1)
    m = 0
    for i in range(len(values)):
        x = values[i]
        if i == 0 or x != values[m - 1]:
            values[m] = x
            W[m] = i
            m += 1
    W[m] = len(values)
    return m, W


@inner
def prefix_sums(v, weights, W, centre):
    """S: the sums of w (v - centre) before each point, compensated; and of w (v - centre)^2 over all."""
    n = len(v)
    S = np.empty(n + 1)
    high = low = square = 0.0
    S[0] = 0.0
    for i in range(n):
        d = v[i] - centre
        moment = weight_of(weights, W, i) * d
        high, error = two_sum(high, moment)
        low += error
        S[i + 1] = high + low
        square += moment * d
    return S, square


@inner
def pair_prefix_sums(v, weights, W, centre):
    """W and S as pairs."""
    n = len(v)
    W_high, W_low, S_high, S_low = np.empty(n + 1), np.empty(n + 1), np.empty(n + 1), np.empty(n + 1)
    W_high[0] = W_low[0] = S_high[0] = S_low[0] = 0.0
    for i in range(n):
        w = weight_of(weights, W, i)
        d, d_low = two_sum(v[i], -centre)
        moment, moment_low = pair_product(w, 0.0, d, d_low)
        W_high[i + 1], W_low[i + 1] = pair_sum(W_high[i], W_low[i], w, 0.0)
        S_high[i + 1], S_low[i + 1] = pair_sum(S_high[i], S_low[i], moment, moment_low)
    return W_high, W_low, S_high, S_low


@inner
def best_splits(v, weights, W, S, square, centre, k):
    """Where the clusters of the optimum begin."""
    n = len(v)
    F, begin = np.empty(n + 1), np.empty(n + 1, np.int32)
    penalty = estimate_penalty(v, W, S, centre, k)
    splits, penalty = search(v, weights, W, None, S, None, centre, k, penalty, F, None, begin)
    if cost_of(v, weights, W, S, centre, splits) < PAIRS_BELOW * k * square:
        W_high, W_low, S_high, S_low = pair_prefix_sums(v, weights, W, centre)
        F_low = np.empty(n + 1)
        splits, _ = search(v, weights, W_high, W_low, S_high, S_low, centre, k, penalty, F, F_low, begin)
    return splits


@inner
def are_weights(weights):
    largest = 0.0 if len(weights) else 1.0
    for w in weights:
        if not 0.0 <= w < np.inf:
            return False
        largest = max(largest, w)
    return largest > 0.0


@inner
def exponent_beyond(limit, largest):
    """The power of two that brings `largest` near 1, if its exponent is beyond a limit; it and its inverse are doubles."""
    exponent = math.frexp(largest)[1]
    return max(-1000, min(1000, exponent)) if abs(exponent) > limit else 0


@compiled("void(f8[:, ::1], f8[:, ::1], i8, f8[:, ::1], i4[::1], f8[::1])")
def cluster_lines(values, weights, k, centroids, counts, inertia):
    """The optimum of each line; the last centroid fills the places of those that a line lacks.

    Overwrites values and weights. Weights without columns are all 1. A line of count 0 is refused: not finite, or with weights that
    are negative, not finite or all 0.
    """
    for line in range(len(values)):
        v, w = values[line], weights[line]
        counts[line] = 0
        sort(v, w)
        if not (math.isfinite(v[0]) and math.isfinite(v[-1]) and are_weights(w)):
            continue
        exponent, w_exponent = exponent_beyond(300, max(abs(v[0]), abs(v[-1]))), 0
        if exponent:
            v *= math.ldexp(1.0, -exponent)
        if len(w):
            w_exponent = exponent_beyond(100, w.max())
            w *= math.ldexp(1.0, -w_exponent)
        n, W = merge(v, w)
        v, w = v[:n], w[:n]
        count, cost = min(n, k), 0.0
        if n <= k:
            centroids[line, :n] = v
        else:
            centre = v[n // 2]
            S, square = prefix_sums(v, w, W, centre)
            splits = best_splits(v, w, W, S, square, centre, k)
            for c in range(k):
                centroids[line, c], cost_of_one = mean_and_cost(v, w, W, S, centre, splits[c], splits[c + 1])
                cost += cost_of_one
        counts[line] = count
        centroids[line, count:] = centroids[line, count - 1]
        if exponent:
            centroids[line] *= math.ldexp(1.0, exponent)
        inertia[line] = math.ldexp(math.ldexp(cost, w_exponent), 2 * exponent)


# ---- labels ----


@inner
def thresholds(centroids, count):
    """The largest doubles that are no nearer to the next centroid, padded with infinity to one less than a power of two."""
    size = 1
    while size < count:
        size *= 2
    limits = np.full(size - 1, np.inf)
    for c in range(count - 1):
        middle, error = two_sum(0.5 * centroids[c], 0.5 * centroids[c + 1])
        limits[c] = np.nextafter(middle, -np.inf) if error < 0.0 else middle
    return limits


LABEL_LINES = "void(f8[:, ::1], f8[:, ::1], i4[::1], {}[:, ::1])"


@compiled([LABEL_LINES.format("u1"), LABEL_LINES.format("i4")])
def label_lines(values, centroids, counts, labels):
    """The nearest centroid of each value, the lower of two."""
    at = np.empty(256, np.int64)
    for line in range(len(values)):
        x, limits = values[line], thresholds(centroids[line], counts[line])
        for first in range(0, len(x), len(at)):
            count = min(len(at), len(x) - first)
            at[:] = 0
            step = (len(limits) + 1) // 2
            while step:  # bisection, a step of all points at a time: no branch depends on a value
                for i in range(count):
                    at[i] += step * int(limits[at[i] + step - 1] < x[first + i])
                step >>= 1
            for i in range(count):
                labels[line, first + i] = at[i]


# ---- 16-bit codes ----


@compiled("b1(u2[::1], f8[::1], f8[::1])")
def histogram(codes, weights, bins):
    """Adds the weight of each code, or 1, to its bin; False where a weight is negative or not finite."""
    valid = True
    if len(weights):
        for i in range(len(codes)):
            bins[codes[i]] += weights[i]
            valid &= 0.0 <= weights[i] < np.inf
    else:
        for i in range(len(codes)):
            bins[codes[i]] += 1.0
    return valid


LOOK_UP = "void(u2[::1], {0}[::1], {0}[::1])"


@compiled([LOOK_UP.format("u1"), LOOK_UP.format("i4")])
def look_up(codes, table, labels):
    for i in range(len(codes)):
        labels[i] = table[codes[i]]
