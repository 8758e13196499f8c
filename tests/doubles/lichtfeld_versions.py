"""What five builds of LichtFeld Studio accept and say (trainers.md A1, A5, A6): data of the double."""

from __future__ import annotations

from dataclasses import dataclass

VERSIONS = ("oct", "0.3", "0.5.0", "0.5.2", "master")
ALL = frozenset(VERSIONS)
SINCE_3 = ALL - {"oct"}
SINCE_50 = SINCE_3 - {"0.3"}
SINCE_52 = SINCE_50 - {"0.5.0"}
MASTER = frozenset({"master"})
OLD = frozenset({"oct"})


@dataclass(frozen=True)
class Flag:
    """One long flag: the versions that know it, a short form, and whether it takes a value."""

    name: str
    versions: frozenset[str] = ALL
    value: bool = True
    short: str = ""


FLAGS = (
    Flag("help", value=False, short="h"),
    Flag("version", SINCE_50, value=False, short="V"),
    Flag("data-path", short="d"),
    Flag("output-path", short="o"),
    Flag("config"),
    Flag("iter", short="i"),
    Flag("headless", value=False),
    Flag("train", SINCE_3, value=False),
    Flag("max-cap"),
    Flag("strategy"),
    Flag("images"),
    Flag("resize_factor", short="r"),
    Flag("max-width"),
    Flag("test-every"),
    Flag("eval", value=False),
    Flag("save-eval-images", ALL - MASTER, value=False),
    Flag("no-save-eval-images", MASTER, value=False),
    Flag("steps-scaler"),
    Flag("sh-degree"),
    Flag("sh-degree-interval"),
    Flag("min-opacity"),
    Flag("random", value=False),
    Flag("init-num-pts"),
    Flag("init-extent"),
    Flag("init-ply", OLD),
    Flag("init", SINCE_3),
    Flag("resume", SINCE_3),
    Flag("bilateral-grid", value=False),
    Flag("gut", value=False),
    Flag("undistort", SINCE_50, value=False),
    Flag("antialiasing", OLD, value=False, short="a"),
    Flag("enable-mip", SINCE_50, value=False),
    Flag("render-mode", OLD),
    Flag("pose-opt", OLD),
    Flag("num-workers", OLD),
    Flag("bg-modulation", ALL - MASTER, value=False),
    Flag("bg-mode", MASTER),
    Flag("skip-intermediate", OLD, value=False),
    Flag("sog", OLD, value=False),
    Flag("tile-mode", SINCE_3 - MASTER),
    Flag("mask-mode", SINCE_3),
    Flag("log-level"),
    Flag("log-file"),
    Flag("log-filter", SINCE_3),
    Flag("no-splash", SINCE_3, value=False),
    Flag("no-interop", SINCE_3, value=False),
    Flag("use_cpu_cache", frozenset({"0.3", "0.5.0"}), value=False),
    Flag("no-cpu-cache", SINCE_52, value=False),
    Flag("no-fs-cache", SINCE_52, value=False),
    Flag("centralize", SINCE_52),
    Flag("output-name", SINCE_52),
    Flag("quiet", SINCE_52, value=False, short="q"),
    Flag("export", MASTER),
    Flag("gpu-perf-bench", MASTER, value=False),
)
STRATEGIES = {
    "oct": ("mcmc", "default"),
    "0.3": ("mcmc", "adc"),
    "0.5.0": ("mcmc", "adc", "igs+"),
    "0.5.2": ("mcmc", "mrnf", "igs+"),
    "master": ("mcmc", "mrnf", "igs+"),
}
REQUIRED_KEYS = (
    *("iterations", "means_lr", "shs_lr", "opacity_lr", "scaling_lr", "rotation_lr", "lambda_dssim", "min_opacity"),
    *("refine_every", "start_refine", "stop_refine", "grad_threshold", "sh_degree"),
)
KNOWN_KEYS = frozenset(
    [*REQUIRED_KEYS, "opacity_reg", "scale_reg", "init_opacity", "init_scaling", "max_cap", "render_mode", "strategy"]
    + ["pose_optimization", "eval_steps", "save_steps", "enable_eval", "enable_save_eval_images", "sh_degree_interval"]
)
VERSION_TEXT = {
    "0.5.0": "LichtFeld Studio v0.5.0 (1f3a9c2b)",
    "0.5.2": "LichtFeld Studio v0.5.2-128-gc4eb3dea (c4eb3dea)",
    "master": "LichtFeld Studio v0.5.3-911-g73260a83 (73260a83)",
}
SUCCESS_LINE = {"oct": "Headless training completed successfully", "0.3": "Headless training completed successfully"}
FAILURE_STATUS = {"oct": 255, "0.3": 255}  # 1 since v0.4


def known(version: str) -> dict[str, Flag]:
    """The flags of a version, by long name."""
    return {flag.name: flag for flag in FLAGS if version in flag.versions}


def help_text(version: str) -> str:
    """Laid out as the args library does; descriptions mention flags of other versions, as the real ones do."""
    lines = ["  LichtFeld-Studio {OPTIONS}", "", "    LichtFeld Studio: native 3D Gaussian splatting", ""]
    lines += ["  OPTIONS:", ""]
    for flag in known(version).values():
        argument = f"[{flag.name.replace('-', '_')}]" if flag.value else ""
        short = f"-{flag.short}{argument}, " if flag.short else ""
        column = f"{short}--{flag.name}" + (f"={argument}" if argument else "")
        text = "Describes itself (not the same as --pose-opt or --export)"
        if len(column) > 30:
            lines += [f"      {column}", " " * 40 + text]
        else:
            lines.append(f"      {column:<34}{text}")
    return "\n".join(lines) + "\n"
