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

    The array of a bias is kept while that is the same memory.
    """
    cdef tuple kept  # where it is, its shape, and the array: set at once, as other threads find it

    def __reduce__(self):
        return PlainLinear, ()

    cdef array_of(self, bias):
        if bias.dtype is not float32 or not bias.is_contiguous():  # else a place and a shape would not tell all
            return bias.float().numpy()
        place, shape, kept = bias.data_ptr(), bias.shape, self.kept
        if kept is None or place != kept[0] or shape != kept[1]:
            kept = self.kept = place, shape, bias.numpy()
        return kept[2]

    def __call__(self, x, packed, bias, activation):
        """Return the layer of x in its dtype; or None if it is no plain tensor, or `packed` is None."""
        if type(x) is not Tensor or dispatch_modes() or interpreter() is not None or tracing_state() is not None \
                or forward_ad._current_level >= 0:
            return None
        dtype = x.dtype
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
