"""`aimass demo`: a suite with a weak model, users who correct it, and nobody else; it ends with a better model."""
