"""Axis inference: every tensor dimension as factors, equal factors merged, axes named by rules."""
