import pytest

from pyro_vae.schedules import Constant


def test_constant():
    assert [Constant(4.0)(step) for step in (0, 1, 10**6)] == [4.0] * 3


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_constant_refuses(value):
    with pytest.raises(ValueError, match="value must be positive"):
        Constant(value)
