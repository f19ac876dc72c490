"""Which run trained a model, also where another one has converted it since."""

import grpc

from services.common.channels import SIBLING_OPTIONS
from services.common.errors import NotFound, ServiceError
from services.trainer.data.tables import SnapshotRow
from services.trainer.jobs.served import find_stable
from services.trainer.jobs.sources import find_run
from services.trainer.options import ConversionOptions
from services.trainer.runs.folder import RunFolder
from services.trainer.sets import parse_snapshot
from services.trainer.settings import TrainerSettings
from services.trainer.storage.database import Database


def find_trained(source: str, settings: TrainerSettings) -> RunFolder:
    """Return the folder of the run whose weights the model *source* has; a conversion leaves none of its own.

    Args:
        source: As in `find_run`.
        settings: Where runs and inference are.

    Raises:
        ServiceError: As `find_run`.
        NotFound: *source* was converted from a run that is gone.
    """
    folder = find_run(source, settings)
    while isinstance(options := folder.request().options, ConversionOptions):
        try:
            folder = find_run(options.source, settings)
        except NotFound as error:
            raise NotFound(
                f"{source} was converted, and its weights are those of {options.source}, which is gone "
                f"({error.message}); bring that run back, or name a model that was trained here"
            ) from error
    return folder


def find_champion(dataset: str, settings: TrainerSettings) -> RunFolder | None:
    """Return the run of the version that serves the model of a snapshot: what learns from it is to replace that.

    Args:
        dataset: Of a run.
        settings: Where runs and inference are.

    Returns:
        The folder of the run; None where *dataset* is no snapshot, or that run is not known here and now.
    """
    digest = parse_snapshot(dataset)
    if digest is None:
        return None
    database = Database(settings.database.get_secret_value())
    try:
        with database.read() as session:
            row = session.get(SnapshotRow, digest)
        if row is None:
            return None
        with grpc.insecure_channel(settings.inference_address, options=SIBLING_OPTIONS) as channel:
            version = find_stable(channel, row.model)
        return find_run(f"{row.model}@{version}", settings)
    except (ServiceError, grpc.RpcError):  # the figures of the new model are worth having without the old one's
        return None
    finally:
        database.close()
