"""ONNX's own node test cases: not one value differs, on any instruction set."""

import warnings

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

import qkernels as qk


def qparams(scale, zero_point, dtype, axis=1, block_size=0):
    """QParams of ONNX's inputs as they stand; an axis counts for nothing beside a single scale."""
    axis = axis if np.size(scale) > 1 else None
    return qk.QParams(scale, zero_point, dtype, axis=axis, block_size=block_size or None)


def quantize_linear(x, scale, zero_point=None, *, output_dtype=onnx.TensorProto.UINT8, **where):
    dtype = onnx.helper.tensor_dtype_to_np_dtype(output_dtype) if zero_point is None else zero_point.dtype
    return [qk.quantize(x, qparams(scale, zero_point, dtype, **where))]


def dequantize_linear(q, scale, zero_point=None, **where):
    return [qk.dequantize(q, qparams(scale, zero_point, q.dtype, **where), dtype=scale.dtype)]


def dynamic_quantize_linear(x):
    q, params = qk.dynamic_quantize(x)
    return [q, params.scale, np.asarray(params.zero_point, np.uint8)]


def matmul_integer(a, b, a_zero_point, b_zero_point):
    return [qk.matmul(a, b, a_zero_point=a_zero_point, b_zero_point=b_zero_point)]


def qlinear_matmul(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point):
    pa, pb, py = (
        qparams(scale, zero_point, zero_point.dtype)
        for scale, zero_point in ((a_scale, a_zero_point), (b_scale, b_zero_point), (y_scale, y_zero_point))
    )
    pairs = zip(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]))
    products = [qk.qlinear(left, pa, qk.pack(right, pb), py) for left, right in pairs]
    return [np.reshape(products, a.shape[:-1] + b.shape[-1:])]


def convolve(q, params, w, weights, to, bias=None, **attributes):
    """Convolve images (N, C, H, W) by weights (F, C / groups, h, w)."""
    names = {"NOTSET": "numbers", "VALID": "numbers", "SAME_UPPER": "same_upper", "SAME_LOWER": "same_lower"}
    named = names[attributes.get("auto_pad", b"NOTSET").decode()]
    packed = qk.pack_conv(w.transpose(2, 3, 1, 0), weights, groups=attributes.get("group", 1))
    result = qk.qconv2d(
        q.transpose(0, 2, 3, 1),
        params,
        packed,
        to,
        bias,
        strides=attributes.get("strides", 1),
        padding=tuple(attributes.get("pads", (0, 0, 0, 0))) if named == "numbers" else named,
        dilations=attributes.get("dilations", 1),
    )
    return [result.transpose(0, 3, 1, 2)]


def of_filters(scale, zero_point, dtype):
    return qparams(np.ravel(scale) if np.size(scale) > 1 else scale, zero_point, dtype, axis=3)


def conv_integer(x, w, x_zero_point=0, w_zero_point=0, **attributes):
    params = qk.QParams(1, np.reshape(x_zero_point, ()), x.dtype)
    ones = np.ones(np.shape(w_zero_point), np.float32)
    return convolve(x, params, w, of_filters(ones, w_zero_point, w.dtype), None, **attributes)


def qlinear_conv(x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, bias=None, **attributes):
    params, to = (qparams(s, z, z.dtype) for s, z in ((x_scale, x_zero_point), (y_scale, y_zero_point)))
    return convolve(x, params, w, of_filters(w_scale, w_zero_point, w.dtype), to, bias, **attributes)


OPERATORS = {
    "QuantizeLinear": quantize_linear,
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "MatMulInteger": matmul_integer,
    "QLinearMatMul": qlinear_matmul,
    "ConvInteger": conv_integer,
    "QLinearConv": qlinear_conv,
}

# Of the types of these operators, those that this package does not list: no other case is left out. (ONNX 1.23 has none
# with them.)
OTHER_TYPES = {"float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"}


def array(value):
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def collect():
    """(operator, attributes, data sets) of each case by name. An expanded one is the graph of an operator's own
    function: same data, same results."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    found = {}
    for case in cases:
        nodes = case.model.graph.node
        if case.name.startswith("test_dynamicquantizelinear") and case.name.endswith("_expanded"):
            found[case.name] = "DynamicQuantizeLinear", {}, case.data_sets
        elif OPERATORS.keys() & {node.op_type for node in nodes}:
            (node,) = nodes
            if OTHER_TYPES & {array(value).dtype.name for values in case.data_sets[0] for value in values}:
                continue
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            found[case.name] = node.op_type, attributes, case.data_sets
    return found


CASES = collect()


def test_every_operator_has_cases_and_every_type_of_codes_occurs():
    assert {operator for operator, *_ in CASES.values()} == OPERATORS.keys()
    types = {array(value).dtype.name for *_, data_sets in CASES.values() for values in data_sets[0] for value in values}
    assert types >= {f"{sign}int{bits}" for sign in ("", "u") for bits in (2, 4, 8, 16)}
    assert types >= {"float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"}


@pytest.mark.parametrize("name", sorted(CASES))
def test_case(name, isas):
    operator, attributes, data_sets = CASES[name]
    for isa in isas():
        for inputs, expected in data_sets:
            results = OPERATORS[operator](*map(array, inputs), **attributes)
            for got, want in zip(results, map(array, expected), strict=True):
                np.testing.assert_array_equal(got, want, err_msg=isa, strict=True)
