"""How many small mistakes in the code the tests find:  python -m benchmarks.mutants [--count 300] [--seed 0].

mutmut changes one thing at a time (an operator, a constant, an argument ...) in the files that pyproject.toml
names under [tool.mutmut], and runs the tests that reach it.  A seeded sample of all mutants is run, survivors
are printed as differences, and mutants/ keeps everything.  Exit code 1 if fewer than 95 % are killed.
"""

import argparse
import random
import re
import subprocess
import sys
from pathlib import Path

LEAST = 0.95
KILLED = ("killed", "timeout", "segfault", "suspicious")
NO_MUTANT = "none.of.them"  # a name that lets mutmut write all mutants, and run none


def mutmut(*arguments):
    """mutmut's output, without its moving bars."""
    words = [sys.executable, "-m", "mutmut", *arguments]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return re.sub(r"(?m)^[\u2800-\u28ff].*\n", "", done.stdout)


def names():
    """Every mutant that mutmut has written, in order."""
    found = []
    for path in sorted(Path("mutants/nrf").rglob("*.py")):
        module = ".".join(path.relative_to("mutants").with_suffix("").parts)
        found += [
            f"{module}.{name}" for name in re.findall(r"^ *def (\S+__mutmut_\d+)\(", path.read_text(), re.M)
        ]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300, help="mutants to run")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    args = parser.parse_args()
    written = mutmut("run", "--max-children", "1", NO_MUTANT)
    everything = names()
    if not everything:
        sys.exit(written)
    sample = random.Random(args.seed).sample(everything, min(args.count, len(everything)))
    print(f"{len(sample)} of {len(everything)} mutants, seed {args.seed}", flush=True)
    ran = mutmut("run", "--max-children", "1", *sample)
    states = dict(re.findall(r"^\s*(\S+__mutmut_\d+): (.+)$", mutmut("results", "--all", "true"), re.M))
    if not any(states.get(name) in KILLED for name in sample):
        sys.exit(ran)
    alive = [name for name in sample if states.get(name) not in KILLED]
    for name in sorted(alive):
        print(f"--- {name}: {states.get(name)}", mutmut("show", name), sep="\n")
    share = 1 - len(alive) / len(sample)
    print(f"{len(sample) - len(alive)} of {len(sample)} mutants killed ({share:.1%})")
    return int(share < LEAST)


if __name__ == "__main__":
    sys.exit(main())
