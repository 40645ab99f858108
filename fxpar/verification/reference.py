"""What the whole model gives: loss, gradients, their norm, outputs, and its tensors after one step of AdamW."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxpar.again import precision
from fxpar.capture.arguments import arguments
from fxpar.checkpoint.weights import FileWeights, TensorWeights, Weights
from fxpar.errors import ModelError
from fxpar.passes import Partition
from fxpar.runtime.manifest import Manifest, dtype_name
from fxpar.verification.captured import check_captured
from fxpar.verification.captured import outputs as outputs_of
from fxpar.verification.objective import term, total, weight
from fxpar.verification.replay import replay

#: The largest relative error that counts as rounding, by the dtype of the parameters; float32 for all others.
TOLERANCES = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-2}
RATE = 1e-3
_FILE, _FACTS = "reference.safetensors", "reference.json"


@dataclass(frozen=True)
class Reference:
    """What every rank is held against.

    `tensors` has `gradient:NAME`, `updated:NAME` (parameters and buffers after the step) and `output:POSITION`;
    `scales` what errors of each of them, of the `loss` and of the `norm` are divided by. `roots` are the outputs that
    the loss is made of where the model has none. `step` are the options of AdamW.

    Errors are relative to the largest value of the whole tensor. A gradient that is small beside those of others is
    mostly rounding: its error is relative to the square root of the tolerance times the largest of all gradients, if
    that is more. The `eps` of AdamW is the largest gradient, lest rounding errors become steps of the full rate.
    """

    dtype: str
    loss: float
    norm: float
    roots: tuple[str, ...]
    step: Mapping[str, float]
    scales: Mapping[str, float]
    tensors: Weights = field(repr=False)

    @property
    def tolerance(self) -> float:
        """The largest relative error that counts as rounding."""
        return tolerance_of(self.dtype)

    def error(self, key: str, found: Tensor, whole: Tensor) -> float:
        """The largest difference of two tensors in units of the key's scale; infinite where it is not a number."""
        if found.shape != whole.shape:
            return float("inf")
        if found.numel() == 0 or torch.equal(found, whole):
            return 0.0
        if not found.is_floating_point() and not found.is_complex():
            return float("inf")
        difference = (found - whole).abs()
        largest = float(difference.where(found != whole, 0).max())
        if largest != largest:
            return float("inf")
        return relative(largest, self.scales[key])

    def optimizer(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        """AdamW, one parameter at a time."""
        return torch.optim.AdamW(parameters, foreach=False, **self.step)  # type: ignore[arg-type]

    def save(self, folder: Path) -> None:
        """Write everything into a folder."""
        facts = {key: getattr(self, key) for key in ("dtype", "loss", "norm", "roots", "step", "scales")}
        (folder / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
        save_file({name: self.tensors.read(name) for name in self.tensors.names()}, folder / _FILE)

    @staticmethod
    def load(folder: Path) -> Reference:
        """Read what `save` wrote; the tensors when they are asked for."""
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        return Reference(**{**facts, "roots": tuple(facts["roots"])}, tensors=FileWeights.of(folder / _FILE))


def tolerance_of(dtype: str) -> float:
    """The largest relative error that counts as rounding."""
    return TOLERANCES.get(dtype, TOLERANCES["float32"])


def relative(difference: float, scale: float) -> float:
    """A difference in units of a scale; no difference is none, whatever the scale."""
    if difference == 0:
        return 0.0
    return difference / scale if scale > 0 else float("inf")


def compute(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    weights: Weights,
    partition: Partition,
    *,
    device: torch.device | str = "cpu",
    exact: bool = False,
) -> Reference:
    """Run the whole model forward and backward and let AdamW take one step, on copies of its tensors.

    `weights` has the model's tensors by their first names; the model itself may lie on the meta device and stays as it
    is. A gradient that is missing counts as zero. With `exact` it runs in float64 throughout. Raises ModelError if
    the model does not run, or nothing learns.
    """
    held = _copies(model, weights, device)
    given, options = pytree.tree_map(_to(device), (tuple(args), dict(kwargs)))
    with precision(exact), torch.enable_grad():
        outputs = _outputs(model, held, given, options, partition)
    loss, scale, roots = _loss(outputs, partition.manifest)
    gradients = _gradients(loss, held)
    largest = max(map(_largest, gradients.values()))
    reach = tolerance_of(_dtype(held)) ** 0.5 * _reach(gradients, held)
    step = {"lr": RATE, "eps": max(largest, torch.finfo(torch.float32).tiny), "weight_decay": 0.01}
    tensors = {f"gradient:{name}": gradient for name, gradient in gradients.items()}
    tensors |= {
        f"output:{i}": out.detach().clone() for i, out in enumerate(outputs) if isinstance(out, Tensor)
    }
    tensors |= {f"updated:{name}": tensor.detach() for name, tensor in held.items()}
    reference = Reference(
        dtype=_dtype(held),
        loss=float(loss.detach()),
        norm=_norm(gradients),
        roots=roots,
        step=step,
        scales={},
        tensors=TensorWeights({}),
    )
    _update(reference, held, gradients)
    least = {"gradient": reference.tolerance**0.5 * largest, "updated": RATE, "output": 0.0}
    scales = {key: max(least[key.partition(":")[0]], _largest(tensor)) for key, tensor in tensors.items()}
    if partition.manifest.loss is not None:
        names = [spec.name for spec in partition.manifest.outputs]
        key = f"output:{names.index(partition.manifest.loss)}"
        scales[key] = max(scales[key], reach)
    kept = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    return replace(
        reference,
        scales=scales | {"loss": max(scale, reach), "norm": reference.norm},
        tensors=TensorWeights(kept),
    )


def _outputs(
    model: nn.Module,
    held: Mapping[str, Tensor],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    partition: Partition,
) -> list[Any]:
    """The flat outputs of the whole model; if it draws random numbers, of its graph with those of the ranks."""
    if not partition.sharded.draws:
        return outputs_of(model, held, args, kwargs)
    check_captured(model, held, args, kwargs, partition.program, tolerance_of(_dtype(held)))
    return replay(partition, arguments(model, args, kwargs), held)


def _gradients(loss: Tensor, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of every parameter that learns."""
    parameters = {name: tensor for name, tensor in held.items() if tensor.requires_grad}
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(parameters.items(), found)
    }


def _norm(gradients: Mapping[str, Tensor]) -> float:
    return float(torch.stack([_length(gradient) for gradient in gradients.values()]).norm())


def _reach(gradients: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> float:
    """How far parameters that are a little larger or smaller move the loss, in units of that little."""
    moves = [_length(gradient * held[name].detach()) for name, gradient in gradients.items()]
    return float(torch.stack(moves).norm())


def _length(tensor: Tensor) -> Tensor:
    """The L2 norm of a tensor of real or complex numbers, in float64."""
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    length: Tensor = torch.linalg.vector_norm(tensor, dtype=wide)
    return length


def _update(reference: Reference, held: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
    """One step of AdamW, in place."""
    for name, gradient in gradients.items():
        held[name].grad = gradient
    reference.optimizer([held[name] for name in gradients]).step()


def _copies(model: nn.Module, weights: Weights, device: torch.device | str) -> dict[str, Tensor]:
    """Copies of all parameters and buffers by their first names, leaves of a graph where they learn."""
    held = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        copy = weights.read(name).to(device)
        held[name] = copy.requires_grad_(tensor.requires_grad)
    return held


def _loss(outputs: Sequence[Any], manifest: Manifest) -> tuple[Tensor, float, tuple[str, ...]]:
    """The loss, what its error is relative to, and the outputs that it is made of where the model has none."""
    names = [spec.name for spec in manifest.outputs]
    if manifest.loss is not None:
        loss: Tensor = outputs[names.index(manifest.loss)]
        return loss, abs(float(loss.detach())), ()
    roots = [i for i, output in enumerate(outputs) if _differentiable(output)]
    if not roots:
        raise ModelError("no output depends on a parameter that learns: there is no gradient to compare")
    weights = {i: weight(i, manifest.outputs[i]).to(outputs[i]) for i in roots}
    loss = total([term(outputs[i], weights[i]) for i in roots])
    scales = [_length(outputs[i].detach() * weights[i]) for i in roots]
    return loss, float(torch.stack(scales).norm()), tuple(names[i] for i in roots)


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.requires_grad


def _largest(tensor: Tensor) -> float:
    """The largest absolute value that is finite, zero if there is none."""
    values = tensor.detach()
    values = values.abs() if values.is_complex() else values.to(torch.float64).abs()
    return float(values.where(values.isfinite(), 0).max()) if values.numel() else 0.0


def _dtype(held: Mapping[str, Tensor]) -> str:
    """The narrowest dtype of the parameters that learn."""
    dtypes = {tensor.dtype for tensor in held.values() if tensor.requires_grad}
    return dtype_name(min(dtypes, key=lambda dtype: dtype.itemsize))


def _to(device: torch.device | str) -> Callable[[Any], Any]:
    return lambda leaf: leaf.detach().clone().to(device) if isinstance(leaf, Tensor) else leaf
