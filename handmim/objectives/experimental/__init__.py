"""Objectives that are in no method because they did not help, or were not measured."""
