"""Try the promises of docs/reliability.md on this machine, on tiny settings.

python tools/faults.py starts --num 100     # fresh starts of every tool with loader workers
python tools/faults.py kills --num 60       # killed at random moments, then compared bit for bit
python tools/faults.py signals --num 60     # signalled to stop, resumed, compared
python tools/faults.py damage --num 200     # damaged copies of every kind of file
python tools/faults.py twins --num 10       # two starts of one name

Ends with code 1 when a try failed. One child runs at a time, two for twins.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from handmim.utils.entry import given_output, given_path

CAMPAIGNS = ("starts", "kills", "signals", "damage", "twins")


def main() -> None:
    """Run a campaign, print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("campaign", choices=CAMPAIGNS)
    parser.add_argument("--num", type=int, default=10, help="tries of each kind, %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of moments and damages, %(default)s")
    limit = "seconds after which a child counts as hung, %(default)s"
    parser.add_argument("--limit-s", type=float, default=120.0, help=limit)
    parser.add_argument("--num-workers", type=int, default=2, help="of every child, %(default)s")
    folder = "for data and runs, kept afterwards; without it a temporary one"
    parser.add_argument("--folder", type=given_path, help=folder)
    parser.add_argument("--json", type=given_output, help="file that takes one JSON line per try")
    given = parser.parse_args()
    if given.num < 1 or given.limit_s <= 0:
        parser.error(f"--num and --limit-s must be > 0, got {given.num} and {given.limit_s}")

    from faults.results import Result, print_results, write_results

    console, results = Console(), list[Result]()

    def report(result: Result) -> None:
        results.append(result)
        if given.json is not None:
            write_results(given.json, [result])
        if not result.is_fine:
            console.print(f"{result.kind}: {result.outcome}", markup=False)

    with tempfile.TemporaryDirectory(prefix="handmim-faults-") as temporary:
        _run(given, given.folder or Path(temporary), report)
    print_results(results, console)
    sys.exit(any(not result.is_fine for result in results))


def _run(given: argparse.Namespace, folder: Path, report) -> None:
    from faults import damage, interruptions, starts, twins
    from faults.workplace import Workplace

    work = Workplace(folder, given.limit_s, given.num_workers)
    if given.campaign == "starts":
        starts.starts(work, given.num, report)
    elif given.campaign == "kills":
        interruptions.kills(work, given.num, given.seed, report)
    elif given.campaign == "signals":
        interruptions.signals(work, given.num, given.seed, report)
    elif given.campaign == "damage":
        damage.damage(work, given.num, given.seed, report)
    else:
        twins.twins(work, given.num, report)


if __name__ == "__main__":
    main()
