"""Putting one rank together: its modules from their texts, its tensors from wherever they come."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxpar.capture.leaves import Leaves
from fxpar.emit.load import load_module
from fxpar.runtime.groups import Groups
from fxpar.runtime.manifest import Manifest
from fxpar.runtime.module import retie, unite
from fxpar.runtime.padding import Padding
from fxpar.runtime.rank import Rank

#: Gives the rank's part of a parameter, buffer or constant by name.
Read = Callable[[str], torch.Tensor]


def assemble(
    manifest: Manifest,
    modules: Mapping[str, str | Path],
    groups: Groups,
    read: Read,
    *,
    device: torch.device | str = "cpu",
    out_spec: pytree.TreeSpec | None = None,
    leaves: Leaves | None = None,
) -> Rank:
    """Build the module of the rank that `groups` belong to.

    `modules` has the texts (or paths) of the emitted modules by file name, `read` gives the rank's part of a tensor by
    name. It is copied, with zeros behind it where the other ranks have more. `leaves` are the model's opaque modules,
    which emitted modules call. Raises what `read` raises, and EmitError for a tensor of another shape.
    """
    specs = manifest.stages_of(groups.rank)
    stages = [build(modules[f"stage_{spec.index}.py"], groups, device) for spec in specs]
    prepare = build(modules["prepare.py"], groups, device) if manifest.prepared else None
    root = unite(stages)
    for module in (root, prepare):
        if module is not None:
            fill(module, read, Padding.of(manifest, groups))
    for module in (*stages, prepare):
        if module is not None:
            give(module, leaves or Leaves())
    return Rank(stages, manifest, groups, prepare=prepare, out_spec=out_spec, root=root)


def build(module: str | Path, groups: Groups, device: torch.device | str) -> nn.Module:
    """Construct an emitted module on a device; its tensors have no values yet."""
    kind = load_module(module)
    given = {"groups": groups} if "groups" in inspect.signature(kind.__init__).parameters else {}
    return kind(**given, device=device)


def give(module: nn.Module, leaves: Leaves) -> None:
    """Let every part of an emitted module call opaque modules as `self.leaves`; these are copies of its own."""
    mine = leaves.copied()
    for part in module.modules():
        part.leaves = mine  # type: ignore[assignment]


@torch.no_grad()
def fill(module: nn.Module, read: Read, padding: Padding, names: Container[str] | None = None) -> None:
    """Copy values into every parameter and buffer of a module, or those with some names; each tied tensor once."""
    seen: set[int] = set()
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if id(tensor) not in seen and (names is None or name in names):
            seen.add(id(tensor))
            padding.fill(name, tensor, read(name))
    retie(module)
