"""Sums, powers, top tokens and draws that float32 does not spoil."""
