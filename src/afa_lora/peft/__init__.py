"""Everything that touches PEFT. Importing this package puts the AFA tuner into PEFT's registry."""

from afa_lora.peft.model import register

register()
