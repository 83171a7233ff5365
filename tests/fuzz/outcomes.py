"""The outcome of a call with wrong arguments: shared by the tests of constructors, of Keras layers and of files."""

import torch
from hypothesis import strategies as st

from lc_triton.core.activations import AFTER_KERNEL, parse_activation
from lc_triton.errors import LocalConvError
from tests.fuzz.strategies import Limits, calls

SMALL = Limits(
    positions=(3, 2, 2),
    kernel=(3, 2, 2),
    padding=2,
    channels=(1, 2),
    groups=2,
    batch=(2, 1, None),
    dtypes=((torch.float32, torch.float32), (torch.float64, torch.float64)),
    shares=False,  # tests/test_shared.py tests wrong values of share
)
any_call = st.integers(1, 3).flatmap(lambda ndim: calls(ndim, SMALL))


class Outcome:
    """The result of a call with some wrong values, or whether it raised a LocalConvError.

    If a callable is among the wrong values, it may itself raise a ValueError or TypeError.
    """

    def __init__(self, function, arguments, wrong, *positional):
        self.result, self.refused = None, False
        has_callable = any(callable(arguments.get(name)) for name in wrong)
        try:
            self.result = function(*positional, **arguments)
        except LocalConvError as error:
            self.refused = isinstance(error, ValueError | TypeError) and str(error) != ""
            if not self.refused:
                raise
        except (ValueError, TypeError):
            if not has_callable:
                raise
            self.refused = True
        assert wrong or not self.refused


def apply_activation(value, z, dim):
    """Apply an activation of any kind to pre-activations."""
    act = parse_activation(value)
    return AFTER_KERNEL[act](z, dim=dim) if isinstance(act, str) else act(z)


def tolerance_of(result):
    """The tolerance for the dtype of a result."""
    return 1e-5 if result.dtype in (torch.float32, torch.float64) else 5e-2
