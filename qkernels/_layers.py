"""Apply float layers, as stand around the products of a transformer, to floats or codes.

Formulas: docs/numerics.md, sections 10, 11, 25 and 34.
"""

from ._bind import layers
from ._checks import boolean, integer, real, shown
from ._products import check_byte_params


def layer_norm(
    x, weight, bias, *, eps=1e-12, residual=None, params=None, residual_params=None, out_params=None, out=None
):
    """Normalise each row: ``(s - mean(s)) / sqrt(var(s) + eps) * weight + bias`` with ``s = x + residual``.

    The arithmetic is that of float32; 8-bit codes are dequantized, and the result quantized, a few rows at a time. (Of
    codes alone `qlayer_norm` is faster, and within half a step of the exact values.)

    Parameters
    ----------
    x : float32 array of shape (..., N), or codes of `params`
    weight, bias : float32 arrays of shape (N,)
    eps : float
        Added to the variance; BERT's 1e-12 by default.
    residual : float32 array of shape (..., N), or codes of `residual_params`, optional
        Added to x first.
    params, residual_params, out_params : QParams, optional
        Those of x, residual and the result, each of int8 or uint8, per tensor or of the last axis (``axis=-1``), if
        they are codes.
    out : array of shape (..., N), float32 or of `out_params.dtype`, optional
        C-contiguous; may not overlap the others, but may be x or residual itself if all three are floats.

    Returns
    -------
    array of shape (..., N), float32 or of `out_params.dtype`
        Equal bits on every instruction set. A row with NaN or infinity becomes NaN, or zero points.

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
    eps = eps if type(eps) is float else real(eps, "eps")
    return layers.layer_norm(x, weight, bias, eps, residual, (params, residual_params, out_params), out)


def rotate(x, seed=0, *, inverse=False, out=None):
    """Rotate rows by a Hadamard matrix with random signs, which spreads what is large over all values of a row.

    ``rotate(x) @ rotate(w.T).T`` is ``x @ w``, but for rounding, if both have the same seed: weights are rotated once,
    inputs before each product. Rows and columns without outliers lose less in few bits. Of K = 2**a * m columns, m odd,
    the matrix is the Kronecker product of Sylvester's for 2**a and, unless m is 1, the reflection ``I - 2 / m``, over
    the square root of 2**a. It is orthogonal for each K, and spreads the better, the smaller m is.

    Parameters
    ----------
    x : float32 array of shape (..., K)
        K at most 2**20.
    seed : int
        0 to 2**64 - 1: which of the inputs change sign first.
    inverse : bool
        Rotate back: ``rotate(rotate(x), inverse=True)`` is x, but for rounding.
    out : float32 array of the shape of x, optional
        C-contiguous; x itself, or without overlap.

    Returns
    -------
    float32 array of the shape of x
        Equal bits on every instruction set. NaN and infinity go wherever the matrix takes them.

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, shape, seed or `out`, which is then left untouched.

    References
    ----------
    Ashkboos et al., *QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs*, 2024; Tseng et al., *QuIP#*, 2024, section
    3; docs/numerics.md, section 34.

    Examples
    --------
    >>> x, w = np.float32([[100, 1, -1, 2]]), np.float32([[1], [2], [3], [4]])
    >>> qk.rotate(x)
    array([[48., 51., 51., 50.]], dtype=float32)
    >>> qk.rotate(x) @ qk.rotate(w.T).T, x @ w
    (array([[107.]], dtype=float32), array([[107.]], dtype=float32))
    """
    return layers.rotate(x, integer(seed, "seed", 0), boolean(inverse, "inverse"), out)


def attention(q, k, v, heads, *, starts=None, scale=None, params=None, out_params=None, out=None):
    """Attend by softmax, ``softmax(scale * q @ k.T) @ v`` for each head of each sequence, by integer products.

    q, k and v are quantized on the fly to int8, with one scale for each head of each sequence, and the softmax weights
    to uint8: the error is about one percent of the largest value of v. All its sums are integer and exact. Codes are
    multiplied as they are.

    Parameters
    ----------
    q, k, v : float32 arrays of shape (tokens, heads * size), or codes of `params`
        Finite. Slices of the columns of a wider matrix, such as the product of fused weights, are read in place.
    heads : int
        Their number: the columns are divided into so many.
    starts : array of ints of shape (sequences + 1,), optional
        Sequences lie one after another, without padding: sequence i is the tokens ``starts[i]:starts[i + 1]``, which
        attend to each other only. All tokens are one sequence by default.
    scale : float, optional
        Factor of the scores, positive; ``1 / sqrt(size)`` by default.
    params : QParams, or a tuple of three, optional
        Those of q, k and v, per tensor, if they are int8 or uint8 codes; then heads have at most 16,384 columns, and
        sequences so many tokens.
    out_params : QParams, optional
        Those of the result, per tensor, if it shall be int8 or uint8 codes.
    out : array of shape (tokens, heads * size), float32 or of `out_params.dtype`, optional
        C-contiguous; may not overlap q, k or v.

    Returns
    -------
    array of shape (tokens, heads * size), float32 or of `out_params.dtype`
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
    if params is not None:
        params = params if type(params) is tuple else (params, params, params)
        if len(params) != 3:
            raise ValueError(f"params must be QParams or three of them, got {shown(params)}")
        for each in params:
            check_byte_params(each, "params")
    if out_params is not None:
        check_byte_params(out_params, "out_params")
    return layers.attention(q, k, v, integer(heads, "heads", 1), starts, scale, params, out_params, out)
