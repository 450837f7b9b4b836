"""Stage fetch: brings the raw files of one data set to data/raw/<data>.

python -m pipeline.stages.fetch images
"""

import shutil

from pipeline import artifacts, params, plugins
from pipeline.stages import run_stage


def main(key: str) -> None:
    """Fetch the section data.<key>."""
    config = params.load_data(key)
    folder = artifacts.RAW / key
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    plugins.load("data", config.model_dump()["source"]).fetch(folder, config)
    artifacts.seal(folder)


if __name__ == "__main__":
    run_stage(main)
