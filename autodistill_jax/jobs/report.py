"""Job `report`: report.html, one file with its pictures, from what is in the workdir."""

from etils import epath


def run(experiment, workdir: epath.Path, stage: str = "report") -> None:
    pass
