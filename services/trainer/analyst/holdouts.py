"""Makes known in rows what versions are measured on: without it, their answers to the hold-out could not be read."""

import hashlib

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from services.trainer.analyst.basis import Basis
from services.trainer.analyst.figures import add_figure
from services.trainer.data.collection import digest_contents
from services.trainer.feedback.tables import LoopModelRow
from services.trainer.loop.kinds import HOLDOUT
from services.trainer.loop.tables import FigureRow


def publish_holdout(session: Session, model: str, basis: Basis) -> None:
    """Keep the labels of the hold-out, and the order in which its samples count, where they are not there yet.

    The order is that of keyed digests of the contents: nobody who does not know the model's salt can foretell it.
    """
    window = {"set": basis.name, "digest": basis.holdout_digest}
    known = select(FigureRow.window).where(FigureRow.model == model, FigureRow.kind == HOLDOUT)
    if window in list(session.scalars(known)):
        return
    salt = session.get_one(LoopModelRow, model).salt.encode()
    contents = digest_contents(basis.test.images, np.arange(len(basis.test)))
    keys = [hashlib.blake2b(each.astype("<u8").tobytes(), digest_size=8, key=salt).digest() for each in contents]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    add_figure(session, model, HOLDOUT, window, {"labels": basis.test.labels.tolist(), "order": order})
