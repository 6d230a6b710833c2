"""Fine-tuning: a recipe, data and a model in; an adapter or a model out, with the record of how it came about.

How gradients are taken is `network`'s to know; evaluation sets and servers are not known here.

    recipe.py     one run, described completely          run.py       the loop
    sources.py    places -> files -> rows                setup.py     the network made ready; targets.py what is trained
    shapes/       rows -> examples                       saving.py    checkpoints that resume bit by bit
    documents.py  examples -> ids and their loss mask    logs.py      what a run writes about itself, beside curve.py,
    packing.py    documents -> rows of one length                     tensorboard.py, card.py
    batches.py    rows -> steps, in an order that a      output.py    what serves: an adapter or a model
                  seed fixes                             plan.py      memory and time, before anything is allocated
"""

from .recipe import Batch, Data, Full, Lora, Objective, Optim, Recipe, Run
from .run import Result, tune

__all__ = ["Batch", "Data", "Full", "Lora", "Objective", "Optim", "Recipe", "Result", "Run", "tune"]
