"""Run by torchrun on two ranks: a draft's training under DDP."""

import json
import sys
from pathlib import Path

import torch.distributed as dist

from afa_lora.eagle.recipe import parse_recipe
from afa_lora.eagle.run import run_eagle

run_eagle(parse_recipe(json.loads(Path(sys.argv[1]).read_text())))
dist.destroy_process_group()
