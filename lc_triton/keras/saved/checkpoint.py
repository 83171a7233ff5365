"""Converted models in files of PyTorch: configuration and state, no code."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from lc_triton.core.files import load_torch, save_torch
from lc_triton.errors import ArgumentTypeError, ArgumentValueError, KerasFileError, first_line
from lc_triton.keras.saved import spec
from lc_triton.keras.saved.archive import checked_path
from lc_triton.keras.saved.custom import Modules
from lc_triton.keras.saved.graph import Functional, Model, Sequential
from lc_triton.keras.saved.made import differences, outline
from lc_triton.keras.saved.model import build

KIND = "lc_triton keras model"
VERSION = 1


def save_model(model: nn.Module, path: str | Path) -> None:
    """Write a model that `load_model` made to a `.pt` file that `load_model` reads.

    Args:
        model: what `load_model` returned, trained on or not.
        path: a file whose name ends in `.pt`; an old one is replaced as a whole.

    Raises:
        LocalConvError: another model or another name; a model whose layers were replaced, removed or added, or whose
            parameters have other shapes or names than load_model gave them, as with a parametrization, pruning or
            `quantize_weights`: load_model could not make it again.

    The file holds plain data: `torch.load(path, weights_only=True)["state_dict"]` is the model's state dict.

    Source: `torch.save`.

    Example:
        >>> import lc_triton
        >>> model = lc_triton.keras.load_model("model.h5")  # doctest: +SKIP
        >>> lc_triton.keras.save_model(model, "model.pt")  # doctest: +SKIP
    """
    if not isinstance(model, (Sequential, Functional)) or model.as_made is None:
        allowed = "what lc_triton.keras.load_model returned, as a whole"
        raise ArgumentTypeError(name="model", value=model, allowed=allowed)
    path = check_path(checked_path(path))
    changed = differences(model.as_made, outline(model))
    if changed:
        allowed = (
            f"as load_model made it, for the file holds Keras's configuration and a state that fits it ({changed}): "
            "undo this, or write torch.save(model.state_dict(), path)"
        )
        raise ArgumentValueError(name="model", value=type(model).__name__, allowed=allowed)
    content = {
        "kind": KIND,
        "version": VERSION,
        "keras": model.keras.keras,
        "config": model.keras.config,
        "state_dict": model.state_dict(),
    }
    save_torch(path, content)


def check_path(path: Path) -> Path:
    """Refuse a name that does not say what the file is."""
    if path.suffix != ".pt":
        allowed = "a file ending in .pt; lc_triton.keras.save_weights writes Keras's .weights.h5"
        raise ArgumentValueError(name="path", value=str(path), allowed=allowed)
    return path


def load(path: Path, modules: Modules | None = None) -> Model:
    """The model in a file of `save_model`'s."""
    try:
        content = load_torch(path)
    except OSError as error:
        raise KerasFileError(path=path, reason=error.strerror or first_line(error)) from error
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise KerasFileError(path=path, reason=f"it is damaged or no checkpoint ({first_line(error)})") from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise KerasFileError(path=path, reason="it is no model that lc_triton.keras.save_model wrote")
    if content.get("version") != VERSION:
        reason = f"it has version {content.get('version')}, this lc_triton reads version {VERSION}"
        raise KerasFileError(path=path, reason=reason)
    text, keras, state = (content.get(key) for key in ("config", "keras", "state_dict"))
    if not isinstance(text, str) or not isinstance(keras, int) or not isinstance(state, dict):
        raise KerasFileError(path=path, reason="its parts are not what lc_triton.keras.save_model writes")
    model = build(spec.parse(text, path, keras), modules).model
    try:
        model.load_state_dict(state, assign=True)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise KerasFileError(path=path, reason=f"its state does not fit its model ({first_line(error)})") from error
    return model
