"""Conversion of the convolutions of a model into locally connected layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lc_triton.core.names import BiasKind, ShareArg
from lc_triton.errors import ArgumentTypeError, ConversionError, LocalConvError, first_line
from lc_triton.layers import (
    LocalConv1d,
    LocalConv2d,
    LocalConv3d,
    LocalConvTranspose1d,
    LocalConvTranspose2d,
    LocalConvTranspose3d,
)
from lc_triton.layers._convolution import check_bias

__all__ = ["convert_convs"]

LAYERS: dict[type[nn.Module], Any] = {
    nn.Conv1d: LocalConv1d,
    nn.Conv2d: LocalConv2d,
    nn.Conv3d: LocalConv3d,
    nn.ConvTranspose1d: LocalConvTranspose1d,
    nn.ConvTranspose2d: LocalConvTranspose2d,
    nn.ConvTranspose3d: LocalConvTranspose3d,
}


def convert_convs(
    model: nn.Module,
    example_input: Any,
    filter: Callable[[str, nn.Module], bool] | None = None,
    *,
    bias: BiasKind = "position",
    share: ShareArg = None,
) -> nn.Module:
    """Replace convolutions of a model, in place, by locally connected layers that compute the same.

    The model runs once on the example, in eval mode and without gradients, to find the input size of each convolution.
    If one of them cannot be converted, none is.

    The layers return contiguous memory where the convolutions did, so a `y.view(len(y), -1)` behind them keeps working.

    Args:
        model: any module; a convolution that is used in several places stays shared. Make the optimizer afterwards.
        example_input: the model's input: a tensor, a tuple of arguments, or a dict of keyword arguments.
        filter: called with the name of a convolution and the module; if it returns False, the convolution stays. By
            default all nn.Conv1d, 2d, 3d and nn.ConvTranspose1d, 2d, 3d are replaced. Modules of derived classes, such
            as a convolution with a parametrization, stay.
        bias: "position" for a bias of its own at every position, "channel" for one a filter, as in the convolution.
        share: positions that keep sharing their filters, as in `local_conv`; leave out transposed convolutions then.

    Returns:
        The model; or the new layer, if the model itself is a convolution. Training mode and requires_grad of the
        parameters are kept.

    Warns:
        UserWarning: names convolutions of derived classes, which stay (parametrized or lazy ones, for example); what of
            a convolution is dropped (hooks, buffers, attributes, a pruning); and parameters or modules that are no
            longer shared.

    Raises:
        ConversionError: the model does not run on the example, or a convolution is not called, has inputs of several
            sizes, or has no counterpart.
        LocalConvError: (also a ValueError or TypeError) an argument of a wrong type, or an unknown `bias`.

    Source: initialising a locally connected layer from a trained convolution, as in Elsayed et al., "Revisiting spatial
        invariance with low-rank local connectivity", ICML 2020.

    Example:
        >>> import torch, lc_triton
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
        >>> lc_triton.convert_convs(model, torch.randn(1, 3, 8, 8), filter=lambda name, conv: name == "2")[2]
        LocalConv2d(8, 4, kernel_size=(3, 3), input_size=(6, 6), stride=(1, 1), padding=((1, 1), (1, 1)))
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(name="model", value=model, allowed="a torch.nn.Module")
    if filter is not None and not callable(filter):
        raise ArgumentTypeError(name="filter", value=filter, allowed="None or a callable (name, module) -> bool")
    check_bias(bias)
    kinds: tuple[type[nn.Module], ...] = tuple(LAYERS)
    convs = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, kinds) and (filter is None or filter(name, module))
    }
    chosen = {name: module for name, module in convs.items() if type(module) in LAYERS}
    left = [f"{name or 'the model'} ({type(module).__name__})" for name, module in convs.items() if name not in chosen]
    sizes = _sizes(model, example_input, chosen)
    made = {module: _layer(name, module, sizes[name], bias, share) for name, module in chosen.items()}
    _warn(
        f"left as they are, being of classes derived from torch's: {', '.join(left)}" if left else "",
        *(f"dropped of {name}: {', '.join(lost)}" for name, conv in chosen.items() if (lost := _lost(conv))),
        *_untied(model, chosen),
    )
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children leaves out a module's second name
            if child in made:
                setattr(parent, name, made[child])
    return made.get(model, model)


def _layer(name: str, conv: nn.Module, size: tuple[int, ...], bias: str, share: ShareArg) -> nn.Module:
    try:
        layer: Any = LAYERS[type(conv)].from_conv(conv, size, bias=bias, share=share)
    except (TypeError, ValueError) as error:
        raise ConversionError(name=name, reason=str(error)) from error
    layer._follows_input_format = True
    converted: nn.Module = layer
    return converted


def _warn(*messages: str) -> None:
    found = [message for message in messages if message]
    if found:
        warnings.warn(f"convert_convs: {'; '.join(found)}", UserWarning, stacklevel=3)


def _lost(conv: nn.Module) -> list[str]:
    """The hooks, buffers, attributes and other additions of a convolution that its replacement does not have."""
    plain: Any = type(conv)(1, 1, 1, device="meta")
    lost = [
        f"{key.strip('_')} ({_names(hooks)})" for key, hooks in vars(conv).items() if key.endswith("_hooks") and hooks
    ]
    lost += [f"buffer {name}" for name in conv._buffers]
    lost += [f"parameter {name}" for name in conv._parameters if name not in ("weight", "bias")]
    lost += [f"module {name}" for name in conv._modules]
    own = {*vars(plain), "weight", "bias"}
    lost += [f"attribute {name}" for name in vars(conv) if name not in own and not name.startswith("_")]
    for name, parameter in conv.named_parameters(recurse=False):
        for kind in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            hooks = getattr(parameter, kind, None)
            lost += [f"{kind.strip('_')} of {name} ({_names(hooks)})"] if hooks else []
    return lost


def _names(hooks: Mapping[int, Any]) -> str:
    return ", ".join(getattr(hook, "__qualname__", type(hook).__name__) for hook in hooks.values())


def _untied(model: nn.Module, chosen: Mapping[str, nn.Module]) -> list[str]:
    """The parameters that convolutions share with each other or the model, which the new layers will not share."""
    swapped = set(chosen.values())
    owners: dict[Tensor, list[tuple[str, nn.Module]]] = {}
    for place, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(parameter, []).append((f"{place}.{name}".lstrip("."), module))
    found = [
        f"no longer one parameter: {' and '.join(name for name, _ in several)}"
        for several in owners.values()
        if len(several) > 1 and any(module in swapped for _, module in several)
    ]
    names = {module: name for name, module in chosen.items()}
    for place, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in _OWN:
                for held in _held(value):
                    if held in names:
                        found.append(f"{f'{place}.{key}'.lstrip('.')} still holds the convolution {names[held]}")
    return found


_OWN = frozenset(vars(nn.Module()))  # what nn.Module keeps for itself, its children among it


def _held(value: Any) -> list[nn.Module]:
    """The modules in an attribute, or in a plain container there, which nn.Module does not register."""
    values = list(value.values()) if isinstance(value, Mapping) else value
    values = values if isinstance(values, (list, tuple, set, frozenset)) else [values]
    return [v for v in values if isinstance(v, nn.Module)]


def _sizes(model: nn.Module, example: Any, chosen: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """The spatial size of each convolution's input when the model runs on an example."""
    met: dict[str, set[tuple[int, ...]]] = {name: set() for name in chosen}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            if len(args) != 1 or kwargs:
                reason = "it is called with more than its input, or by keyword: leave it out with filter="
                raise ConversionError(name=name, reason=reason)
            ndim = len(module.kernel_size)  # type: ignore[arg-type]  # of a convolution
            if isinstance(args[0], Tensor):  # if not, the convolution says so
                met[name].add(tuple(args[0].shape[-ndim:]))

        return hook

    handles = [module.register_forward_pre_hook(watch(name), with_kwargs=True) for name, module in chosen.items()]
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        with torch.no_grad():
            if isinstance(example, Mapping):
                model(**example)
            elif isinstance(example, tuple):
                model(*example)
            else:
                model(example)
    except LocalConvError:
        raise
    except Exception as error:  # of any kind: the model is the user's
        raise ConversionError(name="model", reason=f"it does not run on example_input ({first_line(error)})") from error
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    for name, sizes in met.items():
        if not sizes:
            raise ConversionError(
                name=name, reason="it is not called with this example_input: leave it out with filter="
            )
        if len(sizes) > 1:
            raise ConversionError(
                name=name,
                reason=f"it meets inputs of {', '.join(map(str, sorted(sizes)))}, and filters of its own at every "
                "position fit one size: leave it out with filter=",
            )
    return {name: sizes.pop() for name, sizes in met.items()}
