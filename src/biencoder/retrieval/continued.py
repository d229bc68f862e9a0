"""How a query would fare among more passages, from the scores that a model gives the wrong ones among few.

Few passages hold few that are hard to tell from the answer: most queries find theirs, whichever model asks, and nDCG
sees no difference. But one model may leave a wider gap than another. The scores of a query's wrong passages above a
threshold fall off nearly exponentially (peaks over threshold, Pickands 1975, of shape 0). Continued beyond the answer,
this tail says how many of more passages would score above it. Each query and each model has a tail of its own, so the
spread of a model's scores plays no part.
"""

import math
from collections.abc import Sequence

TIMES = 10  # as many passages
TAIL = 10  # wrong passages above the threshold
CUT = 10  # ranks that count, as in nDCG@10


def expected_ndcg(answer: float, wrong: Sequence[float], among: int, times: int = TIMES) -> float:
    """The expected nDCG@10 of a query's best answer among ``times`` as many passages.

    The number of wrong passages above the answer is taken to be Poisson distributed.

    Args:
        answer: score of the best relevant passage.
        wrong: the highest scores of other passages, best first; :data:`TAIL` and one more, or all of them.
        among: how many other passages there are.
        times: how many times as many there would be.
    """
    above = sum(score > answer for score in wrong)
    if len(wrong) > TAIL and answer > wrong[TAIL]:
        threshold = wrong[TAIL]
        scale = sum(score - threshold for score in wrong[:TAIL]) / TAIL
        share = TAIL / among * math.exp(-(answer - threshold) / scale) if scale else 0.0
    else:
        share = above / among if among else 0.0
    expected = times * among * share
    chance, total = math.exp(-expected), 0.0
    for rank in range(CUT):
        total += chance / math.log2(rank + 2)
        chance *= expected / (rank + 1)
    return total
