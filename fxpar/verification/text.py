"""The report of a verification as text: a table of errors, the first parameter that differs, and the traffic."""

from __future__ import annotations

from collections.abc import Sequence

from fxpar.axes.columns import aligned
from fxpar.verification.compare import Count
from fxpar.verification.report import Report, Row

PHASES = ("forward", "backward", "step")


def report_text(report: Report) -> str:
    """The report in paragraphs."""
    parts = [_head(report), _errors(report)]
    if (wrong := report.first_wrong) is not None:
        parts.append(_wrong(wrong, report.tolerance))
    if report.draws:
        parts.append(_random(report))
    parts.append(f"{report.sharded_fraction:.1%} of the parameters' bytes are split")
    if report.collectives:
        parts.append(_traffic(report.collectives))
    return "\n\n".join(parts)


def _head(report: Report) -> str:
    mesh = ", ".join(f"{dim} {size}" for dim, size in report.mesh.items() if size > 1) or "one rank"
    run = "simulated" if report.simulated else "real processes"
    verdict = "ok" if report.ok else "WRONG"
    head = (
        f"{verdict}: {report.dtype} on {report.ranks} ranks ({mesh}), {run}, tolerance {report.tolerance:.0e}"
    )
    sizes = (", ".join(f"{axis} {size}" for axis, size in each.items()) for each in report.sizes)
    return "\n".join([head, *(f"  {each}" for each in sizes)])


def _random(report: Report) -> str:
    ops = "op" if report.draws == 1 else "ops"
    return (
        f"random numbers: {report.draws} {ops}, drawn by placement from seed {report.seed}, "
        "replayed in the whole model"
    )


def _errors(report: Report) -> str:
    gradient = max((row for row in report.rows if row.gradient is not None), key=_gradient, default=None)
    update = max(report.rows, key=lambda row: row.update, default=None)
    output = max(report.outputs, key=lambda name: report.outputs[name], default="")
    entries = [
        ("loss", report.loss_error, ""),
        ("outputs", report.output_error, output),
        ("gradients", report.gradient_error, gradient.name if gradient else ""),
        ("gradient norm", report.norm_error, ""),
        ("parameters after AdamW", report.parameter_error, update.name if update else ""),
    ]
    rows = [["", "worst error", "where"]]
    rows += [
        [what, f"{error:.1e}" + ("" if error <= report.tolerance else " !"), where if error > 0 else ""]
        for what, error, where in entries
    ]
    return aligned(rows)


def _gradient(row: Row) -> float:
    return row.gradient or 0.0


def _wrong(row: Row, tolerance: float) -> str:
    """The first parameter that differs, with all that is known of why it lies as it does."""
    found = [f"gradient {row.gradient:.1e}"] if row.gradient is not None and row.gradient > tolerance else []
    found += [f"after AdamW {row.update:.1e}"] if row.update > tolerance else []
    held = f"on rank {row.rank}" if row.rank is not None else "no rank holds it"
    summed = f"; gradient summed over {', '.join(row.reduce)}" if row.reduce else ""
    sizes = f"{list(row.shape)} of which a rank holds {list(row.local_shape)}"
    lines = [
        f"first to differ: {row.name}, {', '.join(found)} ({held})",
        f"({', '.join(row.dims)}) {sizes}; {row.placement}{summed}",
        f"rule: {row.rule}",
    ]
    lines += [f"used at: {row.source}"] if row.source else []
    return "\n  ".join(lines)


def _traffic(counts: Sequence[Count]) -> str:
    """Collectives of one step by kind and group, the phases side by side."""
    rows = [["collectives of a step", "over", *PHASES, "bytes sent"]]
    for key in dict.fromkeys((count.collective, count.group) for count in counts):
        own = [count for count in counts if (count.collective, count.group) == key]
        calls = [sum(count.calls for count in own if count.phase == phase) for phase in PHASES]
        rows.append([*key, *map(str, calls), f"{sum(count.bytes for count in own):,.0f}"])
    return aligned(rows)
