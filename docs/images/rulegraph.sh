#!/bin/sh
# Draws the rule graph anew: sh docs/images/rulegraph.sh    (needs graphviz)
#
# rulegraph.dot is what Snakemake says; a test compares it with the rules. rulegraph.svg shows it
# without the arrows that follow from others, coloured by track.
set -eu

cd "$(dirname "$0")"
PATH=$(cd ../.. && pwd)/.venv/bin:$PATH
snakemake --snakefile ../../Snakefile --directory ../.. --rulegraph >rulegraph.partial
mv rulegraph.partial rulegraph.dot

weights='cache_block_io|optimize_block|assemble_weights|plot_history|export_ranges'
activations='collect_activations|merge_statistics|measure_sensitivity|analyze_activations|(visualize|animate)_activations'
sed -E -e 's/, color = "[^"]*", style="rounded"//' \
    -e "s/(label = \"($weights)\")/\1, fillcolor=\"#dfe9f7\", color=\"#4a6fa5\"/" \
    -e "s/(label = \"($activations)\")/\1, fillcolor=\"#fbeed5\", color=\"#b3812f\"/" rulegraph.dot |
    tred |
    dot -Tsvg -Gnodesep=0.3 -Granksep=0.35 -Nstyle=rounded,filled -Nfillcolor='#eff1f0' \
        -Ncolor='#6a7370' -Nfontcolor='#1c1c1e' -Nfontname=Helvetica,sans-serif -Nfontsize=11 \
        -Npenwidth=1 -Nheight=0.32 -Nmargin=0.14,0.04 -Epenwidth=1 -Ecolor='#8a9390' \
        -Earrowsize=0.6 >rulegraph.partial
mv rulegraph.partial rulegraph.svg
