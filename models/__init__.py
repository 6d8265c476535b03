"""Models: architectures, checkpoints, and the pair that ships with the package.

model = globalres_jax.models.load("embedded")
target, draft = globalres_jax.models.load_pair("model.gguf", "layers:0-11")
other = globalres_jax.models.draft_for(target, "prompt-lookup")

What a configuration leaves out is what `transformers` takes for it, and in a GGUF file
what llama.cpp does; golden values of either hold it. A tensor that would not be read, a
type that cannot be, or an option that is no such thing is an error that names it.
"""

from globalres_jax.models.loading import END_OF_TEXT, FAMILIES, load
from globalres_jax.models.pairs import draft_for, load_pair
from globalres_jax.models.tokenizer import Tokenizer

__all__ = ["END_OF_TEXT", "FAMILIES", "Tokenizer", "draft_for", "load", "load_pair"]
