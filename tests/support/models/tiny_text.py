"""How do tests read a prompt without a download? Real CLIP, T5 and BERT tokenizers of a few hundred entries, and
encoders of random weights."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from gacq_deploy.storage.files import write_json
from tests.support.models.tiny import random_model

MERGES = ("a n", "t h", "th e</w>", "an d</w>", "o n</w>", "i n", "in g</w>")
START, END = "<|startoftext|>", "<|endoftext|>"
TEXT = (
    "a photograph of an astronaut riding a horse on the moon",
    "an oil painting of a quiet harbour at dawn, with boats and gulls",
    "two cats sleeping in the sun, soft light, high detail",
    "a watercolour of mountains and a river below them; low quality, blurry",
)
T5_ENTRIES = 64  # what a few sentences can fill
ENTRIES = 80  # an encoder knows more than its tokenizer uses
WORDPIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", ";", "a", "an", "of", "on", "the", "and")


@cache
def clip_vocabulary() -> dict[str, int]:
    """Return CLIP's own kind of vocabulary: every byte, every byte at a word's end, merges, and the two marks."""
    letters = sorted(ByteLevel.alphabet())
    merged = [merge.replace(" ", "") for merge in MERGES]
    entries = [*letters, *(f"{letter}</w>" for letter in letters), *merged, START, END]
    return {entry: index for index, entry in enumerate(entries)}


def clip_tokenizer(folder: Path, *, padding: str = END) -> Any:
    """Write CLIP's tokenizer (77 tokens) as its files are published; return it loaded."""
    folder.mkdir(parents=True)
    marks = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": padding}
    write_json(folder / "vocab.json", clip_vocabulary())
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]), encoding="utf-8")
    write_json(folder / "special_tokens_map.json", marks)
    write_json(
        folder / "tokenizer_config.json",
        marks | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True},
    )
    return CLIPTokenizer.from_pretrained(folder)


@cache
def sentencepiece_model() -> bytes:
    """Return a Unigram model trained on a few sentences, with T5's marks: <pad> 0, </s> 1, <unk> 2."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=model,
        vocab_size=T5_ENTRIES,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def t5_tokenizer(folder: Path, *, class_name: str = "T5Tokenizer") -> Any:
    """Write T5's tokenizer as its files are published: the SentencePiece model alone; return it loaded."""
    folder.mkdir(parents=True)
    marks = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "spiece.model").write_bytes(sentencepiece_model())
    write_json(folder / "special_tokens_map.json", marks)
    write_json(
        folder / "tokenizer_config.json",
        marks | {"tokenizer_class": class_name, "model_max_length": 512, "extra_ids": 4},
    )
    return T5Tokenizer.from_pretrained(folder)


def bert_tokenizer(folder: Path) -> Any:
    """Write BERT's tokenizer as its files are published; return it loaded."""
    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    entries = dict.fromkeys([*WORDPIECES, *letters, *(f"##{letter}" for letter in letters)])
    (folder / "vocab.txt").write_text("\n".join([*entries, ""]), encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "BertTokenizer", "model_max_length": 77, "do_lower_case": True},
    )
    return BertTokenizer.from_pretrained(folder)


def text_model(kind: Any, configuration: Any, seed: int, **config: Any) -> Any:
    """Return a model of transformers with seeded random weights, frozen."""
    return random_model(lambda **values: kind(configuration(**values)), config, seed)


def clip_encoder(kind: Any, width: int, *, seed: int) -> Any:
    """Return CLIP's text encoder, with the ids of the marks that the published configurations name."""
    return text_model(
        kind,
        CLIPTextConfig,
        seed,
        vocab_size=len(clip_vocabulary()),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=0,  # not the vocabulary's: an end of 2 makes CLIP look for the largest id
        eos_token_id=2,
        pad_token_id=1,
    )


def t5_encoder(width: int, kind: Any = T5EncoderModel, configuration: Any = T5Config, *, seed: int) -> Any:
    """Return T5's encoder, as of version 1.1."""
    return text_model(
        kind,
        configuration,
        seed,
        vocab_size=ENTRIES,
        d_model=width,
        d_kv=16,
        d_ff=2 * width,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )


def bert_encoder(*, seed: int) -> Any:
    """Return BERT of width 32."""
    return text_model(
        BertModel,
        BertConfig,
        seed,
        vocab_size=ENTRIES,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=80,
    )
