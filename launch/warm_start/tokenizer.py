"""A character tokenizer in Hugging Face format.

Turns an alphabet into a tokenizer that `AutoTokenizer.from_pretrained` loads without extra code.
Invariants: one character is one token, its id is its place in the alphabet, and decoding gives back
exactly the text. A character outside the alphabet is an error, never a silent "unknown".
"""

from typing import cast

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def character_tokenizer(
    alphabet: str, *, pad: str, eos: str, size: int, max_tokens: int
) -> PreTrainedTokenizerFast:
    """Builds the tokenizer; ids from `len(alphabet)` to `size` are named but never written.

    Args:
        alphabet: the characters in order of their ids.
        pad, eos: the characters for padding and for the end of a response.
        size: size of the vocabulary, the number of the model's logits.
        max_tokens: longest sequence of the model, prompt included.
    """
    names = [*alphabet, *(f"<unused{i}>" for i in range(len(alphabet), size))]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}))
    core.pre_tokenizer = cast(
        pre_tokenizers.PreTokenizer, pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    )
    core.decoder = cast(decoders.Decoder, decoders.Fuse())
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=pad,
        eos_token=eos,
        padding_side="left",
        model_max_length=max_tokens,
        clean_up_tokenization_spaces=False,
    )
