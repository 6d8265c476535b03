"""Training of drafts: texts, what the target says to them, the steps, the folder."""
