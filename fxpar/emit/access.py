"""Tensors and modules by dotted name, as Python text."""

from __future__ import annotations

import keyword


def access(base: str, name: str) -> str:
    """Return how `name` of `base` is reached: `self.model.layers[0].mlp.up_proj.weight`."""
    text = base
    for part in name.split(".") if name else []:
        if part.isdecimal() and str(int(part)) == part:
            text = f"{text}[{part}]" if text != base else f'getattr({text}, "{part}")'
        elif part.isidentifier() and not keyword.iskeyword(part):
            text = f"{text}.{part}"
        else:
            text = f'getattr({text}, "{part}")'
    return text
