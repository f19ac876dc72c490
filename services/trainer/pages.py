"""Pages of HTML from templates."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

Filter = Callable[..., str]


def render_page(template: Path, values: Mapping[str, Any], filters: Mapping[str, Filter] | None = None) -> str:
    """Return the page that *template* makes of *values*.

    Args:
        template: In Jinja's language. Every value is escaped: names come from users.
        values: By the names that the template uses; one that is missing is an error.
        filters: What the template may pipe values through.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters or {}
    return environment.get_template(template.name).render(values)
