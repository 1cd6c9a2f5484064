"""Apply float layers, as stand around the products of a transformer. Formulas: docs/numerics.md, sections 10 and 11."""

from ._bind import layers
from ._checks import integer, real


def layer_norm(x, weight, bias, *, eps=1e-12, residual=None, out=None):
    """Normalise each row: ``(s - mean(s)) / sqrt(var(s) + eps) * weight + bias`` with ``s = x + residual``.

    Parameters
    ----------
    x : float32 array of shape (..., N)
    weight, bias : float32 arrays of shape (N,)
    eps : float
        Added to the variance; BERT's 1e-12 by default.
    residual : float32 array of shape (..., N), optional
        Added to x first.
    out : float32 array of shape (..., N), optional
        C-contiguous; may be x or residual itself, and may not overlap them otherwise.

    Returns
    -------
    float32 array of shape (..., N)
        Equal bits on every instruction set. A row with NaN or infinity becomes NaN.

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, shape, eps or `out`, which is then left untouched.

    References
    ----------
    Ba, Kiros and Hinton, *Layer Normalization*, 2016, equation 4.

    Examples
    --------
    >>> qk.layer_norm(np.float32([[1, 2, 3, 6]]), np.ones(4, np.float32), np.zeros(4, np.float32)).round(3)
    array([[-1.069, -0.535,  0.   ,  1.604]], dtype=float32)
    """
    return layers.layer_norm(x, weight, bias, eps if type(eps) is float else real(eps, "eps"), residual, out)


def attention(q, k, v, heads, *, starts=None, scale=None, out=None):
    """Attend by softmax, ``softmax(scale * q @ k.T) @ v`` for each head of each sequence, by integer products.

    q, k and v are quantized on the fly to int8, with one scale for each head of each sequence, and the softmax weights
    to uint8: the error is about one percent of the largest value of v. All its sums are integer and exact.

    Parameters
    ----------
    q, k, v : float32 arrays of shape (tokens, heads * size)
        Finite. Slices of the columns of a wider matrix, such as the product of fused weights, are read in place.
    heads : int
        Their number: the columns are divided into so many.
    starts : integer array of shape (sequences + 1,), optional
        Sequences lie one after another, without padding: sequence i is the tokens ``starts[i]:starts[i + 1]``, which
        attend to each other only. All tokens are one sequence by default.
    scale : float, optional
        Factor of the scores, positive; ``1 / sqrt(size)`` by default.
    out : float32 array of shape (tokens, heads * size), optional
        C-contiguous; may not overlap q, k or v.

    Returns
    -------
    float32 array of shape (tokens, heads * size)
        Equal bits on every instruction set.

    Raises
    ------
    ValueError
        If q, k or v hold NaN or infinity, shapes do not match, `heads` does not divide the
        columns, `starts` does not ascend from 0 to tokens, or a sequence is longer than 65,536 tokens.
    TypeError
        For a wrong dtype or `out`, which is left untouched after each error.

    References
    ----------
    Vaswani et al., *Attention Is All You Need*, 2017, equation 1.

    Examples
    --------
    >>> q = np.float32([[4, 0], [0, 4], [1, 1]])
    >>> qk.attention(q, q, np.float32([[1, 0], [0, 1], [5, 5]]), 1, starts=[0, 2, 3]).round(2)
    array([[1., 0.],
           [0., 1.],
           [5., 5.]], dtype=float32)
    """
    scale = None if scale is None else real(scale, "scale")
    return layers.attention(q, k, v, integer(heads, "heads", 1), starts, scale, out)
