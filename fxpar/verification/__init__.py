"""Holding a partition against the whole model: loss, gradients, their norm, an optimizer step, outputs."""
