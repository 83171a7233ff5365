"""What a model consists of, to be compared with what it was when it was made from Keras's configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from lc_triton.keras.saved.masks import STANDS_FOR

MOST_SHOWN = 4


def outline(model: nn.Module) -> dict[str, str]:
    """The class of each module and the shape of each tensor in the state dict, by their places.

    Modules of a user's own are left out, with all that is inside of them: their factory makes them anew.
    """
    found: dict[str, str] = {}
    own = []
    for place, module in _modules_inside(model, ""):
        if hasattr(module, STANDS_FOR):
            own.append(place)
        else:
            found[place] = type(module).__qualname__
    for key, tensor in model.state_dict().items():
        if not any(key.startswith(f"{place}.") for place in own):
            found[key] = f"a tensor of shape {tuple(tensor.shape)}"
    return found


def _modules_inside(module: nn.Module, place: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules inside of one, by their places; a module that has several is found at each."""
    yield place, module
    if not hasattr(module, STANDS_FOR):
        for name, child in module.named_children():
            yield from _modules_inside(child, f"{place}.{name}" if place else name)


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """The entries of an outline that have changed, as a text; empty if none has."""
    places = [place for place in dict.fromkeys((*before, *now)) if before.get(place) != now.get(place)]
    shown = [
        f"{place!r} is {now.get(place, 'not there')} and was {before.get(place, 'not there')}"
        for place in places[:MOST_SHOWN]
    ]
    return ", ".join(shown) + (", ..." if len(places) > MOST_SHOWN else "")
