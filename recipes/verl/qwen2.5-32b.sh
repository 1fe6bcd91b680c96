#!/usr/bin/env bash
# Table 2, Qwen2.5-32B-Instruct: qwen2.5-32b.sh ARM [HYDRA_OVERRIDE ...]; see run.sh.
exec "$(dirname "$0")/run.sh" 32b "$@"
