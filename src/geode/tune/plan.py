"""Memory and time of a run, from a model's header and a recipe, before anything is allocated.

What a block keeps for its gradients is `kept`'s to know; nothing is measured here but, on request, a short product.

    peak  =  framework + the larger of  { the file's pages + reading the weights
                                        { weights + gradients + optimizer + activations + workspace + holes

Kept against real runs by benchmarks/tune_plan.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .. import integers, memory
from ..config import Config
from ..errors import CapacityError
from ..network.axes import Cuts, Mesh, mesh_of
from ..tensors import flops_per_token, parameters, shapes
from . import kept
from .recipe import Full, Lora, Recipe

__all__ = ["Machine", "Plan", "check_memory", "plan", "plan_of"]

FRAMEWORK = {"torch": 540, "jax": 310, "tensorflow": 620}
"""MB that a process has taken when a framework, Keras and Geode are imported: Linux, x86-64, builds for CPUs."""

HOLES = {"int4": 1.0}
"""Freed blocks in PyTorch's heap on a CPU that nothing fits into (`network.allocator`), as a share of what comes and
goes in a step, blocks that are computed again included: half but where a matrix's floats come and go too. Measured, not
derived: dev/LOG.md."""

PAIRED = ("dpo", "ipo", "orpo", "simpo", "reward")  # two rows of tokens for each row of the recipe
SLICE, ROWS = 4096, 1024  # `network.loss`: logits that exist at a time
BITS8, SMALLEST = 256, 4096  # `network.optimizers`: numbers of a block, and of a tensor for which eight bits pay


@dataclass(frozen=True)
class Machine:
    """What one device can do: products a second (each a multiplication and an addition are two), bytes a second."""

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Plan:
    """What a run takes, on each device. Bytes; operations of one optimizer step on all devices together."""

    recipe: Recipe
    on: str
    dtype: str
    devices: int
    parameters: int
    trained: int
    tokens: int  # of one optimizer step
    learnt: int
    memory: Mapping[str, int]
    loading: int
    flops: Mapping[str, int]
    traffic: int
    machine: Machine | None
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """The highest that one device, or the process on a CPU, comes to."""
        return self.memory["framework"] + max(self.memory["file"] + self.loading, self._step)

    @property
    def growth(self) -> int:
        """`total` without what is there once the framework is, and without pages that the kernel can drop."""
        return max(self.loading, self._step)

    @property
    def _step(self) -> int:
        """What a step takes; the file's pages are let go before (`setup.network`)."""
        return sum(self.memory.values()) - self.memory["framework"] - self.memory["file"]

    @property
    def seconds(self) -> float | None:
        """Of one step: all products at the machine's best, and all that memory must carry besides."""
        if self.machine is None:
            return None
        return sum(self.flops.values()) / (self.machine.flops * self.devices) + self.traffic / self.machine.bandwidth

    @property
    def mfu(self) -> float | None:
        """The share of the machine's products that forward and backward make; what is computed twice does not count."""
        if self.machine is None or not self.seconds:
            return None
        useful = self.flops["forward"] + self.flops["backward"]
        return useful / (self.seconds * self.machine.flops * self.devices)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        names = ("on", "dtype", "devices", "parameters", "trained", "tokens", "learnt", "loading", "traffic", "notes")
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        found |= {"memory": dict(self.memory), "flops": dict(self.flops), "total": self.total, "growth": self.growth}
        return found | {
            "machine": None if self.machine is None else asdict(self.machine),
            "seconds": self.seconds,
            "mfu": self.mfu,
        }

    def text(self) -> str:
        """For people."""
        where = f"{self.on}, {self.dtype}" + (f", {self.devices} devices" if self.devices > 1 else "")
        each = " on each device" if self.devices > 1 else ""
        lines = [
            f"{self.parameters:,} parameters, {self.trained:,} trained ({where})",
            f"{self.tokens:,} tokens a step, {self.learnt:,} of them learnt at most",
            "",
            f"Memory{each}",
            *(f"  {name:<12}{_size(size):>10}" for name, size in self.memory.items() if size),
            f"  {'at the peak':<12}{_size(self.total):>10}" + self._when(),
            "",
            "Operations of a step",
            *(f"  {name:<12}{count / 1e12:>9.3f} T" for name, count in self.flops.items() if count),
        ]
        if self.machine is not None and self.seconds:
            speed = self.tokens / self.seconds
            lines += [
                f"  about {self.seconds:.2g} s a step, {speed:,.0f} tokens/s, {self.mfu:.0%} of the "
                f"{self.machine.flops / 1e12:.2g} T a second that a product reaches here",
            ]
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)])

    def _when(self) -> str:
        return "  while weights are read" if self.memory["file"] + self.loading > self._step else ""


def plan_of(recipe: Recipe, machine: Machine | None = None) -> Plan:
    """The plan of a recipe on this machine. Reads the model's header and imports the framework; without `machine` a
    product of a second or two tells what the CPU or the accelerator does at best.

    Raises what opening a model and choosing a framework raise.
    """
    from .. import checkpoint
    from ..io import hub
    from . import setup

    found = checkpoint.open(hub.resolve(recipe.model))
    names, choice = setup.chosen(recipe, found), setup.choose(recipe)
    if machine is None:
        from ..network.probe import measure

        machine = Machine(*measure(choice.dtype))
    return plan(
        found.config,
        recipe,
        names.pairs,
        names.whole,
        on=choice.on,
        dtype=choice.dtype,
        file=found.tensors.nbytes,
        machine=machine,
    )


def plan(
    config: Config,
    recipe: Recipe,
    pairs: Sequence[str],
    whole: Sequence[str],
    *,
    on: str,
    dtype: str,
    file: int = 0,
    learnt: float = 1.0,
    mesh: Mesh | None = None,
    machine: Machine | None = None,
) -> Plan:
    """The plan of a network that is trained so.

    pairs, whole: canonical names, as `setup.chosen` gives them. file: bytes of the tensors in their file.
    learnt: the share of tokens that carry loss; 1 is the most that can be.
    """
    cuts = Cuts(config, mesh or mesh_of(recipe.run.mesh))
    return _Planner(config, recipe, tuple(pairs), tuple(whole), on, dtype, cuts, learnt).plan(file, machine)


def check_memory(plan: Plan, available: int | None = None, again: Callable[[Recipe], Plan] | None = None) -> None:
    """Raises CapacityError where a run would not fit, with what to change.

    available: bytes that may still be taken, once the framework is imported; None asks the system, which on an
        accelerator knows nothing of its memory: give that. again: the plan of a changed recipe, to say what helps.
    """
    free = memory.available() if available is None else available
    if free is None or plan.growth <= free:
        return
    helps = []
    for words, recipe in _smaller(plan.recipe):
        other = None if again is None else again(recipe)
        if other is None:
            helps.append(words)
        elif other.growth < 0.95 * plan.growth:
            helps.append(f"{words} ({_size(other.growth)}{', which fits' if other.growth <= free else ''})")
    largest = sorted(plan.memory, key=lambda name: -plan.memory[name])[:2]
    raise CapacityError(
        f"This run would take {_size(plan.growth)} of memory, mostly {' and '.join(largest)}, and {_size(free)} are "
        f"free. What helps: {'; '.join(helps) or 'a smaller model'}. `geode tune … --plan` shows the parts."
    )


def _smaller(recipe: Recipe) -> list[tuple[str, Recipe]]:
    """Recipes that take less, with the words for it."""
    batch, run, method, found = recipe.batch, recipe.run, recipe.method, []
    if batch.rows > 1:
        rows = batch.rows // 2
        smaller = replace(batch, rows=rows, accumulate=-(-batch.rows * batch.accumulate // rows))
        words = f"batch.rows={rows} batch.accumulate={smaller.accumulate}"
        found.append((words, replace(recipe, batch=smaller)))
    if run.remat == "none":
        found.append(("run.remat=block", replace(recipe, run=replace(run, remat="block"))))
    if recipe.data.length >= 128:
        half = recipe.data.length // 2
        found.append((f"data.length={half}", replace(recipe, data=replace(recipe.data, length=half))))
    if isinstance(method, Lora) and method.quantize != "int4":
        found.append(("method.quantize=int4", replace(recipe, method=replace(method, quantize="int4"))))
    if isinstance(method, Full):
        found.append(("method=lora", replace(recipe, method=Lora())))
    return found


class _Planner:
    """The sums. All bytes are of one device."""

    def __init__(
        self,
        config: Config,
        recipe: Recipe,
        pairs: tuple[str, ...],
        whole: tuple[str, ...],
        on: str,
        dtype: str,
        cuts: Cuts,
        learnt: float,
    ):
        self.config, self.recipe, self.pairs, self.whole, self.on, self.dtype = config, recipe, pairs, whole, on, dtype
        self.cuts, self.mesh, self.shapes = cuts, cuts.mesh, shapes(config)
        self.item = 4 if dtype == "float32" else 2
        method = recipe.method
        self.rank = method.rank if isinstance(method, Lora) else 0
        self.dora = isinstance(method, Lora) and method.dora
        self.quantize = method.quantize if isinstance(method, Lora) else None
        self.rows = recipe.batch.rows * (2 if recipe.objective.name in PAIRED else 1)
        self.length = recipe.data.length
        self.learnt = min(self.rows * self.length, math.ceil(self.rows * self.length * learnt))
        self.method = kept.Method(pairs, whole, self.rank, self.dora, self.quantize, self.item, on == "torch")

    def plan(self, file: int, machine: Machine | None) -> Plan:
        trained, steps = self._trained(), self.recipe.batch.accumulate
        numbers = {name: math.prod(self.cuts.part(name, shape)) for name, shape in trained.items()}
        activations = self._activations(again=self.recipe.run.remat == "block")
        found = {
            "framework": FRAMEWORK[self.on] * 1_000_000,
            "file": file,
            "weights": self._weights(),
            "gradients": 4 * sum(numbers.values()),
            "optimizer": 4 + sum(self._state(name, trained[name], count) for name, count in numbers.items()),
            "activations": activations,
            "workspace": self._workspace(steps > 1),
        }
        if self.on == "torch":
            comes = self._activations(again=False) + found["workspace"]
            found["holes"] = HOLES.get(self.quantize or "", 0.5) * comes
        flops = {name: count * steps for name, count in self._flops().items()}
        changed = found["gradients"] * 4 + found["optimizer"] * 2  # gradients and weights read, weights written
        return Plan(
            recipe=self.recipe,
            on=self.on,
            dtype=self.dtype,
            devices=self.mesh.count,
            parameters=parameters(self.config),
            trained=sum(math.prod(shape) for shape in trained.values()),
            tokens=self.rows * self.length * steps,
            learnt=self.learnt * steps,
            memory={name: int(size) for name, size in found.items()},
            loading=int(self._loading()),
            flops={name: int(count) for name, count in flops.items()},
            traffic=int(TRAFFIC * activations * steps + changed),
            machine=machine,
            notes=tuple(self.cuts.notes),
        )

    # What there is

    def _trained(self) -> dict[str, tuple[int, ...]]:
        """Trained variables with their shapes, as `lora` and `storage` name them."""
        found = {name: self.shapes[name] for name in self.whole}
        for name in self.pairs:
            rows, columns = self.shapes[name]
            found |= {f"{name}.lora_a": (self.rank, columns), f"{name}.lora_b": (rows, self.rank)}
            if self.dora:
                found[f"{name}.lora_magnitude"] = (rows,)
        return found

    def _held(self, name: str) -> int:
        """Bytes of one of the network's own tensors."""
        shape = self.cuts.part(name, self.shapes[name])
        kind = integers.plan(self.config, self.quantize).get(name) if self.quantize else None
        if kind == "int8":
            return shape[0] * (shape[1] + 4)
        if kind == "int4":
            return shape[0] * integers.groups(shape[1]) * integers.BLOCK
        wide = "norm" in name or name in self.whole or not self.rank
        return math.prod(shape) * (4 if wide else self.item)

    def _weights(self) -> int:
        beside = {name: shape for name, shape in self._trained().items() if name not in self.shapes}
        numbers = sum(math.prod(self.cuts.part(name, shape)) for name, shape in beside.items())
        squares = sum(self.shapes[name][0] for name in self.pairs) if self.dora else 0
        return sum(map(self._held, self.shapes)) + 4 * (numbers + squares)

    def _loading(self) -> int:
        """The highest while tensors are read one after another. PyTorch's are filled piece by piece; others are float32
        first but those kept as integers: as an array, as the framework's own copy, and as they stay."""
        there = most = 0
        for name, shape in self.shapes.items():
            held, whole = self._held(name), math.prod(shape) * 4
            is_integer = self.quantize is not None and len(shape) == 2 and "norm" not in name
            most = max(most, there + held + 2 * whole * (self.on != "torch" and not is_integer))
            there += held
        return most

    def _state(self, name: str, shape: tuple[int, ...], count: int) -> int:
        """What the optimizer remembers of `count` numbers that a device holds of a trained variable."""
        optim, size, ends = self.recipe.optim, math.prod(shape), name.startswith(("token_embd.", "output."))
        mean = 4 * count if optim.ema is not None else 0
        block = math.gcd(size, BITS8)
        if optim.name == "sgd":
            return mean
        if optim.name == "adam8bit" and size >= SMALLEST and block >= BITS8 // 8:
            return mean + 2 * count + 8 * (count // block)
        if optim.name == "adafactor":
            return mean + 4 * (count if len(shape) < 2 else sum(self.cuts.part(name, shape)))
        if optim.name == "muon" and len(shape) == 2 and not ends:
            return mean + 4 * count
        return mean + 8 * count

    def _activations(self, again: bool) -> float:
        """What is kept when the backward pass begins; `again`: blocks keep nothing, but one at a time all."""
        rows = -(-self.rows // self.mesh.rows)
        learnt = -(-self.learnt // self.mesh.rows)
        method = dataclasses.replace(self.method, thrifty=self.on == "torch" and not again)
        blocks = [
            sum(kept.block_bytes(self.config, i, rows, self.length, method, self.mesh.tensor).values())
            for i in self._recorded()
        ]
        found = sum(kept.ends(self.config, rows, self.length, learnt, method).values())
        if again:
            between = kept.between(self.config, rows, self.length, method)
            return found + len(blocks) * between + max(blocks, default=0)
        return found + sum(blocks)

    def _recorded(self) -> range:
        """Blocks whose operations gradients pass: from the first on that something is trained in, or before it."""
        names = (*self.pairs, *self.whole)
        if any(name.startswith("token_embd.") for name in names):
            return range(self.config.depth)
        inside = [int(name.split(".")[1]) for name in names if name.startswith("blk.")]
        return range(min(inside, default=self.config.depth), self.config.depth)

    def _workspace(self, accumulates: bool) -> int:
        """The larger of the loss's and a block's, and what a product's gradients need beside their sum."""
        c, tokens = self.config, -(-self.rows // self.mesh.rows) * self.length
        logits = min(self.learnt, ROWS) * min(SLICE, c.vocab)
        loss = logits * (3 * 4 + self.item + (8 if c.final_softcap is not None else 0))
        block = tokens * (3 * c.ffn * self.item // self.mesh.tensor + 4 * c.width * 4)
        heads = [name for name in self.whole if name == ("token_embd.weight" if c.tied else "output.weight")]
        dense = 4 * sum(math.prod(self.cuts.part(name, self.shapes[name])) for name in heads)
        gathered = self._gathered() if self.mesh.fsdp > 1 else 0
        return max(loss, block) + dense * (1 + accumulates) + gathered

    def _gathered(self) -> int:
        """What one block, or the head, is while its parts are together: cut along "tensor" alone."""
        cuts = Cuts(self.config, dataclasses.replace(self.mesh, fsdp=1))
        ends = [name for name in ("token_embd.weight", "output.weight") if name in self.shapes]
        block = [name for name in self.shapes if name.startswith("blk.0.")]
        sizes = [sum(math.prod(cuts.part(name, self.shapes[name])) for name in part) for part in (ends[-1:], block)]
        return max(sizes) * self.item

    # What is computed

    def _flops(self) -> dict[str, float]:
        """Of one micro-batch on all devices: a multiplication and an addition are two."""
        c, tokens = self.config, self.rows * self.length
        head = 2 * c.vocab * c.width * self.learnt
        matrices = tokens * (flops_per_token(c, 0) - 2 * c.vocab * c.width)
        pairs = tokens * 2 * self.rank * sum(sum(self.shapes[name]) for name in self.pairs)
        block = kept.BLOCK if self.on == "torch" else kept.ORDERED
        seen = [kept.spans(self.length, a.window, block) for a in c.layers]
        scores = [4 * c.q_width * self.rows * count for count in seen]
        blocks, first = self._recorded(), self._recorded().start
        whole = [math.prod(self.shapes[n]) for n in self.whole if n.startswith("blk.") and len(self.shapes[n]) == 2]
        learns_head = any(n in self.whole for n in ("output.weight", *(["token_embd.weight"] if c.tied else [])))
        forward = matrices + pairs + sum(scores) + 2 * head  # the second product is the gradient of x, made with it
        backward = matrices * len(blocks) / c.depth + 2 * pairs + 2.5 * sum(scores[first:])
        backward += 2 * tokens * sum(whole) + 2 * head * learns_head
        again = (matrices + pairs + sum(scores)) if self.recipe.run.remat == "block" else 0
        return {"forward": forward, "backward": backward, "once more": again}


TRAFFIC = 8  # times that what is kept goes over the memory bus: written and read by neighbours, there and back


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
