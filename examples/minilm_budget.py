"""MiniLM with 16, 8, 4, 3 or 2 bits a weight, layer by layer: as many as a budget has, where they count.

    python examples/minilm.py --budget 4.0

`share_out` takes the network of minilm.py in float32 and sentences to calibrate it on.

- Each dense layer is rounded to each form, with feedback (`gptq`), and `sensitivity` tells the error of its outputs.
- What 4, 3 and 2 bits of it cost embeddings is tried, layer by layer; above, the cost falls as the error does.
- `allocate_bits` finds the forms of least cost within the budget: by these costs, and by rough ones, those of 2 bits
  alone, of which chance is a smaller part, and from which the cost then falls as the error does.
- Layers are rounded anew, each to its form, on what the rounded ones before them give. So are all to the widest form
  that fits, and what keeps most stays: costs are added up as if layers did not know of one another.

`python -m bench.minilm.budget` compares it with the same bits for all layers, and draws the curve of cost against size.
"""

import numpy as np
from minilm_forms import FORMS, bits_of

import qkernels as qk

TRIED, FEW = 60, (4, 3, 2)  # sentences that tell what bits cost, and the bits that are tried


def ratios(errors, of):
    """Return ``errors / of``, and 0 where a layer has no error."""
    return np.divide(errors, of, out=np.zeros_like(errors), where=of > 0)


class Layers:
    """The functions of the network, of whose dense layers one after another `run(number, x, weight, bias)` is asked."""

    attention, layer_norm = staticmethod(qk.attention), staticmethod(qk.layer_norm)

    def __init__(self, count, run):
        self.count, self.run, self.at = count, run, 0

    def linear(self, x, weight, bias, activation=None):
        number, self.at = self.at, (self.at + 1) % self.count
        return self.run(number, x, weight, bias, activation)


class Budget:
    """What each layer of a network loses in each form, and what that costs; the network is in float32.

    Attributes: dense, weight and bias of each layer; sizes and costs (layers, forms), in bits and in 1 - cosine, the
    latter also as `rough_costs`; weights, the number of all.
    """

    def __init__(self, network, batches, progress=lambda steps, name: steps):
        self.network, self.batches, self.float32 = network, batches, network.functions
        self.dense = dense = [layer for layers, _ in network.layers for layer in layers]
        self.count, self.weights = len(dense), sum(weight.size for weight, _ in dense)
        self.seen = [qk.Hessian(len(weight)) for weight, _ in dense]
        steps = progress(batches, "what layers are given")
        self.exact = [self.embeddings(batch, self.observe) for batch in steps]
        self.made, errors = [], []
        for (weight, bias), seen in progress(list(zip(dense, self.seen)), "rounding to each form"):
            self.made.append({bits: form(weight, bias, seen) for bits, form in FORMS.items()})
            errors.append(qk.sensitivity(weight, seen, [made.weight for made in self.made[-1].values()], center=True))
        self.sizes = np.array([[weight.size * bits_of(form, len(weight)) for form in FORMS] for weight, _ in dense])
        self.few = max(1, len(batches) * TRIED // sum(map(len, self.exact)))
        self.costs, self.rough_costs = self.lost(np.array(errors), progress)

    def embeddings(self, batch, run):
        self.network.functions = Layers(self.count, run)
        return self.network.embed(*batch, most=10**9)

    def observe(self, number, x, weight, bias, activation):
        self.seen[number].update(x)
        return self.float32.linear(x, weight, bias, activation)

    def distance(self, layer):
        """Return 1 - cosine to float32 of some sentences, by what `layer` gives `linear` of each number."""

        def run(number, x, weight, bias, activation):
            return qk.linear(x, *layer(number), activation=activation)

        tried = zip(self.batches[: self.few], self.exact)
        lost = [np.sum((self.embeddings(batch, run) - exact) ** 2, axis=1) / 2 for batch, exact in tried]
        return np.concatenate(lost).mean()

    def lost(self, errors, progress):
        """Return what each layer in each form costs (layers, forms), told in two ways.

        The other layers are in int8, which is faster.
        """

        def distance(low, form):
            return self.distance(lambda number: self.made[number][form if number == low else 8][:2])

        whole, layers = distance(None, 8), progress(range(self.count), "what bits cost")
        lost = np.array([[distance(number, form) - whole for form in FEW] for number in layers])
        lost = np.maximum.accumulate(np.maximum(lost, 0), axis=1)  # where chance is more than the cost
        first = len(FORMS) - len(FEW)
        tried = np.hstack([ratios(errors[:, :first], errors[:, [first]]) * lost[:, :1], lost])
        return tried, ratios(errors, errors[:, -1:]) * lost[:, -1:]

    def round(self, forms):
        """Round the layers, one after another, by these functions; return the network's layers, packed."""
        done = []

        def run(number, x, weight, bias, activation):
            seen = qk.Hessian(len(weight)).update(x)
            packed, bias, _ = forms[number](weight, bias, seen)
            done.append((packed, bias))
            return qk.linear(x, packed, bias, activation=activation)

        ids, positions, starts = zip(*self.batches)
        offsets = np.cumsum([0, *map(len, ids)])
        starts = np.concatenate([[0], *(part[1:] + offset for part, offset in zip(starts, offsets))])
        self.embeddings((np.concatenate(ids), np.concatenate(positions), starts), run)
        return [(done[4 * i : 4 * i + 4], norms) for i, (_, norms) in enumerate(self.network.layers)]

    def share(self, bits, costs=None):
        """Return the bits of each layer that are best for so many a weight, scales included, on the whole."""
        costs = self.costs if costs is None else costs
        return np.array(list(FORMS))[qk.allocate_bits(costs, self.sizes, bits * self.weights).choice]

    def best(self, bits):
        """Return the bits of each layer and the network's layers: as shared out, or alike where that keeps more."""
        alike = [form for form, size in zip(FORMS, self.sizes.sum(axis=0)) if size <= bits * self.weights]
        alike = [np.full(self.count, form) for form in alike[:1]]
        shares = np.unique([self.share(bits), self.share(bits, self.rough_costs), *alike], axis=0)
        made = [self.round([FORMS[form] for form in share]) for share in shares]
        lost = [self.distance(lambda number: layers[number // 4][0][number % 4]) for layers in made]
        return shares[np.argmin(lost)], made[np.argmin(lost)]


def share_out(network, batches, bits, progress):
    """Give the layers of a network in float32 so many bits a weight on the whole; return those of each."""
    share, layers = Budget(network, batches, progress).best(bits)
    network.layers, network.functions = layers, qk
    return share
