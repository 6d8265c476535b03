"""Which draft tree pays: measured costs, measured acceptance, and the best shape.

`tree="auto"` is the shape that pays on the machine at hand. Before its program is
compiled `generate` times calls of both models, sees how many drafts of a few trees the
target would accept, and takes the fastest of plain decoding, chains of several lengths
(verified by `Block`) and several paths (by `LayerResolution`); if you name a rule, that
one alone. The same trees tell it what drafts from 64, 256 or 1024 tokens, and at 0.7, 1
or 1.3 times the temperature, would have had accepted, and without another model call;
if several paths look worth it, whether their first tokens are better drawn i.i.d.,
without replacement, or as the likeliest and a sample. A `law`, `draft_top_k` or
`draft_temperature` of yours is kept. It measures only what could still win, once for a
pair, device and kind of options, and learns from what it decodes. Every shape is
lossless, so the law of the text does not depend on the choice; the text of a given key
does. `gr.plan(target, draft, prompts, prompt_lengths).config` is the choice as a
config, for use under `jit` or to write the same text again.
`GLOBALRES_JAX_PLANS=FOLDER` keeps what was measured. On the command line: `--tree
auto`, and `--verbose` says why in a line.
"""

from globalres_jax.planning.acceptance import Acceptance, independent
from globalres_jax.planning.automatic import Plan, forget, learn, observe
from globalres_jax.planning.choose import best_shape, tokens_per_second
from globalres_jax.planning.costs import Costs
from globalres_jax.planning.draws import Draws
from globalres_jax.planning.estimates import Estimates
from globalres_jax.planning.shapes import CANDIDATES, PLAIN, Shape, parse_shape
from globalres_jax.planning.store import kept_in

__all__ = [
    "CANDIDATES",
    "PLAIN",
    "Acceptance",
    "Costs",
    "Draws",
    "Estimates",
    "Plan",
    "Shape",
    "best_shape",
    "forget",
    "independent",
    "kept_in",
    "learn",
    "observe",
    "parse_shape",
    "tokens_per_second",
]
