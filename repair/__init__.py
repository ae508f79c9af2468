"""Makes new model versions out of a lineage: what is ill is diagnosed and mended from its own family, with few labels.

The deciding and the mathematics; nothing here needs a cluster.

procedure.py      the whole repair, a pure step at a time over a state that is stored as JSON
diagnosis.py      what drifts, since when, what it costs, and which ancestor fits what comes in now
vectors.py        repair vectors: ancestor minus drifted version, and steps along them
search.py         how far to go along one, by validation; loss barriers
normalisation.py  the standardisation of inputs made anew
torch_model.py    a torch module as a function of its parameters; statistics of batch norm made anew
picking.py        which rows are worth a label
labels.py         the label queue: its nouns, its contract, a store in memory
label_store.py    the label queue in SQL
label_files.py    items out and labels in: CSV and Label Studio
consensus.py      what several annotators say together
refine.py         small steps with a few labels, and the one-epoch fine-tune
gate.py           who is best on held-out rows, and whether that is more than chance
artifacts.py      where parameters lie between the steps
errors.py         what repair and labelling refuse
"""
