"""Attention that is written out is seen as attention, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxpar.axes import composite, infer, naming, oprule
from fxpar.axes.factor import text
from fxpar.capture.capture import capture
from fxpar.errors import RuleError

SHIPPED = Path(__file__).parents[2] / "rules"
OPS, NAMES, COMPOSITES = oprule.load([SHIPPED]), naming.load([SHIPPED]), composite.load([SHIPPED])
BATCH, LENGTH, WIDTH, HEADS, DEPTH = 2, 6, 32, 8, 4
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As it is written most often."""
    return (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """With masks of several kinds, a cast and dropout between the products."""
    later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    scores = (q @ k.mT * DEPTH**-0.5).masked_fill(later, float("-inf")) + torch.zeros(LENGTH)
    chances = F.softmax(torch.where(later, -1e9, scores), dim=-1, dtype=torch.float64).to(q.dtype)
    return torch.matmul(F.dropout(chances, 0.1), v)


def soft_capped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """With scores that are bounded."""
    return (torch.tanh(q @ k.mT / 50) * 50).softmax(-1) @ v


def merged(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Batch and heads are one dim for the products, and two for the mask."""
    q, k, v = (t.reshape(BATCH * HEADS, LENGTH, DEPTH) for t in (q, k, v))
    slopes = torch.arange(HEADS, dtype=q.dtype)[:, None, None] * torch.arange(LENGTH)
    scores = torch.baddbmm(slopes.repeat(BATCH, 1, 1), q, k.transpose(1, 2), beta=0.5, alpha=0.5)
    scores = scores.view(BATCH, HEADS, LENGTH, LENGTH) + torch.zeros(LENGTH, LENGTH)
    chances = scores.softmax(-1).view(BATCH * HEADS, LENGTH, LENGTH)
    return torch.bmm(chances, v).view(BATCH, HEADS, LENGTH, DEPTH)


def einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By letters."""
    return torch.einsum("bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1), v)


def from_the_right(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The values stand first in their product."""
    return (v.mT @ (q @ k.mT).softmax(-1).mT).mT


def mixed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Products of two kinds, with a dim that is there for a moment."""
    return torch.einsum("bhqk,bhkd->bhqd", (q @ k.mT)[:, None].softmax(-1)[:, 0], v)


class Layer(nn.Module):
    """Attention as a function of queries, keys and values."""

    def __init__(self, attend: Attend, groups: int = HEADS) -> None:
        super().__init__()
        self.attend, self.groups, self.norm = attend, groups, nn.LayerNorm(WIDTH)
        self.q, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, groups * DEPTH), nn.Linear(WIDTH, groups * DEPTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(self.norm(x)).view(BATCH, LENGTH, -1, DEPTH).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        k, v = (t.repeat_interleave(HEADS // self.groups, 1) for t in (k, v))
        return x + self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))


class Apply(nn.Module):
    """A function of an activation and two weights."""

    def __init__(self, body: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.norm = body, nn.LayerNorm(WIDTH)
        self.one, self.two = nn.Parameter(torch.randn(WIDTH, 5)), nn.Parameter(torch.randn(5, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.norm(x), self.one, self.two)


def named(model: nn.Module) -> tuple[naming.Naming, dict[str, str]]:
    """What was named, and the words of every input and parameter."""
    program = capture(model, (torch.randn(BATCH, LENGTH, WIDTH),))
    found = infer.infer(program.graph, OPS)
    nodes = program.graph.find_nodes(op="placeholder")
    inputs: list[fx.Node] = [node for node in nodes if node.meta["kind"] == "input"]
    names = naming.name(found, inputs, NAMES, COMPOSITES)
    words = {n.meta["name"]: " ".join(text(dim, names.word) for dim in found.of(n)) for n in nodes}
    return names, words


@pytest.mark.parametrize("attend", [matmul, masked, soft_capped, merged, einsum, mixed, from_the_right])
def test_attention_that_is_written_out(attend: Attend) -> None:
    _, words = named(Layer(attend))
    assert words["x"] == "batch sequence hidden"
    for name in ("q", "k", "v"):
        assert words[f"{name}.weight"] == "(heads depth) hidden"
    assert words["out.weight"] == "hidden (heads depth)"


@pytest.mark.parametrize("attend", [matmul, masked, merged, einsum])
def test_with_fewer_heads_of_keys(attend: Attend) -> None:
    _, words = named(Layer(attend, groups=2))
    assert words["q.weight"] == words["out.weight"][7:] + " hidden" == "(heads groups depth) hidden"
    assert words["k.weight"] == words["v.weight"] == "(heads depth) hidden"


class OneKey(nn.Module):
    """Many queries to each head of keys, which is broadcast or not even a dim."""

    def __init__(self, attend: Attend, keys: int) -> None:
        super().__init__()
        self.attend, self.keys = attend, keys
        self.q, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, keys * DEPTH), nn.Linear(WIDTH, keys * DEPTH)

    def forward(self, x: Tensor) -> Tensor:
        """Queries are [batch, keys, queries of each, length, depth]."""
        q = self.q(x).view(BATCH, LENGTH, self.keys, -1, DEPTH).permute(0, 2, 3, 1, 4)
        k, v = (f(x).view(BATCH, LENGTH, self.keys, DEPTH).transpose(1, 2) for f in (self.k, self.v))
        return x + self.out(self.attend(q, k, v).permute(0, 3, 1, 2, 4).reshape(BATCH, LENGTH, WIDTH))


def broadcast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The head of keys has one query."""
    return (q @ k[:, :, None].mT).softmax(-1) @ v[:, :, None]


def by_letters(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys have no dim for the queries of a head."""
    return torch.einsum("bgrqk,bgkd->bgrqd", torch.einsum("bgrqd,bgkd->bgrqk", q, k).softmax(-1), v)


@pytest.mark.parametrize("attend", [broadcast, by_letters])
def test_queries_that_share_keys(attend: Attend) -> None:
    _, words = named(OneKey(attend, keys=2))
    assert words["x"] == "batch sequence 32"
    assert words["q.weight"] == "(heads groups depth) 32"
    assert words["k.weight"] == words["v.weight"] == "(heads depth) 32"
    _, words = named(OneKey(attend, keys=1))
    assert words["q.weight"] == "(heads depth) 32"
    assert words["k.weight"] == words["v.weight"] == "depth 32"


def alternating(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The first of two queries to all heads of keys, then the second to all of them."""
    q = q.transpose(1, 2).reshape(BATCH, HEADS, LENGTH, DEPTH)
    k, v = (t[:, None].expand(-1, HEADS // t.shape[1], -1, -1, -1).flatten(1, 2) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v).view(BATCH, -1, 2, LENGTH, DEPTH).transpose(1, 2)


def test_the_leading_factor_is_not_one_of_repeats() -> None:
    _, words = named(OneKey(alternating, keys=2))
    assert words["k.weight"] == words["v.weight"] == "(heads depth) 32"
    assert words["q.weight"] == "(heads groups depth) 32"


@pytest.mark.parametrize("attend", [matmul, einsum, merged, from_the_right])
def test_the_same_names_as_of_the_op(attend: Attend) -> None:
    _, plain = named(Layer(F.scaled_dot_product_attention))
    assert named(Layer(attend))[1] == plain


OTHERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "a softmax that is the end": lambda x, one, _: (x @ one).softmax(-1),
    "no product before": lambda x, one, two: x.softmax(-1) @ one @ two,
    "no product behind": lambda x, one, two: ((x @ one).softmax(-1).sum(-1, keepdim=True) * x) @ one @ two,
    "another op between": lambda x, one, two: (x @ one).cumsum(-1).softmax(-1) @ two,
    "a router": lambda x, one, two: (x @ one).softmax(-1) @ two,
    "a router by letters": lambda x, one, two: torch.einsum(
        "bse,eh->bsh", torch.einsum("he,bsh->bse", one, x).softmax(-1), two
    ),
    "a router that weighs": lambda x, one, _: torch.einsum("bse,bsf->bsef", (x @ one).softmax(-1), x),
    "one operand": lambda x, *_: torch.einsum("bsh->bhs", x).softmax(-1) @ x,
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_attention(name: str) -> None:
    names, words = named(Apply(OTHERS[name]))
    assert not [label for seen in names.sightings.values() for label in seen if label.startswith("attention")]
    assert words["x"].startswith("batch 6 ")


def test_learned_queries() -> None:
    """The queries may be a weight; the keys are what is looked at."""
    names, words = named(Apply(lambda x, _, two: (two @ x.mT).softmax(-1) @ x))
    assert words["two"].startswith("sequence ")
    assert {label for seen in names.sightings.values() for label in seen if "key" in label} == {
        "attention.key",
        "attention.key.major",
    }


def test_where_it_is_seen() -> None:
    """All of it at the first product."""
    names, _ = named(Layer(matmul))
    seen = {label: str(node.target) for s in names.sightings.values() for label, node in s.items()}
    labels = [label for label in seen if label.startswith("attention.")]
    assert sorted(label for label in labels if not label.endswith("major")) == [
        "attention.depth",
        "attention.heads",
        "attention.key",
        "attention.query",
    ]
    assert {seen[label] for label in labels} == {"aten.matmul.default"}


RULE = "- composite: x\n  product: aten.mm.default\n  middle: [aten.relu.default]\n  seen: {rows: a.b}\n"


def load(folder: Path, text: str) -> list[composite.Composite]:
    (folder / "mine/composites").mkdir(parents=True)
    (folder / "mine/composites/x.yaml").write_text(text)
    return composite.load([folder / "mine"])


def test_a_rule(tmp_path: Path) -> None:
    (rule,) = load(tmp_path, RULE)
    assert (rule.name, rule.product, rule.middle) == ("x", {"aten.mm.default"}, {"aten.relu.default"})
    assert rule.seen == {"rows": "a.b"}
    assert (rule.place.file, rule.place.line, rule.place.column) == ("mine/composites/x.yaml", 1, 14)


def test_folders_without_composites(tmp_path: Path) -> None:
    assert composite.load([tmp_path]) == []


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        (
            RULE.replace("product", "prodct"),
            "mine/composites/x.yaml:2:3: unknown key `prodct`\n  2 |   prodct: aten.mm.default\n    |   ^\n"
            "  did you mean `product`?\n  allowed: composite, middle, product, seen",
        ),
        (
            RULE.replace("rows", "row"),
            "mine/composites/x.yaml:4:10: unknown key `row`\n  4 |   seen: {row: a.b}\n    |          ^\n"
            "  did you mean `rows`?\n  allowed: columns, inner, lead, rows, values",
        ),
        (
            "- composite: x\n  product: aten.mm.default\n  seen: {rows: a.b}\n",
            "mine/composites/x.yaml:1:3: key `middle` is missing\n  1 | - composite: x\n    |   ^",
        ),
        (
            RULE.replace("{rows: a.b}", "rows"),
            "mine/composites/x.yaml:4:9: wants a mapping, has the text `rows`\n  4 |   seen: rows\n    |         ^",
        ),
        (
            "composite: x\n",
            "mine/composites/x.yaml:1:1: wants a list, has a mapping\n  1 | composite: x\n    | ^",
        ),
    ],
)
def test_wrong_rules(tmp_path: Path, entry: str, wanted: str) -> None:
    with pytest.raises(RuleError) as error:
        load(tmp_path, entry)
    assert str(error.value) == wanted
