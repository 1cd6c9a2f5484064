"""torch.compile of what a user would write, held as torch is. Its C++ is compiled for this CPU: for another one, the
case is left out of the ratio."""

import torch

import peers

torch.set_num_threads(peers.threads)


def contender(function, *arguments):
    compiled = torch.compile(function)
    return peers.contender("torch.compile", lambda: compiled(*arguments), lambda: compiled(*arguments).numpy())


def shaped(values, axis):
    values = torch.from_numpy(values)
    return values if axis != 0 else values[:, None]


def tensors(x, scale, zero_point, axis):
    if axis is None:
        return torch.from_numpy(x), float(scale), float(zero_point)
    return torch.from_numpy(x), shaped(scale, axis), shaped(zero_point.astype("float32"), axis)


def quantize(x, scale, zero_point, axis=None):
    def function(x, scale, zero_point):
        return ((x / scale).round() + zero_point).clamp(0, 255).to(torch.uint8)

    return contender(function, *tensors(x, scale, zero_point, axis))


def dequantize(q, scale, zero_point, axis=None):
    def function(q, scale, zero_point):
        return (q.to(torch.float32) - zero_point) * scale

    return contender(function, *tensors(q, scale, zero_point, axis))


def fake_quantize(x, scale, zero_point, axis=None):
    def function(x, scale, zero_point):
        return (((x / scale).round() + zero_point).clamp(0, 255) - zero_point) * scale

    return contender(function, *tensors(x, scale, zero_point, axis))
