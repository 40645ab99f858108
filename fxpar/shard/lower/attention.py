"""Attention: masks that were recognised need not be made, and a causal mask is kept exact where queries are split.

mask known to be causal, queries whole   is_causal=True, no mask
mask known to be full, queries whole     no mask
is_causal=True, queries split            the rank's rows of the causal mask
dropout                                  drawn from the stream of the placement
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxpar.axes.factor import Factor, resolve
from fxpar.axes.runs import cut_size
from fxpar.axes.schema import arguments
from fxpar.mesh import GroupName
from fxpar.shard.lower.base import Lowering, Site
from fxpar.shard.lower.random import seeded
from fxpar.shard.placement import PARTIAL, Placement, layout

ATEN = torch.ops.aten


def _output(_node: fx.Node, _role: str) -> Placement:
    return PARTIAL


def _rewrite(site: Site) -> fx.Node:
    given = arguments(site.node)
    query, key, value = site.operands[:3]
    mask = site.operands[3] if len(site.operands) > 3 else None
    causal = bool(given["is_causal"])
    split = site.split_over("s")
    if not split and site.node.meta.get("mask") in ("causal", "full"):
        mask, causal = None, site.node.meta["mask"] == "causal"
    elif split and causal:
        mask, causal = _causal_rows(site, split), False
    options: dict[str, Any] = {"scale": given["scale"]} if given["scale"] is not None else {}
    if given["enable_gqa"]:
        options["enable_gqa"] = True
    args = (query, key, value, mask, given["dropout_p"], causal)
    if given["dropout_p"] > 0:
        return seeded(site, args, options)
    return site.builder.call(
        site.node.target, args if causal else args[:4] if mask else args[:3], options, site.node
    )


def _causal_rows(site: Site, split: list[str]) -> fx.Node:
    """The rows of the causal mask that belong to the rank's queries, made once for all layers."""
    query, key = (n.meta["val"].shape[-2] for n in site.node.args[:2])  # type: ignore[union-attr]
    rows = next(resolve(dim) for _, _, dim in site.links.sites("s"))
    factors = {m: site.splits[m].factor for m in split}

    def make(graph: fx.Graph) -> fx.Node:
        like = site.operands[0].meta["val"]
        node = graph.call_function(ATEN.ones.default, ([query, key],), {"dtype": torch.bool})
        _note(node, like.new_empty((query, key), dtype=torch.bool), creates=True)
        node = graph.call_function(ATEN.tril.default, (node,))
        _note(node, like.new_empty((query, key), dtype=torch.bool))
        cuts: dict[Factor, int] = {}
        for mesh_dim, factor in factors.items():
            cuts[factor] = cuts.get(factor, 1) * site.sizes[mesh_dim]
            spread = layout(rows, factor, cuts)
            node = graph.call_function(
                torch.ops.fxpar.slice.default, (node, 0, spread, GroupName(mesh_dim), "pad")
            )
            _note(node, like.new_empty((cut_size(rows, cuts), key), dtype=torch.bool))
        return node

    return site.builder.shared(("causal", query, key, tuple(factors.items())), make)


def _note(node: fx.Node, val: Any, creates: bool = False) -> None:
    node.meta = {"val": val, "grad": False, "module": "", "source": ""}
    if creates:
        node.meta["creates"] = True


LOWERING = Lowering("attention", ("aten.scaled_dot_product_attention.default",), _output, _rewrite)
