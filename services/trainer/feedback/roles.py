"""What a content may be used for: to learn from, or to judge by. Its digest decides, so that it never changes."""

import hashlib

from services.trainer.data.observing import Role

_BYTES = 8


def role_of(pixel_digest: str, salt: str, judge_share: float) -> Role:
    """Return the role of a content.

    Args:
        pixel_digest: Of its upright pixels: whatever file they come in, and however often, the role is the same.
        salt: Of the model. Who does not know it cannot make pictures of one role.
        judge_share: Of all contents, 0 to 1, that are to judge by.
    """
    drawn = hashlib.blake2b(pixel_digest.encode(), digest_size=_BYTES, key=salt.encode()).digest()
    return Role.JUDGE if int.from_bytes(drawn) < judge_share * 2 ** (8 * _BYTES) else Role.TRAIN
