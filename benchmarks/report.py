"""Tables and pictures of results, for docs/performance.md, docs/dev/benchmarks.md and docs/accuracy.md."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import accuracy
from benchmarks.contenders import MODES, NOT_PEERS, OURS
from benchmarks.rows import Row
from benchmarks.suites import GROWTH
from lc_triton.core.files import write_atomically

COLORS = {OURS: "#1f6fb4", "peers": "#c9c9c9", "best": "#d1662f", "roofline": "#444444"}
SUMMED = "geometric mean"


def report(files: Sequence[Path], document: Path) -> list[Path]:
    """Write the tables of results between the marks of the documents, and the pictures; return what was written.

    Args:
        files: what `run`, `overhead` and `accuracy` wrote.
        document: Markdown with pairs of `<!-- table NAME -->` and `<!-- end -->`; NAME is the stem of a file. It gets
            the short table of each run that it has marks for, and the pictures go beside it. The full tables go into
            dev/benchmarks.md, accuracy into accuracy.md beside it.
    """
    full = document.parent / "dev" / "benchmarks.md"
    written: list[Path] = []

    def put(into: Path, name: str, parts: Sequence[str]) -> None:
        fill(into, name, parts)
        written.append(into)

    for file in files:
        content = json.loads(file.read_text(encoding="utf-8"))
        about = _about(content)
        if "accuracy" in content:
            put(document.with_name("accuracy.md"), file.stem, [about, accuracy.tables(content["accuracy"])])
        elif "overhead" in content:
            put(full, file.stem, [about, _overhead(content["overhead"])])
        elif file.stem == "growth":
            written.append(document.with_name("growth.png"))
            _draw_growth(content, written[-1])
            put(full, file.stem, [about, _growth(content), "![Training step while one size grows](../growth.png)"])
        else:
            written.append(document.with_name(f"{file.stem}.png"))
            _draw_bars(content, written[-1])
            picture = f"![Times and memory relative to the roofline](../{file.stem}.png)"
            put(full, file.stem, [about, _summary(content), picture, _everyone(content)])
            if f"<!-- table {file.stem} -->" in document.read_text(encoding="utf-8"):
                put(document, file.stem, [about, _short(content)])
    return list(dict.fromkeys(written))


def fill(document: Path, name: str, parts: Sequence[str]) -> None:
    """Replace what stands between the marks of a name, or add them at the end."""
    text = document.read_text(encoding="utf-8")
    body = "\n\n".join([f"<!-- table {name} -->", *parts, "<!-- end -->"])
    text, found = re.subn(rf"<!-- table {re.escape(name)} -->.*?<!-- end -->", lambda _: body, text, flags=re.S)
    if not found:
        text += f"\n{body}\n"
    write_atomically(document, text.encode())


def best(row: dict[str, Any], mode: str) -> tuple[str, float] | None:
    """The fastest peer and its milliseconds."""
    times = {n: c[mode]["median_ms"] for n, c in row["contenders"].items() if n not in NOT_PEERS and "skipped" not in c}
    return min(times.items(), key=lambda item: item[1]) if times else None


def geomean(values: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def _about(content: dict[str, Any]) -> str:
    about = content["about"]
    triton = f", triton {about['triton']}" if "triton" in about else ""
    parts = [f"{about['device']}, torch {about['torch']}{triton}, Python {about['python']}"]
    machines = [row["machine"] for row in content.get("rows", ())]
    if machines:
        rates = [statistics.median(m[key] / 1e9 for m in machines) for key in ("flops", "bytes_per_s")]
        threads = "" if triton else f"{machines[0]['threads']:.0f} threads, "
        parts.append(f"{threads}matmul {rates[0]:.0f} GFLOP/s, copy {rates[1]:.0f} GB/s (medians)")
    return f"Measured {about['date'][:10]} at commit `{about['commit'][:10]}`: " + "; ".join(parts) + "."


def _short(content: dict[str, Any]) -> str:
    """Our times, and how many times as long the fastest other takes."""
    lines = [
        "| layer | forward, ms | fastest other / ours | training step, ms | fastest other / ours |",
        "|---|---|---|---|---|",
    ]
    ratios: dict[str, list[float]] = {mode: [] for mode in MODES}
    for row in content["rows"]:
        ours = row["contenders"][OURS]
        dtype = "" if row["dtype"] == "float32" else f", {row['dtype']}"
        cells = [f"{row['workload'].replace(',', ', ')}, batch {row['batch']}{dtype}"]
        if "skipped" in ours:
            lines.append("| " + " | ".join([*cells, f"wrong: {ours['skipped']}", "", "", ""]) + " |")
            continue
        for mode in MODES:
            cells.append(f"{ours[mode]['median_ms']:.2f}")
            peer = best(row, mode)
            if peer is None:
                cells.append("none runs")
            else:
                ratios[mode].append(peer[1] / ours[mode]["median_ms"])
                cells.append(f"{ratios[mode][-1]:.2f}x")
        lines.append("| " + " | ".join(cells) + " |")
    cells = [f"**{SUMMED}**"]
    for mode in MODES:
        cells += ["", f"**{geomean(ratios[mode]):.2f}x**" if ratios[mode] else ""]
    return "\n".join([*lines, "| " + " | ".join(cells) + " |"])


def _summary(content: dict[str, Any]) -> str:
    head = "| layer | batch | dtype |" + "".join(
        f" {mode}, ms | / roofline | best peer, ms | faster |" for mode in ("forward", "step")
    )
    lines = [head + " memory of a step, MB | of the best peer's | of the results |"]
    lines.append("|---|---|---|" + "---|" * 8 + "---|---|---|")
    floors: dict[str, list[float]] = {mode: [] for mode in MODES}
    ratios: dict[str, list[float]] = {mode: [] for mode in MODES}
    for row in content["rows"]:
        ours = row["contenders"][OURS]
        cells = [row["workload"].replace(",", ", "), str(row["batch"]), row["dtype"]]
        if "skipped" in ours:
            lines.append("| " + " | ".join([*cells, f"wrong: {ours['skipped']}"]) + " |")
            continue
        peer: tuple[str, float] | None = None
        for mode in MODES:
            mine = ours[mode]["median_ms"]
            floors[mode].append(mine / row["floor_ms"][mode])
            peer = best(row, mode)
            cells += [f"{mine:.2f}", f"{floors[mode][-1]:.1f}"]
            if peer is None:
                cells += ["none runs", ""]
            else:
                ratios[mode].append(peer[1] / mine)
                cells += [f"{peer[1]:.2f} ({peer[0]})", f"{ratios[mode][-1]:.2f}x"]
        memory = [ours["step_bytes"], row["contenders"][peer[0]]["step_bytes"] if peer else None, row["results_bytes"]]
        cells += ["" if m is None else f"{m / 1e6:.0f}" for m in memory]
        lines.append("| " + " | ".join(cells) + " |")
    cells = [f"**{SUMMED}**", "", ""]
    for mode in MODES:
        cells += [
            "",
            f"**{geomean(floors[mode]):.2f}**",
            "",
            f"**{geomean(ratios[mode]):.2f}x**" if ratios[mode] else "",
        ]
    return "\n".join([*lines, "| " + " | ".join([*cells, "", "", ""]) + " |"])


def _everyone(content: dict[str, Any]) -> str:
    """Milliseconds forward / step of every contender, or why it has none."""
    names = list(dict.fromkeys(name for row in content["rows"] for name in row["contenders"]))
    lines = ["| forward / step, ms | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    reasons: dict[str, int] = {}
    for row in content["rows"]:
        cells = [f"{row['workload'].replace(',', ', ')} b{row['batch']} {row['dtype']}"]
        for name in names:
            found = row["contenders"].get(name)
            if found is None:
                cells.append("")
            elif "skipped" in found:
                cells.append(f"[{reasons.setdefault(found['skipped'], len(reasons) + 1)}]")
            else:
                cells.append(" / ".join(f"{found[mode]['median_ms']:.2f}" for mode in MODES))
        lines.append("| " + " | ".join(cells) + " |")
    notes = [f"[{number}] {reason}" for reason, number in reasons.items()]
    return "\n".join(lines) + ("\n\n" + "; ".join(notes) + "." if notes else "")


def _overhead(found: dict[str, float]) -> str:
    lines = ["| what | |", "|---|---|"]
    names = {
        "import_s": "`import lc_triton`, torch being imported already",
        "first_step_s": "the same and a layer's first training step, in a fresh process",
        "forward_us": "the forward of a layer of one position and one channel, without gradients",
        "conv2d_forward_us": "that of F.conv2d on the same tensors",
        "layer_us": "the same forward of the module",
        "conv2d_layer_us": "that of nn.Conv2d",
        "graph_us": "the forward with a graph, x without a gradient",
        "conv2d_graph_us": "that of F.conv2d",
        "step_us": "its training step",
        "conv2d_step_us": "that of F.conv2d",
        "unfold_bmm_step_us": "that of F.unfold + bmm",
        "lookup_us": "for a GPU: finding the tile of a layer that ran before",
        "launch_us": "for a GPU: the host's part of a launch, up to the driver",
        "triton_launch_us": "the same, with each launch left to Triton",
    }
    for key, what in names.items():
        if key in found:
            value = f"{found[key]:.2f} s" if key.endswith("_s") else f"{found[key]:.3g} us"
            lines.append(f"| {what} | {value} |")
    return "\n".join(lines)


def _curves(content: dict[str, Any]) -> dict[str, dict[str, dict[str, list[tuple[int, float]]]]]:
    """Sweep, contender, mode: (value, milliseconds)."""
    rows = {(row["workload"], row["batch"]): row["contenders"] for row in content["rows"]}
    curves: dict[str, dict[str, dict[str, list[tuple[int, float]]]]] = {}
    for sweep, values in GROWTH.items():
        for value, pair in values.items():
            for name, found in rows.get(pair, {}).items():
                for mode in MODES if "skipped" not in found else ():
                    points = curves.setdefault(sweep, {}).setdefault(name, {}).setdefault(mode, [])
                    points.append((value, found[mode]["median_ms"]))
    return curves


def exponent(points: Sequence[tuple[int, float]]) -> float:
    """The slope of log time over log size, by least squares, over the upper half, where fixed costs no longer count.

    Example:
        >>> round(exponent([(1, 9.0), (2, 9.5), (4, 16.0), (8, 64.0)]), 2)
        2.0
    """
    upper = points[len(points) // 2 :]
    xs, ys = [math.log(x) for x, _ in upper], [math.log(y) for _, y in upper]
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / sum((x - mx) ** 2 for x in xs)


def _growth(content: dict[str, Any]) -> str:
    lines = [
        "| grown | from, to | contender | forward, ms | exponent | step, ms | exponent |",
        "|---|---|---|---|---|---|---|",
    ]
    for sweep, contenders in _curves(content).items():
        for name, modes in contenders.items():
            points = modes["forward"]
            if len(points) < 3:
                continue
            cells = [sweep, f"{points[0][0]}, {points[-1][0]}", name]
            for mode in MODES:
                points = modes[mode]
                cells += [f"{points[0][1]:.2f} to {points[-1][1]:.1f}", f"{exponent(points):.2f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _plot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _finish(figure: Any, file: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, which="major", color="#e4e4e4", lw=0.6)
        axes.set_axisbelow(True)
    figure.savefig(file, dpi=110, bbox_inches="tight")
    _plot().close(figure)


def _draw_bars(content: dict[str, Any], file: Path) -> None:
    """Times of everyone over the roofline time, one dot a contender; the roofline; memory of a step."""
    rows = [row for row in content["rows"] if "skipped" not in row["contenders"][OURS]]
    labels = [f"{row['workload']} b{row['batch']}" for row in rows]
    figure, axes = _plot().subplots(1, 4, figsize=(19, 1.6 + 0.42 * len(rows)), width_ratios=[3, 3, 3, 2])
    for axis, mode in zip(axes, MODES, strict=False):
        for y, row in enumerate(rows):
            floor = row["floor_ms"][mode]
            others = [
                c[mode]["median_ms"] / floor for n, c in row["contenders"].items() if n not in NOT_PEERS and mode in c
            ]
            axis.scatter(others, [y] * len(others), color=COLORS["peers"], s=28, label="peers" if y == 0 else None)
            if others:
                axis.scatter(min(others), y, color=COLORS["best"], s=34, label="best peer" if y == 0 else None)
            mine = row["contenders"][OURS][mode]["median_ms"] / floor
            axis.scatter(mine, y, color=COLORS[OURS], s=46, marker="D", label=OURS if y == 0 else None)
        axis.axvline(1, color=COLORS["roofline"], lw=1, ls="--")
        axis.set(xscale="log", xlabel="time / roofline time", title=mode)
        axis.set_yticks(range(len(rows)), labels if axis is axes[0] else [""] * len(rows))
        axis.invert_yaxis()
    axes[0].legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1.06), ncols=3)
    _draw_roofline(axes[2], rows)
    for y, row in enumerate(rows):
        found = {n: c["step_bytes"] for n, c in row["contenders"].items() if c.get("step_bytes")}
        others = [b / row["results_bytes"] for n, b in found.items() if n not in NOT_PEERS]
        axes[3].scatter(others, [y] * len(others), color=COLORS["peers"], s=28)
        if OURS in found:
            axes[3].scatter(found[OURS] / row["results_bytes"], y, color=COLORS[OURS], s=46, marker="D")
    axes[3].axvline(1, color=COLORS["roofline"], lw=1, ls="--")
    axes[3].set(xlim=0, xlabel="memory of a step / its results", title="memory")
    axes[3].set_yticks(range(len(rows)), [""] * len(rows))
    axes[3].invert_yaxis()
    _finish(figure, file)


def _draw_roofline(axis: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Forward: operations a second over operations a byte, under what this machine reaches."""
    peak, band = (statistics.median(row["machine"][key] for row in rows) for key in ("flops", "bytes_per_s"))
    intensities = []
    for row in rows:
        task = Row(row["workload"], row["batch"], row["dtype"], 1).task
        intensity = task.flops / task.least_bytes
        intensities.append(intensity)
        other = best(row, "forward")
        times = [(row["contenders"][OURS]["forward"]["median_ms"], OURS, "D")] + (
            [(other[1], "best", "o")] if other else []
        )
        for milliseconds, name, marker in times:
            axis.scatter(intensity, task.flops / milliseconds / 1e6, color=COLORS[name], marker=marker, s=36)
    low, high = min(intensities) / 2, max([*intensities, peak / band]) * 2
    points = [low, peak / band, high]
    axis.plot(points, [min(peak, band * p) / 1e9 for p in points], color=COLORS["roofline"], lw=1.4)
    axis.set(xscale="log", yscale="log", xlabel="FLOP a byte", ylabel="GFLOP/s", title="forward under the roofline")


def _draw_growth(content: dict[str, Any], file: Path) -> None:
    curves = _curves(content)
    figure, axes = _plot().subplots(1, len(curves), figsize=(4.2 * len(curves), 3.6))
    for axis, (sweep, contenders) in zip(axes if len(curves) > 1 else [axes], curves.items(), strict=True):
        for n, (name, modes) in enumerate(contenders.items()):
            color = COLORS[OURS] if name == OURS else ["#d1662f", "#8f8f8f", "#5aa469", "#a58bc4"][(n - 1) % 4]
            axis.plot(*zip(*modes["step"], strict=True), marker="o", ms=4, color=color, label=name)
        axis.set(xscale="log", yscale="log", xlabel=sweep, title=f"training step, growing {sweep}")
    figure.axes[0].set_ylabel("ms")
    figure.axes[0].legend(frameon=False, fontsize=8)
    _finish(figure, file)
