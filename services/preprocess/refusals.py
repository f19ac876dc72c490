"""The words in which an image is refused."""

from services.common.errors import InvalidInput


def refusal(reason: str, message: str, **details: int) -> InvalidInput:
    """Return an error with *details* for programs."""
    return InvalidInput(message, reason=reason, details={key: str(value) for key, value in details.items()})


def unsupported(name: str, feature: str, advice: str = "save it again as PNG or JPEG") -> InvalidInput:
    """Return UNSUPPORTED_IMAGE: the file is known for what it is, but not read here."""
    return refusal("UNSUPPORTED_IMAGE", f"the image is {name}, and {feature} is not supported; {advice}")


def truncated(name: str, data: bytes) -> InvalidInput:
    """Return TRUNCATED_IMAGE."""
    return refusal("TRUNCATED_IMAGE", f"the {name} image ends early, after {len(data):,} bytes; send the whole file")
