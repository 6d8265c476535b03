"""Drafts that fit their target: over its embedding, of its layers, from its features.

A draft shares the target's token embedding and the rows of its head for the N tokens
that it may draft; what is trained and stored is the rest.

config = DraftConfig(kind="feature", ids=frequent_tokens)
params = init_draft(key, config, target)
logits = draft_logits(params, config, target, tokens, features)
save_draft(folder, config, params, card, target)
"""

from globalres_jax.models.drafts.config import KINDS, DraftConfig
from globalres_jax.models.drafts.drafting import load_draft, make_drafter
from globalres_jax.models.drafts.folder import (
    StoredDraft,
    is_draft,
    read_draft,
    save_draft,
)
from globalres_jax.models.drafts.shipped import shipped_drafts
from globalres_jax.models.drafts.target import (
    head_logits,
    log_normalizer,
    target_features,
)
from globalres_jax.models.drafts.training import (
    draft_logits,
    draft_outputs,
    init_draft,
)

__all__ = [
    "KINDS",
    "DraftConfig",
    "StoredDraft",
    "draft_logits",
    "draft_outputs",
    "head_logits",
    "init_draft",
    "is_draft",
    "load_draft",
    "log_normalizer",
    "make_drafter",
    "read_draft",
    "save_draft",
    "shipped_drafts",
    "target_features",
]
