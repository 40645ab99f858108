"""Bring ops into one form and drop those that compute nothing.

to.dtype(x, its own dtype), alias, lift_fresh_copy, dropout(x, p, False), dropout(x, 0, True)  ->  x
x + 0, of its own dtype, as sum([x, y]) begins with                       ->  x
to.device(x, cpu, dtype), to.dtype_layout(x, dtype=...), type_as          ->  to.dtype(x, dtype)
view(x, [-1, 64]), reshape(x, [-1, 64])                                  ->  reshape(x, [16, 64])
broadcast_tensors([x, y])[0]                                             ->  x, or expand(x, [16, 64])
new_zeros(x, [4, 8])                                                     ->  zeros([4, 8])
arange(8, device=cpu, pin_memory=False)                                  ->  arange(8), meta["creates"]
_assert_tensor_metadata(...) and other checks                            ->  nothing
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from fxpar.capture.node import aten, is_op, tensors_of

_CHECKS = (
    aten._assert_tensor_metadata,
    aten._assert_async,
    aten._assert_scalar,
    aten.sym_constrain_range,
    aten.sym_constrain_range_for_size,
)
_IDENTITIES = (aten.alias, aten.lift_fresh_copy, aten.lift_fresh)
_CASTS = (aten.to, aten.type_as, aten._to_copy)
_SIZED = (aten.view.default, aten.reshape, aten._unsafe_view, aten.expand, aten.view_as, aten.reshape_as)
_DROPOUTS = (aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.feature_alpha_dropout)
_NEW = {
    aten.new_zeros: aten.zeros.default,
    aten.new_ones: aten.ones.default,
    aten.new_empty: aten.empty.memory_format,
    aten.new_full: aten.full.default,
}
_UNPORTABLE = ("device", "pin_memory", "layout")


def clean(graph: fx.Graph) -> None:
    """Rewrite the graph in place as drawn above.

    Values and gradients stay bit for bit the same, but for the sign of a zero in x + 0.
    """
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if is_op(node, *_CHECKS):
            graph.erase_node(node)
        elif _is_identity(node):
            replace(node, node.args[0])
        else:
            for matches, rewrite in _REWRITES:
                if matches(node):
                    rewrite(node)


def replace(node: fx.Node, value: Any) -> None:
    """Let every user of `node` use `value`, and drop the node."""
    node.replace_all_uses_with(value)
    node.graph.erase_node(node)


def drop_dead(graph: fx.Graph) -> None:
    """Drop the ops whose results nothing uses, save updates of buffers; placeholders stay."""
    for node in reversed(graph.nodes):
        if (
            node.op == "call_function"
            and not node.users
            and "update" not in node.meta
            and not moves_buffers(node)
        ):
            graph.erase_node(node)


def moves_buffers(node: fx.Node) -> bool:
    """Whether an op changes buffers without saying so: batch norm's running statistics."""
    return is_op(node, aten.batch_norm, aten.instance_norm) and bool(node.args[5])


def _is_identity(node: fx.Node) -> bool:
    if is_op(node, *_IDENTITIES):
        return True
    if is_op(node, *_DROPOUTS):
        return node.args[2] is False or bool(node.args[1] == 0)
    if is_op(node, *_CASTS) or (is_op(node, aten.add) and _is_zero(node.args[1])):
        source = node.args[0]
        return isinstance(source, fx.Node) and source.meta["val"].dtype == node.meta["val"].dtype
    return False


def _is_zero(value: Any) -> bool:
    return isinstance(value, int | float) and value == 0


def _is_cast(node: fx.Node) -> bool:
    return is_op(node, *_CASTS)


def _cast(node: fx.Node) -> None:
    node.target = aten.to.dtype
    node.args, node.kwargs = (node.args[0], node.meta["val"].dtype), {}


def _is_sized(node: fx.Node) -> bool:
    return is_op(node, *_SIZED)


def _literal_sizes(node: fx.Node) -> None:
    if not is_op(node, aten.expand):
        node.target = aten.reshape.default
    node.args, node.kwargs = (node.args[0], list(node.meta["val"].shape)), {}


def _is_broadcast(node: fx.Node) -> bool:
    return is_op(node, aten.broadcast_tensors)


def _broadcast(node: fx.Node) -> None:
    """Each tensor on its own, expanded where it is smaller than the result."""
    tensors: Any = node.args[0]
    for taken in list(node.users):
        source, shape = tensors[taken.args[1]], list(taken.meta["val"].shape)
        if list(source.meta["val"].shape) == shape:
            replace(taken, source)
        else:
            taken.target, taken.args = aten.expand.default, (source, shape)
    node.graph.erase_node(node)


def _is_new(node: fx.Node) -> bool:
    return is_op(node, *_NEW)


def _created(node: fx.Node) -> None:
    """No element of the operand is read, so it is no operand."""
    node.target = next(made for packet, made in _NEW.items() if is_op(node, packet))
    value = node.meta["val"]
    filled = node.args[2:] or [node.kwargs[name] for name in ("fill_value",) if name in node.kwargs]
    node.args, node.kwargs = (list(value.shape), *filled), {"dtype": value.dtype}


def _takes_device(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(argument.name == "device" for argument in schema.arguments)


def _portable(node: fx.Node) -> None:
    """Drop devices; say the dtype where it would follow torch's default one."""
    kwargs = {name: value for name, value in node.kwargs.items() if name not in _UNPORTABLE}
    if not node.all_input_nodes:
        node.meta["creates"] = True
        dtype = tensors_of(node.meta["val"])[0].dtype
        if kwargs.get("dtype") is None and (dtype.is_floating_point or dtype.is_complex):
            kwargs["dtype"] = dtype
    node.kwargs = {name: value for name, value in kwargs.items() if value is not None}


_REWRITES: list[tuple[Callable[[fx.Node], bool], Callable[[fx.Node], None]]] = [
    (_is_cast, _cast),
    (_is_sized, _literal_sizes),
    (_is_broadcast, _broadcast),
    (_is_new, _created),
    (_takes_device, _portable),
]
