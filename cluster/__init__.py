"""Brings the cluster up and keeps it."""
