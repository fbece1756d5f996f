"""The measurements of a comparison as text."""

from __future__ import annotations

from .measure import PARTS, RUNS, Comparison, Distances


def report(result: Comparison) -> str:
    """The measurements as a table for the terminal."""

    def row(title: str, values: list[dict[str, float] | None], ratio: dict[str, float] | None = None) -> str:
        cells = ["–" if value is None else _seconds(value["median"]) for value in values]
        speed_up = f"{ratio['median']:.2f}× ({ratio['min']:.2f}–{ratio['max']:.2f})" if ratio else ""
        return f"{title:<16}{cells[0]:>12}{cells[1]:>12}   {speed_up}".rstrip()

    lines = [
        f"{'':<16}{'baseline':>12}{'DeepCache':>12}   speed-up, median (least–greatest of the pairs)",
        row("end-to-end", [result["seconds"][name] for name in RUNS], result["speed_up"]),
    ]
    for name, stage in result["stages"].items():
        sides = [stage["seconds"][run] for run in RUNS]
        macs = stage["operations"]
        rows = {"unet": "U-Net", "full_step": "  full step", "retrieve_step": "  retrieve step", **PARTS}
        lines += [name] if len(result["stages"]) > 1 else []
        lines += [
            row(title, [side.get(part) for side in sides], stage["speed_up"] if part == "unet" else None)
            for part, title in rows.items()
            if part in sides[0] or part in sides[1]
        ]
        full, retrieve = sides[1]["full_steps"], sides[1]["retrieve_steps"]
        skipped = sides[0]["full_steps"] - full - retrieve  # the baseline calls its U-Net at every step
        lines += [
            f"Steps            {full} full, {retrieve} retrieve" + f", {skipped} skipped" * (skipped > 0),
            f"Expected         {macs['bound']:.2f}× from MACs; measured: {macs['share_of_bound']:.0%} of that",
        ]
    unsafe, memory = result["unsafe_images"], result["peak_memory"]
    lines.append(f"Images           {_distances(result['distance'])}")
    if any(unsafe.values()):
        lines.append(f"Safety checker   blackened images: {unsafe}")
    lines.append("Peak memory      " + ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in memory.items()))
    return "\n".join(lines)


def _distances(found: Distances) -> str:
    if found["median_psnr"] is None:
        return "equal to the baseline's, pixel for pixel"
    least = min(value for value in found["psnr"] if value is not None)
    equal = f"{found['equal_images']} equal, the others " if found["equal_images"] else ""
    return (
        f"{equal}PSNR {found['median_psnr']:.1f} dB (least {least:.1f}), "
        f"SSIM {found['median_ssim']:.4f} (least {min(found['ssim']):.4f}) to the baseline's"
    )


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"
