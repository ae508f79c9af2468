"""Remembers: models, who they are and where they lie. The bottom of the house: imports no other package of it.

outcomes.py  what became of requests, in groups that travelled together: the nouns
chunks.py    some thousands of outcomes as bytes and back
columns.py   the outputs and inputs in a chunk
feedback.py  what somebody says of an answer, and how it is held against it
bulk.py      feedback from CSV and Parquet
journal.py   outcomes and feedback in SQL
learners.py  what follows the journal, and how it is read to them
graph/       which version was made from which, and how; where parameters are kept once
quality/     how well versions and plans do, from outcomes
drift/       whether what a model sees is still what it was trained on
models.py    model versions in MLflow: register, resolve, list, fetch; the one module that knows MLflow
database.py  the one module that knows SQL engines
identity.py  digests: whether two models have the same weights, two folders the same files
errors.py    the root of the error tree, and what the stores raise
"""
