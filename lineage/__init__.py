"""Remembers: models, who they are and where they lie. The bottom of the house: imports no other package of it.

models.py    model versions in MLflow: register, resolve, list, fetch; the one module that knows MLflow
database.py  the one module that knows SQL engines
identity.py  digests: whether two models have the same weights, two folders the same files
errors.py    the root of the error tree, and what the stores raise
"""
