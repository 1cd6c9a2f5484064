"""MiniLM by integers with scales that were fixed beforehand: calibrated, smoothed, and codes within a block.

`make_static` takes the network of minilm.py in float32 and batches to calibrate it on. Three things keep what one scale
a tensor would lose (docs/static.md has the figures):

- Inputs of dense layers that follow a layer norm have a zero point and a scale a column: the norm gives such codes, and
  the weights take the columns' factors over (`smooth`), their offsets go to the bias.
- Query, key and value have a scale each, divided out of the columns of their weights, so that one product makes all.
- A few inputs of the last dense layer are huge now and then. They are split: what goes beyond the range of the others
  is a column of its own, gelu(x - range), with the same weights (outlier channel splitting, Zhao et al., 2019).

GELU is a table, from codes to codes: a product that gives codes is done sooner than one that gives values, and below
-2.8, where its inputs saturate, GELU is above -0.0072, which is less than half a step.
"""

import numpy as np

import qkernels as qk

LEAST = -2.8  # input of GELU that is told from lesser ones


class Recorder:
    """Run a network in float32, and keep the ranges of all that its functions give, in the order of calls."""

    def __init__(self, functions):
        self.functions, self.ranges, self.at = functions, [], 0

    def seen(self, x):
        if self.at == len(self.ranges):
            self.ranges.append(qk.observers.MinMax(axis=-1))
        self.ranges[self.at].update(x)
        self.at += 1
        return x

    def layer_norm(self, *args, **options):
        return self.seen(self.functions.layer_norm(*args, **options))

    def attention(self, *args, **options):
        return self.seen(self.functions.attention(*args, **options))

    def linear(self, *args, **options):
        return self.seen(self.functions.linear(*args, **options))


class Dense:
    """The weights of a dense layer, packed, for codes with a scale and a zero point for each column of x."""

    def __init__(self, weight, bias, lo, hi, alpha=None):
        """Without alpha x has one scale for all columns."""
        middle, factors = np.zeros_like(lo), np.ones_like(lo)
        if alpha is not None:
            middle = (lo + hi) / 2
            _, factors = qk.smooth(weight, (hi - lo) / 2, alpha)
        self.params = qk.choose_qparams(np.concatenate([(lo - middle) / factors, (hi - middle) / factors]), "uint8")
        scale = self.params.scale * factors
        zero = np.clip(np.rint(self.params.zero_point - middle / scale), 0, 255)
        self.columns = self.params
        if alpha is not None:
            self.columns = qk.QParams(scale, zero.astype(np.int32), "uint8", axis=-1)
        bias = bias + (self.params.zero_point - zero) * scale @ weight
        smoothed = weight * factors[:, None]
        of_weights = qk.choose_qparams(smoothed, "int8", axis=1)
        self.packed = qk.pack(qk.quantize(smoothed, of_weights), of_weights)
        self.bias = np.float32(bias)
        self.int_bias = qk.quantize_bias(self.bias, self.params, of_weights)


def calibrate(network, tokenizer, docstrings, bits=None):
    """Make a network static by docstrings of SciPy, or share out so many bits a weight; bars show how far it is."""
    import minilm_budget
    from rich.progress import track
    from scipy import special, stats

    texts = [rest for _, rest in (docstrings(special) + docstrings(stats))[::2]]
    tokens = [np.array(text.ids) for text in tokenizer.encode_batch(texts)]
    batches = [(ids, np.arange(len(ids)), np.array([0, len(ids)])) for ids in tokens]
    if bits:
        print("bits of the dense layers:", *minilm_budget.share_out(network, batches, bits, track))
    else:
        make_static(network, track(batches, "calibrating"))


def make_static(network, batches, **options):
    """Put a network of minilm.py, in float32 till now, on codes, calibrated on batches as `embed` takes them."""
    recorder = Recorder(network.functions)
    network.functions = recorder
    for batch in batches:
        recorder.at = 0
        network.encode(*batch)
    made = Static(network, [seen.to_arrays() for seen in recorder.ranges], **options)
    network.layers = [([(each.packed, each.bias) for each in dense], norms) for dense, _, norms in made.layers]
    network.encode = made.encode
    return network


class Static:
    """Encode tokens on codes, as the network does on floats, of whose functions the ranges are given in their order.

    alpha: of `smooth`; None: one scale for all columns. split: how many columns are; multiples of 4 keep rows aligned.
    """

    def __init__(self, network, ranges, alpha=0.8, split=4):
        self.alpha, self.split, self.codes = alpha, split, qk.QParams(1.0, dtype="int8")
        self.words, self.positions, self.norm = network.words, network.positions, network.norm
        self.heads, self.eps, self.layers = network.heads, network.eps, []
        ranges = [(seen["lo"], seen["hi"]) for seen in ranges]
        for i, (dense, norms) in enumerate(network.layers):
            self.layers.append((*self.block(dense, *ranges[7 * i : 7 * i + 6]), norms))
        self.given = [dense[0].columns for dense, _, _ in self.layers] + [None]  # to each block; the last gives floats

    def block(self, dense, given, qkv, attended, _, normed, fed):
        """Return what a block needs, of its dense layers and of the ranges of what they are given and give."""
        (w_qkv, b_qkv), (w_out, b_out), (w_up, b_up), (w_down, b_down) = dense
        most = np.maximum(-qkv[0], qkv[1]).reshape(3, -1).max(axis=1) / 127
        units = np.repeat(most, len(qkv[0]) // 3)
        first = Dense(w_qkv / units, b_qkv / units, *given, self.alpha)
        out = Dense(w_out, b_out, np.full(len(w_out), attended[0].min()), np.full(len(w_out), attended[1].max()))
        huge = np.argsort(fed[1])[len(w_down) - self.split :]
        lo, most_fed = fed[0].min(), fed[1][huge].min(initial=fed[1].max())
        up = Dense(np.hstack([w_up, w_up[:, huge]]), np.append(b_up, b_up[huge] - most_fed), *normed, self.alpha)
        w_down = np.vstack([w_down, w_down[huge]])
        down = Dense(w_down, b_down, np.full(len(w_down), lo), np.full(len(w_down), most_fed))
        up.gives = qk.choose_qparams(np.float32([LEAST, most_fed]), "uint8")
        up.table = qk.make_table("gelu", up.gives, down.params)
        return (first, out, up, down), tuple(qk.QParams(unit, dtype="int8") for unit in most)

    def encode(self, ids, positions, starts):
        """Return the vectors of tokens after the last layer."""
        codes, to, eps = self.codes, self.given, self.eps
        words, positions = self.words[ids], self.positions[positions]
        x = qk.layer_norm(words, *self.norm, eps=eps, residual=positions, out_params=to[0])
        for i, ((qkv, out, up, down), params, (norm, last)) in enumerate(self.layers):
            q, k, v = qk.qlinear(x, qkv.params, qkv.packed, codes, qkv.int_bias).reshape(len(x), 3, -1).swapaxes(0, 1)
            y = qk.attention(q, k, v, self.heads, starts=starts, params=params, out_params=out.params)
            y = qk.linear(y, out.packed, out.bias, params=out.params)
            x = qk.layer_norm(y, *norm, eps=eps, residual=x, residual_params=to[i], out_params=up.columns)
            y = qk.take_table(qk.qlinear(x, up.params, up.packed, up.gives, up.int_bias), up.table)
            y = qk.linear(y, down.packed, down.bias, params=down.params)
            x = qk.layer_norm(y, *last, eps=eps, residual=x, residual_params=up.columns, out_params=to[i + 1])
        return x
