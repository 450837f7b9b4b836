"""Keeps a trained feature network in git, so that every machine measures with the same weights.

    pipeline judge classifier     # copies data/networks/classifier to pipeline/judges/<data source>-<digits>/

After `git add pipeline/judges`, the stage `networks` takes these weights wherever the section of params.yaml and the
training split are the same, and trains in all other cases. No other number changes: the bits are the trained ones.
"""

from pipeline import artifacts, code, params, plugins
from pipeline.artifacts import ArtifactError
from pipeline.commands import make_parser
from pipeline.evidence import judges
from pipeline.history.record import describe_environment


def main(arguments: list[str]) -> int:
    """Copy one network and print its folder."""
    parser = make_parser("judge", __doc__)
    parser.add_argument("network", metavar="NETWORK", help="section of networks in params.yaml that was trained here")
    options = parser.parse_args(arguments)
    if (plugins.PACKAGE / "project").exists():  # which a repository has not
        msg = f"{plugins.PACKAGE}: installed, so git keeps nothing there; keep a judge in a clone of the repository"
        raise ArtifactError(msg)
    settings = params.load()
    name = options.network
    if name not in settings.networks:
        msg = f"no network {name}; params.yaml has {', '.join(settings.networks) or 'none'}"
        raise ArtifactError(msg)
    config = settings.networks[name]
    if not hasattr(config, "steps"):
        msg = f"networks.{name}: {config.network} is fetched and has the same weights everywhere; there is none to keep"
        raise ArtifactError(msg)
    network = artifacts.NETWORKS / name
    artifacts.verify(network)
    digest = artifacts.digest(artifacts.find_weights(network))
    made = {"code": code.digest("networks", name, settings), "environment": describe_environment()}
    folder = judges.keep(
        network, f"{settings.data[config.data].source}-{digest[:8]}", judges.describe_recipe(config), made
    )
    place = folder.relative_to(plugins.PACKAGE.parent)
    print(f"{place}: now `git add {place}`")
    return 0
