"""The padding token of models and tokenizers that come without one."""

from typing import Any

from distill.errors import DistillError


def settle_padding(tokenizer: Any, config: Any) -> str | None:
    """Give `tokenizer` a padding token, in place, and name it in `config`; what was done, None if nothing was.

    Generative families (GPT-2, Llama) are published without one. Their end-of-text token then pads: attention
    masks leave padding out, and a classifier reads its answer at the last token that does not pad, which it finds
    by `config.pad_token_id`.

    Raises DistillError if there is no end-of-text token either.
    """
    done = None
    if tokenizer.pad_token_id is None:
        named = getattr(config, "pad_token_id", None)
        token = tokenizer.convert_ids_to_tokens(named) if named is not None else tokenizer.eos_token
        if token is None:
            raise DistillError(
                f"the tokenizer ({type(tokenizer).__name__}) has neither a padding nor an end-of-text token; set "
                "`pad_token` in its tokenizer_config.json and `pad_token_id` in the model's config.json"
            )
        tokenizer.pad_token = token
        done = f"no padding token: {token!r} ({tokenizer.pad_token_id}) pads"
    if config.pad_token_id != tokenizer.pad_token_id:
        done = done or f"pad_token_id of the model is set to the tokenizer's, {tokenizer.pad_token_id}"
        config.pad_token_id = tokenizer.pad_token_id
    return done
