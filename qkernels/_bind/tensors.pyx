# cython: language_level=3, cdivision=True, freethreading_compatible=True
"""Bind layers to tensors of PyTorch: Python would spend the time of a small layer on asking what a tensor is."""

from .products import linear

cdef object Tensor, from_numpy, dispatch_modes, interpreter, tracing_state, forward_ad, float32
cdef tuple floats = ()


def use(torch):
    """Take from PyTorch what is called here."""
    global Tensor, from_numpy, dispatch_modes, interpreter, tracing_state, forward_ad, float32, floats
    Tensor, from_numpy, forward_ad = torch.Tensor, torch.from_numpy, torch.autograd.forward_ad
    dispatch_modes, tracing_state = torch._C._len_torch_dispatch_stack, torch._C._get_tracing_state
    interpreter = torch._C._functorch.peek_interpreter_stack
    float32, floats = torch.float32, (torch.float32, torch.float64, torch.float16, torch.bfloat16)


cdef class PlainLinear:
    """Call a dense layer on tensors of which nothing but a result is wanted.

    `weight` has the PackedMatrix as `packed`, or None. The array of a bias is kept while its memory stays where it is.
    """
    cdef object weight, array
    cdef size_t place

    def __init__(self, weight):
        self.weight = weight

    def __reduce__(self):
        return PlainLinear, (self.weight,)

    cdef array_of(self, bias):
        cdef size_t place = bias.data_ptr()
        if place != self.place or self.array is None:
            array = bias.float().numpy()
            if bias.dtype is not float32:  # it is a copy, which will not follow the bias
                return array
            self.array = array  # before the address, by which other threads find it
            self.place = place
        return self.array

    def __call__(self, x, bias, activation):
        """Return the layer of x in its dtype; or None if it is no plain tensor, or there are no weights."""
        if type(x) is not Tensor or dispatch_modes() or interpreter() is not None or tracing_state() is not None \
                or forward_ad._current_level >= 0:
            return None
        dtype, packed = x.dtype, self.weight.packed
        if packed is None or dtype is not float32 and dtype not in floats:
            return None
        try:
            rows = x.numpy() if dtype is float32 else x.float().numpy()
            array = None if bias is None else self.array_of(bias)
        except (RuntimeError, TypeError):  # one has a gradient, or does not lie in plain memory of the CPU
            return None
        if bias is not None and bias.requires_grad:
            return None
        y = from_numpy(linear(rows, packed, array, activation, None, None, None, None))
        return y if dtype is float32 else y.to(dtype)
