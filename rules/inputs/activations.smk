"""Measured images and plots of the activation track."""

MEASURED_IMAGES = IMAGES[: config["activations"]["num_images"]]
# What each plot needs beside the statistics.
PLOT_CONFIGS = {
    "absmax": [],
    "drift": [],
    "heatmap": [],
    "tiers": ["quant_config_multitier"],
    "distributions": ["quant_config"],
}
PLOTS = [
    plot
    for plot in PLOT_CONFIGS
    if plot != "distributions" or config["activations"]["plots"]["distributions"]
]


def plot_configs(wildcards):
    return [
        f"{RESULTS}/activations/{name}.json" for name in PLOT_CONFIGS[wildcards.plot]
    ]
