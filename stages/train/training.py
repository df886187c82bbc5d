"""The loop: trl's SFTTrainer over frozen weights and adapters, watched by the detector.

The trainer is given one epoch in the order of `data.schedule`, from the first step that is still to be done, with an
optimiser and a rate that are ours. So it keeps and finds nothing by itself, and a run that goes on does what the run
that was stopped would have done.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stages.train import adapters, detector, keeping
from stages.train.curves import Outcome
from stages.train.detector import Limits, Point
from stages.train.keeping import Kept
from stages.train.merging import Delta

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from registry.recipes import Train
    from stages.train.data import Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What a run tells while it is at work.

    measure: of the model after so many steps, the point and the adapters as they would be merged.
    stepped: told each step's number and its loss. measured: told each point.
    """

    measure: Callable[[PeftModel, int], tuple[Point, dict[str, Delta]]]
    stepped: Callable[[int, float | None], object]
    measured: Callable[[Point], object]


def fit(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Dataset,
    order: Schedule | Sequence[int],
    steps: int,
    settings: Train,
    folder: Path,
    watch: Watch,
    *,
    packing: bool,
    device: torch.device,
) -> tuple[Outcome, dict[str, Delta]]:
    """Trains the adapters of `model`, or goes on with what is kept in `folder`: how it went, and the adapters of the
    best point.

    Args:
        model: frozen, with adapters (`adapters.attach`).
        sequences: of `data.sequences`; with `packing`, packed.
        order: of `data.schedule`, in so many `steps`.

    Raises:
        IntegrityError: what was kept is damaged, or of other adapters.
    """
    kept = keeping.newest(folder) or Kept()
    optimizer = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad],
        lr=float(settings.learning_rate),
        weight_decay=0.0,
    )
    if kept.points:
        adapters.load_state(model, kept.adapters)
        keeping.load_optimizer(optimizer, kept.optimizer)
    else:
        torch.manual_seed(settings.seed)
    run = _Run(model, optimizer, settings, folder, watch, kept, steps)
    if not kept.points:
        run.measure()
    if run.stopped is None and kept.step < steps:
        a_step = settings.batch_size * settings.gradient_accumulation
        left = _Left(order, kept.step * a_step)
        _train(model, tokenizer, sequences, left, settings, optimizer, run, packing=packing, device=device)
    return outcome(run.kept, settings, steps, run.stopped), dict(run.kept.best)


def finished(kept: Kept, settings: Train, steps: int) -> Outcome | None:
    """How the run went of which `kept` is the last; None if it has something left to do."""
    if not kept.points:
        return None
    stopped = _why_stop(kept, settings)
    done = kept.points[-1].step == steps
    return outcome(kept, settings, steps, stopped) if stopped or done else None


def outcome(kept: Kept, settings: Train, steps: int, stopped: str | None) -> Outcome:
    return Outcome(planned=steps, losses=kept.losses, points=kept.points, limits=limits(settings), stopped=stopped)


def limits(settings: Train) -> Limits:
    return Limits(gap=float(settings.limit_gap), rise=float(settings.tolerance))


def rate(step: int, steps: int, warmup: float) -> float:
    """The part of the learning rate at `step` of `steps` (from 0): a straight rise over the first `warmup` of them,
    then half a cosine down to 0."""
    rise = min(math.ceil(steps * warmup), steps - 1)
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))


class _Run:
    """A run at work: what it has so far, and why it is to end, once it is."""

    def __init__(
        self,
        model: PeftModel,
        optimizer: torch.optim.Optimizer,
        settings: Train,
        folder: Path,
        watch: Watch,
        kept: Kept,
        steps: int,
    ) -> None:
        self.model, self.optimizer, self.settings = model, optimizer, settings
        self.folder, self.watch, self.kept, self.steps = folder, watch, kept, steps
        self.stopped = _why_stop(kept, settings)

    def step(self, loss: float) -> None:
        """Another step is done. Every so many, and after the last, the model is measured and everything kept."""
        found = detector.finite(loss)
        self.kept = replace(self.kept, losses=(*self.kept.losses, found))
        self.watch.stepped(self.kept.step, found)
        if self.kept.step % self.settings.evaluate_every == 0 or self.kept.step == self.steps or found is None:
            self.measure()

    def measure(self) -> None:
        point, deltas = self.watch.measure(self.model, self.kept.step)
        points = (*self.kept.points, point)
        self.kept = replace(
            self.kept,
            points=points,
            best=deltas if detector.best(points) is point else self.kept.best,
            adapters=adapters.state(self.model),
            optimizer=keeping.optimizer_state(self.optimizer),
            random=keeping.random_state(),
        )
        self.stopped = _why_stop(self.kept, self.settings)
        keeping.keep(self.folder, self.kept)
        self.watch.measured(point)


@dataclass(frozen=True, slots=True)
class _Left:
    """What is left of an order after so many that are `done`; a sampler, as torch calls it."""

    order: Schedule | Sequence[int]
    done: int

    def __len__(self) -> int:
        return len(self.order) - self.done

    def __iter__(self) -> Iterator[int]:
        return islice(self.order, self.done, None)


def _why_stop(kept: Kept, settings: Train) -> str | None:
    if kept.losses and kept.losses[-1] is None:
        return f"at step {kept.step} the loss on the mix is no finite number"
    return detector.why_stop(kept.points, limits(settings)) if kept.points else None


def _train(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Dataset,
    left: _Left,
    settings: Train,
    optimizer: torch.optim.Optimizer,
    run: _Run,
    *,
    packing: bool,
    device: torch.device,
) -> None:
    """The steps that are left. `run` is told of each, and says when to stop."""
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    class InOrder(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, _: Any = None) -> _Left:
            return left

    begun = run.kept.step
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate(begun + step, run.steps, float(settings.warmup))
    )
    _agree_on_tokens(model, tokenizer)
    with tempfile.TemporaryDirectory() as nothing:
        trainer = InOrder(
            model=model,
            args=SFTConfig(
                output_dir=nothing,
                max_steps=run.steps - begun,
                per_device_train_batch_size=settings.batch_size,
                gradient_accumulation_steps=settings.gradient_accumulation,
                gradient_checkpointing=True,
                packing=packing,
                max_length=None if not packing else settings.sequence_length,
                dataset_kwargs={"skip_prepare_dataset": True},
                router_aux_loss_coef=0.0,  # what is learnt is what is measured: answers, nothing else
                logging_steps=1,
                logging_nan_inf_filter=False,  # a loss that is no number is to be seen
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
                bf16=False,  # the model is in its dtype already, and adapters are in float32
                use_cpu=device.type == "cpu",
                seed=settings.seed,
            ),
            train_dataset=sequences,
            processing_class=tokenizer,
            optimizers=(optimizer, schedule),
            callbacks=[_follower(run)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def _follower(run: _Run) -> Any:
    """What tells `run` of the trainer's steps, and the trainer of its end."""
    from transformers import TrainerCallback

    class Follower(TrainerCallback):  # type: ignore[misc]
        first = True

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            # Whoever builds a trainer and its batches draws random numbers; the first step draws what it would have.
            if self.first and run.kept.random:
                keeping.load_random(run.kept.random)
            self.first = False

        def on_log(self, _arguments: Any, _state: Any, control: Any, logs: Any = None, **_: Any) -> Any:
            if logs and "loss" in logs:
                run.step(logs["loss"])
                control.should_training_stop = control.should_training_stop or run.stopped is not None
            return control

    return Follower()


def _agree_on_tokens(model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """The trainer pads with a token that has a name; which one it is does not matter, for the mask hides it. It
    warns where model and tokenizer call other tokens special, which means nothing to a model that only learns."""
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    for config in (model.config, model.generation_config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, name, getattr(tokenizer, name))
