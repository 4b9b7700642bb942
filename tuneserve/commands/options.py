"""What several commands share."""

from pathlib import Path

import click

CheckpointPath = click.Path(path_type=Path, file_okay=False)
FilePath = click.Path(path_type=Path, dir_okay=False)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an existing output.")
