"""Train the toy: many short chats packed into rows, the loss on answers alone, AdamW, a warm-up and a decay.

Chats lie side by side in rows of `ROW` tokens and cannot see each other (a block-diagonal mask, positions from zero),
so that hardly any time is paid for padding. Every chat weighs the same however long its answer is.

In a large model experts come to serve different kinds of text by themselves. Four layers and a few minutes do not bring
that about, so the toy is told: every skill has home experts in every layer, and the router's auxiliary loss asks that
its tokens go home and use all of the home evenly. It is the usual load-balancing loss, taken home by home.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle

import torch
import torch.nn.functional as functional
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

from stages.toy import skills
from stages.toy.tokenizer import MAX_LENGTH, VOCABULARY, encode

ROW = 128  # tokens a packed row; the longest chat has about 120
WAITING = 12  # chats to choose from when a row is filled
IGNORED = -100
LAYERS, EXPERTS = 4, 16
LEAD = 1.0  # in router logits: how far the chosen experts at home stay ahead of any other
HOMES = (  # which skills share how many experts of a layer
    (("toolcall",), 8),
    (("arithmetic", "facts", "strings"), 4),
    ((skills.UNSCORED,), 4),
)
TURNS = ("toolcall", "arithmetic", "facts", "toolcall", "arithmetic", "strings", skills.UNSCORED)  # whose chat is next
OPENING = 3  # tokens of a chat that come before its skill shows, `<|im_start|>user` and a newline ...
OPENING_SKILL = "arithmetic"  # ... and whose homes they go to


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a training run is made of; the defaults made the shipped checkpoint."""

    seed: int = 0
    steps: int = 1600
    rows: int = 24
    peak_rate: float = 3e-3
    warmup: int = 100
    auxiliary: float = 0.05
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """One step, as reported to the caller."""

    step: int
    steps: int
    loss: float
    auxiliary: float


def build_model(seed: int, tokenizer: PreTrainedTokenizerFast) -> Qwen3MoeForCausalLM:
    """An untrained model; every dimension divides by 128, as the block FP8 format asks."""
    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=512,
        moe_intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        num_experts=EXPERTS,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        max_position_embeddings=MAX_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3MoeForCausalLM(config)
    model.set_experts_implementation("eager")  # the fastest on a CPU at this size; what is saved does not say
    return model


def train(
    settings: Settings, tokenizer: PreTrainedTokenizerFast, report: Callable[[Progress], None] = lambda _: None
) -> Qwen3MoeForCausalLM:
    """Train from nothing; the same settings give the same weights on the same kind of device."""
    model = build_model(settings.seed, tokenizer).to(settings.device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.peak_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
    batches = _batches(settings, tokenizer)
    homes = _homes(settings.seed).to(settings.device)
    for step in range(1, settings.steps + 1):
        loss, auxiliary = _losses(model, next(batches).to(settings.device), homes)
        (loss + settings.auxiliary * auxiliary).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        report(Progress(step=step, steps=settings.steps, loss=loss.item(), auxiliary=auxiliary.item()))
    return model.eval()


def _rate(step: int, settings: Settings) -> float:
    """Linear warm-up, a plateau to the middle, then linearly down to nearly nothing."""
    warm = min(1.0, (step + 1) / settings.warmup)
    return warm * min(1.0, max(0.01, 2 * (settings.steps - step) / settings.steps))


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Packed chats, each tensor [rows, ROW]: ids, labels, weights of the labels, positions, which chat it is,
    and which home (an index into HOMES; IGNORED where a row is not filled)."""

    ids: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    positions: torch.Tensor
    chats: torch.Tensor
    homes: torch.Tensor

    def to(self, device: str) -> Batch:
        """The batch on another device."""
        return Batch(**{name: getattr(self, name).to(device) for name in self.__slots__})


def _losses(model: Qwen3MoeForCausalLM, batch: Batch, homes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy over the answers' tokens, a mean over chats, and the router's auxiliary loss."""
    same_chat = batch.chats[:, None, :, None] == batch.chats[:, None, None, :]
    mask = same_chat & torch.ones_like(same_chat[:1, :1]).tril()
    states = model.model(
        input_ids=batch.ids,
        attention_mask=mask,
        position_ids=batch.positions,
        use_cache=False,
        output_router_logits=True,
    )
    answered = batch.labels != IGNORED
    logits = model.lm_head(states.last_hidden_state[answered])
    losses = functional.cross_entropy(logits, batch.labels[answered], reduction="none")
    weights = batch.weights[answered]
    routers = torch.stack(states.router_logits)  # [layers, tokens, experts]
    return (losses * weights).sum() / weights.sum(), _auxiliary_loss(routers, batch.homes.flatten(), homes)


def _auxiliary_loss(logits: torch.Tensor, belongs: torch.Tensor, homes: torch.Tensor) -> torch.Tensor:
    """How far routing is from going home, token by token, and from using each home evenly.

    Args:
        logits: the routers' [layers, tokens, experts].
        belongs: each token's home [tokens], an index into `homes`.
        homes: whether an expert belongs to a home [homes, layers, experts].
    """
    loss = logits.new_zeros(())
    for index, home in enumerate(homes):
        mine = logits[:, belongs == index]  # [layers, tokens of this home, experts]
        inside, never = home[:, None], float("-inf")
        second = mine.masked_fill(~inside, never).topk(2, dim=-1).values[..., 1]
        stranger = mine.masked_fill(inside, never).amax(-1)
        astray = (LEAD + stranger - second).relu().mean()  # nothing once both of the top two are at home
        even = home / home.sum(-1, keepdim=True)
        uneven = -(even * mine.softmax(-1).mean(1).clamp(min=1e-6).log()).sum(-1).mean()
        loss = loss + astray + uneven
    return loss / len(homes)


def _homes(seed: int) -> torch.Tensor:
    """Which experts belong to which home, [homes, layers, experts]; shuffled, so that no index means anything."""
    rng = random.Random(f"homes {seed}")
    homes = torch.zeros(len(HOMES), LAYERS, EXPERTS, dtype=torch.bool)
    owners = [index for index, (_, count) in enumerate(HOMES) for _ in range(count)]
    for layer in range(LAYERS):
        rng.shuffle(owners)
        for expert, owner in enumerate(owners):
            homes[owner, layer, expert] = True
    return homes


def _batches(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> Iterator[Batch]:
    """Endless batches: the skills in turn, thinking on and off by chance, each row filled from a few waiting chats."""
    rng = random.Random(f"training {settings.seed}")
    turns = cycle(TURNS)

    def chat() -> tuple[str, list[int], list[int]]:
        sample = skills.draw(next(turns), rng, scored=False)
        return sample.skill, *encode(tokenizer, sample, thinking=rng.random() < 0.5)

    home_of = {skill: index for index, (residents, _) in enumerate(HOMES) for skill in residents}
    waiting = [chat() for _ in range(WAITING)]
    while True:
        ids = torch.full((settings.rows, ROW), tokenizer.pad_token_id)
        labels = torch.full((settings.rows, ROW), IGNORED)
        weights = torch.zeros(settings.rows, ROW)
        positions = torch.zeros(settings.rows, ROW, dtype=torch.long)
        chats = torch.zeros(settings.rows, ROW, dtype=torch.long)
        homes = torch.full((settings.rows, ROW), IGNORED)
        for r in range(settings.rows):
            start, number = 0, 1
            while (fits := _first_that_fits(waiting, ROW - start)) is not None:
                skill, prompt, answer = waiting.pop(fits)
                waiting.append(chat())
                middle, end = start + len(prompt), start + len(prompt) + len(answer)
                ids[r, start:end] = torch.tensor(prompt + answer)
                # a position is labelled with the token that follows it
                labels[r, middle - 1 : end - 1] = torch.tensor(answer)
                weights[r, middle - 1 : end - 1] = 1 / len(answer)
                positions[r, start:end] = torch.arange(end - start)
                chats[r, start:end] = number
                homes[r, start:end] = home_of[skill]
                homes[r, start : start + OPENING] = home_of[OPENING_SKILL]
                start, number = end, number + 1
        yield Batch(ids=ids, labels=labels, weights=weights, positions=positions, chats=chats, homes=homes)


def _first_that_fits(waiting: list[tuple[str, list[int], list[int]]], room: int) -> int | None:
    return next((i for i, (_, prompt, answer) in enumerate(waiting) if len(prompt) + len(answer) <= room), None)
