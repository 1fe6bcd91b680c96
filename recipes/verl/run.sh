#!/usr/bin/env bash
# Train one arm of Table 2 (GSM8K, GRPO) on verl: run.sh SIZE ARM [HYDRA_OVERRIDE ...]
#   SIZE  3b, 7b, 14b, 32b          ARM  full, lora, or a placement: s-A-B, A-s-B, A-B-s, s-A-s-B, A-s-B-s, s-A-B-s, s-A-s-B-s
#   GSM8K=FOLDER  where train.parquet and test.parquet of verl's GSM8K preprocessing are (~/data/gsm8k)
# --print among the arguments prints the command instead. The values are in afa_lora/grpo/verl_recipe.py.
set -euo pipefail
exec "${PYTHON:-python3}" -m afa_lora.grpo.verl_recipe "$@"
