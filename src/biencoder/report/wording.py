"""What a report says in every form that it has: on the terminal, in the model card and in ``report.html``."""

import json
import shlex


def best_step_said(best_step: int, steps: int) -> list[str]:
    """That the saved weights are of an earlier step, if they are."""
    if best_step == steps:
        return []
    return [f"The saved model is the best one that was evaluated, from step {best_step:,} of {steps:,}."]


def skipped_said(skipped: int, overflows: int, steps: int) -> list[str]:
    """How many steps changed nothing, and why."""
    sentences = []
    if skipped:
        sentences.append(
            f"{skipped:,} of {steps:,} steps were skipped: their loss or gradient was not finite. "
            "metrics.jsonl names their rows."
        )
    if overflows:
        sentences.append(
            f"{overflows:,} of {steps:,} steps were skipped because their scaled gradient was too "
            "large for fp16. Each time, the scale was halved; a few such steps are normal."
        )
    return sentences


def search_command(folder: object) -> str:
    """How to search with the model in a folder, in the shell."""
    return f'biencoder search --model {shlex.quote(str(folder))} --corpus YOUR_PASSAGES.jsonl --query "YOUR QUESTION"'


def python_usage(folder: str, *, by_token: bool) -> str:
    """How to use the model in a folder, in Python; ``by_token``: it makes a vector for each token."""
    if by_token:
        texts = 'queries = encoder.represent_queries(["a question"])\n'
        texts += 'scores = queries.scores(encoder.represent_passages(["a passage", "another one"]))'
    else:
        texts = 'queries = encoder.encode_queries(["a question"])\n'
        texts += 'scores = queries @ encoder.encode_passages(["a passage", "another one"]).T'
    return f"from biencoder import Encoder\n\nencoder = Encoder.load({json.dumps(folder)})\n{texts}"
