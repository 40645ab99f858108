from __future__ import annotations

import pytest
import torch
from graphs import sample

from fxpar import yamlfile
from fxpar.axes.sample import overload, read
from fxpar.errors import RuleError


def test_arguments() -> None:
    call = sample("aten.addmm.default", "f[10], f[4,6], f[6,10], beta=0.5")
    assert [tuple(t.shape) for t in call.tensors.values()] == [(10,), (4, 6), (6, 10)]
    assert call.call.kwargs == {"beta": 0.5}
    assert call.call.args == tuple(call.tensors)
    assert tuple(call.call.meta["val"].shape) == (4, 10)
    assert [node.meta["kind"] for node in call.tensors] == ["input", "parameter", "parameter"]


def test_literals() -> None:
    call = sample("aten.upsample_nearest2d.vec", "f[1,2,3,3], null, [2.0, 2.0]")
    assert call.call.args[1:] == (None, [2.0, 2.0])
    assert sample("aten.to.dtype", "f[2], torch.float32, false").call.args[1:] == (torch.float32, False)


def test_lists_of_tensors() -> None:
    call = sample("aten.cat.default", "[f[2,3], f[2,4]], dim=-1")
    assert call.call.args == (list(call.tensors),)


@pytest.mark.parametrize(
    ("kind", "dtype", "differentiable"),
    [
        ("f[2,3]", torch.float64, True),
        ("u[2,3]", torch.float64, True),
        ("c[2,3]", torch.complex128, True),
        ("n[2,3]", torch.float64, False),
        ("b[2,3]", torch.bool, False),
        ("i[2,3]<4", torch.int64, False),
        ("p[2,3]<4", torch.int64, False),
    ],
)
def test_kinds(kind: str, dtype: torch.dtype, differentiable: bool) -> None:
    (tensor,) = sample("aten.clone.default", kind).tensors.values()
    assert (tensor.dtype, tuple(tensor.shape), tensor.requires_grad) == (dtype, (2, 3), differentiable)


def test_no_number_twice_in_a_row() -> None:
    (tensor,) = sample("aten.clone.default", "p[20,3]<4").tensors.values()
    assert all(len(set(row.tolist())) == 3 for row in tensor)
    assert (int(tensor.min()), int(tensor.max())) == (0, 3)


def test_a_tensor_without_dims() -> None:
    assert next(iter(sample("aten.neg.default", "f[()]").tensors.values())).shape == ()


def test_the_numbers_are_always_the_same() -> None:
    first, second = (next(iter(sample("aten.neg.default", "f[4]").tensors.values())) for _ in range(2))
    assert torch.equal(first, second)


def test_samples_of_another_op() -> None:
    (entry,) = yamlfile.parse('- "aten.neg.default(f[4])"', "x.yaml", RuleError).list()
    assert read(entry, "aten.abs.default") is None
    assert read(entry, "aten.neg.default") is not None


@pytest.mark.parametrize(
    ("op", "text", "wanted"),
    [
        (
            "aten.add.Tensor",
            "f[2,3], z[3]",
            'x.yaml:1:12: cannot read `z[3]`\n  1 | - "f[2,3], z[3]"\n    |            ^\n'
            "  tensors are f[...], u[...], n[...], c[...], b[...], i[...], p[...]",
        ),
        (
            "aten.add.Tensor",
            "f[2,3], f[x]",
            'x.yaml:1:12: cannot read `f[x]`\n  1 | - "f[2,3], f[x]"\n    |            ^\n'
            "  tensors are f[...], u[...], n[...], c[...], b[...], i[...], p[...]",
        ),
        (
            "aten.add.Tensor",
            "f[2], maybe",
            'x.yaml:1:10: cannot read `maybe`\n  1 | - "f[2], maybe"\n    |          ^\n'
            "  tensors are f[...], u[...], n[...], c[...], b[...], i[...], p[...]",
        ),
        (
            "aten.add.Tensor",
            "f[2,3], f[4]",
            "x.yaml:1:3: torch refuses this call of `aten.add.Tensor`\n"
            '  1 | - "f[2,3], f[4]"\n    |   ^\n'
            "  The size of tensor a (3) must match the size of tensor b (4) at non-singleton dimension 1",
        ),
        (
            "aten.ad.Tensor",
            "f[2]",
            'x.yaml:1:3: torch has no op `aten.ad.Tensor`\n  1 | - "f[2]"\n    |   ^',
        ),
        (
            "aten.add.Tensor",
            "**f",
            'x.yaml:1:3: cannot be read: not the arguments of a call\n  1 | - "**f"\n    |   ^',
        ),
    ],
)
def test_wrong_samples(op: str, text: str, wanted: str) -> None:
    with pytest.raises(RuleError) as error:
        sample(op, text)
    assert str(error.value) == wanted


def test_where_a_text_breaks_off() -> None:
    with pytest.raises(RuleError) as error:
        sample("aten.add.Tensor", "f[2,3], f[4")
    assert str(error.value).startswith("x.yaml:1:")
    assert "cannot be read: " in str(error.value)


@pytest.mark.parametrize("op", ["aten.add", "aten", "nothing.at.all", "aten.add.Nothing"])
def test_no_such_op(op: str) -> None:
    assert overload(op) is None
