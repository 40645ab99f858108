"""Names for the leaves of nested arguments and outputs: `batch.ids`, `pixels.0`, `loss`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree


def leaf_names(spec: pytree.TreeSpec, prefix: str = "") -> Iterator[str]:
    """One name per leaf of a treespec, joined by dots: dict keys, fields of dataclasses, else positions."""
    if spec.is_leaf():
        yield prefix
        return
    for key, child in zip(_keys(spec), spec.children()):
        yield from leaf_names(child, f"{prefix}.{key}" if prefix else str(key))


def flatten(name: str, value: Any) -> list[tuple[str, Any]]:
    """The leaves of one argument with their names."""
    leaves, spec = pytree.tree_flatten(value)
    return list(zip(leaf_names(spec, name), leaves))


def same(one: Any, other: Any) -> bool:
    """Whether two leaves that are no tensors are of one type and equal; a number that is none is equal to itself."""
    return type(one) is type(other) and bool(one == other or (one != one and other != other))


def plain(value: Any) -> Any:
    """Replace every dataclass that torch's pytree does not know by a dict of its fields."""

    def unfold(leaf: Any) -> Any:
        if is_dataclass(leaf) and not isinstance(leaf, type | torch.Tensor):
            return {field.name: plain(getattr(leaf, field.name)) for field in fields(leaf)}
        return leaf

    return pytree.tree_map(unfold, value)


def _keys(spec: pytree.TreeSpec) -> list[Any]:
    contexts: list[Any] = [spec.context, getattr(spec.context, "_fields", None), _first(spec.context)]
    names = next((context for context in contexts if _is_names(context, spec.num_children)), None)
    return list(range(spec.num_children) if names is None else names)


def _first(context: Any) -> Any:
    """The names of a registered dataclass, whose context is [names of fields, names that are None]."""
    return context[0] if isinstance(context, list | tuple) and context else None


def _is_names(context: Any, count: int) -> bool:
    return (
        isinstance(context, list | tuple)
        and len(context) == count
        and all(isinstance(key, str | int) for key in context)
    )
