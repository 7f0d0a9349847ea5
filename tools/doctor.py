"""Check environment, hand model and datasets, and say how to mend what is wrong.

python tools/doctor.py                                              # this machine and the stand-in
python tools/doctor.py hand=mano hand.path=MANO_RIGHT.pkl freihand=FreiHAND_pub_v2
python tools/doctor.py hand=mano hand.path=MANO_RIGHT.pkl ho3d_v2=HO3D_v2 ho3d_v3=HO3D_v3
python tools/doctor.py keypoints.root=DIR keypoints.annotations=FILE.json crops=DIR
python tools/doctor.py freihand=DIR full=true                        # decodes every image

Nothing is written unless report=FILE.json. The exit status is 1 when there is an error.
"""

from omegaconf import DictConfig
from rich.console import Console

from handmim.pipelines.preflight import preflight
from handmim.utils.config import resolved
from handmim.utils.entry import tool

SETTINGS = ("freihand", "ho3d_v2", "ho3d_v3", "keypoints", "crops", "full")


@tool("doctor")
def main(cfg: DictConfig) -> int:
    """Examine, print, and perhaps write."""
    plain = resolved(cfg)
    preflight(cfg, names=("report",))
    from handmim.doctor.examination import examine
    from handmim.doctor.report import findings_table, totals, write_findings

    console = Console()
    # A pipe is not a narrow terminal.
    console = console if console.is_terminal else Console(width=120)
    chosen = {key: plain[key] for key in SETTINGS}
    sections = {}
    for title, findings in examine(
        plain["hand"], plain["paths"]["data_dir"], plain["num_checked"], **chosen
    ):
        sections[title] = findings
        console.print(findings_table(title, findings))
    counts = totals([finding for findings in sections.values() for finding in findings])
    console.print(f"{counts['error']} errors, {counts['warning']} warnings, {counts['ok']} ok")
    if plain["report"] is not None:
        write_findings(plain["report"], sections)
    return 1 if counts["error"] else 0


if __name__ == "__main__":
    main()
