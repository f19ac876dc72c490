"""Kinds of the figures that are measured of a model's traffic; an analyst writes them, and the loop reads them."""

SOFTMAX_SHIFT = "softmax_shift"
EMBEDDING_SHIFT = "embedding_shift"
LABEL_SHIFT = "label_shift"
SHIFTS = (SOFTMAX_SHIFT, EMBEDDING_SHIFT, LABEL_SHIFT)
ERROR_DRIFT = "error_drift"
QUALITY = "quality"
"""What kind of pictures came in."""
SCREENING = "screening"
HOLDOUT = "holdout"
"""Kind of the figures that say what a hold-out is: `set` and `digest` in the window; labels of its contents, and the
order in which they count, which follows from the contents and the model's salt alone."""
