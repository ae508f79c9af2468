"""Decides and dispatches."""
