"""Decoding: options, one step, and the loop that writes text."""
