"""Peak memory of a certification with n = 100,000 over one with n = 1,000, each in a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys


def peak(n: int) -> int:
    """Peak resident memory of certifying one digit with n draws."""
    import diffproof as dp

    defense = dp.DDS(dp.load_denoiser("digits"), dp.load_classifier("digits"))
    dp.Smoothed(defense, 0.5).certify(dp.load_data("digits").images[0], n=n)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Print the ratio."""
    if len(sys.argv) == 2:
        print(peak(int(sys.argv[1])))
        return
    few, many = (
        int(subprocess.run([sys.executable, __file__, n], capture_output=True, check=True, text=True).stdout)
        for n in ("1000", "100000")
    )
    print(f"peak memory, n = 100,000 over n = 1,000: {many / few:.3f}")


if __name__ == "__main__":
    main()
