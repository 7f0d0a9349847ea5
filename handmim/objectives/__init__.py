"""Pretraining objectives: one file each holds head, target, loss and diagnostics."""
