"""Remembers: models and their identity, and the one SQL database."""
