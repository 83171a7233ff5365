"""Tests of calls that must fail, with the class and a part of the message of the error."""

import pickle

import pytest

import lc_triton


def parametrize_errors(calls):
    """Parametrize a test over calls, each a tuple (call, class of the error, part of the message)."""
    ids = [f"{i}_{kind.__name__}" for i, (_, kind, _) in enumerate(calls)]
    return pytest.mark.parametrize(("call", "kind", "message"), calls, ids=ids)


def check_message(call, kind, message):
    """Check that a call raises an error of this class with this message, and that the error can be pickled."""
    with pytest.raises(kind) as caught:
        call()
    assert message in str(caught.value)
    assert isinstance(caught.value, lc_triton.LocalConvError)
    assert isinstance(caught.value, ValueError | TypeError)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy)) == (kind, str(caught.value))
