"""What was measured, as text."""

from __future__ import annotations

from typing import Any

from .measure import RUNS


def report(plan: dict[str, Any], result: dict[str, Any], *, emulated: bool) -> str:
    """The parts, both ways' seconds, the distance of the pictures, the bytes that were sent.

    Processor time is what other users of a busy machine hardly lengthen. An emulation runs the parts in turn, so its
    seconds say nothing, and are left out.
    """
    total = sum(part["macs"] for part in plan["parts"])
    lines = [
        f"Part {k:<11} {' … '.join(part['layers'])}, {part['macs'] / total:.1%} of the MACs"
        for k, part in enumerate(plan["parts"])
    ]
    if not emulated:
        lines.append(f"{'':<16}{'baseline':>12}{'AsyncDiff':>12}   speed-up, median (least–greatest of the pairs)")
        for name, title in (("end_to_end", "end-to-end"), ("unet", "U-Net")):
            seconds = [result["seconds"][run][name]["median"] for run in RUNS]
            ratio = result["speed_up"][name]
            lines.append(
                f"{title:<16}{seconds[0]:>10.2f} s{seconds[1]:>10.2f} s   "
                f"{ratio['median']:.2f}× ({ratio['min']:.2f}–{ratio['max']:.2f})"
            )
        busy = result["processor_seconds"]
        lines.append(
            f"{'processor time':<16}{busy['baseline']:>10.2f} s{max(busy['asyncdiff']):>10.2f} s   "
            f"{busy['baseline'] / max(busy['asyncdiff']):.2f}×, of the busiest process"
        )
    found = result["distance"]
    pictures = "equal to the baseline's, pixel for pixel"
    if found["median_psnr"] is not None:
        least = min(value for value in found["psnr"] if value is not None)
        pictures = (
            f"PSNR {found['median_psnr']:.1f} dB (least {least:.1f}), "
            f"SSIM {found['median_ssim']:.4f} (least {min(found['ssim']):.4f}) to the baseline's"
        )
    lines += [
        f"Expected         at most {plan['bound']:.2f}× of the U-Net, from the parts' MACs",
        f"Images           {pictures}",
        f"Sent             {sum(result['bytes_sent']) / 2**20:.1f} MiB a run, by all processes together",
    ]
    return "\n".join(lines)
