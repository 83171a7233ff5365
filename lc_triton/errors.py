"""The errors that lc_triton raises on purpose: one small class for each kind, with the template of its message."""

from __future__ import annotations

import difflib
import math
import string
from collections.abc import Iterable
from typing import Any, ClassVar

__all__ = [
    "ArgumentTypeError",
    "ArgumentValueError",
    "AttributeChangeError",
    "BackendError",
    "BiasShapeError",
    "ChannelError",
    "CheckpointError",
    "ComputedParameterError",
    "ConfigFileError",
    "ConversionError",
    "DeviceFileError",
    "DeviceMismatchError",
    "DtypeError",
    "FreedStorageError",
    "GroupsError",
    "KerasFileError",
    "KernelTooLargeError",
    "LengthError",
    "LocalConvError",
    "LostGPUError",
    "MiscompiledError",
    "MissingPackageError",
    "MissingTritonError",
    "NotBuiltError",
    "OptimizerStepError",
    "OutputSizeError",
    "PaddingError",
    "ParallelError",
    "PartShapeError",
    "PrecompileError",
    "RankError",
    "ScriptError",
    "SpatialSizeError",
    "TooManyNumbersError",
    "TuningError",
    "UnknownNameError",
    "WeightShapeError",
    "WorkloadError",
]


LONGEST_VALUE = 200  # characters of a value in a message
MOST_SHOWN = 8  # numbers of an array in a message


class _Formatter(string.Formatter):
    """Formats values for messages: long arrays by shape and dtype, long texts cut."""

    def convert_field(self, value: Any, conversion: Any) -> Any:
        if conversion != "r":
            return super().convert_field(value, conversion)
        try:
            shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
            if isinstance(shape, tuple) and dtype is not None and (len(shape) > 1 or math.prod(shape) > MOST_SHOWN):
                return f"an array of shape {tuple(shape)} and dtype {str(dtype).removeprefix('torch.')}"
            text = repr(value)
        except Exception:  # of a user's class, of which the message names the type
            return "what has no repr"
        return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "..."


_format = _Formatter().format


class LocalConvError(Exception):
    """Base of all errors that lc_triton raises on purpose; `fields` has the values in the message."""

    template: ClassVar[str] = "{message}"

    def __init__(self, message: str | None = None, /, **fields: Any) -> None:
        # A framework that adds to a message, as Keras does, makes the error anew from its text.
        self.fields = fields
        super().__init__(_format(self.template, **fields) if message is None else message)

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes send errors back: the message travels, for a field may be a function that does not pickle.
        return (type(self), (str(self),))


def first_line(error: BaseException) -> str:
    """An error of any origin in one line."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:200]


class ArgumentTypeError(LocalConvError, TypeError):
    """An argument of a wrong type, such as a bool or a float for an integer."""

    template = "{name} must be {allowed}, got {value!r} of type {value.__class__.__name__}"


class ArgumentValueError(LocalConvError, ValueError):
    """An argument of the right type whose value is out of range."""

    template = "{name} must be {allowed}, got {value!r}"


class AttributeChangeError(LocalConvError, ValueError):
    """An attribute of a layer that cannot be set, or not to this value."""

    template = "{name} of {layer} cannot be set to {value!r}: {reason}"


class ComputedParameterError(LocalConvError, ValueError):
    """A weight or bias to which a value written would be lost: a parametrization computes it, or it has no memory."""

    template = "{name} of {layer} cannot be written: {reason}"


class LengthError(LocalConvError, ValueError):
    """A sequence argument with a wrong number of entries."""

    template = "{name} must be {allowed} for {ndim} spatial dimension(s), got {value!r}"


class UnknownNameError(LocalConvError, ValueError):
    """An unknown name; the message suggests the nearest known one."""

    template = "{name} {value!r} is not known{hint}; allowed: {allowed}"

    @classmethod
    def of(cls, name: str, value: object, allowed: Iterable[str]) -> UnknownNameError:
        """Make the error for a `value` of the argument `name` that is not one of `allowed`."""
        names = sorted(set(allowed))
        near = difflib.get_close_matches(str(value).lower(), names, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return cls(name=name, value=value, hint=hint, allowed=", ".join(names))


class RankError(LocalConvError, ValueError):
    """A tensor with a wrong number of dimensions."""

    template = "{name} must have {allowed}, got shape {shape}"


class ChannelError(LocalConvError, ValueError):
    """An input whose number of channels is not the one that the weight was made for."""

    template = (
        "{name} has {got} channels but the weight is for {expected}; {name}.shape={shape} was read as {data_format}: "
        "give {name} {expected} channels, or {remedy}"
    )


class SpatialSizeError(LocalConvError, ValueError):
    """An input whose spatial size is not the one that the filters were made for."""

    template = (
        "{name} has spatial size {got} but this layer's filters were made for {expected}: filters belong to "
        "positions, so resize, crop or pad {name} to {expected} or make a layer for {got}"
    )


class KernelTooLargeError(LocalConvError, ValueError):
    """A window larger than the padded input, so that there is no output position."""

    template = (
        "kernel_size {kernel} with dilation {dilation} spans {extent} in dimension {dim}, wider than the padded input "
        "{padded} (input {size}, padding {padding}): use a smaller kernel, less dilation or more padding"
    )


class GroupsError(LocalConvError, ValueError):
    """Channels or filters that cannot be split evenly into groups."""

    template = "{name} must be divisible by groups, got {name}={value} with groups={groups}"


class TooManyNumbersError(LocalConvError, ValueError):
    """Sizes of a tensor whose number of bytes does not fit into 64 bits."""

    template = (
        "{name} would have {value:.3g} numbers, and at most {most:.3g} can be addressed: use smaller sizes or less "
        "padding"
    )


class PaddingError(LocalConvError, ValueError):
    """Padding that is malformed, negative or impossible with the other arguments."""

    template = "padding={value!r} {reason}"


class OutputSizeError(LocalConvError, ValueError):
    """An output size that a transposed layer with this input and stride cannot have."""

    template = (
        "{name}={value!r} is not possible: with an input of {in_spatial}, kernel_size {kernel}, stride {stride}, "
        "padding {padding} and dilation {dilation} the output has at least {least} and less than {least} + stride sites"
    )


class WeightShapeError(LocalConvError, ValueError):
    """A weight whose shape does not fit the input and the arguments."""

    template = (
        "weight.shape={shape} does not fit: for input size {in_spatial}, kernel {kernel}, stride {stride}, padding "
        "{padding} and dilation {dilation} it must be {expected} = (*{leading}, *kernel, C // groups, F)"
    )


class BiasShapeError(LocalConvError, ValueError):
    """A bias whose shape fits neither the positions nor the channels."""

    template = "bias must have shape {position} (one a position) or {channel} (one a channel), got {shape}"


class DtypeError(LocalConvError, TypeError):
    """Tensors of a dtype, or of a mix of dtypes, that the operator does not support."""

    template = "{name} has dtype {value}; {allowed}"


class FreedStorageError(LocalConvError, ValueError):
    """A tensor whose memory was freed."""

    template = (
        "{name} of shape {shape} has no memory: its storage was resized to nothing, as FullyShardedDataParallel does "
        "with parameters between their uses: call the wrapped model, or give the tensor its memory and numbers back"
    )


class DeviceMismatchError(LocalConvError, ValueError):
    """Tensors on different devices."""

    template = "all tensors must be on one device, got {devices}: move them with .to(device)"


class ParallelError(LocalConvError, ValueError):
    """A layer, or an argument of one, that ranks cannot share in this way."""

    template = "{style} cannot be used: {reason}"


class PartShapeError(LocalConvError, ValueError):
    """A part of an input that is not the one which this rank owns."""

    template = (
        "rank {rank} of {ranks} must be given {expected} of x (spatial size, channels), its part as torch.chunk splits "
        "{whole}, got {got} from x.shape={shape}"
    )


class BackendError(LocalConvError, ValueError):
    """A backend chosen by hand that cannot run here."""

    template = "backend {value!r} cannot be used: {reason}"


class MiscompiledError(LocalConvError, RuntimeError):
    """A kernel that the installed Triton miscompiles; it was not launched."""

    template = (
        "Triton {version} compiles {kernel} wrongly for {tile} (its PTX has {mark!r}), so it was not launched: install "
        'another Triton, or compute this layer inside `with lc_triton.backend("cpu"):`, on the same GPU by torch\'s '
        "own operators"
    )


class NotBuiltError(LocalConvError, ValueError):
    """A use of the weights of a layer that is not built yet."""

    template = "{name} is not built: {remedy}"


class ScriptError(LocalConvError, TypeError):
    """A layer passed to `torch.jit.script`, which cannot compile it."""

    template = "{name} cannot be scripted: {reason}"


class CheckpointError(LocalConvError, ValueError):
    """A checkpoint file that cannot be read or belongs to something else; it is not changed."""

    template = "checkpoint {path} cannot be used: {reason}; the file was left as it is"


class ConfigFileError(LocalConvError, ValueError):
    """A file of tiles, or of their times, that cannot be used; it is not changed."""

    template = "file {path} is not used: {reason}; it was left as it is"


class DeviceFileError(LocalConvError, ValueError):
    """A file of devices that cannot be used; it is not changed."""

    template = "device file {path} cannot be used: {reason}"


class ConversionError(LocalConvError, ValueError):
    """A layer that cannot be converted, because it has no equal counterpart."""

    template = "{name} cannot be converted: {reason}"


class KerasFileError(LocalConvError, ValueError):
    """A Keras file that cannot be read, or whose weights do not fit; it is not changed."""

    template = "{path} cannot be used: {reason}; the file was left as it is"


class TuningError(LocalConvError, RuntimeError):
    """Tiles that cannot be measured on this machine."""

    template = "tiles cannot be measured here: {reason}"


class LostGPUError(LocalConvError, RuntimeError):
    """A tile whose kernel ended this process's use of the GPU; searches in other processes leave it out."""

    template = (
        "the GPU cannot be used by this process any more ({reason}): {tile} of {task} was running. It is noted in "
        "{path}, and searches leave it out from now on: run the same command again"
    )


class PrecompileError(LocalConvError, RuntimeError):
    """Kernels that cannot be compiled ahead, or a folder of such kernels that cannot be used."""

    template = "{name}: {reason}"


class WorkloadError(LocalConvError, ValueError):
    """A file of workloads that cannot be used."""

    template = "workload file {path}, line {line}: {reason}"


class OptimizerStepError(LocalConvError, RuntimeError):
    """A step that would update a weight twice, or by a wrong gradient."""

    template = "{name} is not updated: {reason}"


class MissingPackageError(LocalConvError, ImportError):
    """An optional package that a command needs and that is not installed."""

    template = '{what} needs {package}, which is not installed: pip install "lc-triton[{extra}]"'


class MissingTritonError(MissingPackageError):
    """Triton where it is not installed: no extra has it, for on Linux it comes with this library."""

    template = "{what} needs triton, which is not installed and exists for Linux only: pip install {bound}"

    @classmethod
    def of(cls, what: str) -> MissingTritonError:
        """Make the error for what needs triton."""
        return cls(what=what, bound='"triton>=3.6,<3.10"')
