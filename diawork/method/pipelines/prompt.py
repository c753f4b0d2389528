"""What a Stable Diffusion is told where nothing is said: its text encoder's embedding of the empty prompt.

The text encoder and the tokenizer are transformers', read from the folders ``text_encoder`` and ``tokenizer``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diawork.base.errors import CheckpointError
from diawork.base.seeding import isolated_rng
from diawork.method.pipelines.folder import ENCODER, TOKENIZER


def empty_prompt(folder: Path) -> Tensor:
    """Return the embedding (1, tokens, width) of the empty prompt by the text encoder of a pipeline."""
    from transformers import CLIPTextModel, CLIPTokenizer

    loaded: Any
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder / TOKENIZER), local_files_only=True)
        with isolated_rng(0, "transformers"):
            loaded = CLIPTextModel.from_pretrained(
                str(folder / ENCODER), local_files_only=True, use_safetensors=True, dtype=torch.float32,
                output_loading_info=True,
            )  # fmt: skip
        encoder, info = loaded
        tokens = tokenizer([""], padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
        with torch.no_grad():
            told = encoder.eval()(tokens.input_ids)[0]
    except Exception as error:  # a damaged file: transformers, tokenizers, safetensors and torch raise many types
        first = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"transformers cannot load it ({first:.200}).", path=folder / ENCODER) from None
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(f"its weights are not those of its config: missing {missing[0]!r:.80}.", path=folder)
    return told
