"""One rank of a partitioned model: a module that is called like the original one, and a step of the pipeline."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxpar.capture.tree import flatten, same
from fxpar.errors import RankError
from fxpar.pipeline.spec import StageSpec
from fxpar.runtime import conversions
from fxpar.runtime.cutting import joined, parts
from fxpar.runtime.gradients import clip_gradients_, gradient_norm
from fxpar.runtime.groups import Groups
from fxpar.runtime.manifest import CutSpec, InputSpec, Manifest, OutputSpec, PreparedSpec
from fxpar.runtime.module import compile_layers, unite
from fxpar.runtime.padding import Padding
from fxpar.runtime.pipeline import Pipeline
from fxpar.runtime.random import Randomness, stream_seed
from fxpar.runtime.reduction import Reduction
from fxpar.runtime.sizes import bind as bind_sizes
from fxpar.runtime.sizes import dealt

if TYPE_CHECKING:
    from fxpar.checkpoint.index import Index


class Rank(nn.Module):
    """What one rank runs. Every rank is given the same whole batch; `state_dict` has the original names.

    Where an axis does not divide, parameters and their gradients end in zeros on the last ranks (`padding`), which
    `state_dict` leaves out.

    `stages` are the emitted modules of the rank's stages, `prepare` is what makes of a batch what its microbatches need
    (None for one microbatch). `root` has the tensors of all stages, if they are united already. With one stage
    `forward` gives the original outputs, with gradients; with several, use `step` and `evaluate`. Raises RankError for
    inputs that do not fit the captured ones, all at once.
    """

    prepare: nn.Module | None

    def __init__(
        self,
        stages: Sequence[nn.Module],
        manifest: Manifest,
        groups: Groups,
        *,
        prepare: nn.Module | None = None,
        out_spec: pytree.TreeSpec | None = None,
        root: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.stages = tuple(stages)
        root = unite(self.stages) if root is None else root
        self._modules, self._parameters, self._buffers = root._modules, root._parameters, root._buffers
        self._non_persistent_buffers_set = root._non_persistent_buffers_set
        if "ties" in root.__dict__:
            self.__dict__["ties"] = root.__dict__["ties"]
        self.manifest, self.groups, self.out_spec = manifest, groups, out_spec
        self.current = manifest
        """The manifest at the sizes of the latest batch; of its stages, at those of the first microbatch."""
        self._shapes = [spec.shape for spec in manifest.outputs]
        self.timed: tuple[Manifest, ...] = (manifest,) * manifest.microbatches
        """The manifest as each microbatch of the latest batch has it."""
        object.__setattr__(self, "prepare", prepare)
        specs = manifest.stages_of(groups.rank)
        self.pipeline = Pipeline(self.stages, specs, groups, schedule=manifest.schedule)
        self.reduction = Reduction(root, manifest, groups)
        self.randomness = Randomness(manifest.seed)
        self.padding = Padding.of(manifest, groups)
        self.padding.watch(self)
        self.layout: Callable[[], Index] | None = None
        """Gives the index of a checkpoint with the ranks' parts as they are here."""
        self.companions: Sequence[Path] = ()
        """Files that belong into a checkpoint beside the weights."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Rank:
        """A rank with tensors of its own, as an average of weights wants it; it shares the groups of ranks."""
        stages, prepare, randomness = copy.deepcopy((self.stages, self.prepare, self.randomness), memo)
        made = Rank(stages, self.manifest, self.groups, prepare=prepare, out_spec=self.out_spec)
        made.randomness, made.training = randomness, self.training
        made.layout, made.companions = self.layout, self.companions
        memo[id(self)] = made
        return made

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original model's outputs for a whole batch, gathered from all ranks; for a single stage only."""
        if len(self.manifest.stages) > 1:
            raise RankError(
                "a model in several stages has no forward on one rank",
                details=["use module.step(batch) or .evaluate"],
            )
        (stage,), (inputs,) = self.stages, [spec.inputs for spec in self.manifest.stages]
        made = [
            stage(**{name: given[name] for name in inputs})
            for given in self.microbatches(self.bind(args, kwargs))
        ]
        outputs = self.whole(made)
        self.reduction.watch(outputs)
        return self._named(outputs)

    @overload
    def step(self, batch: Mapping[str, Any]) -> Tensor: ...
    @overload
    def step(self, batch: Mapping[str, Any], *, outputs: Literal[True]) -> tuple[Tensor, Any]: ...
    def step(self, batch: Mapping[str, Any], *, outputs: bool = False) -> Tensor | tuple[Tensor, Any]:
        """Run a whole batch forward and backward; gradients add up in the parameters, complete on every rank.

        `batch` holds the arguments of the model's forward by name. Returns the loss, the same on every rank, and with
        `outputs` the original outputs too, gathered, without gradients, on every rank.
        """
        given = self.microbatches(self.bind((), batch))
        with self.reduction.around():
            loss, made = self.pipeline.step(given, self.specs, everywhere=True)
        assert loss is not None
        if not outputs:
            return loss
        with torch.no_grad():
            return loss, self._named(self._spread(made))

    def evaluate(self, batch: Mapping[str, Any], *, everywhere: bool = False) -> tuple[Tensor | None, Any]:
        """Run a whole batch forward, without gradients.

        Returns the loss, the same on every rank (None if the model has none), and the original outputs, gathered: on
        the ranks of the last stage, with `everywhere` on all; None elsewhere.
        """
        with torch.no_grad():
            given = self.microbatches(self.bind((), batch))
            loss, made = self.pipeline.evaluate(given, self.specs, everywhere=True)
            if everywhere:
                return loss, self._named(self._spread(made))
            return loss, None if made is None else self._named(self.whole(made))

    def compile(self, **options: Any) -> None:
        """Let `torch.compile` compile the layers of the stages, in place; `options` are its own.

        Layers of one class are compiled once, for all of them. What stands between layers runs as it is.
        """
        for stage in self.stages:
            compile_layers(stage, **options)

    def gradient_norm(self) -> Tensor:
        """The L2 norm of all gradients of the whole model; every rank has to call it."""
        return gradient_norm(self.reduction.gradients, self.groups)

    def clip_gradients_(self, max_norm: float) -> Tensor:
        """Scale all gradients so that their global norm is at most `max_norm`; returns the norm before."""
        return clip_gradients_(self.reduction.gradients, max_norm, self.groups)

    def save(
        self,
        target: str | Path,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: Any = None,
        step: int | None = None,
    ) -> None:
        """Write a checkpoint to a new folder, all ranks one: the model, and what a run needs to go on.

        See `fxpar.runtime.save.save`.
        """
        from fxpar.runtime.save import save

        save(self, Path(target), optimizer=optimizer, scheduler=scheduler, step=step)

    def restore(
        self, checkpoint: str | Path, *, optimizer: torch.optim.Optimizer | None = None, scheduler: Any = None
    ) -> int | None:
        """Go on where a run of the same model was saved, at this mesh or another; returns its number of steps.

        See `fxpar.runtime.restore.restore`.
        """
        from fxpar.runtime.restore import restore

        return restore(self, Path(checkpoint), optimizer=optimizer, scheduler=scheduler)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors of a call by placeholder. Raises RankError where they do not fit what was captured."""
        by_name, errors = _named(self.manifest.positional, args, kwargs)
        given = dict(leaf for name, v in by_name.items() for leaf in flatten(name, v))
        known = {spec.name for spec in self.manifest.inputs}
        errors += [f"`{name}` is no input of the model" for name in sorted(given.keys() - known)]
        sizes, wrong = bind_sizes(
            self.manifest.dynamic, self.manifest.inputs, given, self.manifest.conditions
        )
        current = self.manifest.at(sizes)
        errors += [*wrong, *(problem for spec in current.inputs if (problem := self._misfit(spec, given)))]
        if errors:
            raise RankError("the inputs do not fit the captured model", details=errors + self._remedy(given))
        each = dealt(self.manifest.dynamic, sizes, self.manifest.microbatches)
        made = {str(sizes): self.manifest.at(sizes) for sizes in each}
        self.timed = tuple(made[str(sizes)] for sizes in each)
        self._shapes = [spec.shape for spec in current.outputs]
        self.current = replace(self.timed[0], inputs=current.inputs)
        device = next((t.device for t in self.parameters()), torch.device("cpu"))
        return {s.placeholder: given[s.name].to(device) for s in self.manifest.inputs if s.placeholder}

    @property
    def specs(self) -> list[tuple[StageSpec, ...]]:
        """The rank's stages as each microbatch of the latest batch has them."""
        return [manifest.stages_of(self.groups.rank) for manifest in self.timed]

    def _misfit(self, spec: InputSpec, given: Mapping[str, Any]) -> str:
        """What is wrong with one input, if anything; the sizes of dynamic axes are those of the inputs before it."""
        wrong = _misfit(spec, given)
        return wrong.replace("was captured as", "has to be") if self.manifest.dynamic else wrong

    def _remedy(self, given: Mapping[str, Any]) -> list[str]:
        """What to do about sizes that are others than the example's, where none may be."""
        if self.manifest.dynamic:
            return []
        tensors = [(spec, given.get(spec.name)) for spec in self.manifest.inputs if spec.placeholder]
        other = {
            dim
            for spec, value in tensors
            if isinstance(value, Tensor) and value.dim() == len(spec.shape)
            for dim, (size, wanted) in enumerate(zip(value.shape, spec.shape))
            if size != wanted
        }
        return ["sizes other than the example's run with `--dynamic batch,sequence`"] if other else []

    def microbatches(self, inputs: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """What each microbatch is given by name."""
        seed = self.randomness.next() if self.manifest.random else None
        if self.prepare is None:
            given: list[dict[str, Any]] = [dict(inputs)]
        else:
            whole = {**inputs} if seed is None else {**inputs, "step_seed": seed}
            made = zip(self.prepare(**whole), *(manifest.prepared for manifest in self.timed))
            values = {specs[0].name: _parts(value, specs) for value, *specs in made}
            given = [
                {name: each[number] for name, each in values.items()} for number in range(len(self.timed))
            ]
        if seed is not None:
            for number, each in enumerate(given):
                each["seed"] = stream_seed(seed, number)
        return given

    def whole(self, made: Sequence[Sequence[Any]]) -> list[Any]:
        """The model's outputs, from those of the microbatches on this rank."""
        specs = zip(*(manifest.outputs for manifest in self.timed))
        return [
            self._whole(each, [outputs[position] for outputs in made]) for position, each in enumerate(specs)
        ]

    def _spread(self, made: Sequence[Sequence[Any]] | None) -> list[Any]:
        """The model's outputs on every rank, from those of the microbatches where the last stage is."""
        here = None if made is None else self.whole(made)
        if self.manifest.mesh.get("pp", 1) == 1:
            return here or []
        device = next((t.device for t in self.parameters()), torch.device("cpu"))
        found = []
        for position, (spec, shape) in enumerate(zip(self.current.outputs, self._shapes)):
            value = spec.value if here is None else here[position]
            if spec.dtype:
                value = self._sent(value, getattr(torch, spec.dtype), shape, device)
            found.append(value)
        return found

    def _sent(
        self, value: Tensor | None, dtype: torch.dtype, shape: Sequence[int], device: torch.device
    ) -> Tensor:
        """A tensor that one rank along `pp` has, on all of them."""
        summed = torch.uint8 if dtype == torch.bool else dtype
        mine = torch.zeros(tuple(shape), dtype=summed, device=device) if value is None else value.to(summed)
        return self.groups.group("pp").all_reduce(mine).to(dtype)

    def _whole(self, specs: Sequence[OutputSpec], pieces: list[Any]) -> Any:
        if not specs[0].dtype:
            return specs[0].value
        pieces = [self._gathered(spec, piece) for spec, piece in zip(specs, pieces)]
        times = [spec.time for spec in specs]
        if times[0] == "sum":
            return torch.stack(pieces).sum(0)
        cuts = [time for time in times if isinstance(time, CutSpec)]
        return joined(pieces, cuts[0].dim, [cut.layout for cut in cuts]) if cuts else pieces[0]

    def _gathered(self, spec: OutputSpec, piece: Tensor) -> Tensor:
        for cut in spec.gather:
            group = self.groups[cut.mesh_dim]
            piece = conversions.all_gather(piece, cut.dim, group, layout=cut.layout, backward="slice")
        return piece

    def _named(self, outputs: list[Any]) -> Any:
        if self.out_spec is not None:
            return pytree.tree_unflatten(outputs, self.out_spec)
        names = [spec.name for spec in self.manifest.outputs]
        positional = names == [str(position) for position in range(len(names))]
        return tuple(outputs) if positional else dict(zip(names, outputs))


def _parts(value: Tensor, specs: Sequence[PreparedSpec]) -> Sequence[Tensor]:
    """What each microbatch has of a value."""
    cuts = [spec.cut for spec in specs if spec.cut is not None]
    return parts(value, cuts[0].dim, [cut.layout for cut in cuts]) if cuts else [value] * len(specs)


def _named(
    names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The arguments of a call by name, as the model's forward takes them, and what is wrong with their number."""
    plain = [name for name in names if not name.startswith("*")]
    found, errors = dict(zip(plain, args)), []
    rest = tuple(args[len(plain) :])
    if rest and len(names) > len(plain):
        found[names[-1].removeprefix("*")] = rest
    elif rest:
        errors.append(
            f"{len(args)} arguments by position, and the model takes {len(plain)}: {', '.join(plain)}"
        )
    errors += [f"`{name}` is given twice" for name in kwargs if name in found]
    return {**found, **kwargs}, errors


def _misfit(spec: InputSpec, given: Mapping[str, Any]) -> str:
    value = given.get(spec.name)
    if not spec.placeholder:
        if spec.name not in given:
            return "" if spec.default else f"`{spec.name}` is missing: it was captured as {spec.value!r}"
        return (
            ""
            if same(value, spec.value)
            else f"`{spec.name}` was captured as {spec.value!r}, given {value!r}"
        )
    wanted = f"{spec.dtype}{list(spec.shape)}"
    if not isinstance(value, Tensor):
        return f"`{spec.name}` is missing: {wanted}"
    found = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return "" if found == wanted else f"`{spec.name}` was captured as {wanted}, given {found}"
