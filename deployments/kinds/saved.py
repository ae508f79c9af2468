"""Extensions from a folder that a `save_...` helper wrote: the loader's settings and the author's card in `fenix.json`.

The card is plain data as in `planner.card_codec`; at least `inputs` and `outputs`. Where it comes from a registry,
its digest has been checked before the folder gets here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from deployments.extension import Extension, Scored
from lineage.models import read_descriptor
from planner.card_codec import parse_card_fields
from planner.errors import ArtifactRefused, BadCard
from planner.features import Array, Port

_SET_BY_LOADING = ("source", "options", "evidence", "kind")


class SavedExtension(Extension):
    """Base of the kinds that are saved as a folder. `format` is what the folder's loader must say it is."""

    format: ClassVar[str] = ""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        descriptor = read_descriptor(self.folder)
        if descriptor is None or descriptor["loader"].get("format") != self.format:
            raise ArtifactRefused(f"{self.folder.name} does not hold a {self.format} model of ours.")
        self.loader: dict[str, Any] = descriptor["loader"]
        fields = parse_card_fields(descriptor.get("card", {}), "the card in the model version")
        for side in ("inputs", "outputs"):
            if not fields.get(side):
                raise BadCard(f"the card in the model version has no {side}.", hint="Register it with a card.")
            fields[side] = {port.name: port for port in fields[side]}
        for name, value in fields.items():
            if name not in _SET_BY_LOADING:
                setattr(self, name, value)


def classified(scores: Array, labels: Array, ports: Sequence[Port]) -> Scored:
    """What a classifier gives for probabilities `scores` (n_rows, n_classes) and `labels` (n_classes,).

    A port of shape () gets the likeliest label, a port of shape (n_classes,) the probabilities themselves; the
    confidence is the highest probability.
    """
    best = scores.argmax(axis=1)
    outputs = {port.name: scores if port.feature.shape else labels[best] for port in ports}
    return Scored(outputs, scores[np.arange(len(scores)), best])


def check_saving_folder(folder: Path) -> None:
    """Makes `folder`; raises ArtifactRefused when something is already in it, which would become part of the model."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ArtifactRefused(f"{folder.name} is not empty.", hint="Save into a new folder.")
