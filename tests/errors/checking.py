"""A call that must fail, the class of its error, and a part of its message: shared by the files of this folder."""

import pickle

import pytest

import lc_triton


def every(calls):
    """One test for each (call, class of the error, part of the message)."""
    ids = [f"{i}_{kind.__name__}" for i, (_, kind, _) in enumerate(calls)]
    return pytest.mark.parametrize(("call", "kind", "message"), calls, ids=ids)


def check_message(call, kind, message):
    """The call raises this error with this message, and the error survives pickling."""
    with pytest.raises(kind) as caught:
        call()
    assert message in str(caught.value)
    assert isinstance(caught.value, lc_triton.LocalConvError)
    assert isinstance(caught.value, ValueError | TypeError)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy)) == (kind, str(caught.value))
