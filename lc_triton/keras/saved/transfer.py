"""The weights of Keras layers, copied into the modules of a model of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lc_triton.errors import ArgumentTypeError, ConversionError
from lc_triton.keras.registry import check_model
from lc_triton.keras.saved import archive, matching, stored
from lc_triton.keras.saved.archive import Config
from lc_triton.keras.saved.filling import check_writes_of, copy, misfits, paired
from lc_triton.keras.saved.weights import Origin, slots


@dataclass(frozen=True)
class WeightsReport:
    """The result of `load_weights`: layers by their Keras names, modules by their place in the model.

    `matched` pairs a Keras layer with a module; `missing` are modules with weights that no layer was found for;
    `unexpected` are Keras layers that no module was found for; `misshapen` says which arrays do not fit, and how.
    """

    matched: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} layer(s) matched"]
        for what, names in (("missing", self.missing), ("unexpected", self.unexpected), ("misshapen", self.misshapen)):
            if names:
                parts.append(f"{what}: {', '.join(name or 'the model itself' for name in names)}")
        return "; ".join(parts)


def load_weights(
    model: nn.Module,
    path: str | Path,
    mapping: Mapping[str, str] | None = None,
    *,
    strict: bool = True,
    config: Config = None,
) -> WeightsReport:
    """Copy the weights of Keras layers into the modules of a model.

    Args:
        model: with locally connected layers (of either convention), nn.Linear, nn.Conv1d/2d/3d, nn.BatchNorm1d/2d/3d,
            nn.LayerNorm, nn.Embedding, nn.ConvTranspose1d/2d/3d of one group, and nn.LSTM, nn.GRU, nn.RNN of one layer
            (Keras's GRU with `reset_after`; two directions are its Bidirectional). A depthwise kernel of Keras fits a
            convolution with as many groups as channels.
        path: a `.h5`, `.keras` or `.weights.h5` file. A `.weights.h5` file of Keras 2 has no names: its layers are
            named by class and order, conv2d, conv2d_1, dense, ..., unless `config` is given.
        mapping: from the names of Keras layers to those of modules, as `named_modules` has them. A layer that it does
            not name is matched by its own name: a module's whole name, or its last part. A module of a model that
            `load_model` read has its layer's name.
        strict: if True, nothing is written and an error is raised unless every module with weights and every layer
            with arrays has a counterpart. If False, the arrays that fit are written.
        config: for a file of weights alone: the model's `to_json()`, as text, as a mapping or as the path of its file.
            Without it, such weights are assumed to have the module's own data format and implementation: channels last
            and 1 for modules of torch's convention.

    Returns:
        What was matched, and what was missing, unexpected or misshapen.

    Raises:
        KerasFileError: a file that is absent, damaged or something else.
        ConversionError: under `strict`, with the report; for a mapping to a module that does not exist, or of two
            layers to one module; for a quantized layer.
        ComputedParameterError: a weight that is pruned, has no memory (on the meta device), or whose parametrization
            cannot give the file's numbers; nothing is written then.
        LocalConvError: (also a ValueError or TypeError) an argument of a wrong type, or a module that waits for its
            first input.

    Keras flattens channels last; the rows of a dense layer behind a flattened image are not reordered.

    Source: `tf_keras.Model.load_weights`.

    Example:
        >>> import lc_triton
        >>> report = lc_triton.keras.load_weights(model, "model.h5", {"lc2d": "body.0"})  # doctest: +SKIP
    """
    check_model(model)
    path = archive.checked_path(path)
    if mapping is not None and not isinstance(mapping, Mapping):
        raise ArgumentTypeError(name="mapping", value=mapping, allowed="None or a mapping of names to names")
    modules = dict(matching.candidates(model))
    with archive.opened(path) as saved:
        saved = saved.with_config(config)
        layers = saved.layers()
        found = stored.arrays(saved, layers)
        targets = matching.targets(found, layers, model, modules, dict(mapping or {}), path)
        origins = matching.origins(layers)
        pairs = []
        misshapen: list[str] = []
        for layer, (module, arrays) in targets.matched.items():
            # In a file without its model, a layer's name may contain its class.
            slots_here = slots(modules[module].module, origins(layer) or Origin(layer.rpartition("/")[2]))
            arrays = matching.unwrapped(slots_here, arrays)
            wrong = misfits(layer, slots_here, arrays)
            misshapen += wrong
            if not wrong:
                pairs.append((layer, module, paired(slots_here, arrays)))
        report = WeightsReport(
            matched=tuple((layer, module) for layer, module, _ in pairs),
            missing=tuple(sorted(set(modules) - {module for module, _ in targets.matched.values()})),
            unexpected=targets.unexpected,
            misshapen=tuple(misshapen),
        )
        if strict and (report.missing or report.unexpected or report.misshapen):
            raise ConversionError(name=str(path), reason=f"{report}; strict=False loads what fits")
        for _, _, of_layer in pairs:
            check_writes_of(of_layer)
        for _, _, of_layer in pairs:
            copy(of_layer)
    return report
