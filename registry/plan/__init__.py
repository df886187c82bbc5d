"""Will it fit? The bytes of a model by what they are for, beside what a card has: arithmetic, and nothing is loaded.

    needed = weights + cache of every token of every sequence + states of linear attention
    room   = the card's memory · utilisation - overhead

`utilisation` is the share of the card that the server may take (vLLM's --gpu-memory-utilization). `overhead` is what it
needs besides weights and caches (activations, graphs, the driver's context); that depends on the server and the card,
so it is stated and not computed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from math import ceil, prod
from typing import Literal

from gates.errors import UsageError
from registry.families import Architecture, Spec, scale_shape
from registry.recipes import experts_kept
from registry.tensors import DTYPES, Tensor

Format = Literal["bf16", "fp8-block", "nf4", "nf4-double"]
"""What weights are held in. The last two are for training alone: experts in NF4 and all else in BF16, where the scales
are in float32, or quantised too (double quantisation, https://arxiv.org/abs/2305.14314, section 3)."""

BLOCK = (128, 128)
NF4_BLOCK, NF4_SCALES = 64, 256
"""Numbers with one scale, and scales with one scale of theirs: bitsandbytes' own."""
LEARNING = 4 * 4
"""Bytes that training takes for each number of an adapter: itself, its gradient and Adam's two moments, in float32."""
RANK = 16
"""Of adapters, as a recipe has it unless it says otherwise."""

PARTS = ("experts", "attention", "shared experts", "dense layers", "embeddings and head", "routers and norms",
         "scales", "MTP", "vision")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Where the model is to run. memory, overhead: bytes; utilisation: a share from 0 to 1."""

    memory: int
    utilisation: Decimal
    overhead: int

    @property
    def room(self) -> int:
        """Bytes for weights and caches."""
        return int(self.memory * Fraction(self.utilisation)) - self.overhead


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What it is to serve: so many sequences at once, each so many tokens long."""

    context: int
    sequences: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """In what form it is to be served: with or without its MTP head and its vision tower."""

    format: Format
    mtp: bool
    vision: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Bytes that a model takes: `weights` by part, and what a server keeps of the tokens. `mtp_cache` is that of the
    MTP head's layers, which a server has only where it uses the head."""

    weights: dict[str, int]
    kv_cache: int
    mtp_cache: int
    linear_state: int

    @property
    def total(self) -> int:
        return sum(self.weights.values()) + self.kv_cache + self.mtp_cache + self.linear_state


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Bytes that training takes, activations not counted: they follow from the sequences.

    weights: of the frozen model, by part. adapters: of what is trained, with its gradients and the optimiser's state.
    streamed: of the largest layer in BF16, or of the head: held too while the model is measured as it would ship.
    """

    weights: dict[str, int]
    adapters: int
    streamed: int


@dataclass(frozen=True, slots=True)
class Compression:
    """The least that fits: the decimal to write into a recipe, and how many experts stay in each layer."""

    compression: Decimal
    experts: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model's tensors as they are before any quantisation."""

    architecture: Architecture
    tensors: tuple[Spec, ...]

    @property
    def has_mtp(self) -> bool:
        return any(spec.part is not None and spec.part.mtp for spec in self.tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a model takes beside what a card has; `weights` by format and part. `training` is empty for a family that is
    not trained."""

    model: Model
    card: Card
    load: Load
    terms: Terms
    weights: dict[Format, dict[str, int]]
    training: dict[Format, Training]
    demand: Demand
    least: Compression | None

    @property
    def over(self) -> int:
        """Bytes that are too many; below 0, bytes that are free."""
        return self.demand.total - self.card.room


def of_config(architecture: Architecture) -> Model:
    """The model as config.json alone tells it: whole, in BF16, with the MTP head that it states."""
    return Model(architecture, tuple(architecture.tensors(fused=True, mtp=True)))  # 3D: as few as there are layers


def of_tensors(architecture: Architecture, tensors: Mapping[str, Tensor]) -> Model:
    """The model as its headers tell it; what is quantised counts as the BF16 that it was made from.

    Raises:
        UsageError: a tensor does not belong to the family.
    """
    found = []
    for name, tensor in tensors.items():
        spec = architecture.spec(name)
        if spec is None:
            if name.removesuffix("_scale_inv") in tensors:
                continue
            raise UsageError(f"tensor {name} is none of a {architecture.family.model_type}", where=str(tensor.file))
        dtype = "BF16" if tensor.dtype.startswith("F8") else tensor.dtype
        found.append(Spec(name, tensor.shape, dtype, spec.part))
    return Model(architecture, tuple(found))


def plan(model: Model, card: Card, load: Load, terms: Terms) -> Plan:
    """What `model` takes, what the card has, and the least compression with which it fits."""
    formats: tuple[Format, ...] = ("bf16", "fp8-block")
    trained: tuple[Format, ...] = ("nf4-double", "nf4") if model.architecture.family.trainable else ()
    return Plan(
        model=model,
        card=card,
        load=load,
        terms=terms,
        weights={each: weights(model, replace(terms, format=each)) for each in formats},
        training={each: training(model, replace(terms, format=each)) for each in trained},
        demand=demand(model, load, terms),
        least=least_compression(model, card, load, terms),
    )


def demand(model: Model, load: Load, terms: Terms, *, experts: int | None = None) -> Demand:
    """What the model takes with `experts` of its experts in each layer, or all."""
    architecture = model.architecture
    tokens = load.context * load.sequences
    head = len(architecture.mtp_layers) if terms.mtp and model.has_mtp else 0
    return Demand(
        weights=weights(model, terms, experts=experts),
        kv_cache=tokens * architecture.full_attention_layers * architecture.cache_of_token(),
        mtp_cache=tokens * head * architecture.cache_of_token(),
        linear_state=load.sequences * architecture.cache_of_sequence(),
    )


def weights(model: Model, terms: Terms, *, experts: int | None = None) -> dict[str, int]:
    """Bytes of the tensors by part, with `experts` of the experts in each layer, or all."""
    fixed, of_each = _weights(model, terms)
    keep = model.architecture.experts if experts is None else experts
    return {part: fixed[part] + keep * of_each[part] for part in PARTS}


def training(model: Model, terms: Terms, *, rank: int = RANK, experts: int | None = None) -> Training:
    """What training adapters of `rank` takes, with the frozen weights in `terms.format`. The MTP head is not loaded."""
    held = weights(model, replace(terms, mtp=False), experts=experts)
    keep = model.architecture.experts if experts is None else experts
    share = Fraction(keep, model.architecture.experts)
    together: dict[int | str, Fraction] = defaultdict(Fraction)
    adapted = Fraction(0)
    for spec in model.tensors:
        part = spec.part
        if part is None or part.mtp or part.vision:
            continue
        of_expert = part.projection is not None or part.kind == "router"
        size = Fraction(prod(spec.shape) * DTYPES["BF16"]) * (share if of_expert else 1)
        together[spec.name if part.layer is None else part.layer] += size
        if part.layer is not None and _is_adapted(spec):
            rows = spec.shape[0] * (share if part.kind == "router" else 1)
            adapted += rank * (rows + spec.shape[1])
    return Training(weights=held, adapters=int(adapted * LEARNING), streamed=int(max(together.values())))


def _is_adapted(spec: Spec) -> bool:
    """Whether an adapter is trained on it: a matrix of attention, of a shared expert, or a router. The gate of a shared
    expert is one row."""
    assert spec.part is not None
    matrix = len(spec.shape) == 2 and spec.shape[0] > 1
    return matrix and spec.part.role in ("attention", "shared experts", "router")


def least_compression(model: Model, card: Card, load: Load, terms: Terms) -> Compression | None:
    """The least share of experts to remove so that the model fits; 0 if it fits as it is, None if it never does."""
    architecture = model.architecture
    whole = demand(model, load, terms)
    if whole.total <= card.room:
        return Compression(Decimal(0), architecture.experts)
    of_each = sum(_weights(model, terms)[1].values())
    keep = architecture.experts - -(-(whole.total - card.room) // of_each)
    keep -= keep % architecture.groups
    if keep <= 0:
        return None
    compression = _decimal(1 - Fraction(keep, architecture.experts))
    try:
        kept = experts_kept(
            architecture.experts,
            compression,
            top_k=architecture.top_k,
            groups=architecture.groups,
            groups_used=architecture.text.get("topk_group"),
        )
    except UsageError:
        return None  # fewer than the router needs
    assert kept == keep
    return Compression(compression, keep)


def _weights(model: Model, terms: Terms) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes by part: what stays whatever is pruned, and one expert of every layer with its rows in the routers."""
    fixed, of_all = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    for spec in model.tensors:
        part = spec.part
        assert part is not None
        if (part.mtp and not terms.mtp) or (part.vision and not terms.vision):
            continue
        sums = of_all if part.projection or part.kind == "router" else fixed
        for name, size in _sizes(spec, terms.format):
            sums["MTP" if part.mtp else name] += size
    return fixed, {part: size // model.architecture.experts for part, size in of_all.items()}


def _sizes(spec: Spec, written: Format) -> Iterator[tuple[str, int]]:
    """The part and the bytes of a tensor, and of its scales. Block FP8 is written expert by expert."""
    assert spec.part is not None
    name = _PART_OF_ROLE[spec.part.role]
    if written in ("nf4", "nf4-double") and spec.part.projection:
        matrices, numbers = _for_training(spec)
        scales = -(-numbers // NF4_BLOCK)
        yield name, matrices * -(-numbers // 2)
        yield "scales", matrices * (scales * 4 if written == "nf4" else scales + -(-scales // NF4_SCALES) * 4)
        return
    if written != "fp8-block" or not spec.part.quantized:
        yield name, prod(spec.shape) * DTYPES[spec.dtype]
        return
    yield name, prod(spec.shape) * DTYPES["F8_E4M3"]
    yield "scales", sum(prod(scale_shape(shape, BLOCK)) for shape in _matrices(spec)) * DTYPES["F32"]


def _matrices(spec: Spec) -> Iterable[tuple[int, ...]]:
    """The shapes of the matrices that a tensor is quantised as."""
    assert spec.part is not None
    if spec.part.projection != "gate_up_proj":
        return (spec.shape,)
    experts, both, width = spec.shape
    return ((experts, both // 2, width),) * 2


def _for_training(spec: Spec) -> tuple[int, int]:
    """How many matrices of experts a tensor holds, and of how many numbers each: of gate and up, which are quantised as
    one, the first stands for both."""
    assert spec.part is not None
    count, numbers = (1, prod(spec.shape)) if len(spec.shape) == 2 else (spec.shape[0], prod(spec.shape[1:]))
    if spec.part.projection == "gate_proj":
        return count, 2 * numbers
    return 0 if spec.part.projection == "up_proj" else count, numbers


def _decimal(share: Fraction) -> Decimal:
    """The shortest decimal that removes as many experts: a little more keeps as many, since their number is rounded up.

    Four digits part any two numbers of up to 5,000 experts.
    """
    digits = next(digits for digits in (1, 2, 3, 4) if digits == 4 or share * 10**digits % 1 == 0)
    return Decimal(ceil(share * 10**digits)).scaleb(-digits)


_PART_OF_ROLE = {
    "experts": "experts",
    "router": "routers and norms",
    "norms": "routers and norms",
    "attention": "attention",
    "shared experts": "shared experts",
    "dense": "dense layers",
    "embeddings": "embeddings and head",
    "vision": "vision",
}
