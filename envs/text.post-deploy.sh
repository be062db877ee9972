#!/usr/bin/env bash
# DiffusionKit pins mlx 0.17.3 and lists torch: what it really needs is in the environment already.
set -euo pipefail
python -m pip install --no-deps diffusionkit==0.5.2
