"""Links of einsum: its own text is an equation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from fxpar.axes import apply as equations
from fxpar.axes.call import Call
from fxpar.axes.equation import Equation, parse
from fxpar.axes.links import SUM, Links


def einsum(call: Call) -> Links:
    """Letters that the output lacks are summed."""
    text = spelled(call.arguments["equation"])
    equation = parse(text)
    made = {role for slot in equation.outputs[0].slots for role in slot}
    meanings = dict.fromkeys(equation.roles - made, SUM)
    rule = replace(call.rule, equations=(equation,), meanings=meanings, seen=_seen(equation, call.rule.seen))
    links = equations.apply(rule, call.node, list(call.operands), call.shapes)
    assert links is not None
    links.linear = len(call.operands) == 1
    return links


def _seen(equation: Equation, names: Mapping[str, str]) -> dict[str, str]:
    """How the letters of a product of two tensors are seen, by the part that they play in it."""
    if len(equation.inputs) != 2:
        return {}
    first, second = ({role for slot in operand.slots for role in slot} for operand in equation.inputs)
    made = {role for slot in equation.outputs[0].slots for role in slot}
    places = {
        "lead": first & second & made,
        "rows": (first - second) & made,
        "columns": (second - first) & made,
    }
    places["inner"] = (first & second) - made
    return {role: names[place] for place, roles in places.items() if place in names for role in roles}


def spelled(text: str) -> str:
    """`bqd,bkd` -> `b q d, b k d -> k q`: einsum's text as an equation, with the output that it leaves out.

    Without `->` the output has, in order of the alphabet, the letters that stand once (numpy's einsum).
    """
    text = text.replace(" ", "")
    operands, arrow, output = text.partition("->")
    if not arrow:
        counts = Counter(letter for letter in operands if letter.isalpha())
        once = "".join(sorted(letter for letter, times in counts.items() if times == 1))
        output = "..." * ("..." in operands) + once
    left = ", ".join(_letters(operand) for operand in operands.split(","))
    return f"{left} -> {_letters(output)}"


def _letters(operand: str) -> str:
    return " ".join(operand.replace("...", ".")).replace(".", "...")
