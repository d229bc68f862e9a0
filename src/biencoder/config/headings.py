"""The headings of ``--help``: one constructor of options for each, whose arguments are those of `option`."""

from functools import partial

from biencoder.config.options import option

needed = partial(option, group="needed")
model = partial(option, group="model")
texts = partial(option, group="texts")
trained = partial(option, group="what is trained")
loss = partial(option, group="batches and loss")
optimizer = partial(option, group="optimizer")
evaluation = partial(option, group="evaluation and checkpoints")
negatives = partial(option, group="negatives")
result = partial(option, group="result")
pairs = partial(option, group="pairs")
generator = partial(option, group="questions by a language model")
running = partial(option, group="running")
