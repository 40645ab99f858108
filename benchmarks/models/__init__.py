"""Tiny versions of public models, and the trial that each is put through."""
