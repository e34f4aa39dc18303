"""All proofs, one after the other; ``make soak``.

    python -m reliability [--kills 200] [--requests 20000] [--crowd-minutes 3] [--hostile-minutes 5] [--minutes 30]
                          [--json OUT] [--update docs/reliability.md]

Returns 0 when every claim holds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from reliability import crowd, fuzz, hostile_day, kills, soak
from reliability.command import Proof, add_output_options, proved


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 when every claim of every proof holds."""
    parser = argparse.ArgumentParser(prog="python -m reliability", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--kills", type=int, default=kills.Plan().kills, help="kill -9 at random moments (%(default)s)")
    add("--requests", type=int, default=fuzz.Plan().requests, help="that no client should send (%(default)s)")
    add("--crowd-minutes", type=float, default=crowd.Plan().minutes, help="of several processes (%(default)g)")
    add("--hostile-minutes", type=float, default=hostile_day.Plan().minutes, help="of a bad day (%(default)g)")
    add("--minutes", type=float, default=soak.Plan().minutes, help="of steady load (%(default)g)")
    add("--seed", type=int, default=0, help="draws calls, moments and requests (%(default)s)")
    add_output_options(parser)
    arguments = parser.parse_args(argv)
    seed = arguments.seed
    kill_plan = kills.Plan(kills=arguments.kills, seed=seed)
    fuzz_plan = fuzz.Plan(requests=arguments.requests, seed=seed)
    crowd_plan = crowd.Plan(minutes=arguments.crowd_minutes, seed=seed)
    day_plan = hostile_day.Plan(minutes=arguments.hostile_minutes, seed=seed)
    soak_plan = soak.Plan(minutes=arguments.minutes)
    proofs: list[tuple[str, int, Proof]] = [
        ("kills", kill_plan.kills, lambda folder, step: kills.run(kill_plan, folder, step=step)),
        ("fuzz", fuzz_plan.requests, lambda folder, step: fuzz.run(fuzz_plan, folder, step=step)),
        ("crowd", int(crowd_plan.seconds), lambda folder, step: crowd.run(crowd_plan, folder, step=step)),
        ("hostile_day", int(day_plan.seconds), lambda folder, step: hostile_day.run(day_plan, folder, step=step)),
        ("soak", soak.n_steps(soak_plan), lambda folder, step: soak.run(soak_plan, folder, step=step)),
    ]
    return proved(proofs, arguments)


if __name__ == "__main__":
    sys.exit(main())
