"""What several commands share: options that say which layers, kernels and GPU, and what these come to."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from lc_triton.tiles.config import Pass
    from lc_triton.tiles.device import Device
    from lc_triton.tiles.task import Task
    from lc_triton.tiles.workloads import Workload

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

DEVICES = "a100, h100, h200, b200, rtx4090, mi300x, a full name such as 'NVIDIA H200', or one of --devices"


def add_kernels(parser: argparse.ArgumentParser, device: str | None, default: str) -> None:
    """The options that say which kernels, and for which GPU.

    Args:
        parser: of a command.
        device: the default of --device.
        default: that default in words.
    """
    group = parser.add_argument_group("which kernels")
    group.add_argument("--workload", nargs="+", metavar="NAME", help="layers by name, of --workloads")
    group.add_argument(
        "--workloads", type=Path, nargs="+", metavar="FILE", help="files of layers (default: published networks)"
    )
    group.add_argument("--all", action="store_true", help="every layer of --workloads")
    group.add_argument(
        "--shapes", nargs="+", metavar="SHAPE", help="layers such as 63x63x16,k9,f16,s1,p0,d1,g1 instead"
    )
    group.add_argument(
        "--batches", "--batch", nargs="+", type=int, metavar="B", help="samples (default: each workload's own)"
    )
    group.add_argument(
        "--dtypes",
        "--dtype",
        nargs="+",
        default=["bfloat16"],
        metavar="DTYPE",
        help="of float16, bfloat16 (default), float32, tf32, float64, or x/weight as under autocast: bfloat16/float32",
    )
    group.add_argument(
        "--faces",
        "--face",
        nargs="+",
        dest="passes",
        default=["all"],
        metavar="PASS",
        help="of forward, input_grad, weight_grad, or all (default)",
    )
    group.add_argument("--device", default=device, metavar="NAME", help=f"{DEVICES} (default: {default})")
    group.add_argument(
        "--devices", type=Path, nargs="+", metavar="FILE", help="own devices, as env --devices prints them"
    )


def add_update(parser: argparse.ArgumentParser) -> None:
    """The options that let weight gradients update the weight."""
    rules = ("adamw", "momentum", "nesterov", "sgd", "square_sum")  # those of `tiles.updates`
    words = "weight gradients update the weight by this optimizer, or are only squared, for clip_norm"
    parser.add_argument("--update", choices=rules, help=words)
    states = ("float32", "bfloat16", "8 bits")
    parser.add_argument("--states", choices=states, default="float32", help="how AdamW's states are kept")


def select_layers(options: argparse.Namespace, *, all_by_default: bool) -> list[Workload]:
    """The layers that --workloads, --workload, --all or --shapes name, each with the batches to take.

    Args:
        options: of `add_kernels`.
        all_by_default: whether none of them means every published layer.
    """
    from lc_triton.core.arguments import check_int, check_name
    from lc_triton.errors import ArgumentValueError
    from lc_triton.tiles import paths, workloads

    batches = tuple(check_int("--batches", b, 1) for b in options.batches or ())
    if options.shapes:
        if options.workloads or options.workload or options.all:
            raise ArgumentValueError(name="--shapes", value=options.shapes, allowed="given without --workloads")
        if not batches:
            raise ArgumentValueError(name="--batches", value=None, allowed="given beside --shapes")
        return [workloads.parse_shape(text, batches) for text in options.shapes]
    if options.all and options.workload:
        raise ArgumentValueError(name="--workload", value=options.workload, allowed="given without --all")
    if not (all_by_default or options.all or options.workload):
        raise ArgumentValueError(name="--workload", value=None, allowed="given, or else --all or --shapes")
    known: dict[str, Workload] = {}
    for file in options.workloads or [paths.shipped_workloads()]:
        known |= workloads.read(file)
    for name in options.workload or ():
        check_name("workload", name, known)
    chosen = [known[name] for name in options.workload or known]
    return [replace(workload, batches=batches) for workload in chosen] if batches else chosen


def select_dtypes(options: argparse.Namespace) -> list[str]:
    """The words of --dtypes, each of which `types_of` reads."""
    from lc_triton.tiles.task import types_of

    for dtype in options.dtypes:
        types_of(dtype)
    return list(options.dtypes)


def select_passes(options: argparse.Namespace) -> tuple[Pass, ...]:
    """The passes that --faces names."""
    from lc_triton.core.arguments import check_name
    from lc_triton.tiles.config import PASSES

    for name in options.passes:
        check_name("face", name, (*PASSES, "all"))
    return PASSES if "all" in options.passes else tuple(dict.fromkeys(options.passes))


def select_update(options: argparse.Namespace, tasks: Sequence[Task], layers: Sequence[str]) -> list[Task]:
    """Kernels as --update and --states want them.

    Args:
        options: of `add_kernels` and `add_update`.
        tasks: of the kernels that `options` names.
        layers: what an error calls the layer of each.
    """
    from lc_triton.errors import ArgumentValueError
    from lc_triton.tiles.updates import with_update

    if options.update is not None and "weight_grad" not in select_passes(options):
        allowed = "given beside --faces weight_grad or all: no other pass updates the weight"
        raise ArgumentValueError(name="--update", value=options.update, allowed=allowed)
    pairs = zip(tasks, layers, strict=True)
    return [with_update(task, options.update, options.states, layer) for task, layer in pairs]


def select_device(options: argparse.Namespace) -> Device:
    """The GPU that --device names."""
    from lc_triton.errors import UnknownNameError
    from lc_triton.tiles import device_file
    from lc_triton.tiles.device import by_name

    own: dict[str, Device] = {}
    for file in options.devices or ():
        own |= device_file.read(file)
    try:
        return by_name(options.device, own)
    except UnknownNameError as error:
        there = "or a GPU in a file for --devices, which lc-triton env --devices writes on its machine"
        raise UnknownNameError(**error.fields | {"allowed": f"{error.fields['allowed']}; {there}"}) from None


def select_kernels(options: argparse.Namespace) -> list[tuple[Workload, int, str, Pass]]:
    """Layer, batch, dtype and pass of each kernel that the options of `add_kernels` name."""
    layers = select_layers(options, all_by_default=False)
    dtypes, passes = select_dtypes(options), select_passes(options)
    return [
        (workload, batch, dtype, pass_name)
        for workload in layers
        for batch in workload.batches
        for dtype in dtypes
        for pass_name in passes
    ]


def tasks_of(options: argparse.Namespace, kernels: Sequence[tuple[Workload, int, str, Pass]]) -> list[Task]:
    """The task of each kernel of `select_kernels`, by the options of `add_update` too."""
    from lc_triton.tiles.task import Task, types_of

    stored = [Task(pass_name, layer.geometry, batch, *types_of(dtype)) for layer, batch, dtype, pass_name in kernels]
    return select_update(options, stored, [layer.name for layer, *_ in kernels])


def need_triton(command: str) -> None:
    """Refuse a command that compiles where Triton is not installed."""
    import importlib.util

    from lc_triton.errors import MissingTritonError

    if importlib.util.find_spec("triton") is None:
        raise MissingTritonError.of(command)


def check_words(arguments: Sequence[str], commands: Mapping[str, argparse.ArgumentParser]) -> None:
    """Refuse a command or an option that does not exist, with the nearest one that does.

    argparse suggests neither before Python 3.14, and reports a missing argument before an unknown option.
    """
    from lc_triton.errors import UnknownNameError

    command, *rest = [*arguments, ""]
    if not command or command.startswith("-"):
        return
    if command not in commands:
        raise UnknownNameError.of("command", command, commands)
    actions = commands[command]._actions
    known = {option for action in actions for option in action.option_strings if option.startswith("--")}
    shown = [o for a in actions if a.help != argparse.SUPPRESS for o in a.option_strings if o.startswith("--")]
    for word in rest:
        option = word.partition("=")[0]
        if word == "--":
            return
        if word.startswith("--") and not any(name.startswith(option) for name in known):
            raise UnknownNameError.of(f"option of {command}", option, shown)
