"""ONNX's own node test cases: not one value differs, on any instruction set."""

import warnings

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

import qkernels as qk


def qparams(scale, zero_point, dtype, axis=1, block_size=0):
    """QParams of ONNX's inputs, where shape (1,) may stand for a scalar and float codes have a zero point, 0."""
    shape = np.shape(scale) if np.size(scale) > 1 else ()
    if zero_point is not None:
        zero_point = None if "float" in dtype.name else np.reshape(zero_point, shape)
    return qk.QParams(np.reshape(scale, shape), zero_point, dtype,
                      axis=axis if shape else None, block_size=block_size or None)


def quantize_linear(x, scale, zero_point=None, *, output_dtype=onnx.TensorProto.UINT8, **where):
    dtype = onnx.helper.tensor_dtype_to_np_dtype(output_dtype) if zero_point is None else zero_point.dtype
    return [qk.quantize(x, qparams(scale, zero_point, dtype, **where))]


def dequantize_linear(q, scale, zero_point=None, **where):
    return [qk.dequantize(q, qparams(scale, zero_point, q.dtype, **where), dtype=scale.dtype)]


def dynamic_quantize_linear(x):
    q, params = qk.dynamic_quantize(x)
    return [q, params.scale, np.asarray(params.zero_point, np.uint8)]


def matmul_integer(a, b, a_zero_point, b_zero_point):
    return [qk.matmul(a, b, a_zero_point=a_zero_point.item(), b_zero_point=b_zero_point.item())]


def qlinear_matmul(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point):
    pa, pb, py = (qparams(scale, zero_point, zero_point.dtype) for scale, zero_point in
                  ((a_scale, a_zero_point), (b_scale, b_zero_point), (y_scale, y_zero_point)))
    pairs = zip(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]))
    products = [qk.qlinear(left, pa, qk.pack(right, pb), py) for left, right in pairs]
    return [np.reshape(products, a.shape[:-1] + b.shape[-1:])]


OPERATORS = {
    "QuantizeLinear": quantize_linear,
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "MatMulInteger": matmul_integer,
    "QLinearMatMul": qlinear_matmul,
}

# Cases of these operators that are not run, and why.
EXPANDED = "the same data as the case of this name without _expanded, as a graph of Min, Max, Div, Round, ..."
OUT_OF_SCOPE = {
    "test_dynamicquantizelinear_expanded": EXPANDED,
    "test_dynamicquantizelinear_max_adjusted_expanded": EXPANDED,
    "test_dynamicquantizelinear_min_adjusted_expanded": EXPANDED,
}


def collect():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    return {case.name: case for case in cases if OPERATORS.keys() & {node.op_type for node in case.model.graph.node}}


CASES = collect()


def test_every_case_is_run_or_listed():
    several_nodes = {name for name, case in CASES.items() if len(case.model.graph.node) > 1}
    assert several_nodes == CASES.keys() & OUT_OF_SCOPE.keys()
    assert {CASES[name].model.graph.node[0].op_type for name in CASES.keys() - OUT_OF_SCOPE.keys()} == OPERATORS.keys()


def array(value):
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


@pytest.mark.parametrize("name", sorted(CASES.keys() - OUT_OF_SCOPE.keys()))
def test_case(name, isas):
    node, = CASES[name].model.graph.node
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    for isa in isas():
        for inputs, expected in CASES[name].data_sets:
            results = OPERATORS[node.op_type](*map(array, inputs), **attributes)
            for got, want in zip(results, map(array, expected), strict=True):
                np.testing.assert_array_equal(got, want, err_msg=isa, strict=True)
