"""Tiny GGUF files whose vocabularies say little, for the reference and for the tests.

Needs the `gguf` package alone, so that the golden values can be made without ours.
"""

import gguf
import numpy as np

#: Tokens that may end a text.
ENDS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>"),
    *("<|calls|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>"),
    *("_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>"),
    *(
        "<turn|>",
        "<|tool_response>",
        "<\uff5cend▁of▁sentence\uff5c>",
        "<|ifm|im_end|>",
        "[e~[",
    ),
    *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>"),
    *("<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"),
    *("<|plamo:file_separator|>", "<file_sep>", "<|fim_middle|>", "<|eot|>", "<s>"),
    *("<|end_of_turn|>", "<|EOT|>", "<|im_start|>", "<end_of_image>", "<bos>", "<pad>"),
)
#: Of these alone one ends a text.
TOGETHER = (
    ("<|return|>", "<|call|>", "<|end|>"),
    ("<|calls|>", "<|flush|>", "<|end|>"),
    ("<|calls|>", "<|end|>"),
    ("<|tool_response>", "</s>"),
    ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", "<|begin_of_text|>"),
)
NAMED = ("eot", "eom", "fim_pad", "fim_rep", "fim_sep", "fim_pre", "mask", "pad")
PRE = (None, "default", "gpt-2", "llama-bpe", "llama3", "llama-v3", "tekken", "qwen2")
LETTERS = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ", "Ã", "©"]
MERGES = [
    "Ġ a",
    "1 2",
    "3 4",
    "12 34",
    "- -",
    ". .",
    "' s",
    "$ 5",
    "a b",
    "Ġ -",
    "ab c",
]


def case(*more, model="gpt2", pre="gpt-2", alone=(), **keys) -> dict:
    """A vocabulary: letters, what they merge to, and `more`; `keys` are said of it."""
    merged = [pair.replace(" ", "") for pair in MERGES]
    tokens = [*LETTERS, *merged, *more]
    if model == "llama":
        tokens = [
            *LETTERS,
            "▁",
            "▁a",
            "ab",
            *(f"<0x{i:02X}>" for i in range(256)),
            *more,
        ]
    return {"model": model, "pre": pre, "tokens": [*alone] or tokens, "keys": keys}


def cases() -> dict[str, dict]:
    """All of them by name."""
    said = {"bos_token_id": 0, "eos_token_id": 1}
    found = {f"end {token}": case(token, **said) for token in ENDS}
    found |= {f"ends {' '.join(few)}": case(*few, **said) for few in TOGETHER}
    named = {name: {f"{name}_token_id": 2} for name in NAMED}
    parts = ("<|fim_pad|>", "<|fim_repo|>", "<|file_sep|>", "<|eot_id|>", "<|eom_id|>")
    found |= {
        f"named {name}": case(*parts, **said, **keys) for name, keys in named.items()
    }
    for pre in PRE:
        found[f"pre {pre}"] = case(pre=pre)
        found[f"pre {pre}, no first token"] = case(pre=pre, add_bos_token=False)
    found["few"] = case(alone=("a", "b", "ab", "c", "d"))
    found["characters"] = case(model="llama", pre=None)
    found["characters, no first token"] = case(
        model="llama", pre=None, add_bos_token=False, bos_token_id=4
    )
    found["characters, last"] = case(model="llama", pre=None, add_eos_token=True)
    found["few characters"] = case(model="llama", pre=None, alone=("a", "b"))
    found["both ends"] = case(add_bos_token=True, add_eos_token=True, **said)
    found["no text"] = case("", "<|eot_id|>", **said)
    return found


def write(path, wanted: dict):
    """Writes a model of one layer with a vocabulary; returns the path."""
    writer, tokens = gguf.GGUFWriter(path, "llama"), wanted["tokens"]
    writer.add_context_length(64)
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model(wanted["model"])
    if wanted["pre"] is not None:
        writer.add_tokenizer_pre(wanted["pre"])
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    if wanted["model"] == "gpt2":
        merges = [m for m in MERGES if m.replace(" ", "") in tokens]
        writer.add_token_merges(merges)
    else:
        writer.add_token_scores([-float(i) for i in range(len(tokens))])
    for key, value in wanted["keys"].items():
        add = writer.add_bool if isinstance(value, bool) else writer.add_uint32
        add(f"tokenizer.ggml.{key}", value)
    square = np.zeros((32, 32), np.float32)
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 32), np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", square[0])
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{name}.weight", square)
    for name in ("ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", square)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
