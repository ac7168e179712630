"""The learner's forward pass: log-probability and entropy of every token that carries loss.

    float32    everything in float32
    bfloat16   float32 weights, products under autocast; the head as `precision.learner_head` says, outside of it

A Qwen3 model takes the lean pass of `trainer.decoder`, in which the completions of a group share their prompt. Any other,
and a compiled one, takes the Hugging Face forward pass on padded rows.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from trainer import decoder
from trainer.learn import fp32_head
from trainer.learn.batch import Batch
from trainer.learn.recompute import recomputed
from trainer.model import Model
from trainer.settings import Precision


class Forward:
    """Callable on a batch; holds no state of its own but the compiled function. `run` as in `decoder.hidden_states`."""

    def __init__(
        self,
        model: Model,
        precision: Precision,
        compiled: bool = False,
        run: Callable[..., Tensor] | None = None,
        recompute: bool = False,
    ) -> None:
        """`recompute` has no effect where `run` is given: whoever runs the layers decides."""
        self._model = model
        self._run = run or (recomputed(decoder.block) if recompute else None)
        self._autocast = precision.dtype == "bfloat16"
        self._dtype = torch.bfloat16 if self._autocast else torch.float32
        self._head = torch.float32 if precision.learner_head == "float32" else self._dtype
        self._padded: Callable[[Tensor], Tensor] | None = None
        if compiled:
            self._padded = torch.compile(self._hugging_face, dynamic=True)
        elif not decoder.supports(model):
            self._padded = self._hugging_face
            if recompute and run is None:
                for layer in model.base_model.layers:
                    layer.forward = recomputed(layer.forward)

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy (nats, no gradient), [T] each, in the order of `batch.carries`."""
        predicts = batch.carries[:, 1:]
        with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=self._autocast):
            if self._padded is None:
                flat = share_prompts(batch)
                states, rows = decoder.hidden_states(self._model, flat, self._run), flat.rows
            else:
                states = self._padded(batch.tokens[:, :-1]).flatten(0, 1)
                rows = torch.arange(len(states), device=states.device).view(predicts.shape)
        hidden = states.index_select(0, decoder.filled_up(rows[predicts]))
        scores = fp32_head.logits(self._model, hidden, self._head)[: int(predicts.sum())]
        temperature = batch.temperature.unsqueeze(1).expand_as(predicts)[predicts]
        return fp32_head.chosen(scores, batch.tokens[:, 1:][predicts], temperature)

    def _hugging_face(self, tokens: Tensor) -> Tensor:
        return fp32_head.hidden_states(self._model, input_ids=tokens, use_cache=False)


def share_prompts(batch: Batch) -> decoder.Layout:
    """Where every input token of a batch is computed: the prompt of a group once, in its first sequence."""
    n, width = batch.tokens.shape[0], batch.tokens.shape[1] - 1
    device = batch.tokens.device
    at = torch.arange(width, device=device).expand(n, -1)
    in_prompt = at < batch.prompt.unsqueeze(1)
    leader = (batch.group.unsqueeze(1) == batch.group).int().argmax(dim=1)
    leads = (leader == torch.arange(n, device=device)).unsqueeze(1)
    own = (at < batch.length.unsqueeze(1) - 1) & (leads | ~in_prompt)
    home = own.flatten().nonzero().squeeze(1)
    index = torch.zeros(n, width, dtype=torch.long, device=device)
    index[own] = torch.arange(len(home), device=device)
    rows = torch.where(in_prompt, index[leader], index)
    return decoder.Layout(
        decoder.filled_up(batch.tokens[:, :-1][own]), decoder.filled_up(at[own]), rows, decoder.filled_up(home)
    )
