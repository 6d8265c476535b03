"""Decoding: options, one step, and the loop that writes text.

A prompt becomes text in `decoding/loop.py`: the target reads all but its last token,
chunk by chunk (`cache.py`), the drafter starts a state of its own, and a
`lax.while_loop` takes one step after another until every row has ended. A step
(`decoding/step.py`) is five calls: the drafter proposes a tree, one call of the target
scores all its nodes, the tree rule walks it, the emission cuts the walk at an end or at
the cap, and cache and drafter commit what became text.

A row q is born as the draft model's logits in `drafters/model.py`, goes through the
request's temperature and filters (`transforms.py`), and becomes a draft law
(`draft_laws/`), which holds the k tokens that it can draw and their probabilities. The
children of a node are a sample of that law, and the very same law goes to verification:
what is drawn and what is verified cannot differ.

A row p is born as the target's logits at one node of the tree, goes through the same
temperature and filters, and waits for the walk to come by. There the drafts below the
node (those of all nodes that spell the same text, where draws are independent) meet it
in a single-position rule. For `GlobalResolution` the transport solve sees p on the
law's k tokens alone (`transport/plan.py`); the residual, p less the pick law, is the
one thing that sees all V.
"""
