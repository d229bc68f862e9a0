"""The files of a run from which its report is made, and the report."""

import logging

from biencoder.data.audit import Audit
from biencoder.distributed import world_size
from biencoder.errors import first_line
from biencoder.report.html.page import write_page
from biencoder.report.record import NAME, write_record
from biencoder.report.recording import ModelFacts, record_of
from biencoder.report.training import Outcome
from biencoder.training.setup import Setup

logger = logging.getLogger(__name__)


def write_report(setup: Setup, outcome: Outcome, audit: Audit) -> None:
    """Write ``report.json`` and ``report.html`` beside the model, when all other files are there (rank 0).

    The page alone may fail, because a run must not end at a chart: then the log says so.

    Raises:
        OSError: the disk is full, or refuses in another way.
    """
    encoder = setup.encoder
    facts = ModelFacts(
        dim=encoder.dim,
        parameters=sum(weight.numel() for weight in encoder.parameters()),
        max_length=encoder.max_length,
        device=encoder.device.type,
        processes=world_size(),
    )
    write_record(setup.folder / NAME, record_of(outcome, facts, audit, setup.collection))
    try:
        write_page([setup.folder], setup.folder / "report.html")
    except OSError:
        raise
    except Exception as error:
        logger.warning(
            "report.html could not be made (%s); biencoder report %s tries again", first_line(error), setup.folder
        )
