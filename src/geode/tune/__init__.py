"""Fine-tuning: a recipe, data and a model in; an adapter or a model out, with the record of how it came about.

How a network computes and how gradients are taken is `network`'s to know; evaluation sets and servers are not known here.

    recipe.py     one run, described completely          run.py       the loop
    sources.py    files -> rows                          saving.py    checkpoints that resume bit by bit
    shapes.py     rows -> examples                       logs.py      what a run writes about itself
    documents.py  examples -> ids and their loss mask    plan.py      memory and time, before anything is allocated
    packing.py    documents -> rows of one length        batches.py   rows -> steps, in an order that a seed fixes
"""
