"""Run simulations: `python -m tests.simulation --seeds 1000`; tell one: `--first 17 --seeds 1 --say`."""

import argparse
import os
import sys
import time


def main() -> int:
    """Run what the arguments say; 1 if a seed has failed."""
    arguments = _arguments()
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of text have an order of their own in every process, else
        again = [sys.executable, "-m", "tests.simulation", *sys.argv[1:]]
        os.execve(sys.executable, again, {**os.environ, "PYTHONHASHSEED": "0"})
    if arguments.mutant:
        from tests.simulation.mutants import install

        install(arguments.mutant)
    from tests.simulation import runner  # after the mutant

    seeds = list(range(arguments.first, arguments.first + arguments.seeds))
    if arguments.say:
        return _say(seeds)
    if arguments.corpus:
        known = runner.corpus()
        seeds = known + [seed for seed in seeds if seed not in known]
    began, results, failed = time.monotonic(), [], []
    for result in runner.run_seeds(seeds, arguments.processes):
        results.append(result)
        if arguments.trace:
            print(f"trace of {result.seed}: {result.trace}")
        if result.violations:
            failed.append(result)
            _tell(result, arguments.mutant)
            if result.trace and not arguments.mutant:
                runner.keep(result.seed, result.violations[0].partition(" s: ")[2])
            if arguments.until_caught:
                break
        if time.monotonic() - began > arguments.seconds:
            break
    seconds = time.monotonic() - began
    counts = runner.total(results)
    hours = counts.pop("virtual milliseconds", 0) / 3_600_000
    print(f"{len(results)} seeds, {len(failed)} failed, {hours:.1f} virtual hours in {seconds:.1f} s")
    if not arguments.until_caught:
        for what, number in sorted(counts.items()):
            print(f"  {number:10} {what}")
    return bool(failed)


def _say(seeds: list[int]) -> int:
    from tests.simulation.runner import run_here

    for seed in seeds:
        result, told = run_here(seed, says=True)
        print(*told, sep="\n")
        print(f"seed {seed}: trace {result.trace}, {result.violations or 'nothing is wrong'}")
    sys.stdout.flush()
    os._exit(0)  # what dead processes left is not to be finalised


def _tell(result: tuple[int, list[str], int, dict[str, int]], mutant: str | None) -> None:
    seed, violations, *_ = result
    with_mutant = f" --mutant {mutant}" if mutant else ""
    print(f"seed {seed} failed: python -m tests.simulation --first {seed} --seeds 1 --say{with_mutant}")
    for violation in violations[:3]:
        print(f"  {violation[:2000]}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1000, help="how many of them")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 2, help="how many at once")
    parser.add_argument("--corpus", action="store_true", help="first those that once failed")
    parser.add_argument("--say", action="store_true", help="tell all that happens")
    parser.add_argument("--trace", action="store_true", help="print what each seed's steps come to")
    parser.add_argument("--until-caught", action="store_true", help="stop at the first that fails")
    parser.add_argument("--mutant", help="break the library in this way first")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
