from __future__ import annotations

from pathlib import Path

import pytest
import torch
from graphs import Graph, aten

from fxpar.axes import naming
from fxpar.axes.factor import text
from fxpar.errors import RuleError

SHIPPED = Path(__file__).parents[2] / "rules"


def rules(path: Path, text: str) -> list[naming.NamingRule]:
    path.mkdir()
    (path / "axes.yaml").write_text(text)
    return naming.load([path])


def words(graph: Graph, *nodes: torch.fx.Node) -> list[str]:
    found = graph.infer()
    inputs = [node for node in nodes if node.meta["kind"] == "input" and node.op == "placeholder"]
    names = naming.name(found, inputs[:1], naming.load([SHIPPED]))
    return [" ".join(text(dim, names.word) for dim in found.of(node)) for node in nodes]


def test_a_feed_forward_block_between_norms() -> None:
    graph = Graph()
    x, up, down = (graph.input(torch.randn(size)) for size in ((4, 6, 8), (32, 8), (8, 32)))
    normed = graph.call(aten.layer_norm.default, x, [8])
    inner = graph.call(aten.gelu.default, graph.call(aten.linear.default, normed, up))
    graph.call(aten.add.Tensor, x, graph.call(aten.linear.default, inner, down))
    assert words(graph, x, up, down) == ["batch 6 hidden", "ffn hidden", "hidden ffn"]


def test_the_rank_of_two_weights_is_no_axis() -> None:
    """Hu et al. 2021, LoRA: nothing stands between the two, save a scale and dropout."""
    graph = Graph()
    x, down, up, scale = (graph.input(torch.randn(size)) for size in ((4, 6, 8), (2, 8), (8, 2), ()))
    inner = graph.call(aten.linear.default, graph.call(aten.layer_norm.default, x, [8]), down)
    inner = graph.call(aten.mul.Tensor, graph.call(aten.dropout.default, inner, 0.5, True), scale)
    graph.call(aten.add.Tensor, x, graph.call(aten.linear.default, inner, up))
    assert words(graph, x, down, up) == ["batch 6 hidden", "2 hidden", "hidden 2"]


def test_a_gate_makes_inner_features() -> None:
    graph = Graph()
    x, up, gate, down = (graph.input(torch.randn(size)) for size in ((4, 6, 8), (32, 8), (32, 8), (8, 32)))
    normed = graph.call(aten.layer_norm.default, x, [8])
    inner = [graph.call(aten.linear.default, normed, weight) for weight in (up, gate)]
    graph.call(aten.add.Tensor, x, graph.call(aten.linear.default, graph.call(aten.mul.Tensor, *inner), down))
    assert words(graph, x, up, gate, down) == ["batch 6 hidden", "ffn hidden", "ffn hidden", "hidden ffn"]


def test_attention_with_fewer_key_heads() -> None:
    graph = Graph()
    q, k, v = (graph.input(torch.randn(2, heads, 6, 4)) for heads in (8, 4, 4))
    graph.call(aten.scaled_dot_product_attention.default, q, k, v, enable_gqa=True)
    assert words(graph, q, k, v) == [
        "batch (heads groups) sequence depth",
        "batch heads 6 depth",
        "batch heads 6 depth",
    ]


def test_a_vocabulary_and_a_small_table() -> None:
    graph = Graph()
    ids = graph.input(torch.randint(0, 4, (4, 6)))
    large, small = graph.input(torch.randn(64, 8)), graph.input(torch.randn(4, 8))
    first = graph.call(aten.embedding.default, large, ids)
    graph.call(aten.add.Tensor, first, graph.call(aten.embedding.default, small, ids))
    assert words(graph, ids, large, small) == ["batch 6", "vocab hidden", "4 hidden"]


def head(
    rows: int, ids: torch.Tensor | None, *, softmax: str = "softmax", learned: bool = False
) -> list[str]:
    """The weight of a head whose softmax is looked up by integers."""
    graph = Graph()
    x, weight = graph.input(torch.randn(2, 6, 8)), graph.input(torch.randn(rows, 8))
    weight.meta["kind"] = "parameter"
    y = graph.call(aten.linear.default, x, weight)
    p = graph.call(getattr(aten, softmax).int, y, -1)
    if learned:
        graph.call(aten.gather.default, p, -1, graph.call(aten.argsort.default, y))
    elif ids is not None:
        graph.call(aten.gather.default, p, -1, graph.input(ids))
    return words(graph, x, weight)[1:]


def test_classes_that_labels_choose_among() -> None:
    labels = torch.randint(0, 32, (2, 6, 1))
    assert head(40, labels) == ["vocab 8"]
    assert head(40, None, softmax="log_softmax") == ["vocab 8"]
    assert head(31, labels, softmax="log_softmax") == ["31 8"]


def test_what_the_model_chooses_itself_is_no_vocabulary() -> None:
    """A router: the probabilities of experts, of which the best are taken."""
    assert head(40, None) == ["40 8"]
    assert head(40, None, learned=True) == ["40 8"]


def test_a_table_of_positions_is_no_vocabulary() -> None:
    graph = Graph()
    x, table = graph.input(torch.randn(4, 6, 8)), graph.input(torch.randn(64, 8))
    places = graph.call(aten.arange.default, 6)
    graph.call(aten.add.Tensor, x, graph.call(aten.embedding.default, table, places))
    assert words(graph, x, table) == ["batch 6 hidden", "positions hidden"]


def test_rules_of_later_folders_are_asked_first(tmp_path: Path) -> None:
    first = tmp_path / "one"
    second = tmp_path / "two"
    rules(first, "- axis: a\n  seen: x\n")
    rules(second, "- axis: b\n  seen: x\n")
    assert [rule.axis for rule in naming.load([first, second])] == ["b", "a"]


@pytest.mark.parametrize(
    ("rule", "seen", "size", "wanted"),
    [
        ("seen: [a.*, b.x]", ["a.y", "b.x"], 4, True),
        ("seen: [a.*, b.x]", ["a.y"], 4, False),
        ("any: [a.*, b.x]", ["a.y"], 4, True),
        ("any: [a.*, b.x]", ["c"], 4, False),
        ("{seen: a, unseen: [b.*]}", ["a", "b.x"], 4, False),
        ("{seen: a, at_least: 8}", ["a"], 4, False),
        ("{seen: a, at_least: 8}", ["a"], 8, True),
    ],
)
def test_conditions(tmp_path: Path, rule: str, seen: list[str], size: int, wanted: bool) -> None:
    body = rule.strip("{}").replace(", un", "\n  un").replace(", at", "\n  at")
    (found,) = rules(tmp_path / "mine", f"- axis: x\n  {body}\n")
    assert found.matches(size, seen) is wanted


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ("- axis: x\n", "mine/axes.yaml:1:3: an axis needs `seen` or `any`\n  1 | - axis: x\n    |   ^"),
        ("- seen: x\n", "mine/axes.yaml:1:3: key `axis` is missing\n  1 | - seen: x\n    |   ^"),
        (
            "- axis: x\n  sen: y\n",
            "mine/axes.yaml:2:3: unknown key `sen`\n  2 |   sen: y\n    |   ^\n"
            "  did you mean `seen`?\n  allowed: any, at_least, axis, extends, seen, unseen",
        ),
    ],
)
def test_wrong_rules(tmp_path: Path, entry: str, wanted: str) -> None:
    with pytest.raises(RuleError) as error:
        rules(tmp_path / "mine", entry)
    assert str(error.value) == wanted
