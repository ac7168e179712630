"""A character tokenizer of 64 tokens as an ordinary Hugging Face tokenizer; the four tags are single tokens."""

from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<eos>", "<unk>")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
CHARACTERS = "0123456789+-*/=;:,.?!() abcdefghijklmnopqrstuvwxyz|&^%~_@"[: 64 - len(SPECIAL) - len(TAGS)]
VOCABULARY = (*SPECIAL, *TAGS, *CHARACTERS)


def character_tokenizer() -> Any:
    """A fresh tokenizer. Decoding keeps the tags: they are part of the answer format and not special to the model."""
    core = Tokenizer(WordLevel({token: index for index, token in enumerate(VOCABULARY)}, unk_token=SPECIAL[2]))
    core.pre_tokenizer = Split(Regex("<[a-z/]+>|."), behavior="isolated")
    core.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        unk_token=SPECIAL[2],
        clean_up_tokenization_spaces=False,
    )
