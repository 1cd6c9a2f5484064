"""The example of training: what rounding costs, training wins back, and integers keep."""

import pytest
import qat


@pytest.fixture(scope="module", params=[False, True], ids=["labels", "distilled"])
def found(request):
    return {what: accuracies for what, *accuracies in qat.compare(request.param)}


def test_training_wins_back_what_rounding_costs(found):
    exact, *_ = found.pop("float32")
    assert exact >= 0.95
    for rounded, trained, _, curve in found.values():
        assert exact - rounded >= 0.03
        assert trained - rounded >= 0.8 * (exact - rounded)
        assert len(curve) == qat.EPOCHS and curve[-1] == trained


def test_integers_answer_as_training_saw(found):
    """But where a sum in float32 is next to a tie."""
    for what, (_, trained, whole, _) in found.items():
        assert what == "float32" or abs(trained - whole) <= 0.004
