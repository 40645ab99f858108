"""A backward run in two halves: the gradients of what a stage received, which others wait for, then the parameters'.

    ends -> N1 -> N2 -> received       first half: along this path, keeping what arrives at N1 and N2
             |     |
             w1    w2                  second half: from N1 to w1, from N2 to w2, each by itself

Zero-bubble schedules (Qi et al., arXiv:2401.10241) put the second half where a rank would wait. torch's own halves
(torch 2.13) are wrong where a parameter comes into the path at several nodes, as a position bias that several layers
add: what arrives at one of them is counted again at the others. Here such parameters get their gradients in the first
half.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge


@dataclass
class _Site:
    """A node of the path with parameters that come into it there alone, and what has arrived at it."""

    node: Node
    parameters: list[torch.Tensor] = field(default_factory=list)
    arrived: Sequence[torch.Tensor | None] = ()

    def arrive(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Keep the gradients of the node's outputs."""
        self.arrived = tuple(gradients)

    def run(self) -> None:
        """Add up the gradients of the parameters."""
        pairs = [
            (GradientEdge(self.node, number), gradient)
            for number, gradient in enumerate(self.arrived)
            if gradient is not None
        ]
        if pairs:
            edges, arrived = zip(*pairs)
            torch.autograd.backward(edges, arrived, inputs=self.parameters)


class Half:
    """What the first half leaves to the second."""

    def __init__(self, sites: Iterable[_Site]) -> None:
        self._sites = list(sites)

    def run(self) -> None:
        """Do the second half: add up the gradients of the parameters. Only once."""
        while self._sites:
            self._sites.pop(0).run()


@dataclass
class _Graph:
    """The autograd graph below some tensors: which nodes lead to a node, and by how many edges each is reached."""

    above: dict[Node, list[Node]]

    @classmethod
    def of(cls, roots: Iterable[Node]) -> _Graph:
        above: dict[Node, list[Node]] = {root: [] for root in roots}
        waiting = list(above)
        while waiting:
            node = waiting.pop()
            for child, _ in node.next_functions:
                if child is not None:
                    if child not in above:
                        above[child] = []
                        waiting.append(child)
                    above[child].append(node)
        return cls(above)

    def leading_to(self, leaves: Iterable[Node]) -> set[Node]:
        """All nodes from which one of the leaves is reached."""
        found = {leaf for leaf in leaves if leaf in self.above}
        waiting = list(found)
        while waiting:
            for parent in self.above[waiting.pop()]:
                if parent not in found:
                    found.add(parent)
                    waiting.append(parent)
        return found

    def site(self, leaf: Node, path: set[Node]) -> Node | None:
        """The only node of the path at which a leaf comes into it; None if there are several, or there is none."""
        node = leaf
        while node not in path:
            parents = self.above[node]
            if len(parents) != 1:
                return None
            (node,) = parents
        return node


def backward_input(
    ends: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor] | None,
    received: Sequence[torch.Tensor],
    parameters: Iterable[torch.Tensor],
) -> tuple[tuple[torch.Tensor | None, ...], Half]:
    """Do the first half: return the gradients of `received` (None for those that have none), and the second half.

    `gradients` are those of `ends`, None for a loss. Parameters that come into the path at several nodes, or not at
    all, get their gradients here.
    """
    if not ends:
        return (None,) * len(received), Half(())
    nodes = {id(tensor): get_gradient_edge(tensor).node for tensor in (*ends, *_learning(received))}
    graph = _Graph.of(dict.fromkeys(nodes[id(end)] for end in ends))
    path = graph.leading_to(nodes[id(tensor)] for tensor in _learning(received))
    sites: dict[Node, _Site] = {}
    early: list[torch.Tensor] = []
    for parameter in _learning(parameters):
        leaf = get_gradient_edge(parameter).node
        if leaf not in graph.above:
            continue
        site = graph.site(leaf, path)
        if site is None:
            early.append(parameter)
        else:
            sites.setdefault(site, _Site(site)).parameters.append(parameter)
    handles = [site.node.register_prehook(site.arrive) for site in sites.values()]
    try:
        torch.autograd.backward(ends, gradients, retain_graph=True, inputs=[*_learning(received), *early])
    finally:
        for handle in handles:
            handle.remove()
    return tuple(_taken(tensor) for tensor in received), Half(sites.values())


def _taken(tensor: torch.Tensor) -> torch.Tensor | None:
    """The gradient of a received value, which may be received into again."""
    gradient, tensor.grad = tensor.grad, None
    return gradient


def _learning(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor for tensor in tensors if tensor.requires_grad]
