"""The optimizer step: batch -> micro-batches -> forward -> objective -> finite? -> AdamW.

Which loss it is, the learner does not know. A step with a non-finite quantity changes nothing, and neither does one in
which no group has signal. The learning rate is `schedule(step) * lr_scale`, written to the optimizer in one place.
Weights and optimizer state are float32 whatever the format of the forward pass.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.learn import LearnResult
from trainer.learn.batch import Batch, assemble
from trainer.learn.forward import Forward
from trainer.learn.fp32_head import forbid_tf32, require_float32
from trainer.learn.loss import Objective, Tokens, objective
from trainer.learn.noise_scale import NoiseScale
from trainer.learn.peers import Alone, Peers
from trainer.learn.statistics import ratio_stats
from trainer.model import Model
from trainer.settings import Loss, OptimizerSpec, Precision
from trainer.types import ScoredGroup


def schedule(base_lr: float, step: int, warmup_steps: int) -> float:
    """Learning rate of step 1, 2, ... before `lr_scale`: linear warm-up, then constant."""
    return base_lr * min(1.0, step / warmup_steps) if warmup_steps else base_lr


@dataclass(frozen=True)
class _Pass:
    """What forward and backward over a whole batch leave behind; the gradients are in the parameters. [T] each."""

    loss: Tensor
    logp: Tensor
    behaviour: Tensor
    entropy: Tensor
    high: Tensor
    low: Tensor

    def sums(self) -> Tensor:
        """Loss, tokens, entropy, and tokens clipped above and below; [5], float64."""
        columns = [self.entropy.double().sum(), self.high.double().sum(), self.low.double().sum()]
        return torch.stack([self.loss.double(), torch.full_like(columns[0], len(self.logp)), *columns])


_Columns = tuple[Tensor, Tensor]
"""Log-probability and entropy, [T] each."""


class BaseLearner:
    """The step. Who the peers are, how the model is called, where weights and gradients lie and how they are saved is for
    the arrangement: one process (below), or shards (sharded.py)."""

    def __init__(
        self,
        model: Model,
        spec: OptimizerSpec,
        loss: Loss | None = None,
        precision: Precision | None = None,
        device: torch.device | str | None = None,
        peers: Peers | None = None,
    ) -> None:
        """`device` moves the model; without one it stays where it is. `peers` take their parts of every batch."""
        self._precision = precision or Precision()
        self._spec, self._loss, self._peers = spec, loss or Loss(), peers or Alone()
        self.base_lr = spec.lr
        self.model, self._forward = self._prepare(model.eval(), device)  # eval: no dropout, as in the sampler
        self._float32_head = self._precision.learner_head == "float32"
        self._device = next(self.model.parameters()).device
        self._noise_scale = NoiseScale(self._peers)
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=0.0,
            betas=(spec.beta1, spec.beta2),
            eps=spec.eps,
            weight_decay=spec.weight_decay,
            fused=True,
        )
        if self._float32_head:
            forbid_tf32()
            require_float32()

    def _prepare(self, model: Model, device: torch.device | str | None) -> tuple[Model, Callable[[Batch], _Columns]]:
        """The model with float32 weights where they are trained, and its forward pass."""
        model = model.float().to(device)
        return model, Forward(model, self._precision, self._spec.compile, recompute=self._spec.recompute)

    def step(self, step: int, groups: Sequence[ScoredGroup], tunables: Mapping[str, float]) -> LearnResult:
        """Train step number `step` (1, 2, ...) on a batch; the batch is normalised by its real counts.

        Raises:
            RuntimeError: reduced-precision products were allowed while the head has to be float32.
        """
        if self._float32_head:
            require_float32()
        lr = self._write_lr(step, tunables["lr_scale"])
        if not all(math.isfinite(reward) for group in groups for reward in group.rewards):
            return LearnResult(skipped="nonfinite", nonfinite=("reward",), lr=lr)
        assembled = assemble(groups, self._loss)
        if assembled is None:
            return LearnResult(skipped="no_signal", lr=lr)
        batch, std = assembled
        self._optimizer.zero_grad(set_to_none=True)
        done = self._accumulate(batch, objective(self._loss, tunables))
        return self._apply(done, self._clip(), std, lr)

    def _apply(self, done: _Pass, norm: float, std: float, lr: float) -> LearnResult:
        """The optimizer step, unless something is not finite. Everything that is asked is a number over all ranks, so
        that all of them skip or none; the vote is there so that this does not hang on the rounding of a reduction."""
        stats = ratio_stats(done.logp, done.behaviour, self._peers)
        loss, tokens, entropy, high, low = self._peers.total(done.sums()).tolist()
        nonfinite = _nonfinite(loss=loss, grad=norm, logprob=stats.mean + stats.kl, advantage=std)
        skip = bool(self._peers.largest(torch.tensor(float(bool(nonfinite)), device=self._device)))
        if not skip:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return LearnResult(
            skipped="nonfinite" if skip else "",
            nonfinite=nonfinite or (("elsewhere",) if skip else ()),
            lr=lr,
            loss=loss,
            grad_norm=norm,
            grad_clipped=norm > self._spec.clip_norm,
            entropy=entropy / tokens,
            mismatch_kl=stats.kl,
            ratio_mean=stats.mean,
            ratio_max=stats.maximum,
            clipped_ratio=high / tokens,
            clipped_low_ratio=low / tokens,
            effective_sample_ratio=stats.effective_sample_ratio,
            advantage_std=std,
            noise_scale_prompts=self._noise_scale.prompts,
            trained_tokens=0 if skip else int(tokens),
        )

    def _clip(self) -> float:
        """Scale the gradients down to the largest norm; the norm they had."""
        return float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._spec.clip_norm))

    def _gradients(self) -> list[Tensor]:
        """Of all parameters, in one order; a parameter that has none yet has a zero one."""
        parameters = (p for p in self.model.parameters() if p.requires_grad)
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]

    def _write_lr(self, step: int, lr_scale: float) -> float:
        """The only place that writes a learning rate."""
        lr = schedule(self.base_lr, step, self._spec.warmup_steps) * lr_scale
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _accumulate(self, batch: Batch, term_of: Objective) -> _Pass:
        """Forward and backward through all micro-batches of this rank."""
        halves = batch.halves()
        parts: list[tuple[Tensor, ...]] = []
        for half, _ in halves:
            if parts:
                self._noise_scale.half_way(self._gradients())
            for micro in half.micro_batches(self._spec.tokens_per_micro_batch, self._peers.rank, self._peers.ranks):
                micro = micro.to(self._device)
                logp, entropy = self._forward(micro)
                sequence = micro.carries.nonzero()[:, 0]
                behaviour = micro.behaviour[micro.carries]
                terms = term_of(Tokens(logp, behaviour, micro.advantage[sequence], sequence, len(micro.length)))
                loss = -(micro.weight[sequence] * terms.value).sum()
                loss.backward()  # type: ignore[no-untyped-call]
                parts.append((loss.detach().view(1), logp.detach(), behaviour, entropy, terms.high, terms.low))
        if len(halves) == 2:
            self._noise_scale.end(self._gradients(), halves[0][1], halves[1][1])
        loss, *columns = (torch.cat(column) for column in zip(*parts, strict=True))
        return _Pass(loss.sum(), *columns)


class PlainLearner(BaseLearner):
    """Implements `Learner` in one process: model, optimizer and base learning rate."""

    def state_dict(self) -> dict[str, Any]:
        """Model, optimizer and base learning rate (a reference, not a copy)."""
        return {"model": self.model.state_dict(), "optimizer": self._optimizer.state_dict(), "base_lr": self.base_lr}

    def stage(self, state: Mapping[str, Any]) -> None:
        """Nothing to read, but where learner ranks wrote it."""
        self._whole(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bit-exact inverse of `state_dict`."""
        state = self._whole(state)
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.base_lr = state["base_lr"]

    def _whole(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        if "shards" not in state:
            return state
        from trainer.learn.conversion import whole  # FSDP takes a second to import

        return {**state, **whole(state["shards"].path, self.model, self._optimizer)}


def _nonfinite(**quantities: float) -> tuple[str, ...]:
    return tuple(name for name, value in quantities.items() if not math.isfinite(value))
