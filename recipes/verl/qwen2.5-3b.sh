#!/usr/bin/env bash
# Table 2, Qwen2.5-3B-Instruct: qwen2.5-3b.sh ARM [HYDRA_OVERRIDE ...]; see run.sh.
exec "$(dirname "$0")/run.sh" 3b "$@"
