"""The files of a run from which its report is made, and the report."""

import logging
from pathlib import Path

from biencoder.data.audit import Audit
from biencoder.data.files.beir import Collection
from biencoder.distributed import world_size
from biencoder.errors import first_line
from biencoder.model.encoder import Encoder
from biencoder.report.html.page import write_page
from biencoder.report.record import NAME, write_record
from biencoder.report.recording import ModelFacts, record_of
from biencoder.report.training import Outcome

logger = logging.getLogger(__name__)


def write_report(folder: Path, encoder: Encoder, outcome: Outcome, audit: Audit, collection: Collection) -> None:
    """Write ``report.json`` and ``report.html`` beside the model, when all other files are there.

    The page alone may fail, because a run must not end at a chart: then the log says so.

    Args:
        folder: of the run.
        encoder: the saved model.
        outcome: of the run.
        audit: of the training data.
        collection: that the model was evaluated on.

    Raises:
        OSError: the disk is full, or refuses in another way.
    """
    facts = ModelFacts(
        dim=encoder.dim,
        parameters=sum(weight.numel() for weight in encoder.parameters()),
        max_length=encoder.max_length,
        device=encoder.device.type,
        processes=world_size(),
    )
    write_record(folder / NAME, record_of(outcome, facts, audit, collection))
    try:
        write_page([folder], folder / "report.html")
    except OSError:
        raise
    except Exception as error:
        logger.warning("report.html could not be made (%s); biencoder report %s tries again", first_line(error), folder)
