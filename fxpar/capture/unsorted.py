"""Rows that were sorted for a grouped matrix product are put back in the order of the tokens.

    ids_g, perm = sort(ids)                          ids
    x_g = x[perm // k]                               repeat_interleave(x, k)
    offsets = cumsum(histc(ids_g))
    y_g = grouped_mm(x_g, weight, offsets)           y = expert_linear(x, weight, ids)
    z_g = silu(y_g)                                  z = silu(y)
    z_g[inverse of perm]                             z
    sum.index_add(0, perm // k, z_g)                 sum + z.unflatten(0, [-1, k]).sum(1)

Sorting mixes the tokens of all samples; in their own order each stays with its sample and its place in the sequence,
so that both can be split. Whoever uses a sorted value otherwise gets it as before.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import fx

from fxpar.capture import hits
from fxpar.capture.node import aten, emit, is_op
from fxpar.runtime import experts as _experts  # noqa: F401 - registers the operator

EXPERT_LINEAR = torch.ops.fxpar.expert_linear.default
#: Names of grouped products: rows, weights, where the rows of each weight end.
GROUPED = ("aten::_grouped_mm", "transformers::grouped_mm_fallback", "fxpar::grouped_mm")
#: Ops that add rows (index, rows) to what stands first, along dim 0.
ADDED = ("aten::index_add", "aten::scatter_add", "torchtitan::deterministic_scatter_add")
#: Ops along one dim, which must not be that of the rows.
_ALONG = (
    *(aten.chunk, aten.split, aten.split_with_sizes, aten.cat, aten.stack),
    *(aten.slice, aten.select, aten.unsqueeze, aten.squeeze, aten.softmax),
)


@dataclass(frozen=True, eq=False)
class Order:
    """One sort: the ids that were sorted, and how many there are."""

    ids: fx.Node
    length: int


#: A sorted value: its order, and the node that has the same in the order of the tokens.
Sorted: TypeAlias = tuple[Order, fx.Node]


@dataclass
class _Unsorter:
    graph: fx.Graph
    perms: dict[fx.Node, Order] = field(default_factory=dict)
    """Where each sorted row was before."""
    parents: dict[fx.Node, tuple[Order, int]] = field(default_factory=dict)
    """The same, divided by a number of rows for each token."""
    inverses: dict[fx.Node, Order] = field(default_factory=dict)
    counts: dict[fx.Node, tuple[Order, int]] = field(default_factory=dict)
    """How many rows name each of a number of experts."""
    ends: dict[fx.Node, tuple[Order, int]] = field(default_factory=dict)
    rows: dict[fx.Node, Sorted] = field(default_factory=dict)
    """Sorted values, each with the same in the order of the tokens."""

    def run(self) -> None:
        """Replace what leads back to the order of the tokens."""
        for node in list(self.graph.nodes):
            if node.op == "call_function":
                with self.graph.inserting_after(node):
                    _ = self._learns(node) or self._rows(node)

    def _learns(self, node: fx.Node) -> bool:
        """Whether a node is one of those that sort, count, or say where sorted rows were."""
        return self._sorts(node) or self._positions(node) or self._counts(node)

    def _sorts(self, node: fx.Node) -> bool:
        source = _first(node)
        if is_op(node, aten.argsort) and source in self.perms:
            self.inverses[node] = self.perms[source]
            return True
        if not is_op(node, aten.sort, aten.argsort) or source.meta["val"].dim() != 1 or _descends(node):
            return False
        order = Order(source, source.meta["val"].shape[0])
        if is_op(node, aten.argsort):
            self.perms[node] = order
        for user in node.users if is_op(node, aten.sort) else ():
            if user.args[1] == 0:
                self.rows[user] = (order, source)
            else:
                self.perms[user] = order
        return True

    def _positions(self, node: fx.Node) -> bool:
        """perm // k, and the inverse: a tensor with arange put at perm."""
        args: tuple[Any, ...] = node.args
        if is_op(node, aten.floor_divide) and args[0] in self.perms and isinstance(args[1], int):
            self.parents[node] = (self.perms[args[0]], args[1])
            return True
        if (
            is_op(node, aten.index_put)
            and len(args[1]) == 1
            and args[1][0] in self.perms
            and not any(args[3:])
        ):
            order = self.perms[args[1][0]]
            counts = is_op(args[2], aten.arange) and args[2].args == (order.length,)
            if counts and node.meta["val"].shape == (order.length,):
                self.inverses[node] = order
                return True
        return False

    def _counts(self, node: fx.Node) -> bool:
        """The histogram of the ids by unit bins, and its running sum."""
        source = _first(node)
        if is_op(node, aten.histc) and source in self.rows:
            order, ids = self.rows[source]
            bins, low, high = arguments(node, "bins", "min", "max")
            if _is_of(ids, order.ids) and low == 0 and high == bins - 1:
                self.counts[node] = (order, bins)
        elif is_op(node, aten.to, aten._to_copy):
            for known in (self.counts, self.ends):
                known.update({node: known[source]} if source in known else {})
        elif is_op(node, aten.cumsum) and source in self.counts:
            self.ends[node] = self.counts[source]
        return node in self.counts or node in self.ends

    def _rows(self, node: fx.Node) -> bool:
        """A sorted value is made in the order of the tokens as well; one that is put back is replaced."""
        if self._added(node):
            return True
        made = self._looked_up(node) or self._grouped(node) or self._each_row(node)
        if made is not None:
            self.rows[node] = made
        return made is not None

    def _looked_up(self, node: fx.Node) -> Sorted | None:
        args: tuple[Any, ...] = node.args
        if not is_op(node, aten.index) or len(args[1]) != 1:
            return None
        source, (ids,) = args
        if source in self.rows:
            order, unsorted = self.rows[source]
            if self.inverses.get(ids) is order:
                node.replace_all_uses_with(unsorted)
            return None
        length = source.meta["val"].shape[0]
        if ids in self.perms:
            order, times = self.perms[ids], 1
        elif ids in self.parents:
            order, times = self.parents[ids]
        elif ids in self.rows:
            order, unsorted = self.rows[ids]
            return order, emit(self.graph, aten.index.Tensor, (source, [unsorted]), like=node)
        else:
            return None
        if length * times != order.length:
            return None
        if times == 1:
            return order, source
        return order, emit(self.graph, aten.repeat_interleave.self_int, (source, times, 0), like=node)

    def _grouped(self, node: fx.Node) -> Sorted | None:
        if not _is_grouped(node) or not set(node.kwargs) <= {"offs"} or any(node.args[3:]):
            return None
        given: tuple[Any, ...] = (*node.args[:3], *node.kwargs.values())
        if len(given) < 3 or given[0] not in self.rows:
            return None
        (order, unsorted), weight = self.rows[given[0]], given[1]
        if weight.meta["val"].dim() != 3 or not self._ends_at(given[2], order, weight.meta["val"].shape[0]):
            return None
        return order, emit(self.graph, EXPERT_LINEAR, (unsorted, weight, order.ids), like=node)

    def _ends_at(self, ends: fx.Node, order: Order, experts: int) -> bool:
        """Whether a value says where the sorted rows of each expert end."""
        if ends in self.ends:
            counted, number = self.ends[ends]
            return counted is order and number == experts
        ends = _uncast(ends)
        return is_op(ends, aten.cumsum) and hits.counts(_first(ends), order.ids, experts)

    def _added(self, node: fx.Node) -> bool:
        """Sorted rows that are added up where they were before: those of a token stand side by side."""
        if _name(node) not in ADDED:
            return False
        base, index, rows = _added_rows(node)
        places = hits.rows_of(index)
        if rows not in self.rows or places not in self.parents | {n: (o, 1) for n, o in self.perms.items()}:
            return False
        order, unsorted = self.rows[rows]
        known, times = self.parents[places] if places in self.parents else (self.perms[places], 1)
        shape = base.meta["val"].shape
        value = rows.meta["val"]
        if known is not order or shape[0] * times != order.length or shape[1:] != value.shape[1:]:
            return False
        if base.meta["val"].dtype != value.dtype:
            return False
        with self.graph.inserting_before(node):
            apart = emit(
                self.graph, aten.reshape.default, (unsorted, [shape[0], times, *shape[1:]]), like=node
            )
            made = emit(self.graph, aten.sum.dim_IntList, (apart, [1]), like=node)
            if not is_op(base, aten.zeros, aten.zeros_like, aten.new_zeros):
                made = emit(self.graph, aten.add.Tensor, (base, made), like=node)
            node.replace_all_uses_with(made)
        return True

    def _each_row(self, node: fx.Node) -> Sorted | None:
        """An op that does the same to each row, of sorted values of one order and of what has no rows."""
        sources = [n for n in node.all_input_nodes if n in self.rows]
        orders = {id(self.rows[n][0]) for n in sources}
        if len(orders) != 1 or not _by_row(node, sources):
            return None
        order = self.rows[sources[0]][0]
        if any(_has_rows(n, node) for n in node.all_input_nodes if n not in self.rows):
            return None

        def unsorted(n: fx.Node) -> fx.Node:
            return self.rows[n][1] if n in self.rows else n

        args, kwargs = fx.map_arg((node.args, node.kwargs), unsorted)
        return order, emit(self.graph, node.target, args, kwargs, like=node)


def unsort(graph: fx.Graph) -> None:
    """Rewrite the graph in place as drawn above; what is not used any more is left to be dropped."""
    if any(_is_grouped(node) for node in graph.nodes):
        _Unsorter(graph).run()


def _is_grouped(node: fx.Node) -> bool:
    return _name(node) in GROUPED


def _name(node: fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return schema.name if schema is not None else ""


def _added_rows(node: fx.Node) -> tuple[fx.Node, fx.Node | None, fx.Node | None]:
    """What rows are added to, where, and the rows; none where it is not along dim 0 or scaled."""
    given: dict[str, Any] = dict(zip(("self", "dim", "index", "source"), node.args)) | node.kwargs
    if len(node.args) == 3 and not node.kwargs:
        given = dict(zip(("self", "index", "source"), node.args)) | {"dim": 0}
    plain = given.get("dim") == 0 and given.get("alpha", 1) == 1
    source = given.get("source", given.get("src"))
    return given["self"], *((given.get("index"), source) if plain else (None, None))


def _first(node: fx.Node) -> Any:
    return node.args[0] if node.args else None


def arguments(node: fx.Node, *names: str) -> list[Any]:
    """Arguments of an op call by name, defaults filled in."""
    schema: Any = node.target._schema  # type: ignore[union-attr]
    given = {a.name: a.default_value for a in schema.arguments}
    given |= dict(zip(given, node.args)) | node.kwargs
    return [given.get(name) for name in names]


def _descends(node: fx.Node) -> bool:
    return bool(arguments(node, "descending")[0])


def _is_of(node: fx.Node, ids: fx.Node) -> bool:
    """Whether a value is the ids, cast at most."""
    return node is ids or _uncast(node) is _uncast(ids)


def _uncast(node: fx.Node) -> fx.Node:
    while is_op(node, aten.to, aten._to_copy):
        node = node.args[0]  # type: ignore[assignment]
    return node


def _by_row(node: fx.Node, sources: list[fx.Node]) -> bool:
    """Whether an op keeps the rows, which are dim 0 of its operands and of what it makes, apart."""
    if node.target is operator.getitem:
        return True
    shapes = {n.meta["val"].shape[0] for n in sources if isinstance(n.meta["val"], torch.Tensor)}
    value = node.meta["val"]
    outs = value if isinstance(value, (list, tuple)) else [value]
    if any(out.dim() == 0 or {out.shape[0]} != shapes for out in outs):
        return False
    tags = getattr(node.target, "tags", ())
    if torch.Tag.nondeterministic_seeded in tags:
        return False
    if is_op(node, aten.reshape, aten.view, aten._unsafe_view):
        return True
    ranks = {n.meta["val"].dim() for n in sources}
    if torch.Tag.pointwise in tags or is_op(node, aten.to, aten.clone, aten.contiguous):
        return ranks == {outs[0].dim()}
    if not is_op(node, *_ALONG):
        return False
    (dim,) = arguments(node, "dim")
    return isinstance(dim, int) and dim % (min(ranks) + is_op(node, aten.unsqueeze)) != 0


def _has_rows(operand: fx.Node, node: fx.Node) -> bool:
    """Whether another operand of an op has something for each row."""
    value, made = operand.meta["val"], node.meta["val"]
    if not isinstance(value, torch.Tensor) or not isinstance(made, torch.Tensor):
        return True
    return value.dim() >= made.dim() and value.shape[0] != 1
