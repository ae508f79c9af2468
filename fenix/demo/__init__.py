"""The demo: a network of small models on real data, and the story that `make demo` tells with it.

data.py      handwritten digits, also as scans, wines, tumours: train, validation and held-out parts
digits.py    the functions and rules of the digits network
scans.py     finds the digit on a scan
tables.py    the functions of the tabular networks
network.py   the torch module
fitting.py   fits the models
training.py  what each model takes and gives; saves, registers and prices it
goals.py     what clients can ask for, and with which data it is measured
show.py      how digits, plans and times are drawn
story.py     what the demo shows of the running cluster, chapter by chapter
__main__.py  brings the cluster up, tells the story, takes it down
"""
