"""Makes the golden checkpoints beside this file with the reference implementation.

    pip install torch transformers
    python tests/data/make_golden.py

One folder a family: a tiny random model as `save_pretrained` writes it, and in
`golden.npz` tokens and their float32 logits; for one with a tied head in `own_head.npz`
another head, and the logits where the file holds it as well. The tests need neither
package.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
SHAPE = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    attn_implementation="eager",
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500_000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
#: Folder: (configuration class, what differs from `SHAPE`, stored type, shard size).
FAMILIES = {
    "llama2": ("LlamaConfig", dict(num_key_value_heads=4), "float32", "1GB"),
    "llama3": (
        "LlamaConfig",
        dict(rope_parameters=LLAMA3, tie_word_embeddings=True),
        "float32",
        "20KB",
    ),
    "mistral": ("MistralConfig", dict(sliding_window=7), "float32", "1GB"),
    "qwen2": ("Qwen2Config", dict(head_dim=None), "bfloat16", "1GB"),
    "qwen3": ("Qwen3Config", dict(head_dim=16), "float32", "1GB"),
    "gemma2": (
        "Gemma2Config",
        dict(sliding_window=7, query_pre_attn_scalar=12, num_hidden_layers=2),
        "float32",
        "1GB",
    ),
    "gemma3": (
        "Gemma3TextConfig",
        dict(
            sliding_window=7,
            query_pre_attn_scalar=12,
            num_hidden_layers=6,
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
                sliding_attention=dict(rope_type="default", rope_theta=1e4),
            ),
        ),
        "float32",
        "1GB",
    ),
}


def randomise(model: torch.nn.Module) -> None:
    """Weights large enough that every part of the model shows in the logits."""
    for name, weight in model.named_parameters():
        centre = 0.0
        if weight.ndim == 1 and "bias" not in name:
            centre = 0.0 if "gemma" in type(model).__name__.lower() else 1.0
        weight.data.normal_(centre, 0.3)


def own_head(folder: Path, tokens: torch.Tensor) -> None:
    """Logits of a model that is said to be tied, in a file with a head of its own."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    torch.manual_seed(len(FAMILIES))
    head = 0.3 * torch.randn(tensors["model.embed_tokens.weight"].shape)
    with tempfile.TemporaryDirectory() as place:
        shutil.copy(folder / "config.json", place)
        file = Path(place) / "model.safetensors"
        save_file(tensors | {"lm_head.weight": head}, file, {"format": "pt"})
        model = transformers.AutoModelForCausalLM.from_pretrained(
            place, dtype=torch.float32, attn_implementation="eager"
        )
    with torch.no_grad():
        logits = model.eval()(tokens).logits
    np.savez_compressed(
        folder / "own_head.npz", head=head.numpy(), logits=logits.numpy()
    )


def main() -> None:
    for seed, (name, (kind, changes, dtype, shard)) in enumerate(FAMILIES.items()):
        torch.manual_seed(seed)
        options = {k: v for k, v in {**SHAPE, **changes}.items() if v is not None}
        config = getattr(transformers, kind)(**options)
        model = transformers.AutoModelForCausalLM.from_config(config)
        randomise(model)
        model = model.to(getattr(torch, dtype))
        folder = HERE / name
        model.save_pretrained(folder, max_shard_size=shard)
        (folder / "generation_config.json").unlink(missing_ok=True)
        tokens = torch.randint(0, config.vocab_size, (2, 24))
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        with torch.no_grad():
            logits = model.eval()(tokens).logits
        np.savez_compressed(
            folder / "golden.npz", tokens=tokens.numpy(), logits=logits.numpy()
        )
        if config.tie_word_embeddings and name == "llama3":
            own_head(folder, tokens)
        print(name, logits.std().item(), sorted(p.name for p in folder.iterdir()))


if __name__ == "__main__":
    main()
