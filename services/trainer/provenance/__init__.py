"""Where a model's knowledge comes from, and how it is taken back: traces, lineages and deletions."""
