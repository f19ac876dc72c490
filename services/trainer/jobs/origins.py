"""Which run trained a model, also where another one has converted it since."""

from services.common.errors import NotFound
from services.trainer.jobs.sources import find_run
from services.trainer.options import ConversionOptions
from services.trainer.runs.folder import RunFolder
from services.trainer.settings import TrainerSettings


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
