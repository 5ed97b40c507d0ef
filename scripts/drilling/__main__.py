"""`scripts/fault_drill`: kills, resumes, compares, and shows a table.

Rounds are kept in DIR/rounds.jsonl as they end; the same call goes on where it was stopped. With
`--docs` the table is put into docs/reliability.md as well.

Exit codes: 0 nothing was lost, doubled or different, 1 something was, 2 bad arguments.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import asdict
from pathlib import Path

from drilling.report import build_table, is_clean, replace_table
from drilling.rounds import ALGORITHMS, Round, play_round, run_undisturbed

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs/reliability.md"


def main() -> int:
    """Drill until there are enough kills; the process's exit code."""
    call = parse()
    folder = Path(call.out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "rounds.jsonl"
    rounds = [Round(**json.loads(line)) for line in _read_lines(kept)]
    undisturbed_s = {name: run_undisturbed(name, folder) for name in call.only}
    while sum(len(one.kills) for one in rounds) < call.kills:
        number = len(rounds)
        algorithm = call.only[number % len(call.only)]
        # A text, so that every round has its own course whatever was played before.
        chance = random.Random(f"{call.seed} {number}")
        # A machine that was busy at first would have all kills come too late.
        unkilled_s = [one.wall_s for one in rounds if one.algorithm == algorithm and not one.kills]
        least_s = min([undisturbed_s[algorithm], *unkilled_s])
        played = play_round(algorithm, number, folder=folder, chance=chance, undisturbed_s=least_s)
        rounds.append(played)
        with kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(played)) + "\n")
        print(f"round {number}, {algorithm}: {played.describe()}", flush=True)
    table = build_table(rounds)
    print(f"\n{table}")
    if call.docs:
        DOCUMENT.write_text(replace_table(DOCUMENT.read_text(encoding="utf-8"), table), "utf-8")
    return 0 if all(is_clean(one) for one in rounds) else 1


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(prog="scripts/fault_drill", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="at least so many (100)")
    parser.add_argument("--seed", type=int, default=0, help="of the times and kinds of kills (0)")
    parser.add_argument("--out", metavar="DIR", default="runs/drill", help="(runs/drill)")
    parser.add_argument("--only", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--docs", action="store_true", help="rewrite the table in the docs")
    return parser.parse_args()


def _read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
