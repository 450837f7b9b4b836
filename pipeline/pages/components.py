"""Templates of the pages: components.html draws what components.css and components.js bring to life."""

from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from pipeline import plugins

HERE = Path(__file__).parent


def make_environment(address: Callable[[str], str]) -> Environment:
    """Return the templates of stages/ and pages/.

    address: returns the link to a run by its name.
    """
    environment = Environment(
        loader=FileSystemLoader([HERE, plugins.PACKAGE / "stages"]),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["address"] = address
    environment.globals["style"] = Markup((HERE / "components.css").read_text(encoding="utf-8"))  # noqa: S704 - our own
    environment.globals["script"] = Markup((HERE / "components.js").read_text(encoding="utf-8"))  # noqa: S704
    return environment
