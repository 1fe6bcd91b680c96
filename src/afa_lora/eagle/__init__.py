"""EAGLE-1 speculative decoding: a draft that is trained with AFA-LoRA, decodes losslessly, and is served elsewhere."""
