"""A pair of Markov chains over three tokens, for tests of whole texts."""

import jax
import numpy as np

import globalres_jax as gr
from globalres_jax.verifiers import (
    GlobalResolution,
    GreedyDraft,
    RecursiveRejection,
    SingleDraft,
)

TEMPERATURE = 1.5
ROWS = 3000


def transition(seed: int, vocab_size: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(vocab_size, 0.7), vocab_size)


TARGET, DRAFT = transition(0), transition(1)


CONFIGS = {
    "global": gr.SpeculativeConfig(
        num_drafts=2,
        draft_length=2,
        temperature=TEMPERATURE,
        verifier=GlobalResolution(),
    ),
    "recursive": gr.SpeculativeConfig(
        num_drafts=3,
        draft_length=2,
        temperature=TEMPERATURE,
        verifier=RecursiveRejection(),
        measure_optimum=False,
    ),
    "single": gr.SpeculativeConfig(
        num_drafts=1,
        draft_length=3,
        temperature=TEMPERATURE,
        verifier=SingleDraft(),
        measure_optimum=False,
    ),
    "ragged, different drafts": gr.SpeculativeConfig(
        tree=gr.tree.from_parents([-1, 0, 0, 1, 1, 2]),
        law=(gr.IID, gr.WithoutReplacement),
        verifier=RecursiveRejection(),
        temperature=TEMPERATURE,
    ),
    "ragged, likeliest first": gr.SpeculativeConfig(
        tree=gr.tree.from_parents([-1, 0, 0, 1, 1, 2]),
        law=gr.TopPlusSample,
        verifier=GreedyDraft(),
        temperature=TEMPERATURE,
        measure_optimum=False,
    ),
    "plain": gr.SpeculativeConfig(draft_length=0, temperature=TEMPERATURE),
}


def three_tokens(target, draft, config, rows=ROWS):
    """Three tokens after two ragged prompts, each a half of the rows."""
    half = rows // 2
    prompts = np.array([[1, 0, 0, 0]] * half + [[2, 1, 0, 2]] * half)
    lengths = np.array([1] * half + [4] * half)
    return gr.generate(
        jax.random.key(0), target, draft, prompts, lengths, config, max_new_tokens=3
    )
