"""What is said of indexes whose boxes are not each tensor exactly once."""

from __future__ import annotations

import pytest
from layouts import even, index, tensor, whole

from fxpar.checkpoint import proof
from fxpar.checkpoint.index import Index, Indexed, Part

A, B = "a.safetensors", "b.safetensors"


def made(
    files: dict[str, tuple[Part, ...]],
    shape: tuple[int, ...] = (4,),
    dtype: str = "F32",
    **more: dict[str, int],
) -> Index:
    return Index("", "", {}, (A, B), {"x": Indexed(dtype, shape, (), {}, files, **more)})


def part(start: int, size: int, at: int = 0) -> Part:
    return Part((start,), (size,), (at,))


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        (made({A: (part(0, 2),), B: (part(2, 2),)}), []),
        (made({A: (part(0, 4),), B: (part(0, 4),)}), []),
        (made({A: (part(0, 2),)}), ["`x` [4]: no file has the box [2] at [2]"]),
        (
            made({A: (part(0, 3),), B: (part(2, 2),)}),
            ["`x` [4]: [1] at [2] is in different boxes that overlap, in a.safetensors, b.safetensors"],
        ),
        (
            made({A: (part(0, 2), part(0, 2, 2)), B: (part(2, 2),)}),
            ["`x` has the box [2] at [0] twice in a.safetensors"],
        ),
        (
            made({A: (part(3, 2),)}),
            ["`x` [4] has no box [2] at [3], locally at [0], which should be in a.safetensors"],
        ),
        (made({A: (part(0, 4, 2),)}), ["`x` in a.safetensors [6]: its boxes fill [2] at [0] never"]),
        (
            made({A: (part(0, 2), part(2, 2, 1))}),
            ["`x` in a.safetensors [3]: its boxes fill [1] at [1] twice"],
        ),
        (made({A: ()}), ["`x` has no boxes in a.safetensors"]),
        (made({}), ["`x` lies in no file", "`x` [4]: no file has the box [4] at [0]"]),
        (made({A: (part(0, 4),)}, dtype="F7"), ["`x` has the dtype 'F7', which safetensors does not know"]),
        (
            made({A: (Part((0,) * 33, (1,) * 33, (0,) * 33),)}, (1,) * 33),
            ["`x` has the shape " + f"{[1] * 33!r:.80}: at most 32 whole numbers from 0 on are one"],
        ),
        (
            made({A: (part(0, 4),)}, crc32={B: 3}),
            ["`x` has the checksum 3 for b.safetensors, which means nothing"],
        ),
    ],
)
def test_boxes(given: Index, lines: list[str]) -> None:
    assert proof.sound(given) == lines


def test_all_tensors_are_looked_at() -> None:
    broken = index(
        {
            "x": tensor("F32", [even(4, 2)[:1], whole(2)]),
            "y": tensor("F32", [even(6, 3)[1:]]),
            "z": tensor("F32", []),
        }
    )
    assert proof.sound(broken) == ["`y` [6]: no file has the box [2] at [0]"]


def test_tensors_are_the_same() -> None:
    source = index({"x": tensor("F32", [whole(4)]), "state": tensor("F32", [whole(4)])})
    target = index({"x": tensor("F32", [even(4, 2)])})
    assert proof.equal(source, target) == ["`state` is not in the target"]
    assert proof.equal(source, target, ["state"]) == []
