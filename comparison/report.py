"""What a comparison measured, as a table to read."""

from __future__ import annotations

from typing import Any

from .measure import PARTS, RUNS


def report(result: dict[str, Any]) -> str:
    """The measurements as a table to read."""

    def row(title: str, values: list[dict[str, float] | None], ratio: dict[str, float] | None = None) -> str:
        cells = ["–" if value is None else _seconds(value["median"]) for value in values]
        gain = f"{ratio['median']:.2f}× ({ratio['min']:.2f}–{ratio['max']:.2f})" if ratio else ""
        return f"{title:<16}{cells[0]:>12}{cells[1]:>12}   {gain}".rstrip()

    lines = [
        f"{'':<16}{'baseline':>12}{'DeepCache':>12}   speed-up, median (least–greatest of the pairs)",
        row("whole call", [result["seconds"][name] for name in RUNS], result["speed_up"]),
    ]
    for stage, its in result["stages"].items():
        sides = [its["seconds"][name] for name in RUNS]
        operations = its["operations"]
        rows = {"unet": "U-Net", "full_step": "  full step", "retrieve_step": "  retrieve step", **PARTS}
        lines += [stage] if len(result["stages"]) > 1 else []
        lines += [
            row(title, [side.get(part) for side in sides], its["speed_up"] if part == "unet" else None)
            for part, title in rows.items()
            if part in sides[0] or part in sides[1]
        ]
        lines += [
            f"Steps            {sides[1]['full_steps']} full, {sides[1]['retrieve_steps']} retrieve",
            f"Bound            {operations['bound']:.2f}× by operations; "
            f"the U-Net reached {operations['share_of_bound']:.0%} of it",
        ]
    unsafe, memory = result["unsafe_images"], result["peak_memory"]
    lines.append(f"Images           {_distances(result['distance'])}")
    if any(unsafe.values()):
        lines.append(f"Safety checker   blackened images: {unsafe}")
    lines.append("Peak memory      " + ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in memory.items()))
    return "\n".join(lines)


def _distances(apart: dict[str, Any]) -> str:
    if apart["median_psnr"] is None:
        return "equal to the baseline's, pixel for pixel"
    least = min(value for value in apart["psnr"] if value is not None)
    equal = f"{apart['equal_images']} equal, the others " if apart["equal_images"] else ""
    return (
        f"{equal}PSNR {apart['median_psnr']:.1f} dB (least {least:.1f}), "
        f"SSIM {apart['median_ssim']:.4f} (least {min(apart['ssim']):.4f}) to the baseline's"
    )


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"
