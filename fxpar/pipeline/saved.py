"""What autograd keeps of a run until the backward run: by op, as torch's `derivatives.yaml` has it.

Attention counts as its fused kernel, dropout as on a CPU, where its mask has the dtype of the operand. Tests hold all
this against `torch.autograd.graph.saved_tensors_hooks`: to 0.1% for stages, to 10% for models that run without fxpar.

y = linear(x, w)    keeps x for w, and w for x      two factors each keep the other
y = exp(x)          keeps y                         a result that its gradient is made of
y = silu(x)         keeps x                         an operand
y = x + 1           keeps nothing
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import TypeAlias

import torch
from torch import fx

from fxpar.pipeline.cost import op_name, shape, value_bytes
from fxpar.pipeline.storage import Storages

#: What is kept: a value of the graph, or new memory of so many bytes.
Kept: TypeAlias = fx.Node | int


@dataclass(frozen=True)
class Op:
    """A node, the nodes through which a gradient flows, and how values lie in memory."""

    node: fx.Node
    learning: Set[fx.Node]
    storages: Storages


#: What an op keeps.
Rule: TypeAlias = Callable[[Op], Iterable[Kept]]

#: Bytes of what norms and attention keep of each row, in float32 at least.
_STATISTIC = 4


def _operands(*positions: int) -> Rule:
    def rule(op: Op) -> Iterator[Kept]:
        for position in positions:
            if position < len(op.node.args) and isinstance(source := op.node.args[position], fx.Node):
                yield source

    return rule


def _nothing(_: Op) -> Iterable[Kept]:
    return ()


def _result(op: Op) -> Iterable[Kept]:
    return (op.node,)


def _indices(op: Op) -> Iterable[Kept]:
    """The operands that are no floating-point numbers."""
    return [source for source in op.node.all_input_nodes if not _is_real(source)]


def _chosen(op: Op) -> Iterable[Kept]:
    """The second result of an op that gives elements and their indices."""
    values = op.node.meta["val"]
    return [value_bytes(values[1])] if isinstance(values, tuple | list) else []


def _factors(first: int = 0) -> Rule:
    """Each of two operands whose partner has a gradient."""

    def rule(op: Op) -> Iterator[Kept]:
        pair = op.node.args[first : first + 2]
        for mine, other in (pair, pair[::-1]):
            if isinstance(mine, fx.Node) and other in op.learning:
                yield mine

    return rule


def _product(op: Op) -> Iterator[Kept]:
    """The factors of a `matmul` as it multiplies them: with one batch dim, for which it copies some."""
    for source in _factors()(op):
        assert isinstance(source, fx.Node)
        layout = op.storages.layout[source]
        batch = _batch(op)
        wanted = (*batch, *layout.shape[-2:])
        if layout.dim() < 3 or not batch:
            yield source
        elif tuple(layout.shape) != wanted or not _is_viewable(layout, batch):
            yield prod(wanted) * layout.element_size()
        else:
            yield source


def _batch(op: Op) -> tuple[int, ...]:
    """The dims of a product that are multiplied on their own: none where a factor has but two dims."""
    values = [source.meta["val"] for source in op.node.args[:2] if isinstance(source, fx.Node)]
    return shape(op.node.meta["val"])[:-2] if all(value.dim() > 2 for value in values) else ()


def _is_viewable(layout: torch.Tensor, batch: tuple[int, ...]) -> bool:
    try:
        layout.view(prod(batch), *layout.shape[-2:])
    except RuntimeError:
        return False
    return True


def _quotient(op: Op) -> Iterator[Kept]:
    above, below = op.node.args[:2]
    if isinstance(below, fx.Node):
        yield below
        if below in op.learning and isinstance(above, fx.Node):
            yield above


def _norm(statistics: int) -> Rule:
    """The operand, and some statistics of each row over the last dims."""

    def rule(op: Op) -> Iterator[Kept]:
        source = op.node.args[0]
        assert isinstance(source, fx.Node)
        yield source
        value, dims = source.meta["val"], op.node.args[1]
        rows = prod(shape(value)[: -len(dims)]) if isinstance(dims, list | tuple) else 1
        yield statistics * rows * max(value.element_size(), _STATISTIC)

    return rule


def _attention(op: Op) -> Iterator[Kept]:
    """Queries, keys, values, the mask as numbers, the result and a number a row; with a mask that learns all scores."""
    tensors = [source for source in op.node.args[:3] if isinstance(source, fx.Node)]
    if len(tensors) < 3 or not all(isinstance(source.meta.get("val"), torch.Tensor) for source in tensors):
        return
    mask = op.node.args[3] if len(op.node.args) > 3 else op.node.kwargs.get("attn_mask")
    query, key, value = (source.meta["val"] for source in tensors)
    rows = prod(shape(query)[:-1])
    if mask in op.learning:
        yield from (value_bytes(query), value_bytes(key), tensors[2])
        yield rows * shape(key)[-2] * query.element_size()
        return
    yield from (*tensors, op.node, rows * max(query.element_size(), _STATISTIC))
    if isinstance(mask, fx.Node):
        numbers = mask.meta["val"].dtype != torch.bool
        yield mask if numbers else prod(shape(mask.meta["val"])) * value.element_size()


def _cross_entropy(op: Op) -> Iterator[Kept]:
    """The logarithms of the probabilities, and the targets; the op of parts keeps the logits."""
    logits = op.node.args[0]
    assert isinstance(logits, fx.Node)
    yield logits if str(op.node.target).startswith("fxpar.") else value_bytes(logits.meta["val"])
    yield from _indices(op)


def _dropout(op: Op) -> Iterator[Kept]:
    drops = len(op.node.args) > 2 and bool(op.node.args[2]) and op.node.args[1] != 0
    own = str(op.node.target).startswith("fxpar.")  # draws its mask again
    return iter([value_bytes(op.node.meta["val"])] if drops and not own else ())


def _rules(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


#: By op name. An op on elements that is not listed keeps its operands, every other op nothing.
SAVED: dict[str, Rule] = {
    **_rules(_factors(), "linear mm bmm mv dot mul einsum _grouped_mm grouped_mm grouped_mm_fallback outer"),
    **_rules(_factors(1), "addmm baddbmm addcmul"),
    **_rules(_product, "matmul"),
    **_rules(_quotient, "div true_divide"),
    **_rules(_operands(0, 1), "conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d"),
    **_rules(_operands(0, 1, 2), "expert_linear"),
    **_rules(
        _result, "exp expm1 rsqrt sqrt tanh sigmoid relu reciprocal softmax _softmax log_softmax _log_softmax"
    ),
    **_rules(
        _operands(0),
        "pow log log1p sin cos gelu silu abs var std batch_norm group_norm norm linalg_vector_norm nll_loss cumprod",
    ),
    **_rules(_norm(2), "layer_norm native_layer_norm"),
    **_rules(_norm(1), "rms_norm _fused_rms_norm"),
    **_rules(
        _indices, "embedding index index_select index_add index_put scatter scatter_add where masked_fill"
    ),
    **_rules(lambda op: (*_operands(0)(op), *_indices(op)), "gather take_along_dim"),
    **_rules(_chosen, "topk sort max min"),
    **_rules(_attention, "scaled_dot_product_attention"),
    **_rules(_cross_entropy, "cross_entropy_loss cross_entropy"),
    **_rules(_dropout, "dropout"),
    **_rules(_nothing, "add sub rsub neg to _to_copy clone copy fill lerp positive sign floor ceil round"),
}


def saved(node: fx.Node, learning: Set[fx.Node], storages: Storages) -> list[Kept]:
    """What autograd keeps for the backward run of a node; nothing where no gradient flows through it."""
    if node.op != "call_function" or node not in learning:
        return []
    pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    default = _operands(0, 1, 2) if pointwise else _nothing
    return list(SAVED.get(op_name(node), default)(Op(node, learning, storages)))


def kept_bytes(kept: Iterable[Iterable[Kept]], storages: Storages) -> int:
    """The bytes of what is kept for several nodes, each memory once, but for parameters and buffers."""
    total = 0
    memories: set[fx.Node] = set()
    for each in chain.from_iterable(kept):
        if isinstance(each, fx.Node):
            memories.add(storages.owner[each])
        else:
            total += each
    return total + sum(value_bytes(memory.meta.get("val")) for memory in memories if not _is_held(memory))


def _is_held(node: fx.Node) -> bool:
    return node.op == "placeholder" and node.meta["kind"] in ("parameter", "buffer", "constant")


def _is_real(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return not isinstance(value, torch.Tensor) or value.is_floating_point() or value.is_complex()
