"""Stage fetch: brings the raw files of one data set to data/raw/<data>.

python -m pipeline.stages fetch images
"""

import shutil

from pipeline import artifacts, params, plugins


def main(key: str) -> None:
    """Fetch the section data.<key>."""
    config = params.load_data(key)
    folder = artifacts.RAW / key
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    plugins.load("data", config.source).fetch(folder, config)
    artifacts.seal(folder)
