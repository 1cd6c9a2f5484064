"""ONNX's own node test cases, by examples/onnx_run.py: not one value differs, on any instruction set, nor from
onnxruntime."""

import warnings

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx_run import Graph

OPERATORS = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "QLinearMatMul",
    "ConvInteger",
    "QLinearConv",
}

# Of the types of these operators, those that this package does not list: no other case is left out. (ONNX 1.23 has none
# with them.)
OTHER_TYPES = {"float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"}


def array(value):
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def types(data_sets):
    return {array(value).dtype.name for values in data_sets[0] for value in values}


def collect():
    """The model and the data sets of each case by name. An expanded one is the graph of an operator's own function:
    same data, same results as of that operator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = {case.name: case for case in collect_testcases(None)}
    found = {}
    for name, case in cases.items():
        if name.startswith("test_dynamicquantizelinear") and name.endswith("_expanded"):
            found[name] = cases[name.removesuffix("_expanded")].model, case.data_sets
            continue
        if OPERATORS & {node.op_type for node in case.model.graph.node} and not OTHER_TYPES & types(case.data_sets):
            found[name] = case.model, case.data_sets
    return found


CASES = collect()


def named(model, inputs):
    return {value.name: array(given) for value, given in zip(model.graph.input, inputs)}


def test_every_operator_has_cases_and_every_type_of_codes_occurs():
    assert {node.op_type for model, _ in CASES.values() for node in model.graph.node} == OPERATORS
    found = set().union(*(types(data_sets) for _, data_sets in CASES.values()))
    assert found >= {f"{sign}int{bits}" for sign in ("", "u") for bits in (2, 4, 8, 16)}
    assert found >= {"float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"}


@pytest.mark.parametrize("name", sorted(CASES))
def test_case(name, isas):
    model, data_sets = CASES[name]
    for isa in isas():
        graph = Graph(model)
        for inputs, expected in data_sets:
            for _ in range(2):  # the second time on what the first has packed
                results = graph.run(named(model, inputs))
                for got, want in zip(results, map(array, expected), strict=True):
                    np.testing.assert_array_equal(got, want, err_msg=isa, strict=True)


def test_onnxruntime_agrees():
    """Where it has the types and versions of a case."""
    onnxruntime = pytest.importorskip("onnxruntime")
    agreed = set()
    for given, data_sets in CASES.values():
        model = onnx.ModelProto.FromString(given.SerializeToString())
        model.ir_version, model.opset_import[0].version = 10, min(model.opset_import[0].version, 21)
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
            results = [session.run(None, named(model, inputs)) for inputs, _ in data_sets]
        except Exception as error:
            assert type(error).__module__.startswith("onnxruntime") or isinstance(error, (RuntimeError, ValueError))
            continue
        for (inputs, _), theirs in zip(data_sets, results):
            for got, want in zip(Graph(model).run(named(model, inputs)), theirs, strict=True):
                np.testing.assert_array_equal(got, want, strict=True)
        agreed |= {model.graph.node[0].op_type}
    assert agreed == OPERATORS
