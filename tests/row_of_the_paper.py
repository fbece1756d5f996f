"""A row of `--scale paper` in a separate process, with small stand-ins for everything large.

Called with the address of a list of prompts, and eval.tables' own arguments; HF_ENDPOINT is a hub with small models
under the real names. Runs have four steps; ViT-g-14's place is taken by the scorer that ships with the repository, and
by nothing in what is downloaded.
"""

import sys
from dataclasses import replace
from typing import Any
from unittest import mock

from common.download import Download
from eval import tables
from eval.generation import published
from eval.paper import data
from eval.paper.data import ClipScore, RowRun, load_scale
from eval.paper.inputs import load_inputs


def small(name: str) -> Any:
    scale = load_scale(name)
    models = {
        key: replace(model, score=ClipScore("shapes"), num_images=2, batch_size=2)
        for key, model in scale.models.items()
        if key == "sd15-parti"
    }
    return replace(scale, models=models)


def short(run: RowRun, scale: str, steps_factor: float) -> RowRun:
    return replace(run, steps=4, only=None, cache=replace(run.cache, center=2 if run.cache.center else None))


if __name__ == "__main__":
    prompts, *call = sys.argv[1:]
    here = Download(prompts)
    load_inputs()["parti"] = replace(load_inputs()["parti"], source=here)
    with (
        mock.patch.object(tables, "load_scale", small), mock.patch.object(data.RowRun, "at", short),
        mock.patch.object(published, "PARTI", here),
    ):  # fmt: skip
        sys.exit(tables.main(call))
